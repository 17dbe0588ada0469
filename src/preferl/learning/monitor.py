"""What is watched while a policy learns: reward, KL by several estimates, alarms, held-out prompts.

KL is in nats, per response or per token, at the sampling temperature, over response tokens only.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from preferl.data.records import prompt_text
from preferl.data.types import Scorer
from preferl.evaluation.features import SIGNS, sign_shares
from preferl.judging.scorers import score_responses
from preferl.learning.learner import Learner
from preferl.learning.rollout import Rollout
from preferl.maths.kl import best_objective, kl_estimate
from preferl.maths.policy import masked_sum
from preferl.runs.progress import Sample
from preferl.sampling.policy import Responses
from preferl.sampling.samples import rows_of
from preferl.statistics import wilson_interval
from preferl.statistics.frontier import MIN_EFFECTIVE_SAMPLES

EXACT_KL_ROWS = 16  # responses of a batch whose KL is also summed over the vocabulary
ALARM_STANDARD_ERRORS = 3.0  # standard errors that an alarm takes for noise


def describe(rollout: Rollout, learner: Learner, gold: Scorer | None, kl_coef: float) -> dict[str, float]:
    """Reward, KL, length and EOS of a batch, before the update."""
    samples = rollout.samples
    mask_BT, n = samples.mask_BT, len(samples.mask_BT)
    length_B = mask_BT.sum(-1).float()
    # Three looks at one number: k1 is unbiased and noisy, k3 is never negative, and the exact sum does not
    # depend on which token was drawn but costs the whole vocabulary, so it is of the first rows only.
    k1_B = masked_sum(kl_estimate(samples.logp_BT, rollout.ref_logp_BT, "k1"), mask_BT)
    k3_B = masked_sum(kl_estimate(samples.logp_BT, rollout.ref_logp_BT, "k3"), mask_BT)
    exact_B = learner.exact_kl(rows_of(samples, torch.arange(min(n, EXACT_KL_ROWS))))
    per_token = k1_B.sum() / length_B.sum()
    objective_B = rollout.shaped_B - kl_coef * k1_B
    row = {
        "reward": float(rollout.score_B.mean()),
        "reward_sd": sd(rollout.score_B),
        "kl": float(k1_B.mean()),
        "kl_se": standard_error(k1_B),
        "kl_k3": float(k3_B.mean()),
        "kl_k3_se": standard_error(k3_B),
        "kl_exact": float(exact_B.mean()),
        "kl_exact_se": standard_error(exact_B),
        "kl_per_token": float(per_token),
        # A ratio of two means: the error of the residuals (linearised).
        "kl_per_token_se": standard_error(k1_B - per_token * length_B) / float(length_B.mean()),
        "objective": float(objective_B.mean()),
        "objective_se": standard_error(objective_B),
        "length": float(length_B.mean()),
        "eos_rate": float(samples.finished_B.float().mean()),
    }
    if gold is not None:
        ends, lengths = samples.finished_B.tolist(), length_B.int().tolist()
        values = gold(rollout.prompts, rollout.completions, finished=ends, lengths=lengths)
        row["gold"] = sum(values) / n
    return row


def sd(x_B: torch.Tensor) -> float:
    """Standard deviation; 0 for a single value."""
    return float(x_B.std()) if len(x_B) > 1 else 0.0


def standard_error(x_B: torch.Tensor) -> float:
    """Of the mean; 0 for a single value."""
    return sd(x_B) / len(x_B) ** 0.5


def alarms(
    rollout: Rollout, row: dict[str, float], optimum: tuple[float, float] | None, clip: float | None
) -> dict[str, str]:
    """What is wrong with a batch, by name, each as a sentence that says what to do.

    ``optimum`` is the best possible objective with its standard error (``best_possible``).
    """
    found, n = {}, len(rollout.completions)
    if float(rollout.score_B.max()) == float(rollout.score_B.min()):
        found["zero_reward_variance"] = (
            f"all {n} responses of a batch got the reward {float(rollout.score_B[0]):.4g}: there is nothing "
            f"to learn from; look at the reward function"
        )
    if row["eos_rate"] <= 0.05:
        found["truncated"] = (
            f"{1 - row['eos_rate']:.0%} of the responses were cut off at the length limit; raise "
            f"response_length or missing_eos_penalty, or train the SFT model to stop"
        )
    empty = sum(not text.strip() for text in rollout.completions) / n
    if empty >= 0.1:
        found["empty"] = f"{empty:.0%} of the responses are empty; the reward seems to like that"
    clipped = 0.0 if clip is None else float((rollout.score_B.abs() > clip).float().mean())
    if clipped > 0.05:
        found["clipped"] = (
            f"{clipped:.0%} of the rewards lie beyond the reward_clip of {clip:g}; scale the reward to a "
            f"standard deviation of about 1, or raise reward_clip"
        )
    for name, text in (("kl", "k1"), ("kl_k3", "k3"), ("kl_exact", "exact")):
        # An exact sum is negative by rounding alone.
        if row[name] < -ALARM_STANDARD_ERRORS * row[name + "_se"] - 1e-3:
            found["negative_kl"] = (
                f"the {text} KL is {row[name]:.3f} ± {row[name + '_se']:.3f} nats, below 0 beyond noise: the "
                f"policy was not sampled as it is trained (temperature, top-p, another reference?)"
            )
    if optimum is not None:
        highest, error = optimum
        margin = ALARM_STANDARD_ERRORS * math.hypot(error, row["objective_se"])
        if row["objective"] > highest + margin:
            found["above_best"] = (
                f"reward minus KL is {row['objective']:.2f}, above the best possible {highest:.2f} beyond "
                f"noise, as far as the first batch of {n} can tell: the KL is wrong, or the policy has found "
                f"a reward that no response of that batch had"
            )
    return found


def best_possible(shaped_B: torch.Tensor, kl_coef: float) -> tuple[float, float] | None:
    """The best objective with its standard error from a batch of the reference's own samples, or None where
    so few samples cannot say."""
    if not kl_coef > 0 or len(shaped_B) < 2:
        return None
    value, error, effective_samples = best_objective(shaped_B, kl_coef)
    return (value, error) if effective_samples >= MIN_EFFECTIVE_SAMPLES else None


def held_out(
    responses: Responses,
    learner: Learner,
    scorer: Scorer,
    gold: Scorer | None,
    signs: Mapping[str, Callable[[str], bool]] = SIGNS,
    **reward_arguments: Any,
) -> dict[str, float]:
    """Means over one response to each held-out prompt, and the share that shows each sign of gaming. Reward
    functions are also given ``reward_arguments``, as ``trainer_state``."""
    score_B = torch.from_numpy(score_responses(scorer, responses, **reward_arguments))
    samples = responses.samples
    kl_B = masked_sum(samples.logp_BT - learner.reference_logprobs(samples), samples.mask_BT)
    exact_B = learner.exact_kl(samples)
    row = {
        "reward": float(score_B.mean()),
        "reward_se": standard_error(score_B),
        "kl": float(kl_B.mean()),
        "kl_se": standard_error(kl_B),
        "kl_exact": float(exact_B.mean()),
        "kl_exact_se": standard_error(exact_B),
        "length": responses.mean_length,
        "eos_rate": responses.eos_rate,
    }
    if gold is not None:
        gold_B = torch.from_numpy(score_responses(gold, responses))
        row |= {"gold": float(gold_B.mean()), "gold_se": standard_error(gold_B)}
    return row | {f"sign/{name}": share for name, share in sign_shares(responses.completions, signs).items()}


def reward_accuracy(
    first: Responses, second: Responses, scorer: Scorer, annotator: Scorer
) -> tuple[int, int]:
    """On how many pairs of fresh samples the reward and the annotator prefer the same response, and of how
    many; where the annotator sees no difference there is nothing to agree with."""
    score_gap_B = score_responses(scorer, first) - score_responses(scorer, second)
    annotator_gap_B = score_responses(annotator, first) - score_responses(annotator, second)
    differs_B = annotator_gap_B != 0
    agrees_B = score_gap_B * annotator_gap_B > 0
    return int(agrees_B[differs_B].sum()), int(differs_B.sum())


def accuracy_alarm(right: int, total: int, first_right: int, first_total: int) -> dict[str, str]:
    """An alarm where the reward agrees with the annotator less often than on the first samples, by more than
    two standard errors of the difference of two proportions."""
    if not (total and first_total):
        return {}
    now, before = right / total, first_right / first_total
    pooled = (right + first_right) / (total + first_total)
    error = (pooled * (1 - pooled) * (1 / total + 1 / first_total)) ** 0.5
    if before - now <= 2 * error:
        return {}
    low, high = wilson_interval(right, total)
    return {
        "reward_accuracy": (
            f"on fresh samples the reward agrees with the annotator in {now:.0%} [{low:.0%}, {high:.0%}] of "
            f"{total} pairs, on the first ones in {before:.0%}: it no longer knows what this policy writes; "
            f"label new pairs (rounds of `preferl run`), raise kl_coef, or stop here"
        )
    }


def to_show(rollout: Rollout) -> list[Sample]:
    """Two responses of a batch for the console, to different prompts where there are several."""
    first = rollout.prompts[0]
    other = next((i for i, prompt in enumerate(rollout.prompts) if prompt != first), len(rollout.prompts) - 1)
    return [
        Sample(prompt_text(rollout.prompts[i]), rollout.completions[i], {"reward": float(rollout.score_B[i])})
        for i in dict.fromkeys((0, other))
    ]


def sample_rows(
    iteration: int, rollout: Rollout, extra: Sequence[dict[str, Any]] = (), count: int = 8
) -> list[dict[str, Any]]:
    """The first responses of a batch, for samples.jsonl; ``extra`` are more columns of each."""
    kl_B = (rollout.samples.logp_BT - rollout.ref_logp_BT).sum(-1)
    rows = []
    for i, prompt in enumerate(rollout.prompts[:count]):
        row = {
            "iteration": iteration,
            "prompt": prompt_text(prompt),
            "response": rollout.completions[i],
            "reward": float(rollout.score_B[i]),
            "kl": float(kl_B[i]),
            "finished": bool(rollout.samples.finished_B[i]),
        }
        # Ours win: a reward function's column must not stand for the response or its reward.
        logged = extra[i] if i < len(extra) else {}
        rows.append(logged | row)
    return rows
