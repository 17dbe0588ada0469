"""audit: any reward on any labelled pairs, by category: benchmarks such as RewardBench, or a model at hand.

Writes ``audit.json`` (accuracy, calibration, categories, biases, baselines, disagreements), prints accuracy
by category with intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preferl.data import sources
from preferl.data.records import Pair, prompt_text
from preferl.data.types import Scorer
from preferl.evaluation.audit import audit_scorer
from preferl.evaluation.features import PhraseOptions
from preferl.evaluation.scored import quality_of, scores_of, those_read
from preferl.judging.judge_options import JudgeOptions, check_judge, jury_of, names_judge, parse_judge
from preferl.judging.judges import Judge
from preferl.judging.juries import keep_replies, load_pairwise_judge, report_on
from preferl.judging.scorers import judges_in, load_scorer, reward_models
from preferl.runs.checkpoint import Parts
from preferl.runs.config import DataOptions, DeviceOptions
from preferl.runs.descent import with_data_set
from preferl.runs.errors import UsageError
from preferl.runs.progress import say
from preferl.runs.ranges import Count
from preferl.runs.record import StageRecord
from preferl.runs.stage import Callback, Stage
from preferl.statistics.intervals import Estimate

PART = 2000  # pairs that are scored between two writes
SIDES = ("chosen", "rejected")


@dataclass(kw_only=True)
class AuditConfig(PhraseOptions, JudgeOptions, DataOptions, DeviceOptions):
    """Options of the audit stage."""

    output_dir: str = "runs/audit"
    """Where the stage is written."""
    reward_model: str = "runs/reward"
    """What is audited: a reward model, ``judge:<model>`` or a jury of such, ``module:function``, or a mixture
    of them."""
    split: str = "all"
    """The rows whose pairs are scored: ``all``, one of the data set's own splits, ``train``, ``dev``, ``rl``
    or ``eval``."""
    category: str | None = None
    """The column to count by; without it ``subset``, ``category``, … where there is one."""
    train_dataset_name: str | None = None
    """Pairs from which the baselines (length, bag of words) learn and on which calibration is seen."""
    max_pairs: Count = 100_000
    """Most pairs that are scored, the first ones."""


def run(config: AuditConfig, fresh: bool | str = False, callbacks: Sequence[Callback] = ()) -> Path:
    """Scores all pairs and writes what they show; returns the stage's directory."""
    check_options(config)
    config = with_data_set(config)
    with Stage("audit", config, fresh, callbacks) as stage:
        if stage.is_finished:
            return stage.path
        source = sources.load_source(**config.source()).measured_on(config.split)
        pairs = source.need("pairs", "eval")[: config.max_pairs]
        check_category(pairs, config)
        train_pairs: Sequence[Pair] = ()
        if config.train_dataset_name:
            training = sources.load_source(**config.source() | {"name": config.train_dataset_name})
            train_pairs = training.need("pairs", "train")
        scorer = load_audited(config, stage.device)
        stage.begin(source.notes)
        keep_replies(judges_in(scorer), stage.path)
        audit(scorer, pairs, train_pairs, scale_of(config.reward_model), config, stage)
    return stage.path


def check_options(config: AuditConfig) -> None:
    """Refuses what cannot work, before anything is loaded."""
    if names_judge(config.reward_model):
        check_judge(config.reward_model)


def load_audited(config: AuditConfig, device: torch.device) -> Any:
    """The scorer; or a judge that compares the two responses of a pair, where its text asks for that."""
    how = config.how_judged(config.seed)
    if names_judge(config.reward_model):
        first = (jury_of(config.reward_model) or ("", [config.reward_model]))[1][0]
        if parse_judge(first).config.ask == "pairwise":
            return load_pairwise_judge(config.reward_model, device, how)
    return load_scorer(config.reward_model, device, how)


def audit(
    scorer: Scorer,
    pairs: Sequence[Pair],
    train_pairs: Sequence[Pair],
    scale: float,
    config: AuditConfig,
    stage: Stage,
) -> None:
    """Audits a scorer on pairs and finishes the stage.

    Args:
        scorer: what is audited.
        pairs: labelled pairs.
        train_pairs: what the baselines learn from; may be empty.
        scale: what brings scores to log-odds.
        config: the options.
        stage: where it is written.
    """
    chosen_N, rejected_N = scores_in_parts(scorer, pairs, Parts(stage.state, stage.owner))
    scored = those_read(pairs, chosen_N, rejected_N, scale)
    left_out = len(pairs) - len(scored.pairs)
    if left_out:
        stage.say(
            f"{left_out} of {len(pairs)} pairs are left out: the judge wrote nothing readable about them"
        )
    found = audit_scorer(
        scorer, scored, train_pairs, scale, config.seed, config.category, phrases=config.phrases
    )
    if left_out:
        found["left_out"]["pairs"] = f"nothing readable was judged about {left_out} of {len(pairs)}"
    stage.write_json("audit.json", found)
    stage.log_samples(
        {
            "prompt": prompt_text(pair.prompt),
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "score_chosen": chosen,
            "score_rejected": rejected,
        }
        for pair, chosen, rejected in zip(pairs, chosen_N, rejected_N, strict=True)
        if not np.isnan(chosen + rejected)
    )
    say_result(found)
    quality = quality_of(scored.gap_N, scored.pairs, config.seed)
    judged = report_on(judges_in(scorer), stage.say)
    stage.finish(
        reward=config.reward_model,
        reward_models=list(reward_models(scorer)),
        scale=scale,
        **judged,
        **{f"{config.split}/{name}": value for name, value in quality.items()},
    )


def scores_in_parts(scorer: Scorer, pairs: Sequence[Pair], parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the chosen and of the rejected responses; what was scored before an interruption is read."""
    if isinstance(scorer, Judge) and scorer.keeps_replies:
        return scores_of(scorer, pairs)
    chosen, rejected = [], []
    for start in range(0, len(pairs), PART):

        def score(part: Sequence[Pair] = pairs[start : start + PART]) -> Any:
            both = scores_of(scorer, part)
            tensors = {name: torch.from_numpy(x_N) for name, x_N in zip(SIDES, both, strict=True)}
            return tensors, {"judges": [judge.state(whole=False) for judge in judges_in(scorer)]}

        found, plain = parts.get(str(start), score)
        for judge, state in zip(judges_in(scorer), plain["judges"], strict=True):
            judge.restore(state)
        chosen.append(found["chosen"].numpy())
        rejected.append(found["rejected"].numpy())
    return np.concatenate(chosen), np.concatenate(rejected)


def check_category(pairs: Sequence[Pair], config: AuditConfig) -> None:
    """Refuses a category column that no pair has."""
    if config.category and not any(config.category in pair.columns for pair in pairs):
        raise UsageError(
            f"'{config.dataset_name}' has no column '{config.category}'; it has "
            f"{', '.join(sorted({name for pair in pairs for name in pair.columns})) or 'none'}"
        )


def scale_of(reward_model: str) -> float:
    """What brings scores to log-odds: a reward stage scaled its own to sd 1, other models are taken as is."""
    directory = Path(reward_model)
    if not (directory / "manifest.json").exists():
        return 1.0
    return float(StageRecord(directory).summary.get("reference_sd", 1.0))


def say_result(found: dict[str, Any]) -> None:
    """Accuracy with intervals: of everything, by category, by style and by section."""
    accuracy = found["accuracy"]
    say(
        f"audit: accuracy {estimate_text(accuracy['accuracy'])} on {accuracy['pairs']:,} pairs of "
        f"{accuracy['prompts']:,} prompts"
    )
    rows = (found.get("by_category") or {"rows": []})["rows"] + (found.get("by_style") or [])
    for row in rows:
        say(f"audit:   {row['category']:<28} {estimate_text(row['accuracy'])}  {row['pairs']:>6,} pairs")
    for row in found.get("by_section") or []:
        say(f"audit:   {row['section']:<28} {row['accuracy']:.1%}  {row['pairs']:>20,} pairs")
    for row in (found.get("baselines") or {"rows": []})["rows"]:
        say(
            f"audit:   baseline {row['baseline']:<19} {estimate_text(row['accuracy'])}; model minus baseline "
            f"{estimate_text(row['model_minus_baseline'], '+.1%')}"
        )


def estimate_text(row: dict[str, Any], form: str = ".1%") -> str:
    """A number with its interval, or why there is none."""
    return Estimate.read(row).text(form, missing=f"undefined ({row.get('reason')})")
