"""Options of ``preferl audit``."""

from dataclasses import dataclass

from preferl.options.judging import JudgeOptions
from preferl.options.shared import DataOptions, PhraseOptions, StageOptions, TemplateOptions
from preferl.runs.ranges import Count


@dataclass(kw_only=True)
class AuditConfig(PhraseOptions, JudgeOptions, DataOptions, TemplateOptions, StageOptions):
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
