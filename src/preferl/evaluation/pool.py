"""What a pool of the SFT model's responses tells without training anything: best-of-n for every n, the
optimum of every KL coefficient by reweighting, and how well the reward picks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from preferl.data.types import Measures
from preferl.evaluation.comparison import outcomes
from preferl.maths.kl import best_of_n_kl_bound
from preferl.statistics import frontier, mean_interval
from preferl.statistics.intervals import mean_share


@dataclass(frozen=True)
class Pool:
    """K responses of the SFT model to each of P prompts.

    ``value_PK`` maps a measure (``score``, ``gold``, …) to its values, ``length_PK`` counts tokens,
    ``logp_PK`` is log pi_ref(y|x) in nats.

    Example: ``Pool({"score": np.array([[0.2, -1.0]])}, np.array([[4, 7]]), np.array([[-3.1, -9.0]]))``.
    """

    value_PK: dict[str, np.ndarray]
    length_PK: np.ndarray
    logp_PK: np.ndarray

    @property
    def size(self) -> int:
        return self.length_PK.shape[1]

    def means(self, weight_PK: np.ndarray) -> Measures:
        """Means over prompts of every measure and of the length under weights, with 95 % intervals."""
        row: Measures = {}
        for name, x_PK in {**self.value_PK, "length": self.length_PK}.items():
            row |= mean_interval((weight_PK * x_PK).sum(-1)).named(name)
        return row


def best_of(
    pool: Pool,
    n: int,
    against_PB: np.ndarray | None = None,
    policy_PG: Mapping[str, np.ndarray] | None = None,
) -> Measures:
    """Best-of-n, unbiased from all K responses: n of them drawn without replacement, the best one taken.

    ``against_PB`` are gold values of other responses to the same prompts: the win rate is over them.
    ``policy_PG`` are a trained policy's values of every measure on the same prompts: ``lead`` of a measure is
    how much higher they are, paired by prompt. The KL has a known upper bound, nearly reached where scores
    are all different.
    """
    weight_PK = frontier.best_of_n_weights(pool.value_PK["score"], n)
    row: Measures = {"n": n, "prompts": len(weight_PK), "kl_bound": best_of_n_kl_bound(n)}
    row |= pool.means(weight_PK)
    for name, x_PG in (policy_PG or {}).items():
        lead_P = x_PG.mean(-1) - (weight_PK * pool.value_PK[name]).sum(-1)
        row |= mean_interval(lead_P).named(f"lead_{name}")
    if against_PB is not None:
        won_PK = outcomes(pool.value_PK["gold"], against_PB).mean(-1)
        row |= mean_share((weight_PK * won_PK).sum(-1).clip(0, 1)).named("win_rate")
    return row


def tilt(pool: Pool, kl_coef: float, score_PK: np.ndarray | None = None) -> Measures:
    """The optimum of reward minus ``kl_coef`` * KL, pi_ref e^(r / kl_coef), by importance weights.

    ``score_PK`` is the reward where it is not the pool's score. ``effective_sample_size`` is the mean over
    prompts of (sum w)^2 / sum w^2, ``_low`` the smallest: where it is small the reward and the KL are
    estimated too low, and other means may be off either way.
    """
    weight_PK = frontier.tilt_weights(pool.value_PK["score"] if score_PK is None else score_PK, kl_coef)
    size_P = frontier.effective_sample_size(weight_PK)
    return {
        "kl_coef": kl_coef,
        "prompts": len(weight_PK),
        "pool": pool.size,
        "effective_sample_size": float(size_P.mean()),
        "effective_sample_size_low": float(size_P.min()),
        **mean_interval(frontier.tilt_kl(weight_PK)).named("kl"),
        **pool.means(weight_PK),
    }


def verification(pool: Pool) -> Measures | None:
    """Judging against generating, on the same prompts; None without a gold reward that tells them apart.

    Judging: the share of a prompt's pairs of unequal gold in which the reward prefers the better response,
    and the same for the SFT model's own log-probability, of the whole response and per token. Generating:
    the gold reward of one response; of the pool's best by the reward; of its best by gold. ``closed`` is the
    share of that gap which choosing by the reward closes.
    """
    gold_PK, score_PK = pool.value_PK.get("gold"), pool.value_PK["score"]
    if gold_PK is None:
        return None
    differs_PKK = gold_PK[:, :, None] > gold_PK[:, None, :]
    pairs_P = differs_PKK.sum((1, 2))
    if not pairs_P.any():
        return None
    judges = {"reward": score_PK, "likelihood": pool.logp_PK}
    judges["likelihood_per_token"] = pool.logp_PK / pool.length_PK
    row: Measures = {"prompts": int((pairs_P > 0).sum()), "pairs": int(pairs_P.sum())}
    for name, x_PK in judges.items():
        right_P = (outcomes(x_PK, x_PK) * differs_PKK).sum((1, 2))
        share_P = right_P[pairs_P > 0] / pairs_P[pairs_P > 0]
        row |= mean_share(share_P).named(f"accuracy_{name}")
    # Best-of-K with all K drawn: the gold reward of the response that scores highest, ties shared.
    chosen_P = (frontier.best_of_n_weights(score_PK, pool.size) * gold_PK).sum(-1)
    row |= mean_interval(gold_PK.mean(-1)).named("one_sample")
    row |= mean_interval(chosen_P).named("chosen_by_reward")
    row |= mean_interval(gold_PK.max(-1)).named("best_there")
    room = row["best_there"] - row["one_sample"]
    return row | {"closed": (row["chosen_by_reward"] - row["one_sample"]) / room if room > 0 else None}


def sizes(most: int, wanted: Sequence[int]) -> list[int]:
    """Every power of two up to a pool's size, its size, and what was asked for."""
    powers = [2**k for k in range(most.bit_length())]  # the last one is the largest that fits
    return sorted({*wanted, most, *powers})
