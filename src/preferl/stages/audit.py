"""audit: any reward on any labelled pairs, by category: benchmarks such as RewardBench, or a model at hand.

Writes ``audit.json`` (accuracy, calibration, categories, biases, baselines, disagreements), prints accuracy
by category with intervals.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preferl.data import sources
from preferl.data.records import SPLITS, DataError, Preference, prompt_text
from preferl.evaluation.audit import audit_scorer
from preferl.evaluation.scored import ScoredPairs, quality_of, scores_of
from preferl.judging.scorers import load_scorer, reward_models
from preferl.runs import devices
from preferl.runs.config import DataOptions, DeviceOptions
from preferl.runs.directory import StageDirectory, StageRecord
from preferl.runs.errors import UsageError
from preferl.runs.progress import say

ALL = "all"


@dataclass(kw_only=True)
class AuditConfig(DataOptions, DeviceOptions):
    """Options of the audit stage."""

    output_dir: str = "runs/audit"
    """Where the stage is written."""
    reward_model: str = "runs/reward"
    """What is audited: a reward model, ``judge:<model>``, ``module:function`` or a mixture of them."""
    split: str = ALL
    """The prompts whose pairs are scored: ``all``, ``train``, ``dev``, ``rl`` or ``eval``."""
    category: str | None = None
    """The column to count by; without it ``subset``, ``category``, … where there is one."""
    train_dataset_name: str | None = None
    """Pairs from which the baselines (length, bag of words) learn and on which calibration is seen."""
    max_pairs: int = 100_000
    """Most pairs that are scored, the first ones."""


def run(config: AuditConfig, fresh: bool = False) -> Path:
    """Scores all pairs and writes what they show; returns the stage's directory."""
    stage = StageDirectory(Path(config.output_dir), "audit")
    if stage.settled(dataclasses.asdict(config), fresh):
        say(f"audit: finished before in {stage.path}")
        return stage.path
    if config.split not in (ALL, *SPLITS):
        raise UsageError(f"split '{config.split}' is unknown; use {ALL}, {', '.join(SPLITS)}")
    device, _ = devices.setup(config.seed, config.device, config.dtype, config.num_threads)
    source = sources.load_source(**config.source())
    pairs = pairs_of(source, config.split)[: config.max_pairs]
    if config.category and not any(config.category in pair.columns for pair in pairs):
        raise UsageError(
            f"'{config.dataset_name}' has no column '{config.category}'; it has "
            f"{', '.join(sorted({name for pair in pairs for name in pair.columns})) or 'none'}"
        )
    train_pairs: Sequence[Preference] = ()
    if config.train_dataset_name:
        training = sources.load_source(**config.source() | {"name": config.train_dataset_name})
        train_pairs = pairs_of(training, "train")
    scorer = load_scorer(config.reward_model, device)
    stage.begin(
        dataclasses.asdict(config), {"reward": config.reward_model, "preferences": config.dataset_name}
    )
    for note in source.notes:
        say(f"audit: {note}")
    scale = scale_of(config.reward_model)
    chosen_N, rejected_N = scores_of(scorer, pairs)
    scored = ScoredPairs(pairs, chosen_N * scale, rejected_N * scale)
    found = audit_scorer(scorer, scored, train_pairs, scale, config.seed, config.category)
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
    )
    say_result(found)
    stage.finish(
        reward=config.reward_model,
        reward_models=list(reward_models(scorer)),
        scale=scale,
        notes=source.notes,
        **quality_of(scored.gap_N, pairs, config.seed),
    )
    return stage.path


def pairs_of(source: sources.Source, split: str) -> list[Preference]:
    """The pairs of a split, or all of them in the order of the splits.

    Raises:
        DataError: there are none.
    """
    if split != ALL:
        return source.need("preferences", split)
    pairs = [pair for name in SPLITS for pair in source.preferences[name]]
    if not pairs:
        raise DataError(f"data set '{source.name}' has no pair of responses ({'; '.join(source.notes)})")
    return pairs


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
    """A number with its interval."""
    if row["value"] is None:
        return f"undefined ({row['reason']})"
    ends = [format(row[end], form) if row[end] is not None else "?" for end in ("low", "high")]
    return f"{format(row['value'], form)} [{ends[0]}, {ends[1]}]"
