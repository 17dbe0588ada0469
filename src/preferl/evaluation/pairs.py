"""Pairs of preferl's own (``world/pairs.jsonl``) that every audit scores."""

from preferl.data.own_pairs import own_pairs

DEMONSTRATION_PAIRS = own_pairs("demonstration")
UNSEEN_PAIRS = own_pairs("unseen")
ANALYSIS_PAIRS = own_pairs("analysis")
