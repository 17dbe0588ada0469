"""How much a text repeats itself, and how various many are."""

from collections.abc import Sequence


def repetition(text: str, n: int = 3) -> float:
    """Share of a text's word n-grams that occurred in it before: 0 for a text that never repeats itself.

    Raises:
        ValueError: ``n`` is below 1.
    """
    grams = _grams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams of all texts / all their n-grams (Li et al. 2016); 0 where there are none.

    Raises:
        ValueError: ``n`` is below 1.
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"n is {n}; an n-gram has at least 1 word")
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
