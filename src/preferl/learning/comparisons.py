"""A reward model from comparisons: rankings of two to nine responses, of which a pair is the smallest.

All of a comparison's responses go through one forward pass, each once, and a loss of ``LOSSES`` reads their
scores: Bradley-Terry -log sigma(r(x, chosen) - r(x, rejected)) (Bradley & Terry 1952; Stiennon et al. 2020,
eq. 1) or a relative (``maths.preference``).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from preferl.data.records import Comparison, DataError, Pair, prompt_key
from preferl.data.sources import Source
from preferl.data.tokens import Extent
from preferl.evaluation.scored import accuracy_of, scores_of
from preferl.judging.scorers import ShardedScorer
from preferl.learning.fit import Fitted, Objective, Sums, fit, plan_batches
from preferl.maths import preference
from preferl.models.packing import can_pack, flat_scores
from preferl.models.reward import RewardModel, lora_dropout
from preferl.options.learning import ComparisonOptions
from preferl.runs import devices
from preferl.runs.checkpoint import Checkpoint
from preferl.runs.stage import Stage


@dataclass(frozen=True)
class Encoded:
    """A comparison as token ids, best response first. ``ranks`` and ``scores`` as in ``Comparison``."""

    rows: list[list[int]]
    ranks: list[int]
    scores: list[float] | None

    @property
    def extent(self) -> Extent:
        """What it is in a pass."""
        return Extent((max(map(len, self.rows)),), len(self.rows))

    @property
    def differs(self) -> bool:
        """Whether there is anything to learn: responses of unlike rank that are unlike, or a tie."""
        return len(set(self.ranks)) == 1 or any(row != self.rows[0] for row in self.rows)


@dataclass(frozen=True)
class Scored:
    """Scores of a batch of comparisons, padded: what a loss reads. G comparisons of at most K responses."""

    score_GK: torch.Tensor
    mask_GK: torch.Tensor
    rank_GK: torch.Tensor
    margin_GKK: torch.Tensor


@dataclass(frozen=True)
class Loss:
    """A row of the table: ``per_comparison`` gives ``loss_G``; ``whole`` keeps rankings together, ``ties``
    learns from comparisons in which nothing is better than anything."""

    per_comparison: Callable[[Scored, ComparisonOptions], torch.Tensor]
    whole: bool = True
    ties: bool = False


def pairwise(scored: Scored, config: ComparisonOptions) -> torch.Tensor:
    return preference.balanced_pairwise_loss(
        scored.score_GK, scored.mask_GK, scored.rank_GK, label_smoothing=config.label_smoothing
    )


def with_margins(scored: Scored, config: ComparisonOptions) -> torch.Tensor:
    margin_GKK = config.margin_scale * scored.margin_GKK
    return preference.balanced_pairwise_loss(
        scored.score_GK, scored.mask_GK, scored.rank_GK, margin_GKK, config.label_smoothing
    )


def plackett_luce(scored: Scored, config: ComparisonOptions) -> torch.Tensor:
    return preference.plackett_luce_loss(scored.score_GK, scored.mask_GK)


def rao_kupper(scored: Scored, config: ComparisonOptions) -> torch.Tensor:
    return preference.rao_kupper_ranking_loss(
        scored.score_GK, scored.mask_GK, scored.rank_GK, config.tie_margin
    )


LOSSES = {
    "bradley_terry": Loss(pairwise, whole=False),
    "balanced": Loss(pairwise),
    "margin": Loss(with_margins),
    "plackett_luce": Loss(plackett_luce),
    "rao_kupper": Loss(rao_kupper, ties=True),
}


def comparisons_for(config: ComparisonOptions, source: Source) -> tuple[str, list[Comparison], list[str]]:
    """The loss to use, the training comparisons in the shape that it takes, and notes on what was left out.

    Raises:
        DataError: nothing is left, or the loss needs margins and there are none.
    """
    notes = []
    rankings = source.need("comparisons", "train")
    if config.member_share < 1:
        rng = random.Random(devices.derived_seed(config.seed, "reward", "member"))
        place = {prompt_key(r.prompt): rng.random() for r in rankings}
        share = max(config.member_share, min(place.values()))  # of few prompts one is left at least
        rankings = [r for r in rankings if place[prompt_key(r.prompt)] <= share]
    if config.max_train_comparisons is not None and len(rankings) > config.max_train_comparisons:
        # A larger number holds the comparisons of a smaller one.
        order = random.Random(devices.derived_seed(config.seed, "reward", "subset"))
        rankings = order.sample(rankings, len(rankings))[: config.max_train_comparisons]
    largest = max(map(len, (r.responses for r in rankings)), default=0)
    loss = config.loss if config.loss != "auto" else "balanced" if largest > 2 else "bradley_terry"
    row = LOSSES[loss]
    if not row.ties:
        tied = sum(len(set(r.ranks)) == 1 for r in rankings)
        rankings = [r for r in rankings if len(set(r.ranks)) > 1]
        if tied:
            notes.append(
                f"left out {tied} comparisons: all responses tie (--loss rao_kupper learns from ties)"
            )
    if not row.whole and largest > 2:
        rankings = [pair.comparison() for ranking in rankings for pair in ranking.pairs()]
    if loss == "plackett_luce":
        broken = sum(len(set(r.ranks)) < len(r.ranks) for r in rankings)
        if broken:
            notes.append(
                f"{broken} rankings have ties; Plackett-Luce knows none: tied responses in random order"
            )
    has_margins = any(r.scores is not None for r in rankings)
    if loss == "margin" and not has_margins:
        raise DataError(
            f"'{config.dataset_name}' has no margin, strength or scores; "
            f"use --loss bradley_terry, or give such a column"
        )
    if has_margins and loss != "margin":
        notes.append(f"the comparisons have margins that loss {loss} does not use (--loss margin does)")
    if not rankings:
        raise DataError(f"'{config.dataset_name}' has no comparison that loss {loss} can learn from")
    return loss, rankings, notes


def optimise(
    scorer: RewardModel,
    loss_name: str,
    comparisons: Sequence[Comparison],
    dev_pairs: Sequence[Pair],
    config: ComparisonOptions,
    stage: Stage,
    saved: Checkpoint | None = None,
) -> tuple[Fitted, int]:
    """Trains in place and leaves the (averaged) weights of the lowest dev log-loss in the model; also returns
    how many sequences were read."""
    model, tokenizer = scorer.model, scorer.tokenizer
    rng = random.Random(devices.derived_seed(config.seed, "reward", "batches"))
    before = scorer.cut
    encoded = [encode(scorer, ranking, rng) for ranking in comparisons]
    differing = [comparison for comparison in encoded if comparison.differs]
    if not differing:
        raise DataError(
            f"'{config.dataset_name}' has no comparison whose responses differ within max_length "
            f"({scorer.max_length}); raise it, or look at the data"
        )
    if len(differing) < len(encoded):
        stage.say(
            f"left out {len(encoded) - len(differing):,} of {len(encoded):,} comparisons: their responses "
            f"are the same tokens, as after cutting to max_length ({scorer.max_length})"
        )
    if scorer.cut > before:
        stage.say(
            f"{scorer.cut - before:,} of {sum(len(c.rows) for c in encoded):,} responses were cut with their "
            f"prompts to max_length ({scorer.max_length})"
        )
    encoded = differing
    batches = plan_batches([max(map(len, comparison.rows)) for comparison in encoded], config, rng)
    packed = can_pack(model)

    def step(numbers: Sequence[int]) -> tuple[torch.Tensor, Sums]:
        with devices.autocast(model.device, stage.dtype), lora_dropout(model):
            scored = scores_of_batch(model, tokenizer, [encoded[i] for i in numbers], packed)
        return batch_loss(loss_name, scored, config)

    def measure() -> dict[str, float]:
        chosen_N, rejected_N = scores_of(ShardedScorer(scorer), dev_pairs)
        gap_N = chosen_N - rejected_N
        loss = float(np.logaddexp(0, -gap_N).mean())
        return {
            "dev/loss": loss,
            "dev/accuracy": accuracy_of(gap_N),
            "dev/score_chosen": float(chosen_N.mean()),
            "dev/score_rejected": float(rejected_N.mean()),
        }

    fitted = fit(
        Objective(model, step, measure=measure, extent=lambda i: encoded[i].extent),
        batches,
        config,
        stage,
        saved,
        keep="best",
        patience=config.patience,
        weight_average=config.weight_average,
    )
    read = [len(encoded[i].rows) for batch in batches[: fitted.step] for i in batch]
    return fitted, sum(read)


def encode(scorer: RewardModel, ranking: Comparison, rng: random.Random) -> Encoded:
    """Token ids of all responses, best first; one that was cut off while sampling carries no EOS."""
    finished = ranking.values("finished", True)
    order = list(range(len(ranking.responses)))
    rng.shuffle(order)  # tied responses in no particular order
    order.sort(key=lambda i: ranking.ranks[i])
    return Encoded(
        rows=[scorer.encode(ranking.prompt, ranking.responses[i], finished[i]) for i in order],
        ranks=[ranking.ranks[i] for i in order],
        scores=None if ranking.scores is None else [ranking.scores[i] for i in order],
    )


def scores_of_batch(
    model: PreTrainedModel, tokenizer: Any, comparisons: Sequence[Encoded], packed: bool = False
) -> Scored:
    """Scores of all responses of all comparisons, each read once."""
    score_B = flat_scores(model, tokenizer.pad_token_id, [c.rows for c in comparisons], packed)
    G, K = len(comparisons), max(len(c.rows) for c in comparisons)
    mask_GK = torch.tensor([[int(k < len(c.rows)) for k in range(K)] for c in comparisons])
    rank_GK = torch.zeros(G, K, dtype=torch.long)
    margin_GKK = torch.zeros(G, K, K)
    for g, comparison in enumerate(comparisons):
        rank_GK[g, : len(comparison.ranks)] = torch.tensor(comparison.ranks)
        if comparison.scores is not None:
            rating_K = torch.tensor(comparison.scores)
            margin_GKK[g, : len(rating_K), : len(rating_K)] = rating_K[:, None] - rating_K
    mask_GK = mask_GK.to(score_B.device)
    score_GK = torch.zeros(G, K, device=score_B.device).masked_scatter(mask_GK.bool(), score_B)
    return Scored(score_GK, mask_GK, rank_GK.to(score_B.device), margin_GKK.to(score_B.device))


def batch_loss(name: str, scored: Scored, config: ComparisonOptions) -> tuple[torch.Tensor, Sums]:
    """Summed loss of some comparisons, how many of their ordered pairs are scored in order, and what the
    preferred and the rejected responses of these pairs score."""
    loss = LOSSES[name].per_comparison(scored, config).sum()
    if config.center_rewards_coefficient:
        penalty = preference.centre_penalty(scored.score_GK, scored.mask_GK).sum()
        loss = loss + config.center_rewards_coefficient * penalty
    with torch.no_grad():
        ordered_GKK = preference.ordered_pairs(scored.score_GK, scored.mask_GK, scored.rank_GK)
        chosen_GK1, rejected_G1K = scored.score_GK[:, :, None], scored.score_GK[:, None, :]
        right = int(((chosen_GK1 > rejected_G1K) & ordered_GKK).sum())
        ordered = int(ordered_GKK.sum())
        sum_chosen, sum_rejected = (chosen_GK1 * ordered_GKK).sum(), (rejected_G1K * ordered_GKK).sum()
    return loss, {
        "train/accuracy": (right, ordered),
        "train/score_chosen": (float(sum_chosen), ordered),
        "train/score_rejected": (float(sum_rejected), ordered),
    }
