"""Which model of a run is shared, what led to it, and what measured it: read from the files of its stages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from preferl.reporting.gather import Kin, in_order, is_finished, is_stage, name_of_run, named
from preferl.reporting.measures import Stages
from preferl.reporting.rounds import one_by_one
from preferl.runs.errors import UsageError
from preferl.runs.inputs import DATA
from preferl.runs.policies import judged_by
from preferl.runs.record import StageRecord, is_sweep, stage_of
from preferl.share.options import PARTS
from preferl.share.private import Private, local_names
from preferl.stages import report

WITH_MODEL = ("rl", "dpo", "reward", "sft")  # kinds, the first that a run has is what it is about
MEASURES = ("evaluate", "audit")  # stages that make nothing


@dataclass(frozen=True)
class Subject:
    """A model that is shared.

    Args:
        name: of its run.
        run: the directory that was given.
        record: the stage that made it.
        part: the folder of that stage that holds its weights, of ``PARTS``.
        stages: that stage, what led to it and what measured it, as pages ask for them.
        private: what must not leave with it.
    """

    name: str
    run: Path
    record: StageRecord
    part: str
    stages: Stages
    private: Private

    @property
    def folder(self) -> Path:
        return self.record.path / self.part

    @property
    def is_reward(self) -> bool:
        return self.record.kind == "reward"

    @property
    def evaluation(self) -> StageRecord | None:
        return self.stages.get("evaluate")

    def steps(self) -> list[tuple[str, StageRecord]]:
        """Name and record of every stage that led to it, in their order, itself last."""
        return [(name, record) for name, record in one_by_one(self.stages) if record.kind not in MEASURES]

    def data(self) -> Iterator["Data"]:
        """What was read as data that no stage of the run made, each once."""
        seen: set[str] = set()
        for _, record in self.steps():
            for option in DATA:
                name = record.config.get(option)
                if not isinstance(name, str) or name in seen:
                    continue
                found = Data.of(name, record, option)
                if not found.is_of_stage:
                    seen.add(name)
                    yield found


@dataclass(frozen=True)
class Data:
    """Data that a stage read: its name, where it lies on this disk, and its SHA-256 or the Hub's revision."""

    name: str
    place: Path | None
    content: str

    @classmethod
    def of(cls, name: str, record: StageRecord, option: str) -> "Data":
        parent = record.manifest.get("parents", {}).get(option, {})
        place = (record.path / parent["path"]).resolve() if "path" in parent else None
        return cls(name, place, parent.get("hash", ""))

    @property
    def is_world(self) -> bool:
        return self.name == "world" or self.name.startswith("world:")

    @property
    def is_of_stage(self) -> bool:
        return self.place is not None and stage_of(self.place) is not None

    @property
    def on_hub(self) -> bool:
        """Whether it is a data set of the Hub: a name that is neither a path here nor an object of Python."""
        local = self.place is not None or self.is_world or self.name.startswith(("memory:", ".", "~"))
        return not local and hub_name(self.name) is not None

    def __str__(self) -> str:
        return "the embedded world" if self.is_world else self.name


@dataclass(frozen=True)
class Base:
    """The model from which everything began.

    Args:
        name: a Hub name, or a folder's; None where preferl made a new model.
        place: the folder, where it was one.
        content: its SHA-256, or the Hub's revision.
    """

    name: str | None
    place: Path | None = None
    content: str = ""

    @property
    def on_hub(self) -> bool:
        return self.name is not None and self.place is None and hub_name(self.name) is not None


def hub_name(text: str) -> str | None:
    """``owner/name`` at the beginning of a data set's or a model's name; None where there is none."""
    from preferl.data.containers import HUB, HUB_NAME, Name

    base = Name.parse(text).base.removeprefix(HUB)
    return base if "/" in base and HUB_NAME.fullmatch(base) else None


def base_of(record: StageRecord) -> Base:
    """Where the chain of models begins that ends with a stage's."""
    name = record.config.get("model_name_or_path")
    parent = record.manifest.get("parents", {}).get("model_name_or_path", {})
    if name is None:
        return Base(None)
    if "path" not in parent:
        return Base(name, None, parent.get("hash", ""))
    place = (record.path / parent["path"]).resolve()
    stage = stage_of(place)
    return Base(name, place, parent["hash"]) if stage is None else base_of(StageRecord(stage))


# ------------------------------------------------------------------------------------------------- choosing


def read(run: Path, stage: str | None = None, part: str = "model") -> Subject:
    """The model of a run, or of one stage.

    Args:
        run: a directory of a run or of a stage.
        stage: whose model; by default of the policy that was evaluated, or else of the last stage of the
            first kind of ``WITH_MODEL`` that there is.
        part: of ``PARTS``.

    Raises:
        UsageError: nothing is finished there, no stage has what is asked for, or it is not clear which.
    """
    if part not in PARTS:
        raise UsageError(f"--part is {part}; the parts of a stage are {', '.join(PARTS)}")
    if is_sweep(run):
        raise UsageError(f"{run} is a sweep; share one of its runs, as {run}/POINT/seed-0")
    found = report.read([run])
    chosen = {
        record.path: (record, stages)
        for stages in found.runs.values()
        if (record := choose(stages, stage)) is not None
    }
    with_model = {record.path.name for s in found.runs.values() for _, record in models_in(s)}
    has = f"those with a model are {', '.join(sorted(with_model))}" if with_model else "none made a model"
    if not chosen:
        raise UsageError(f"{run} has no finished stage {stage or 'that made a model'}; {has}")
    if len(chosen) > 1:
        names = ", ".join(sorted(path.name for path in chosen))
        raise UsageError(
            f"{run} has several policies, each with an evaluation ({names}); name one with --stage"
        )
    ((record, stages),) = chosen.values()
    if not (record.path / part).is_dir():
        made = [name for name in PARTS if (record.path / name).is_dir()]
        raise UsageError(f"{record.path} has no {part}/; it has {', '.join(made) or 'none of its parts'}")
    records = [one for _, one in one_by_one(stages)]
    family = family_of(record, records)
    records += [one for _, one in one_by_one(family)]
    return Subject(
        name=run.resolve().name if is_stage(run) else name_of_run(run),
        run=run,
        record=record,
        part=part,
        stages=family,
        private=Private(local_names(run, records)),
    )


def models_in(stages: Stages) -> list[tuple[str, StageRecord]]:
    """The stages of a run that made a model, by name."""
    return [(name, record) for name, record in one_by_one(stages) if record.kind in WITH_MODEL]


def choose(stages: Stages, name: str | None) -> StageRecord | None:
    """The stage whose model is meant; None where a run has none."""
    made = models_in(stages)
    if name is not None:
        if name in stages and stages[name].kind in WITH_MODEL:
            name = stages[name].path.name  # of a kind's rounds the last
        return next((record for _, record in made if record.path.name == name), None)
    if "evaluate" in stages:
        judged = next((one for _, one in made if one.path == judged_by(stages["evaluate"].path)), None)
        if judged is not None:
            return judged
    for kind in WITH_MODEL:
        of_kind = [record for _, record in made if record.kind == kind]
        if of_kind:
            return of_kind[-1]
    return None


def family_of(record: StageRecord, records: Sequence[StageRecord]) -> Stages:
    """A stage, what led to it wherever it lies, and of the given records those that measured it."""
    kin = Kin([one.path for one in records])
    path = record.path.resolve()
    family = {path} | {stage for stage in kin.ancestors(path) if is_finished(stage)}
    family |= {
        one.path.resolve()
        for one in records
        if (one.kind == "evaluate" and judged_by(one.path) == path)
        or (one.kind == "audit" and path in kin.parents(one.path.resolve()))
    }
    return named(in_order(family), kin)
