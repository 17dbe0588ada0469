"""sweep: one run for every point of a grid and every seed; one table and one report.

Each run is what ``preferl run`` would do, except that runs share stages: a stage is stored under the swept
keys that reach it, its own and those of the stages it reads from. In a sweep over ``reward.learning_rate``
sft and collect lie in ``base/seed-0/`` and are made once, the reward models in
``reward.learning_rate=0.001/seed-0/`` and so on. A directory's name follows from keys and values alone, so a
sweep that grows finds again what it made.

preferl sweep --config configs/sweeps/reward_data_size.yaml
"""

import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import math
import os
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from jsonargparse import ArgumentParser

from preferl import pipeline
from preferl.data.records import DataError
from preferl.pipeline import RunConfig
from preferl.reporting import comparison
from preferl.reporting.sweeps import NAMED, Row, print_table, where, write_report, write_tables
from preferl.runs.config import instantiate, parser_for, to_yaml
from preferl.runs.errors import DATA, UsageError
from preferl.runs.files import write_atomically
from preferl.runs.mark import check_ours, claim
from preferl.runs.progress import say
from preferl.runs.record import SHARED, StageRecord, write_run_files
from preferl.runs.stage import is_finished
from preferl.stages import report

# Metrics of a sweep that names none: those of its stages, as far as the summaries have them.
DEFAULT_METRICS = {
    "sft": {"sft_loss": "sft.dev/loss"},
    "reward": {
        "accuracy": "reward.eval/accuracy",
        "fraction_of_bayes": "reward.eval/fraction_of_bayes",
        "log_loss": "reward.eval/loss",
        "calibration_error": "reward.eval/ece",
    },
    "best_of": {"kept_reward": "best_of.splits.train.kept.score"},
    "distil": {"distil_loss": "distil.dev/loss"},
    "dpo": {"dpo_accuracy": "dpo.dev/accuracy", "dpo_loss": "dpo.dev/loss", "dpo_kl": "dpo.dev/kl"},
    "evaluate": {
        "gold_win_rate": "evaluate.comparison.gold.win_rate",
        "gold_gain": "evaluate.comparison.gold.difference",
        "reward_gain": "evaluate.comparison.score.difference",
        "kl": "evaluate.policies.policy.kl",
    },
}
BASE = "base"  # the name of the point that changes nothing
MISPLACED = "directories follow from the points; give one output_dir for the sweep"


@dataclass(kw_only=True)
class SweepOptions:
    """What varies and what is read off."""

    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Dotted key of a run -> values; every combination is a point."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """Further points, each with the keys it sets and, under ``name``, what it is called; {} is the base. In a
    text ``@other name/reward`` stands for the directory of that stage of a point named before."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Every point is run with each of these seeds."""
    metrics: dict[str, str] = field(default_factory=dict)
    """Name -> stage and path in its summary.json, as reward.eval/accuracy; by default those of the stages."""


@dataclass(kw_only=True)
class SweepConfig(RunConfig):
    """A sweep: a run's configuration, and under ``sweep`` what varies."""

    output_dir: str = "runs/sweep"
    """The sweep's directory; runs lie in <point>/seed-<n>/ in it."""
    sweep: SweepOptions = field(default_factory=SweepOptions)
    """The grid, the seeds and the metrics."""


@dataclass(frozen=True)
class Point:
    """One setting of the swept keys: its own keys, and the value of every key of the sweep; ``name`` is its
    directory's, ``label`` what it is called where the configuration says so."""

    keys: dict[str, Any]
    settings: dict[str, Any]
    config: RunConfig
    name: str
    label: str | None = None


@dataclass(frozen=True)
class Run:
    """A point with a seed: where each of its stages lies, the directories that they read from (of this run or
    of others), and their options."""

    point: Point
    seed: int
    path: Path
    where: dict[str, Path]
    needs: dict[str, list[Path]]
    config: RunConfig

    def options(self, stage: str) -> Any:
        return getattr(self.config, stage)


@dataclass(frozen=True)
class Outcome:
    """What a sweep left; ``exit_code`` is that of the first error, 0 without one."""

    report: Path
    runs: int
    errors: list[str]
    exit_code: int


def run(config: SweepConfig, fresh: bool = False) -> Outcome:
    """Runs what is missing, then writes ``table.csv``, ``table.json`` and ``report.html``.

    A run that fails is recorded in its directory as ``error.txt`` and in the tables; the sweep goes on.

    Raises:
        UsageError: a key, value, metric or directory cannot be used; found before anything runs, save for
            a metric that no summary has.
    """
    root = Path(config.output_dir)
    points = points_of(config)
    runs = plan_all(root, points, config.sweep.seeds)
    metrics = metrics_of(config, runs)
    check_ours(root, "sweep", root.name)
    for run_ in runs:
        check_ours(run_.path, "run", run_.path.name)
        for stage, path in run_.where.items():
            settings = dataclasses.asdict(run_.options(stage))
            is_finished(path, pipeline.kind_of(stage), settings, fresh)
    write_run_files(root, to_yaml(config), "sweep")
    for run_ in runs:  # before any stage that another one shares lies in it
        claim(run_.path, "run", run_.path.name)
    say(f"sweep: {len(points)} points x {len(config.sweep.seeds)} seeds in {root}; {shared(runs)}")
    made: set[Path] = set()
    broken: dict[Path, Exception] = {}
    errors: dict[tuple[str, int], Exception] = {}
    notes: dict[tuple[str, int], str] = {}
    for number, run_ in enumerate(runs, 1):
        say(f"sweep: run {number}/{len(runs)}: {run_.point.name}, seed {run_.seed}")
        note = run_.path / "error.txt"
        try:
            run_stages(run_, fresh, made, broken)
            note.unlink(missing_ok=True)
        except Exception as error:  # noqa: BLE001 - recorded, shown in the table, said by the exit code
            errors[run_.point.name, run_.seed], notes[run_.point.name, run_.seed] = error, said(error)
            write_atomically(note, f"{said(error)}\n\n{traceback.format_exc()}")
            say(f"sweep: failed: {said(error)}")
        write_tables(root, rows_of(points, runs, metrics, notes), metrics)
    rows = rows_of(points, runs, metrics, notes)
    file = show(root / "report.html", config, runs, rows, metrics)
    missing = [
        missing_metric(name, metrics[name], runs)
        for name in config.sweep.metrics
        if not any(row.values[name] for row in rows)
    ]
    if missing and not errors:
        raise UsageError(missing[0])
    return Outcome(file, len(runs), [f"{p}/seed-{s}: {note}" for (p, s), note in notes.items()],
                   next((exit_code_of(error) for error in errors.values()), 0))  # fmt: skip


def show(
    path: Path, config: SweepConfig, runs: Sequence[Run], rows: Sequence[Row], metrics: dict[str, str]
) -> Path:
    """Writes the page, and says the table and each point's verdict."""
    shown = {name: place for name, place in metrics.items() if any(row.values[name] for row in rows)}
    records = finished(runs, rows)
    write_report(
        path, Path(config.output_dir), to_yaml(config), rows, shown, config.sweep.seeds, shared(runs), records
    )
    print_table(rows, shown, len(config.sweep.seeds))
    for line in comparison.lines(records):
        say(f"sweep: {line}")
    say(f"sweep: {path}")
    return path


def page(root: Path, path: Path | None = None) -> Path:
    """Writes the page of a sweep anew from what lies there, by default its ``report.html``; runs nothing."""
    parser = parser_for(SweepConfig, "preferl report", "")
    arguments = ["--config", str(root / "config.yaml"), "--output_dir", str(root)]
    config = instantiate(parser, SweepConfig, parser.parse_args(arguments))
    points = points_of(config)
    runs = plan_all(root, points, config.sweep.seeds)
    metrics = metrics_of(config, runs)
    files = {(run_.point.name, run_.seed): run_.path / "error.txt" for run_ in runs}
    notes = {
        key: file.read_text(encoding="utf-8").splitlines()[0] for key, file in files.items() if file.exists()
    }
    return show(path or root / "report.html", config, runs, rows_of(points, runs, metrics, notes), metrics)


def finished(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, list[dict[str, StageRecord]]]:
    """The finished stages of every point with each seed, by what the table calls the point."""
    names = {row.point: where(row) for row in rows}
    found: dict[str, list[dict[str, StageRecord]]] = {name: [] for name in names.values()}
    for run_ in runs:
        there = {s: StageRecord(path) for s, path in run_.where.items() if (path / "DONE").exists()}
        found[names[run_.point.name]].append(there)
    return found


def said(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def exit_code_of(error: Exception) -> int:
    return getattr(error, "exit_code", DATA if isinstance(error, DataError) else 1)


def run_stages(run_: Run, fresh: bool, made: set[Path], broken: dict[Path, Exception]) -> None:
    """Runs the stages of one run that no run before has made. What reads from a stage that was made anew is
    made anew too; a stage that failed is not tried again by the runs that share it."""
    write_run_files(run_.path, to_yaml(run_.config))
    places = {name: os.path.relpath(path, run_.path) for name, path in run_.where.items()}
    write_atomically(run_.path / SHARED, json.dumps(places, indent=2) + "\n")
    for name, path in run_.where.items():
        for needed in (path, *run_.needs[name]):
            if needed in broken:
                raise broken[needed]
        redo = path not in made and (fresh or any(need in made for need in run_.needs[name]))
        options = run_.options(name)
        if is_finished(path, pipeline.kind_of(name), dataclasses.asdict(options), redo):
            continue
        try:
            pipeline.RUNNERS[name].run(options, fresh=redo)
        except Exception as error:
            broken[path] = error
            raise
        made.add(path)
    stale = not made.isdisjoint(run_.where.values()) or not (run_.path / "report.html").exists()
    if "report" in run_.config.stages and stale:
        report.write(run_.path)


# ------------------------------------------------------------------------------------------------ planning


def points_of(config: SweepConfig) -> list[Point]:
    """The grid's points and the explicit ones, each with its whole configuration, typed and checked.

    Raises:
        UsageError: an unknown key (the nearest known one is named), a key that a sweep cannot vary, a value
            of the wrong type, or nothing to run.
    """
    sweep, base = config.sweep, base_of(config)
    if config.rounds != 1 or "rounds" in sweep.grid or any("rounds" in point for point in sweep.points):
        raise UsageError("sweep: runs in rounds cannot be swept; leave rounds at 1")
    labels = [str(point["name"]) if "name" in point else None for point in sweep.points]
    explicit = [{key: value for key, value in point.items() if key != "name"} for point in sweep.points]
    check_labels([label for label in labels if label is not None])
    known = known_keys()
    keys = list(dict.fromkeys([*sweep.grid, *(key for point in explicit for key in point)]))
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean '{near[0]}'?" if near else "; `preferl run --help` lists the keys"
            raise UsageError(f"sweep: unknown key '{key}'{hint}")
        if key == "seed" or key.endswith("output_dir"):
            raise UsageError(
                f"sweep: {key}: " + ("list seeds in sweep.seeds" if key == "seed" else MISPLACED)
            )
    empty = [key for key, values in sweep.grid.items() if not values]
    if empty:
        raise UsageError(f"sweep.grid: {empty[0]} has no values; list at least one")
    if not (sweep.grid or sweep.points):
        raise UsageError("sweep: nothing varies; give sweep.grid (key -> values) or sweep.points")
    if not sweep.seeds or len(set(sweep.seeds)) < len(sweep.seeds):
        raise UsageError(f"sweep.seeds is {sweep.seeds}; list different seeds, at least one")
    grid = itertools.product(*sweep.grid.values()) if sweep.grid else []
    points: dict[str, Point] = {}
    wanted_points = [dict(zip(sweep.grid, values, strict=True)) for values in grid]
    parser = values_parser(keys)
    for wanted, label in [*((w, None) for w in wanted_points), *zip(explicit, labels, strict=True)]:
        typed = parser.parse_object(wanted)
        own = {key: typed[key] for key in keys if key in wanted}
        whole = functools.reduce(lambda c, item: with_key(c, *item), own.items(), base)
        settings = {key: value_at(whole, key) for key in keys}
        point = Point(own, settings, whole, slug(label) if label else name_of(own), label)
        before = points.setdefault(point.name, point)
        if before.keys != own:
            raise UsageError(f"sweep: {own} and {before.keys} have the same name {point.name}")
        same = next(p for p in points.values() if p.keys == own)
        if same.label != label:
            raise UsageError(f"sweep: '{label}' and '{same.label or same.name}' are the same point: {own}")
    return list(points.values())


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


def slug(label: str) -> str:
    """A point's name as a directory's."""
    plain = re.sub(r"[^\w.+-]+", "-", label, flags=re.A).strip("-.")
    return plain or f"point-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


@functools.cache
def known_keys() -> list[str]:
    """Every dotted key of a run that has no keys below it."""
    names = parser_for(RunConfig, "preferl sweep", "").keys()
    fixed = ("config", "help", "print_config")
    return [n for n in names if n not in fixed and not any(o.startswith(n + ".") for o in names)]


def values_parser(keys: Sequence[str]) -> ArgumentParser:
    """A parser of these keys of a run alone: that of all its keys takes a second for each point."""
    parser = ArgumentParser()
    parser.error = refuse  # type: ignore[method-assign]
    for key in keys:
        parser.add_argument(f"--{key}", type=functools.reduce(type_of, key.split("."), RunConfig))
    return parser


def type_of(config_class: Any, name: str) -> Any:
    """The type of a configuration's field."""
    return get_type_hints(config_class)[name]


def refuse(message: str, ex: Exception | None = None) -> NoReturn:
    """What a parser does with a value of the wrong type."""
    raise UsageError("sweep: " + " ".join(str(message).split())) from ex


def base_of(config: SweepConfig) -> RunConfig:
    """The sweep's configuration as a run's."""
    return RunConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(RunConfig)})


def with_key(config: Any, key: str, value: Any) -> Any:
    """A configuration with one dotted key set."""
    head, _, rest = key.partition(".")
    return dataclasses.replace(
        config, **{head: with_key(getattr(config, head), rest, value) if rest else value}
    )


def value_at(config: Any, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), config)


def name_of(keys: dict[str, Any]) -> str:
    """A directory's name for some settings: readable, without separators of paths, one for each value.

    Example:
        >>> name_of({"reward.learning_rate": 0.001, "rl.kl_coef": 0.1})
        'reward.learning_rate=0.001,rl.kl_coef=0.1'
    """
    texts = {k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in keys.items()}
    exact = ",".join(f"{key}={text}" for key, text in texts.items())
    name = ",".join(f"{k}=" + re.sub(r"[^\w.+-]+", "-", t, flags=re.A) for k, t in texts.items())
    if name != exact or name != name.lower() or len(name) > 120:
        name = f"{name[:120]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"
    return name or BASE


def plan_all(root: Path, points: Sequence[Point], seeds: Sequence[int]) -> list[Run]:
    """Every point with every seed, in this order; a point can refer to those before it."""
    names = {name_of(point.keys): point.name for point in points if point.label and point.keys}
    runs: list[Run] = []
    for point in points:
        for seed in seeds:
            earlier = {run_.point.label or run_.point.name: run_ for run_ in runs if run_.seed == seed}
            runs.append(plan(root, point, seed, names, earlier))
    return runs


def plan(root: Path, point: Point, seed: int, names: Mapping[str, str], earlier: Mapping[str, Run]) -> Run:
    """Resolves a run as ``preferl run`` would, then moves every stage to the directory of the keys that reach
    it.

    Which keys reach a stage is found by resolving the run with a mark in their place. ``names`` gives
    directories of their own to some settings, ``earlier`` the runs of this seed that texts refer to.

    Raises:
        UsageError: a key that no stage reads, or a reference to a point or stage that is not there.
    """
    path = root / point.name / f"seed-{seed}"

    def of_another_point(found: re.Match[str]) -> str:
        name, stage = found[1], found[2]
        if not name:
            return found[0]
        if name not in earlier or stage not in earlier[name].where:
            there = [f"@{label}/{s}" for label, run_ in earlier.items() for s in run_.where]
            near = difflib.get_close_matches(found[0], there, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(there) or 'none'}"
            raise UsageError(f"sweep: {point.name}: '{found[0]}' is no stage of an earlier point{hint}")
        return str(earlier[name].where[stage])

    config = dataclasses.replace(point.config, output_dir=str(path), seed=seed)
    config = pipeline.map_texts(config, lambda text: pipeline.REFERENCE.sub(of_another_point, text))
    resolved = pipeline.resolve(config)
    stages = [name for name in pipeline.STAGES if name in config.stages and name != "report"]
    usual = {str(path / name): name for name in stages}
    others = {str(place): place for run_ in earlier.values() for place in run_.where.values()}
    # Paths also stand inside texts: 0.7*runs/a/reward + 0.3*concise.
    either = "|".join(map(re.escape, sorted([*usual, *others], key=len, reverse=True)))
    place = re.compile(rf"(?:{either})(?![\w.-])")
    read = {s: [t for text in texts_of(getattr(resolved, s)) for t in place.findall(text)] for s in stages}
    needs = {s: [usual[t] for t in read[s] if t in usual and usual[t] != s] for s in stages}
    mark = "\0swept"
    reach: dict[str, set[str]] = {name: set() for name in stages}
    for key in [*point.keys, "seed"]:
        marked = resolved if key == "stages" else pipeline.resolve(with_key(config, key, mark))
        for name in stages:
            if key == "stages" or mark in texts_of(getattr(marked, name)):
                reach[name].add(key)
    unread = [key for key in point.keys if not any(key in keys for keys in reach.values())]
    if unread:
        raise UsageError(
            f"sweep: {unread[0]} changes nothing in the stages of this run ({', '.join(stages)}); "
            f"leave it out, or add the stage that reads it"
        )
    where = {}
    for name in stages:
        reach[name] |= {key for need in needs[name] for key in reach[need]}
        keys = {key: value for key, value in point.keys.items() if key in reach[name]}
        named = names.get(name_of(keys), name_of(keys))
        where[name] = root / named / (f"seed-{seed}" if "seed" in reach[name] else "every-seed") / name
    moves = {old: str(where[name]) for old, name in usual.items()}
    options = pipeline.map_texts(
        resolved, lambda text: place.sub(lambda found: moves.get(found[0], found[0]), text)
    )
    paths = {s: [where[n] for n in needs[s]] + [others[t] for t in read[s] if t in others] for s in stages}
    return Run(point, seed, path, where, paths, options)


def texts_of(options: Any) -> list[str]:
    """Every text in a stage's options, however deep."""
    if isinstance(options, str):
        return [options]
    if dataclasses.is_dataclass(options):
        options = vars(options)
    parts = options.values() if isinstance(options, dict) else options
    return [text for part in parts for text in texts_of(part)] if isinstance(parts, Iterable) else []


def metrics_of(config: SweepConfig, runs: Sequence[Run]) -> dict[str, str]:
    """The metrics asked for, or the usual ones of the stages that the swept keys reach."""
    stages = list(dict.fromkeys(name for run_ in runs for name in run_.where))
    for name, path in config.sweep.metrics.items():
        stage = path.split(".")[0]
        if stage not in stages or "." not in path:
            near = difflib.get_close_matches(stage, stages, n=1, cutoff=0.5)
            hint = f"; did you mean '{near[0]}'?" if near and near[0] != stage else ""
            raise UsageError(
                f"sweep.metrics: {name}: '{path}' must be a stage of this run ({', '.join(stages)}) and "
                f"a path into its summary.json, as reward.eval/accuracy{hint}"
            )
    if config.sweep.metrics:
        return config.sweep.metrics
    varied = {name for run_ in runs for name, path in run_.where.items() if path.parent.parent.name != BASE}
    usual = [DEFAULT_METRICS[s] for s in stages if s in DEFAULT_METRICS and s in (varied or stages)]
    if not usual:
        raise UsageError(
            f"sweep: no usual metrics for the stages that vary ({', '.join(varied or stages)}); "
            f"name some in sweep.metrics, as cost: {stages[0] if stages else 'reward'}.seconds"
        )
    return {name: path for metrics in usual for name, path in metrics.items()}


def shared(runs: Sequence[Run]) -> str:
    """How many of each stage there are: ``3 sft, 3 collect, 15 reward``."""
    stages = dict.fromkeys(name for run_ in runs for name in run_.where)
    counts = {s: len({run_.where[s] for run_ in runs if s in run_.where}) for s in stages}
    return ", ".join(f"{count} {stage}" for stage, count in counts.items())


# ------------------------------------------------------------------------------------------------- numbers


def rows_of(
    points: Sequence[Point],
    runs: Sequence[Run],
    metrics: dict[str, str],
    errors: Mapping[tuple[str, int], str],
) -> list[Row]:
    """One row for each point, from the summaries of the stages that are finished."""
    named = any(p.label for p in points)
    shown = {p.name: {NAMED: p.label or p.name} if named else p.settings for p in points}
    empty = [
        Row(p.name, shown[p.name], {m: {} for m in metrics}, {m: {} for m in metrics}, {}) for p in points
    ]
    rows = {row.point: row for row in empty}
    for run_ in runs:
        row, seed = rows[run_.point.name], run_.seed
        if (row.point, seed) in errors:
            row.errors[seed] = errors[row.point, seed]
        found = {stage: summary_of(path) for stage, path in run_.where.items()}
        for metric, path in metrics.items():
            value = number_at(found, path)
            if value is not None:
                row.values[metric][seed] = value
                low, high = number_at(found, path + "_low"), number_at(found, path + "_high")
                if low is not None and high is not None:
                    row.bounds[metric][seed] = (low, high)
    return list(rows.values())


def summary_of(path: Path) -> dict[str, Any]:
    """A finished stage's ``summary.json``."""
    if not (path / "DONE").exists():
        return {}
    return json.loads((path / "summary.json").read_text(encoding="utf-8"))


def number_at(tree: Any, path: str) -> float | None:
    """The finite number at a dotted path (a list's parts by their index), or None."""
    for part in path.split("."):
        if isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, dict) and part in tree:
            tree = tree[part]
        else:
            return None
    number = isinstance(tree, int | float) and not isinstance(tree, bool) and math.isfinite(tree)
    return float(tree) if number else None


def missing_metric(name: str, path: str, runs: Sequence[Run]) -> str:
    """Says that no summary has a metric, and which number comes nearest."""

    def paths(tree: Any, start: str) -> list[str]:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
        inner = [p for key, value in items for p in paths(value, f"{start}.{key}")]
        return inner if number_at({"": tree}, "") is None else [start]

    stage = path.split(".")[0]
    known = [p for r in runs if stage in r.where for p in paths(summary_of(r.where[stage]), stage)]
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
    return (
        f"sweep.metrics: {name}: no summary.json of this sweep has a number '{path}'"
        + (f"; the nearest is '{near[0]}'" if near else "")
        + ". No run is lost: with the right path the same command makes the table"
    )
