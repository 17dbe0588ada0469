"""Which stages belong together: by their records, wherever they lie and whatever they are called.

A stage's ``manifest.json`` says its kind and what it read. A run is what one evaluation measured and all that
led to it; stages that no such link connects are runs of their own. Directories' names decide nothing, they
only tell apart what is of one kind.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preferl.reporting.measures import Stages
from preferl.reporting.rounds import Rounds
from preferl.runs.errors import UsageError
from preferl.runs.inputs import names_in
from preferl.runs.lock import holder_of
from preferl.runs.mark import read_mark
from preferl.runs.record import (
    PLACES,
    StageRecord,
    is_sweep,
    read_config,
    read_manifest,
    stage_of,
    stage_paths,
)

# A stage's options that name rewards; a mixture of them is a text with several directories in it.
REWARDS = ("reward_model", "held_out_reward", "gold")
IN_ROUNDS = ("collect", "reward", "dpo", "rl")  # kinds of which a later one goes on from an earlier one
# What a run is about: its evaluation, or else the policy that it trained, or else its reward model.
HEADS = (("evaluate",), ("rl", "dpo"), ("reward",))

HashOf = Callable[[Path], str]


@dataclass
class Gathered:
    """What some directories hold.

    Args:
        runs: the finished stages of every run, by the run's name.
        notes: what a reader of the page has to know about it: what is not finished, what was made again
            since, what does not belong together.
    """

    runs: dict[str, Stages] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Kin:
    """Which stage read which, among some that are known, and further back along what lies on this disk.

    Args:
        known: the stages' directories.
        hash_of: what a manifest says about a parent's content; without it a parent that was moved, or made
            again, is not noticed.
    """

    def __init__(self, known: Sequence[Path], hash_of: HashOf | None = None):
        self.known, self.hash_of = [path.resolve() for path in known], hash_of
        self.made_again: dict[str, None] = {}
        self._parents: dict[Path, set[Path]] = {}
        self._hashes: dict[Path, str] = {}

    def parents(self, stage: Path) -> set[Path]:
        """The stages that one read."""
        if stage not in self._parents:
            manifest, config = read_manifest(stage), read_config(stage)
            found = {self._parent(stage, role, row) for role, row in manifest.get("parents", {}).items()}
            for option in REWARDS:
                found |= {self._named(name) for name in directories_in(config.get(option))}
            self._parents[stage] = {path for path in found if path is not None} - {stage}
        return self._parents[stage]

    def ancestors(self, stage: Path) -> set[Path]:
        """What one was made from, and what that was made from, and so on."""
        found: set[Path] = set()
        left = [stage.resolve()]
        while left:
            for parent in self.parents(left.pop()) - found:
                found.add(parent)
                left.append(parent)
        return found

    def related(self, one: Path, other: Path) -> bool:
        """Whether one of two stages was made from the other."""
        one, other = one.resolve(), other.resolve()
        return one in self.ancestors(other) or other in self.ancestors(one)

    def _parent(self, stage: Path, role: str, row: Mapping[str, str]) -> Path | None:
        if "path" not in row:  # from the Hub, or a person's own function
            return None
        place = stage_of((stage / row["path"]).resolve())
        if place is None:  # moved: the content tells
            return next((path for path in self.known if self._hash(path) == row["hash"]), None)
        if finished_at(place) > finished_at(stage) and self._hash(place) not in (row["hash"], ""):
            self.made_again[
                f"{place} was made again after {stage} had read it as its {role}: what is shown of the two "
                f"does not belong together"
            ] = None
            return None
        return place

    def _named(self, name: str) -> Path | None:
        """The stage of a directory that a reward's text names: relative to where the command was given, which
        need not be here."""
        place = stage_of(Path(name).resolve())
        if place is not None:
            return place
        return next((path for path in self.known if path.parts[-2:] == Path(name).parts[-2:]), None)

    def _hash(self, path: Path) -> str:
        if self.hash_of is None:
            return ""
        if path not in self._hashes:
            self._hashes[path] = self.hash_of(path)
        return self._hashes[path]


def directories_in(reward: object) -> list[str]:
    """The parts of a reward's text that can be directories, as of ``0.7*runs/a/reward + 0.3*concise``."""
    return [part for part in names_in(str(reward or "")) if "/" in part]


def is_stage(path: Path) -> bool:
    """Whether a directory is one stage's."""
    mark = read_mark(path)
    return (path / "manifest.json").is_file() or (mark is not None and mark.kind == "stage")


def finished_at(stage: Path) -> float:
    """When a stage's DONE was written; 0 where it is not finished."""
    done = stage / "DONE"
    return done.stat().st_mtime if done.exists() else 0.0


# --------------------------------------------------------------------------------------------- gathering


def gather(directories: Sequence[Path], hash_of: HashOf | None = None) -> Gathered:
    """The runs that directories hold: of runs, of stages, or of both.

    A directory of stages is one run, and stages that were given by themselves are put together with what they
    read, or what read them. Where something was evaluated several times each evaluation is a run, with what
    led to it.

    Args:
        directories: of runs and of stages.
        hash_of: as of ``Kin``.

    Raises:
        UsageError: one is no directory, a sweep, or holds no stage; or one is named twice.
    """
    check_directories(directories)
    groups: list[list[Path]] = []
    names: list[str] = []
    loose: list[Path] = []
    for directory in directories:
        if is_stage(directory):
            loose.append(directory)
        else:
            groups.append(list(stage_paths(directory).values()))
            names.append(name_of_run(directory))
    found = Gathered()
    kin = Kin([path for group in (*groups, loose) for path in group if is_finished(path)], hash_of)
    of_runs = len(groups)
    for stage in loose:
        joined = [i for i, group in enumerate(groups) if any(kin.related(stage, path) for path in group)]
        for i in reversed(
            [i for i in joined[1:] if i >= of_runs]
        ):  # two groups of stages that this one links
            groups[joined[0]] += groups.pop(i)
        if joined:
            groups[joined[0]].append(stage)
        else:
            groups.append([stage])
    names = unique([*names, *(name_of_stages(group) for group in groups[of_runs:])], groups)
    if len(groups) > of_runs + 1 or (of_runs and len(groups) > of_runs):
        found.notes.append(
            "No stage of one of these was made from a stage of another, so they are shown as runs of their "
            f"own: {'; '.join(names[of_runs:])}."
        )
    for i, (name, group) in enumerate(zip(names, groups, strict=True)):
        add_runs(found, name, group, kin, heads=HEADS[:1] if i < of_runs else HEADS)
    found.notes += kin.made_again
    return found


def check_directories(directories: Sequence[Path]) -> None:
    """Refuses what holds no stage, and what is named twice."""
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise UsageError(f"the same run is named twice: {', '.join(map(str, directories))}")
    for directory in directories:
        if not directory.is_dir():
            raise UsageError(
                f"{directory} is not a directory; give the directory of a run or of a stage, as runs/demo"
            )
        if is_stage(directory):
            continue
        if is_sweep(directory):
            raise UsageError(
                f"{directory} is a sweep: its page is made of it alone; beside others give one of its runs, "
                f"as {directory}/POINT/seed-0"
            )
        if not stage_paths(directory):
            raise UsageError(
                f"{directory} holds no stage; give the directory of a run or of a stage, or run `preferl "
                f"run` or `preferl demo` first"
            )


def add_runs(
    found: Gathered, name: str, group: Sequence[Path], kin: Kin, heads: Sequence[Sequence[str]]
) -> None:
    """Adds a group's run, or several where it has several heads that do not lead to each other."""
    unfinished = [path for path in group if not is_finished(path)]
    running = [path for path in unfinished if holder_of(path) is not None]
    stopped = [path for path in unfinished if path not in running]
    if running:
        found.notes.append(f"Still running, and so not in here: {', '.join(map(str, running))}.")
    if stopped:
        found.notes.append(
            f"Unfinished, and so not in here: {', '.join(map(str, stopped))}; the same command goes on there."
        )
    records = in_order(path for path in group if is_finished(path))
    if not records:
        return
    ends = heads_of(records, kin, heads)
    if len(ends) < 2:
        found.runs[name] = named(records, kin)
        return
    shown: set[Path] = set()
    for end in ends:
        family = kin.ancestors(end) | {end}
        own = {path: record for path, record in records.items() if path in family}
        # What was measured about one of its rewards belongs to it too.
        own |= {
            path: record
            for path, record in records.items()
            if record.kind == "audit" and kin.parents(path) & own.keys()
        }
        shown |= own.keys()
        found.runs[f"{name}/{end.name}"] = named(in_order(own), kin)
    left = [str(path) for path in records if path not in shown]
    if left:
        found.notes.append(
            f"What is shown was not made from these, and they are left out: {', '.join(left)}."
        )


def heads_of(records: Mapping[Path, StageRecord], kin: Kin, heads: Sequence[Sequence[str]]) -> list[Path]:
    """What a group of stages is about: those of the first kinds that it has, and that lead to no other."""
    for kinds in heads:
        ends = [path for path, record in records.items() if record.kind in kinds]
        if ends:
            return [path for path in ends if not any(path in kin.ancestors(other) for other in ends)]
    return []


def is_finished(path: Path) -> bool:
    return (path / "DONE").exists()


def in_order(paths: Iterable[Path]) -> dict[Path, StageRecord]:
    """Stages by their directory, in the order in which they were begun.

    Raises:
        UsageError: a file is damaged.
    """
    places = sorted(
        {path.resolve() for path in paths}, key=lambda p: (p / "manifest.json").stat().st_mtime_ns
    )
    return {path: StageRecord(path) for path in places}


def finished_stages(run: Path) -> Stages:
    """The finished stages of one run's directory.

    Raises:
        UsageError: as of ``gather``, or none is finished.
    """
    check_directories([run])
    records = in_order(path for path in stage_paths(run).values() if is_finished(path))
    return named(records, Kin(list(records)))


# ------------------------------------------------------------------------------------------------ naming


def named(records: Mapping[Path, StageRecord], kin: Kin) -> Stages:
    """The stages of one run as pages ask for them: under its kind the stage that the run is about, rounds put
    together; all others under their directories' names."""
    kinds = dict.fromkeys(record.kind for record in records.values())
    main = {kind: main_of(kind, records, kin) for kind in kinds if kind != "audit"}
    stages: Stages = {}
    rounds: set[Path] = set()
    for kind, last in main.items():
        before = kin.ancestors(last) if kind in IN_ROUNDS else set()
        earlier = [path for path, record in records.items() if record.kind == kind and path in before]
        rounds |= {last, *earlier}
        chain = [records[path] for path in (*earlier, last)]
        stages[kind] = Rounds(chain) if len(chain) > 1 else chain[0]
    for path, record in records.items():
        if path not in rounds:
            name = path.name if path.name not in stages else "/".join(path.parts[-2:])
            stages[name] = record
    return dict(sorted(stages.items(), key=lambda item: list(records).index(item[1].path.resolve())))


def main_of(kind: str, records: Mapping[Path, StageRecord], kin: Kin) -> Path:
    """The stage of a kind that a run is about: the newest that led to its evaluation, or else to its policy;
    of sft the oldest, from which all others start."""
    own = [path for path, record in records.items() if record.kind == kind]
    ends = next(filter(None, ([p for p, r in records.items() if r.kind in kinds] for kinds in HEADS)), [])
    led = kin.ancestors(ends[-1]) | {ends[-1]} if ends else set()
    chosen = [path for path in own if path in led] or own
    return chosen[0] if kind == "sft" else chosen[-1]


def name_of_run(run: Path) -> str:
    """``demo``; a run of a sweep has its point's name before it, as ``larger-KL/seed-0``."""
    return "/".join(run.resolve().parts[-2 if (run / PLACES).exists() else -1 :])


def name_of_stages(paths: Sequence[Path]) -> str:
    """What some stages are called together: as the directory that holds them, or else as the newest."""
    places = [path.resolve() for path in paths]
    if len(places) > 1 and len({place.parent for place in places}) == 1:
        return places[0].parent.name
    newest = max(places, key=lambda place: place.stat().st_mtime_ns)
    return "/".join(newest.parts[-2:])


def unique(names: Sequence[str], groups: Sequence[Sequence[Path]]) -> list[str]:
    """The names, or where two are the same the paths below what all share."""
    if len(set(names)) == len(names):
        return list(names)
    places = [group[0].resolve().parent for group in groups]
    shared = os.path.commonpath(places)
    return [os.path.relpath(place, shared) for place in places]
