"""A reward model with one head an attribute, trained by regression on the ratings of single responses
(Wang et al. 2024, HelpSteer2, arXiv 2406.08673).

Ratings are standardised by the mean and standard deviation of each attribute's training ratings, so that
attributes of other scales count alike; an attribute without a rating in a row takes no part in the row. What
is saved is on the scale of the ratings again. A mixture of the heads is given, or it is the one global vector
that explains the pairs of another data set best by Bradley-Terry: no gate reads the prompt.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from preferl.data.records import DataError, Pair, Prompt, Rated
from preferl.data.sources import Source
from preferl.data.tokens import Extent, pad
from preferl.evaluation.scored import prompt_numbers
from preferl.learning.fit import Fitted, Objective, Sums, fit, plan_batches
from preferl.maths.preference import rating_loss
from preferl.models.attributes import attribute_logits, name_attributes
from preferl.models.reward import RewardModel, scalar_head
from preferl.options.learning import FitOptions
from preferl.runs import devices, distributed
from preferl.runs.checkpoint import Checkpoint
from preferl.runs.stage import Stage
from preferl.statistics.calibration import Coefficient, UndefinedStatistic, logistic_coefficients


@dataclass(frozen=True)
class Attributes:
    """The attributes of a data set's ratings in the order of the heads, with mean and standard deviation of
    their training ratings, and what was left out, in sentences."""

    names: list[str]
    mean_K: np.ndarray
    sd_K: np.ndarray
    notes: list[str]

    def ratings(self, rows: Sequence[Rated]) -> np.ndarray:
        """``rating_NK`` on the data's scale; NaN where a row has none."""
        table = [[row.ratings.get(name, math.nan) for name in self.names] for row in rows]
        return np.array(table, dtype=np.float64).reshape(len(rows), len(self.names))

    def standardised(self, rows: Sequence[Rated]) -> np.ndarray:
        """``rating_NK`` of mean 0 and standard deviation 1 over the training ratings."""
        return (self.ratings(rows) - self.mean_K) / self.sd_K


def attributes_in(source: Source) -> Attributes:
    """What the training rows of a data set rate.

    Raises:
        DataError: no attribute has two different ratings.
    """
    rows = source.need("rated", "train")
    found = Attributes(list(dict.fromkeys(name for row in rows for name in row.ratings)), *_UNIT, [])
    rating_NK = found.ratings(rows)
    rated_K = np.isfinite(rating_NK).sum(0)
    varies_K = np.array([len(set(column[np.isfinite(column)])) > 1 for column in rating_NK.T], dtype=bool)
    notes = []
    for k, name in enumerate(found.names):
        if not varies_K[k]:
            notes.append(f"left out the attribute {name}: all its training ratings are the same")
        elif rated_K[k] < len(rows):
            notes.append(f"{len(rows) - rated_K[k]} of {len(rows)} training rows have no rating of {name}")
    if not varies_K.any():
        raise DataError(
            f"'{source.name}' rates {', '.join(found.names) or 'nothing'}, and never differently: there is "
            f"nothing to learn"
        )
    names = [name for name, varies in zip(found.names, varies_K, strict=True) if varies]
    kept_NK = rating_NK[:, varies_K]
    return Attributes(names, np.nanmean(kept_NK, axis=0), np.nanstd(kept_NK, axis=0), notes)


_UNIT = (np.zeros(1), np.ones(1))


def optimise_attributes(
    scorer: RewardModel,
    attributes: Attributes,
    source: Source,
    config: FitOptions,
    stage: Stage,
    patience: int,
    weight_average: float,
    saved: Checkpoint | None = None,
) -> Fitted:
    """Trains a model with K heads in place, and leaves the weights of the lowest dev loss in it.

    The loss is the mean squared error of standardised ratings: 1 for a model that always says the mean.
    """
    model = scorer.model
    rows = source.need("rated", "train")
    dev_rows = source.need("rated", "dev")
    encoded = [encode(scorer, row) for row in rows]
    dev_encoded = [encode(scorer, row) for row in dev_rows]
    target_NK = torch.tensor(attributes.standardised(rows), dtype=torch.float32)
    dev_NK = torch.tensor(attributes.standardised(dev_rows), dtype=torch.float32)

    def step(numbers: Sequence[int]) -> tuple[torch.Tensor, Sums]:
        with devices.autocast(model.device, stage.dtype):
            logits_BK = logits_of(scorer, [encoded[i] for i in numbers])
        rating_BK = target_NK[list(numbers)].to(logits_BK.device)
        return rating_loss(logits_BK, rating_BK, rating_BK.isfinite()).sum(), {}

    def count(numbers: Sequence[int]) -> float:
        return float(target_NK[list(numbers)].isfinite().sum())

    def measure() -> dict[str, float]:
        """Mean squared error of the dev ratings, and each attribute's correlation with them."""
        predicted_NK = torch.tensor(all_logits(scorer, dev_encoded))
        loss_N = rating_loss(predicted_NK, dev_NK.double(), dev_NK.isfinite())
        found = {"dev/loss": float(loss_N.sum() / dev_NK.isfinite().sum())}
        for k, name in enumerate(attributes.names):
            value = correlation(predicted_NK[:, k].numpy(), dev_NK[:, k].double().numpy())
            if value is not None:
                found[f"dev/{name}_correlation"] = value
        return found

    rng = random.Random(devices.derived_seed(stage.config.seed, "reward", "batches"))
    batches = plan_batches([len(row) for row in encoded], config, rng)
    return fit(
        Objective(model, step, count=count, measure=measure, extent=lambda i: Extent((len(encoded[i]),))),
        batches,
        config,
        stage,
        saved,
        keep="best",
        patience=patience,
        weight_average=weight_average,
    )


def encode(scorer: RewardModel, row: Rated) -> list[int]:
    return scorer.encode(row.prompt, row.response, bool(row.columns.get("finished", True)))


def logits_of(scorer: RewardModel, rows: Sequence[list[int]]) -> torch.Tensor:
    """``logits_BK`` of some encoded responses."""
    ids_BS, mask_BS = pad(rows, scorer.tokenizer.pad_token_id, "right")
    return attribute_logits(scorer.model, ids_BS.to(scorer.model.device), mask_BS.to(scorer.model.device))


@torch.no_grad()
def all_logits(scorer: RewardModel, rows: Sequence[list[int]]) -> np.ndarray:
    """``logits_NK`` (float64) of encoded responses, in batches of like length, each process its share."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    own = distributed.shard(order)
    found: list[list[float]] = []
    with distributed.sync_errors():
        for place in scorer.passes([len(rows[i]) for i in own]):
            part = [rows[i] for i in own[place]]
            found += logits_of(scorer, part).tolist()
    by_length = distributed.gather_rows(found)
    in_order: list[Any] = [None] * len(rows)
    for i, logits_K in zip(order, by_length, strict=True):
        in_order[i] = logits_K
    return np.array(in_order, dtype=np.float64)


def logits_of_texts(
    scorer: RewardModel, prompts: Sequence[Prompt], completions: Sequence[str], finished: Sequence[bool]
) -> np.ndarray:
    """``logits_NK`` of responses as texts."""
    rows = [scorer.encode(p, c, bool(f)) for p, c, f in zip(prompts, completions, finished, strict=True)]
    return all_logits(scorer, rows)


def logits_of_rated(scorer: RewardModel, rows: Sequence[Rated]) -> np.ndarray:
    """``logits_NK`` of rated responses."""
    return all_logits(scorer, [encode(scorer, row) for row in rows])


def logits_of_pairs(scorer: RewardModel, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """``logits_NK`` of the chosen and of the rejected responses."""
    chosen_NK, rejected_NK = (
        logits_of_texts(
            scorer,
            [pair.prompt for pair in pairs],
            [getattr(pair, side) for pair in pairs],
            [bool(pair.columns.get(f"finished_{side}", True)) for pair in pairs],
        )
        for side in ("chosen", "rejected")
    )
    return chosen_NK, rejected_NK


def correlation(predicted_N: np.ndarray, rating_N: np.ndarray) -> float | None:
    """Pearson's, over the rows that have a rating; None where either does not vary."""
    there_N = np.isfinite(rating_N)
    predicted, rating = predicted_N[there_N], rating_N[there_N]
    if len(rating) < 2 or not np.ptp(predicted) or not np.ptp(rating):
        return None
    return float(np.corrcoef(predicted, rating)[0, 1])


@torch.no_grad()
def to_rating_scale(model: PreTrainedModel, attributes: Attributes) -> None:
    """Rescales heads that predict standardised ratings to the scale of the ratings, and names them: mean and
    standard deviation go into head and bias; without a bias the mean stays in the configuration as
    ``rating_mean``."""
    head = scalar_head(model)
    sd_K = torch.tensor(attributes.sd_K, dtype=head.weight.dtype, device=head.weight.device)
    mean_K = torch.tensor(attributes.mean_K, dtype=head.weight.dtype, device=head.weight.device)
    head.weight.mul_(sd_K[:, None])
    if head.bias is not None:
        head.bias.mul_(sd_K).add_(mean_K)
        model.config.rating_mean = [0.0] * len(attributes.names)
    else:
        model.config.rating_mean = attributes.mean_K.tolist()
    name_attributes(model.config, attributes.names)


def keep_reference(model: PreTrainedModel, logits_NK: np.ndarray) -> None:
    """Mean and covariance of the logits on reference samples, which give any mixture its unit scale."""
    model.config.reference_mean = logits_NK.mean(0).tolist()
    model.config.reference_covariance = np.atleast_2d(np.cov(logits_NK, rowvar=False, ddof=0)).tolist()


def fitted_mixture(
    scorer: RewardModel, attributes: Sequence[str], pairs: Sequence[Pair], seed: int
) -> dict[str, Coefficient]:
    """The weights w for which P(chosen is preferred) = sigma(w . (logits chosen - logits rejected)) is the
    likeliest, with intervals robust to pairs of one prompt: one vector for all prompts.

    Raises:
        DataError: the pairs do not determine it.
    """
    chosen_NK, rejected_NK = logits_of_pairs(scorer, pairs)
    gap_NK = chosen_NK - rejected_NK
    # A pair that is turned round is the same pair; with all labels alike there would be no regression.
    first_N = np.random.default_rng(devices.derived_seed(seed, "reward", "mixture")).random(len(pairs)) < 0.5
    x_NK = np.where(first_N[:, None], gap_NK, -gap_NK)
    try:
        found = logistic_coefficients(x_NK, first_N.astype(float), prompt_numbers(pairs))
    except UndefinedStatistic as error:
        raise DataError(
            f"{len(pairs)} pairs do not determine a mixture of {', '.join(attributes)}: {error}; give more "
            f"pairs, or weights of your own with --reward_mixture"
        ) from error
    return dict(zip(attributes, found, strict=True))
