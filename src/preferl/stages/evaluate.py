"""evaluate: the policy against its SFT model and against best-of-N from it, on prompts nothing has seen.

One response of each policy to every eval prompt at one named temperature; means, paired differences and
win rates with intervals, and the cost of each way in language-model forward passes.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from preferl.data import sources
from preferl.data.records import DataError, Prompt, prompt_text
from preferl.judging.backends import JudgeConfig
from preferl.judging.judges import load_pairwise_judge
from preferl.judging.scorers import Scorer, load_scorer, reward_models
from preferl.maths import stats
from preferl.maths.kl import best_of_n_kl_bound
from preferl.models import load
from preferl.runs import devices
from preferl.runs.config import DataOptions, DeviceOptions, SamplingOptions
from preferl.runs.directory import StageDirectory, StageRecord
from preferl.runs.errors import UsageError
from preferl.runs.progress import Steps, say
from preferl.sampling import rollout as rollouts
from preferl.sampling.cached import CachedEngine
from preferl.sampling.engine import Samples
from preferl.sampling.texts import Generated, fitting_prompt_ids, generate, sampling_for


@dataclass(kw_only=True)
class EvaluateConfig(SamplingOptions, DataOptions, DeviceOptions):
    """Options of the evaluate stage."""

    output_dir: str = "runs/evaluate"
    """Where the stage is written."""
    model_name_or_path: str = "runs/rl"
    """The policy that is evaluated."""
    ref_model: str = "runs/sft"
    """The policy it is compared with, and the reference of the KL."""
    reward_model: str = "runs/reward"
    """The reward: a reward model's directory, or ``module:function``."""
    gold: str | None = None
    """An annotator's utility that nothing was trained on directly (``world``, ``sentiment``, …)."""
    judge: str | None = None
    """A language model that compares the policies' responses: ``judge:<model>``, ``judge:<url>#<model>``."""
    max_eval_prompts: int = 512
    """Most eval prompts."""
    best_of: list[int] = field(default_factory=lambda: [4, 16])
    """N of best-of-N from the reference policy, picked by the reward."""
    best_of_prompts: int = 128
    """Eval prompts on which best-of-N is measured."""


def run(config: EvaluateConfig, fresh: bool = False) -> Path:
    """Samples, compares and writes ``summary.json`` and ``samples.jsonl``; returns the directory."""
    stage = StageDirectory(Path(config.output_dir), "evaluate")
    options = dataclasses.asdict(config)
    if stage.settled(options, fresh):
        say(f"evaluate: finished before in {stage.path}")
        return stage.path
    if any(n < 1 for n in config.best_of):
        raise UsageError(f"best_of is {config.best_of}; every N must be at least 1")
    device, dtype = devices.setup(config.seed, config.device, config.dtype, config.num_threads)
    source = sources.load_source(**config.source())
    prompts = source.need("prompts", "eval")[: config.max_eval_prompts]
    if len(prompts) < 2 or config.best_of_prompts < 2:
        raise UsageError(
            f"{len(prompts)} eval prompts and best_of_prompts {config.best_of_prompts}: "
            f"an interval needs at least 2 of each"
        )
    policy, tokenizer = load.load_policy(config.model_name_or_path, device)
    reference, _ = load.load_policy(config.ref_model, device)
    scorer = load_scorer(config.reward_model, device)
    gold = load_scorer(config.gold, device) if config.gold else None
    stage.begin(
        options,
        {
            "policy": config.model_name_or_path,
            "reference": config.ref_model,
            "reward": config.reward_model,
        },
    )
    judge = Judge(config, tokenizer, scorer, gold, device, dtype)
    with Steps("evaluate", 2 + bool(config.best_of)) as steps:
        rl = judge.respond("policy", policy, prompts)
        steps.advance()
        sft = judge.respond("reference", reference, prompts)
        kl_N = judge.kl(rl.made.samples, policy, reference)
        steps.advance()
        pool = judge.pool(reference, prompts[: config.best_of_prompts]) if config.best_of else None
        steps.advance(bool(config.best_of))

    rows = side_by_side(prompts, rl, sft, kl_N)
    stage.log_samples(rows)
    policies = {"reference": means(sft), "policy": means(rl) | kl_summary(kl_N)}
    comparison = {
        measure: compare(getattr(rl, measure), getattr(sft, measure))
        for measure in ("score", "gold")
        if getattr(rl, measure) is not None
    }
    if config.judge:
        comparison["judge"] = judged_win_rate(config, device, prompts, rl, sft)
    ways = best_of_ways(config, pool, sft, len(reward_models(scorer))) if pool is not None else []
    say_result(policies, comparison)
    stage.finish(
        prompts=len(prompts),
        temperature=config.temperature,
        policies=policies,
        comparison=comparison,
        best_of=ways,
        cost=cost(config),
        gold=config.gold,
        peak_memory_mib=devices.peak_memory_mib(device),
        notes=source.notes,
    )
    return stage.path


@dataclass(frozen=True)
class Responses:
    """Responses of one policy with their scores, and gold values where they are known."""

    made: Generated
    score: np.ndarray
    gold: np.ndarray | None


class Judge:
    """Samples from a policy and scores what comes out."""

    def __init__(
        self,
        config: EvaluateConfig,
        tokenizer: Any,
        scorer: Scorer,
        gold: Scorer | None,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.config, self.tokenizer, self.scorer, self.gold = config, tokenizer, scorer, gold
        self.device, self.dtype = device, dtype
        self.sampling = sampling_for(tokenizer, config)

    def respond(self, name: str, model: PreTrainedModel, prompts: Sequence[Prompt]) -> Responses:
        """One response to each prompt."""
        engine = CachedEngine(model, self.tokenizer.pad_token_id, self.config.sampling_batch_size, self.dtype)
        tokens = fitting_prompt_ids(self.tokenizer, prompts, model, self.config.response_length)
        generator = devices.generator(self.config.seed, "evaluate", name)
        made = generate(engine, self.tokenizer, prompts, tokens, self.sampling, generator)
        score = np.array(self.scorer(made.prompts, made.completions, finished=made.finished))
        gold = None
        if self.gold is not None:
            gold = np.array(self.gold(made.prompts, made.completions, finished=made.finished))
        return Responses(made, score, gold)

    def pool(self, model: PreTrainedModel, prompts: Sequence[Prompt]) -> Responses:
        """max(N) responses to each prompt, prompt by prompt."""
        size = max(self.config.best_of)
        return self.respond("best-of", model, [p for p in prompts for _ in range(size)])

    @torch.no_grad()
    def kl(self, samples: Samples, policy: PreTrainedModel, reference: PreTrainedModel) -> np.ndarray:
        """log pi(y|x) - log pi_ref(y|x) of each response, in nats: its mean estimates the KL."""
        out_B = torch.zeros(len(samples.mask_BT))
        for rows in samples.mask_BT.sum(-1).argsort().split(128):
            part = rollouts.rows_of(samples, rows)
            with devices.autocast(self.device, self.dtype):
                policy_BT = rollouts.policy_logprobs(policy, part)
                reference_BT = rollouts.policy_logprobs(reference, part)
            out_B[rows] = (policy_BT - reference_BT).sum(-1).float().cpu()
        return out_B.numpy().astype(np.float64)


def means(responses: Responses) -> dict[str, Any]:
    """Means of one policy's responses; ``repetition`` is the share of repeated word trigrams."""
    made = responses.made
    score, low, high = stats.mean_interval(responses.score)
    row: dict[str, Any] = {
        "score": score,
        "score_low": low,
        "score_high": high,
        "length": made.mean_length,
        "eos_rate": made.eos_rate,
        "repetition": float(np.mean([stats.repetition(text) for text in made.completions])),
        "distinct_2": stats.distinct_n(made.completions, 2),
    }
    if responses.gold is not None:
        row["gold"], row["gold_low"], row["gold_high"] = stats.mean_interval(responses.gold)
    return row


def kl_summary(kl_N: np.ndarray) -> dict[str, float]:
    """Mean KL in nats per response with its standard error."""
    return {"kl": float(kl_N.mean()), "kl_se": float(kl_N.std(ddof=1) / len(kl_N) ** 0.5)}


def compare(a_N: np.ndarray, b_N: np.ndarray) -> dict[str, float]:
    """a against b on the same prompts: paired difference with bootstrap interval, win rate with Wilson's.

    A tie is half a win.
    """
    difference, low, high = stats.paired_bootstrap(a_N, b_N)
    wins, ties = int((a_N > b_N).sum()), int((a_N == b_N).sum())
    rate = (wins + ties / 2) / len(a_N)
    rate_low, rate_high = stats.wilson_interval(wins + ties / 2, len(a_N))
    return {
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
        "win_rate": rate,
        "win_rate_low": rate_low,
        "win_rate_high": rate_high,
        "wins": wins,
        "ties": ties,
        "n": len(a_N),
    }


def judged_win_rate(
    config: EvaluateConfig, device: torch.device, prompts: Sequence[Prompt], rl: Responses, sft: Responses
) -> dict[str, Any]:
    """The policy's win rate by a language model that was asked in both orders; unreadable ones left out."""
    assert config.judge is not None
    judge = load_pairwise_judge(config.judge, device, JudgeConfig(seed=config.seed, unparsable="skip"))
    judged = judge(
        prompts,
        rl.made.completions,
        sft.made.completions,
        np.random.default_rng(devices.derived_seed(config.seed, "evaluate", "judge")),
        rl.made.finished,
        sft.made.finished,
    )
    probability_N = judged.probability_N[judged.kept_N]
    if not len(probability_N):
        raise DataError(f"evaluate: no verdict of '{config.judge}' was readable; look at what it replies")
    rate, low, high = stats.mean_interval(probability_N)
    return {
        "win_rate": rate,
        "win_rate_low": low,
        "win_rate_high": high,
        "n": len(probability_N),
        **dataclasses.asdict(judge.counts),
    }


def best_of_ways(
    config: EvaluateConfig, pool: Responses, sft: Responses, reward_models: int = 1
) -> list[dict[str, Any]]:
    """Best-of-N for each N, all from one pool: its max(N) responses make max(N) // N draws of N."""
    size = max(config.best_of)
    score_PK = pool.score.reshape(-1, size)
    gold_PK = None if pool.gold is None else pool.gold.reshape(-1, size)
    rows = []
    for n in sorted(config.best_of):
        groups = size // n
        cut = score_PK[:, : groups * n].reshape(-1, groups, n)
        best = cut.argmax(-1)[..., None]
        score_P = np.take_along_axis(cut, best, -1)[..., 0].mean(-1)
        row: dict[str, Any] = {
            "n": n,
            "score": float(score_P.mean()),
            "kl_bound": best_of_n_kl_bound(n),
            "forward_passes_per_response": {
                "policy": n,
                "reward": n * reward_models,
            },
            "prompts": len(score_P),
        }
        if gold_PK is not None and sft.gold is not None:
            gold_cut = gold_PK[:, : groups * n].reshape(-1, groups, n)
            picked = np.take_along_axis(gold_cut, best, -1)[..., 0]
            row["gold"], row["gold_low"], row["gold_high"] = stats.mean_interval(picked.mean(-1))
            single = sft.gold[: len(picked), None]
            won = ((picked > single) + 0.5 * (picked == single)).mean(-1)
            row["win_rate"], row["win_rate_low"], row["win_rate_high"] = stats.mean_interval(won)
        rows.append(row)
    return rows


def cost(config: EvaluateConfig) -> dict[str, Any]:
    """Language-model forward passes: of the policy's training, by model, and of each response."""
    training: dict[str, int] = {}
    directory = Path(config.model_name_or_path)
    if (directory / "manifest.json").exists():
        training = StageRecord(directory).summary.get("forward_passes", {})
    return {
        "training": training,
        "training_total": sum(training.values()),
        "policy_per_response": 1,
    }


def side_by_side(
    prompts: Sequence[Prompt], rl: Responses, sft: Responses, kl_N: np.ndarray
) -> list[dict[str, Any]]:
    """One row per prompt: both responses with score, gold, KL and whether they ended."""
    rows = []
    for i, prompt in enumerate(prompts):
        row = {
            "prompt": prompt_text(prompt),
            "reference": sft.made.completions[i],
            "policy": rl.made.completions[i],
            "reference_score": sft.score[i],
            "policy_score": rl.score[i],
            "kl": kl_N[i],
            "reference_finished": sft.made.finished[i],
            "policy_finished": rl.made.finished[i],
        }
        if rl.gold is not None and sft.gold is not None:
            row |= {"reference_gold": sft.gold[i], "policy_gold": rl.gold[i]}
        rows.append(row)
    return rows


def say_result(policies: dict[str, dict[str, Any]], comparison: dict[str, Any]) -> None:
    for measure, name in (("score", "reward"), ("gold", "gold reward")):
        if measure in comparison:
            c = comparison[measure]
            say(
                f"evaluate: {name} {policies['reference'][measure]:.2f} -> "
                f"{policies['policy'][measure]:.2f}, difference {c['difference']:+.2f} "
                f"[{c['difference_low']:+.2f}, {c['difference_high']:+.2f}], win rate "
                f"{c['win_rate']:.1%} [{c['win_rate_low']:.1%}, {c['win_rate_high']:.1%}]"
            )
    if "judge" in comparison:
        c = comparison["judge"]
        say(
            f"evaluate: win rate by the judge {c['win_rate']:.1%} [{c['win_rate_low']:.1%}, "
            f"{c['win_rate_high']:.1%}] on {c['n']} pairs; {c['inconsistent']} verdicts changed with the "
            f"order, {c['unparsable']} replies were unreadable"
        )
    p = policies["policy"]
    say(
        f"evaluate: KL {p['kl']:.2f} ± {p['kl_se']:.2f} nats per response, EOS {p['eos_rate']:.1%}, "
        f"length {p['length']:.1f}"
    )
