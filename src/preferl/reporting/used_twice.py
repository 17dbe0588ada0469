"""Data sets and labels that several stages of a run used, in sentences: by content, as the manifests record
it.

That one data set serves several stages is usual, since its splits keep apart what trains and what is
measured. Where they do not, the page says so: an evaluation on rows that trained is no evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from preferl.reporting.measures import Stages
from preferl.runs.record import StageRecord

ROLES = ("dataset_name", "also_train_on", "mixture_dataset_name")
# What a stage takes from a data set.
TAKES = {
    "sft": "demonstrations",
    "reward": "labels to learn",
    "dpo": "labels to learn",
    "rl": "prompts to train on",
    "collect": "prompts to sample from",
    "best_of": "prompts to sample from",
    "evaluate": "prompts to measure on",
    "audit": "labels to measure by",
}
MEASURE = ("evaluate", "audit")
# Options that decide which rows a split has.
DIVIDE = ("split_shares", "split_by")
ON_TRAIN = "measured on rows that train"  # as a stage's notes say it of few rows


@dataclass(frozen=True)
class Use:
    """A data set in a stage.

    Args:
        stage: the stage's name in the run.
        record: of the stage.
        name: of the data set, as it was given.
    """

    stage: str
    record: StageRecord
    name: str

    @property
    def kind(self) -> str:
        return self.record.kind

    @property
    def split(self) -> str:
        """The rows that it worked on."""
        return self.record.config.get("split") or ("eval" if self.kind in MEASURE else "train")


def used_twice(stages: Stages) -> list[str]:
    """A sentence for every data set that several stages used, and one for each that was measured on rows that
    trained."""
    sentences = []
    for uses in by_content(stages).values():
        if len({use.stage for use in uses}) < 2:
            continue
        parts = [f"{use.stage} ({TAKES[use.kind]})" for use in uses]
        names = " and ".join(dict.fromkeys(use.name for use in uses))
        sentences.append(f"used more than once: {names}, by {', '.join(parts[:-1])} and {parts[-1]}")
        for measured in (use for use in uses if use.kind in MEASURE):
            sentences += overlaps(measured, [use for use in uses if use.kind not in MEASURE])
    return sentences


def by_content(stages: Stages) -> dict[str, list[Use]]:
    """The content of each data set -> its uses; one whose content was not recorded goes by its name. The
    embedded world, which divides itself, is none of them."""
    found: dict[str, list[Use]] = {}
    for stage, record in stages.items():
        if record.kind not in TAKES:
            continue
        parents = record.manifest.get("parents", {})
        for role in ROLES:
            name = record.config.get(role)
            if not isinstance(name, str) or name == "world" or name.startswith("world:"):
                continue
            content = parents.get(role, {}).get("hash", name)
            found.setdefault(content, []).append(Use(stage, record, name))
    return found


def overlaps(measured: Use, trained: Sequence[Use]) -> list[str]:
    """What may have trained of the rows that a stage measured on."""
    sentences = []
    if any(ON_TRAIN in note for note in measured.record.summary.get("notes", [])) and trained:
        stages = ", ".join(use.stage for use in trained)
        return [
            f"{measured.stage} measured on rows of {measured.name} that trained {stages}: it has too few "
            f"others"
        ]
    for use in trained:
        config, other = measured.record.config, use.record.config
        differ = [
            key for key in DIVIDE if config.get(key) != other.get(key) and key in config and key in other
        ]
        if measured.split in (use.split, "all") or use.split == "all":
            sentences.append(
                f"{measured.stage} measured on rows of {measured.name} that trained {use.stage} (split "
                f"'{measured.split}', trained on '{use.split}'): what it says of them is no test"
            )
        elif differ:
            sentences.append(
                f"{measured.stage} and {use.stage} divided {measured.name} in other ways "
                f"({', '.join(differ)}), so that rows that trained may be among those that were measured on"
            )
    return sentences
