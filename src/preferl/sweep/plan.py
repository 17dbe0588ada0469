"""Which runs a sweep consists of, and where their stages lie."""

import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from preferl import pipeline
from preferl.pipeline import Planned, RunConfig, RunOptions, plain, replace_references
from preferl.runs.errors import UsageError
from preferl.runs.files import write_json
from preferl.runs.ranges import RangedOptions, Seed
from preferl.runs.record import PLACES

CONTENTS = "contents.json"  # of a sweep: the hash of what a stage makes -> its directory
BASE = "base"  # the name of the point that changes nothing
MISPLACED = "directories follow from the points; give one output_dir for the sweep"


@dataclass(kw_only=True)
class SweepOptions(RangedOptions):
    """What varies and what is read off."""

    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Dotted key of a run -> values; every combination is a point."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """Further points, each with the keys it sets and, under ``name``, what it is called; {} is the base. In a
    text ``@other name/reward`` stands for the directory of that stage of a point named before."""
    seeds: list[Seed] = field(default_factory=lambda: [0])
    """Every point is run with each of these seeds."""
    metrics: dict[str, str] = field(default_factory=dict)
    """Name -> stage and path in its summary.json, as reward.eval/accuracy; by default those of the stages."""


class SweepConfig:
    """A sweep: what was given for a run, and under ``sweep`` what varies.

    Raises:
        UsageError: as of ``RunConfig``.
    """

    def __init__(self, **given: Any):
        options = given.pop("sweep", {})
        self.options = options if isinstance(options, SweepOptions) else SweepOptions(**options)
        self.base = RunConfig(**({"output_dir": "runs/sweep"} | given))

    @property
    def root(self) -> Path:
        return Path(self.base.output_dir)

    def to_yaml(self) -> str:
        """The YAML that gives it back."""
        return self.base.to_yaml() + self.varied_yaml()

    def varied_yaml(self) -> str:
        """The part under ``sweep``."""
        varied = {name: value for name, value in vars(self.options).items() if value}
        return yaml.safe_dump({"sweep": plain(varied)}, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Point:
    """One setting of the swept keys: its own keys, and the run with them; ``name`` is its directory's,
    ``label`` what it is called where the configuration says so."""

    keys: dict[str, Any]
    run: RunConfig
    name: str
    label: str | None = None


@dataclass(frozen=True)
class Run:
    """A point with a seed: its stages, and where each stage that one of them names lies."""

    point: Point
    seed: int
    path: Path
    config: RunConfig
    stages: list[Planned]
    places: dict[str, Path]

    @property
    def where(self) -> dict[str, Path]:
        """Where each of its own stages lies, by name."""
        return {stage.name: self.places[stage.reference] for stage in self.stages}

    def needs(self, stage: Planned) -> list[Path]:
        """The directories that a stage reads from."""
        return [self.places[reference] for reference in stage.reads]

    def value_of(self, key: str) -> Any:
        """The value of a dotted key in this run, given or not."""
        name, _, rest = key.partition(".")
        if not rest:
            return self.config.given.get(key, getattr(RunOptions(), key))
        stage = next(stage for stage in self.stages if stage.name == name)
        return functools.reduce(getattr, rest.split("."), stage.options)


# -------------------------------------------------------------------------------------------------- points


def points_of(config: SweepConfig) -> list[Point]:
    """The grid's points and the explicit ones, each with its whole run, typed and checked.

    Raises:
        UsageError: an unknown key (the nearest known one is named), a key that a sweep cannot vary, a value
            of the wrong type, or nothing to run.
    """
    options, base = config.options, config.base
    explicit = [named_point(point) for point in options.points]
    keys = list(options.grid)
    for raw, _ in explicit:
        keys += raw
    check_labels([label for _, label in explicit if label is not None])
    check_options(options, base, keys)
    points: dict[str, Point] = {}
    for raw, label in [*grid_points(options.grid), *explicit]:
        own = typed(base, raw)
        point = Point(own, base.changed(own), slug(label) if label else name_of(own), label)
        # The same point may be there from the grid already; then it is not run twice. Another point must
        # not have its name, which is its directory's, nor the same point another label.
        before = points.setdefault(point.name, point)
        if before.keys != own:
            raise UsageError(f"sweep: {own} and {before.keys} have the same name {point.name}")
        same = next(p for p in points.values() if p.keys == own)
        if same.label != label:
            raise UsageError(f"sweep: '{label}' and '{same.label or same.name}' are the same point: {own}")
    return list(points.values())


Wanted = tuple[dict[str, Any], str | None]  # a point as it is written: keys with values, and a label


def grid_points(grid: Mapping[str, Sequence[Any]]) -> list[Wanted]:
    """Every combination of the values, the last key's varying fastest; none of these has a label."""
    if not grid:
        return []
    return [(dict(zip(grid, values, strict=True)), None) for values in itertools.product(*grid.values())]


def named_point(point: Mapping[str, Any]) -> Wanted:
    """An explicit point, its ``name`` taken out."""
    keys = {key: value for key, value in point.items() if key != "name"}
    return keys, str(point["name"]) if "name" in point else None


def check_options(options: SweepOptions, base: RunConfig, keys: Sequence[str]) -> None:
    """Refuses what cannot be swept."""
    if base.rounds != 1 or "rounds" in keys:
        raise UsageError("sweep: runs in rounds cannot be swept; leave rounds at 1")
    for key in keys:
        if key == "seed" or key.endswith("output_dir"):
            raise UsageError(
                f"sweep: {key}: " + ("list seeds in sweep.seeds" if key == "seed" else MISPLACED)
            )
    empty = [key for key, values in options.grid.items() if not values]
    if empty:
        raise UsageError(f"sweep.grid: {empty[0]} has no values; list at least one")
    if not (options.grid or options.points):
        raise UsageError("sweep: nothing varies; give sweep.grid (key -> values) or sweep.points")
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        raise UsageError(f"sweep.seeds is {options.seeds}; list different seeds, at least one")


def check_labels(labels: Sequence[str]) -> None:
    """Names of points are different, and can be referred to."""
    for label in labels:
        if not re.fullmatch(r"\w[^@/\x00-\x1f]{0,59}", label):
            raise UsageError(
                f"sweep.points: name {label!r}: up to 60 characters, the first a letter or digit, no @ or /"
            )
    if BASE in map(slug, labels):
        raise UsageError(f"sweep.points: '{BASE}' is what the point without changes is called; take another")
    slugs = [slug(label) for label in labels]
    twice = [label for label, own in zip(labels, slugs, strict=True) if slugs.count(own) > 1]
    if twice:
        raise UsageError(f"sweep.points: two points are called '{twice[0]}', or nearly so")


def typed(base: RunConfig, raw: Mapping[str, Any]) -> dict[str, Any]:
    """A point's keys with values of the types that the options have.

    Raises:
        UsageError: a key is unknown, or a value has another type.
    """
    # An algorithm of a person's own brings options, so it decides which keys there are.
    algorithms = {key: value for key, value in raw.items() if key.endswith(".algorithm")}
    classes = classes_of(base.changed(algorithms))
    known: list[str] = []
    for name, options_class in classes.items():
        prefix = f"{name}." if name else ""
        known += [prefix + key for key in keys_of(options_class)]
    # One flag for each key, of the type of the option that it reaches: jsonargparse checks the values.
    parser = ArgumentParser()
    parser.error = refuse  # type: ignore[method-assign]
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean '{near[0]}'?" if near else "; `preferl run --help` lists the keys"
            raise UsageError(f"sweep: unknown key '{key}'{hint}")
        name, _, rest = key.partition(".")
        top, path = (classes[name], rest) if rest else (RunOptions, key)
        parser.add_argument(f"--{key}", type=functools.reduce(type_of, path.split("."), top))
    found = parser.parse_object(dict(raw))
    return {key: found[key] for key in raw}


def classes_of(run: RunConfig) -> dict[str, type]:
    """The options of the run (under '') and of each stage that it can have."""
    kinds = pipeline.NAMES | {name: kind for name, kind in run.kinds.items() if kind}
    of_stages = {name: pipeline.config_class(kind, run.of(name)) for name, kind in kinds.items()}
    return {"": RunOptions} | of_stages


def keys_of(config_class: type) -> list[str]:
    """Every dotted key of a dataclass that has no keys below it."""
    keys = []
    for name, kind in get_type_hints(config_class).items():
        inner = keys_of(kind) if dataclasses.is_dataclass(kind) and isinstance(kind, type) else []
        keys += [f"{name}.{rest}" for rest in inner] or [name]
    return keys


def type_of(config_class: Any, name: str) -> Any:
    """The type of a configuration's field."""
    return get_type_hints(config_class)[name]


def refuse(message: str, ex: Exception | None = None) -> NoReturn:
    """What a parser does with a value of the wrong type."""
    raise UsageError("sweep: " + " ".join(str(message).split())) from ex


def slug(label: str) -> str:
    """A point's name as a directory's."""
    plain_label = re.sub(r"[^\w.+-]+", "-", label, flags=re.A).strip("-.")
    return plain_label or f"point-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def name_of(keys: Mapping[str, Any]) -> str:
    """A directory's name for some settings: readable, without separators of paths, one for each value.

    Example:
        >>> name_of({"reward.learning_rate": 0.001, "rl.kl_coef": 0.1})
        'reward.learning_rate=0.001,rl.kl_coef=0.1'
    """
    exact_parts, safe_parts = [], []
    for key, value in keys.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        exact_parts.append(f"{key}={text}")
        safe_parts.append(f"{key}=" + re.sub(r"[^\w.+-]+", "-", text, flags=re.A))
    exact, name = ",".join(exact_parts), ",".join(safe_parts)
    # Where the readable name has lost something (characters, or its end), or a file system that knows no
    # case could confuse it with another, a hash of the exact settings tells it apart.
    if name != exact or name != name.lower() or len(name) > 120:
        name = f"{name[:120]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"
    return name or BASE


# ---------------------------------------------------------------------------------------------------- runs


def plan_all(root: Path, points: Sequence[Point], seeds: Sequence[int]) -> list[Run]:
    """Every point with every seed, in this order; a point can refer to those before it.

    Raises:
        UsageError: a key that no stage reads, or a reference to a point or stage that is not there.
    """
    names = {name_of(point.keys): point.name for point in points if point.label and point.keys}
    runs: list[Run] = []
    # 1. What each run consists of, and where each of its stages would lie if it were alone: under the keys
    #    that reach it. Only runs of the same seed can refer to each other.
    for point in points:
        for seed in seeds:
            earlier = [run for run in runs if run.seed == seed]
            runs.append(plan(root, point, seed, names, earlier))
    # 2. Stages of the same content share one directory, whatever their points are called: where the sweep
    #    made it before, else where the first run that has it would put it.
    place = made_before(root)
    for run in runs:
        for stage in run.stages:
            place.setdefault(stage.content, run.places[stage.reference])
    # 3. So every reference has its directory, also those to stages of other points.
    shared: list[Run] = []
    for run in runs:
        known = {stage.reference: place[stage.content] for stage in run.stages}
        for earlier_run in shared:
            if earlier_run.seed == run.seed:
                known |= references_to(earlier_run)
        shared.append(dataclasses.replace(run, places=known))
    return shared


def made_before(root: Path) -> dict[str, Path]:
    """Content -> directory of the stages that an earlier sweep in this directory planned."""
    file = root / CONTENTS
    places = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found = {content: root / place for content, place in places.items()}
    # What lies outside of the sweep is not its own, whatever the file says.
    return {content: path for content, path in found.items() if path.resolve().is_relative_to(root.resolve())}


def write_places(root: Path, runs: Sequence[Run]) -> None:
    """``stages.json`` of every run: where each of its stages lies; and for the sweep that grows from this one
    what lies where."""
    contents = made_before(root)
    for run in runs:
        places = {name: os.path.relpath(path, run.path) for name, path in run.where.items()}
        write_json(run.path / PLACES, places)
        contents |= {stage.content: run.places[stage.reference] for stage in run.stages}
    relative = {content: os.path.relpath(path, root) for content, path in contents.items()}
    write_json(root / CONTENTS, relative)


def plan(root: Path, point: Point, seed: int, names: Mapping[str, str], earlier: Sequence[Run]) -> Run:
    """A point's run with one seed. ``names`` gives directories of their own to some settings; ``earlier`` are
    the runs of this seed that texts refer to."""
    path = root / point.name / f"seed-{seed}"
    config = point.run.changed({"seed": seed, "output_dir": str(path)})
    # 1. The run's stages, as `preferl run` would plan them; here its texts may also name stages of others.
    others: dict[str, Planned] = {}
    for run in earlier:
        others |= {reference_to(run.point, stage.name): stage for stage in run.stages}
    try:
        stages = pipeline.plan(config, others)
    except UsageError as error:
        raise UsageError(f"sweep: {point.name}: {error}") from error
    # 2. A key that reaches no stage would make points that differ in name only.
    reached = {"stages"}.union(*(stage.keys for stage in stages))
    unread = [key for key in point.keys if key not in reached]
    if unread:
        raise UsageError(
            f"sweep: {unread[0]} changes nothing in the stages of this run "
            f"({', '.join(stage.name for stage in stages)}); leave it out, or add the stage that reads it"
        )
    # 3. A stage lies under those of the point's keys that reach it, and under the seed if that does: so a
    #    stage that the swept keys do not touch (the SFT model of a sweep over kl_coef) lies in one place for
    #    all points, and is made once.
    places = {}
    for stage in stages:
        settings = name_of({key: value for key, value in point.keys.items() if key in stage.keys})
        seed_part = f"seed-{seed}" if "seed" in stage.keys else "every-seed"
        places[stage.reference] = root / names.get(settings, settings) / seed_part / stage.name
    return Run(point, seed, path, config, stages, places)


def reference_to(point: Point, stage: str) -> str:
    """How the points after this one name one of its stages."""
    return f"@{point.label or point.name}/{stage}"


def references_to(run: Run) -> dict[str, Path]:
    """How the points after a run name its stages, and where those lie."""
    return {reference_to(run.point, name): path for name, path in run.where.items()}


def written_config(run: Run) -> RunConfig:
    """A run's configuration as it is kept: one that stands alone, without references to other points."""

    def alone(found: re.Match[str]) -> str:
        names_another_point = found[1] != ""
        return str(run.places[found[0]]) if names_another_point else found[0]

    return RunConfig(**replace_references(run.config.given, alone))
