"""What a sweep shows: its table on the terminal and as files, and one page with a plot for each metric.

Plots are inline SVG, nothing is fetched.
"""

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text

from preferl.reporting.evaluation import seeds_table
from preferl.reporting.gather import finished_stages
from preferl.reporting.markdown import POINTS, summary
from preferl.reporting.measures import evaluated
from preferl.reporting.page import Plot, Section, Table, Verdict, write_page
from preferl.reporting.plots import COLOURS, MARKERS, Mark, curve, draw, ticks
from preferl.reporting.sections import sections
from preferl.reporting.verdict import Seeds, overall, terminal_lines
from preferl.runs.errors import UsageError
from preferl.runs.files import write_atomically
from preferl.runs.progress import console, say
from preferl.runs.record import stage_paths

# The one setting that the table shows of points that have names.
NAMED = "run"
# Units by the last part of a key or of a metric's path.
UNITS = {
    "accuracy": "share of pairs",
    "accuracy_likelihood": "share of pairs",
    "accuracy_reward": "share of pairs",
    "best_there": "points",
    "chosen_by_reward": "points",
    "closed": "share",
    "difference": "points",
    "ece": "probability",
    "eos_rate": "share",
    "expected_accuracy": "share of pairs",
    "final_accuracy": "share of pairs",
    "final_loss": "nats",
    "fraction_of_bayes": "share",
    "gold": "points",
    "hidden_size": "units",
    "kl": "nats per response",
    "kl_coef": "reward per nat",
    "length": "tokens",
    "loss": "nats",
    "max_length": "tokens",
    "max_train_comparisons": "comparisons",
    "num_train_epochs": "epochs",
    "one_sample": "points",
    "parameters": "numbers",
    "peak_memory_mib": "MiB",
    "response_length": "tokens",
    "score": "points",
    "seconds": "s",
    "train": "pairs",
    "train_batch_size": "rows",
    "win_rate": "share of prompts",
}


@dataclass(frozen=True)
class Row:
    """A point's numbers.

    ``values`` maps a metric to seed -> value, ``bounds`` to seed -> 95 % interval where the stage gave one.

    Example: ``Row("rl.kl_coef=0.1", {"rl.kl_coef": 0.1}, {"kl": {0: 3.1}}, {"kl": {}}, {1: "Diverged"})``:
    seed 0 gave a KL of 3.1 without an interval, seed 1 failed.
    """

    point: str
    settings: dict[str, Any]
    values: dict[str, dict[int, float]]
    bounds: dict[str, dict[int, tuple[float, float]]]
    errors: dict[int, str]

    @classmethod
    def read(cls, entry: dict[str, Any]) -> Self:
        """From the entry of ``table.json``."""
        values = {
            metric: {int(seed): value for seed, value in numbers["values"].items()}
            for metric, numbers in entry["metrics"].items()
        }
        # Intervals are kept where there is one seed, and shown there.
        bounds = {
            metric: {next(iter(values[metric])): (numbers["low"], numbers["high"])}
            if numbers["low"] is not None
            else {}
            for metric, numbers in entry["metrics"].items()
        }
        errors = {int(seed): text for seed, text in entry["errors"].items()}
        return cls(entry["point"], entry["settings"], values, bounds, errors)

    def numbers(self, metric: str) -> dict[str, Any]:
        """Mean, sd over seeds (n - 1) and n; of a single seed its interval, where the stage gave one."""
        found = list(self.values[metric].values())
        bounds = self.bounds[metric]
        low, high = next(iter(bounds.values())) if len(found) == 1 and bounds else (None, None)
        return {
            "mean": statistics.fmean(found) if found else None,
            "sd": statistics.stdev(found) if len(found) > 1 else None,
            "n": len(found),
            "low": low,
            "high": high,
        }

    def cell(self, metric: str) -> str:
        """``0.71 ± 0.02`` over seeds, ``0.71 [0.68, 0.74]`` of one seed, empty without a number."""
        n = self.numbers(metric)
        if n["mean"] is None:
            return "–"
        if n["sd"] is not None:
            return f"{rounded(n['mean'], n['sd'])} ± {rounded(n['sd'], n['sd'])}"
        if n["low"] is None:
            return rounded(n["mean"], 0.0)
        width = (n["high"] - n["low"]) / 2
        return f"{rounded(n['mean'], width)} [{rounded(n['low'], width)}, {rounded(n['high'], width)}]"


def rounded(value: float, error: float) -> str:
    """A number with as many decimals as two digits of its error have."""
    if error <= 0:  # a count, or a value whose error nobody gave
        return f"{value:{',.0f' if abs(value) >= 1e4 else '.4g'}}".replace("-", "−")
    decimals = min(8, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:.{decimals}f}".replace("-", "−")


def plain_value(value: Any) -> str:
    """A setting as a table shows it."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def table_of(rows: Sequence[Row], metrics: dict[str, str], seeds: int) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table that a person reads."""
    failures = any(row.errors for row in rows)
    head = ["", *rows[0].settings, *(title(m) for m in metrics), *(["failed"] if failures else [])]
    cells = []
    for number, row in enumerate(rows, 1):
        settings = [plain_value(value) for value in row.settings.values()]
        failed = [f"{len(row.errors)} of {seeds}" if row.errors else ""] if failures else []
        cells.append([str(number), *settings, *(row.cell(m) for m in metrics), *failed])
    return head, cells


def title(metric: str) -> str:
    return metric.replace("_", " ")


def print_table(rows: Sequence[Row], metrics: dict[str, str], seeds: int) -> None:
    """The table on the terminal; aligned text where the output is no terminal."""
    head, cells = table_of(rows, metrics, seeds)
    if console.is_terminal:
        table = TerminalTable(box=box.SIMPLE_HEAD)
        for name in head:
            table.add_column(Text(name))
        for row in cells:
            table.add_row(*map(Text, row))
        console.print(table, soft_wrap=False)
    else:
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        for row in [head, *cells]:
            say("  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip())
    for row in rows:
        for seed, error in row.errors.items():
            say(f"failed: {row.point}, seed {seed}: {error}")


def write_tables(root: Path, rows: Sequence[Row], metrics: dict[str, str], seeds: Sequence[int]) -> None:
    """``table.csv`` and ``table.json``: one row for each point, at full precision."""
    keys, parts = list(rows[0].settings), ("mean", "sd", "n", "low", "high")
    buffer, found = io.StringIO(), []
    out = csv.writer(buffer, lineterminator="\n")
    out.writerow(["point", *keys, *(f"{m}_{p}" for m in metrics for p in parts), "failed", "errors"])
    for row in rows:
        numbers = {m: row.numbers(m) for m in metrics}
        cells = [numbers[m][p] for m in metrics for p in parts]
        errors = "; ".join(f"seed {seed}: {error}" for seed, error in row.errors.items())
        out.writerow([row.point, *row.settings.values(), *cells, len(row.errors), errors])
        each = {m: n | {"values": row.values[m]} for m, n in numbers.items()}
        found.append({"point": row.point, "settings": row.settings, "metrics": each, "errors": row.errors})
    write_atomically(root / "table.csv", buffer.getvalue())
    table = {"keys": keys, "metrics": metrics, "seeds": list(seeds), "rows": found}
    write_atomically(root / "table.json", json.dumps(table, indent=2, ensure_ascii=False, default=str) + "\n")


@dataclass(frozen=True)
class Sweep:
    """A sweep as it lies on disk.

    Args:
        root: its directory.
        rows: one for each point.
        metrics: name -> path, those that have a number.
        seeds: of every point.
        stages: how many of each stage were made, in words.
        runs: the finished stages of each point with every seed.
    """

    root: Path
    rows: list[Row]
    metrics: dict[str, str]
    seeds: list[int]
    stages: str
    runs: Seeds

    @classmethod
    def read(cls, root: Path) -> Self:
        """From ``table.json``, and what the ``stages.json`` of its runs name.

        Raises:
            UsageError: there is no table yet, or it is damaged.
        """
        try:
            table = json.loads((root / "table.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{root} is a sweep without a table.json that can be read ({error}); run the sweep again: "
                f"what is finished stays"
            ) from error
        rows = [Row.read(entry) for entry in table["rows"]]
        seen = {seed for row in rows for by_seed in (*row.values.values(), row.errors) for seed in by_seed}
        seeds = table.get("seeds", sorted(seen))
        paths = {where(row): [root / row.point / f"seed-{seed}" for seed in seeds] for row in rows}
        there = {name: [path for path in each if path.is_dir()] for name, each in paths.items()}
        return cls(
            root=root,
            rows=rows,
            metrics={
                name: path for name, path in table["metrics"].items() if any(row.values[name] for row in rows)
            },
            seeds=seeds,
            stages=counts([stage_paths(path) for each in there.values() for path in each]),
            runs={
                name: [finished_stages(path) for path in each if stage_paths(path)]
                for name, each in there.items()
            },
        )


def counts(runs: Sequence[Mapping[str, Path]]) -> str:
    """How many of each stage some runs have together, shared ones once: ``3 sft, 3 collect, 15 reward``."""
    names = dict.fromkeys(name for run in runs for name in run)
    number = {name: len({run[name].resolve() for run in runs if name in run}) for name in names}
    return ", ".join(f"{count} {name}" for name, count in number.items())


def page(root: Path, path: Path | None = None) -> Path:
    """Writes the page of a sweep from what lies there, by default its ``report.html``; says the table and
    each point's verdict."""
    sweep = Sweep.read(root)
    file = write_report(path or root / "report.html", sweep)
    print_table(sweep.rows, sweep.metrics, len(sweep.seeds))
    for line in terminal_lines(sweep.runs):
        say(f"sweep: {line}")
    say(f"sweep: {file}")
    return file


def markdown(root: Path) -> str:
    """A sweep in short, as Markdown.

    Raises:
        UsageError: as of ``Sweep.read``.
    """
    content = content_of(Sweep.read(root))
    return summary(content["name"], content["verdict"], content["facts"], content["sections"])


def write_report(file: Path, sweep: Sweep) -> Path:
    """Writes the page of a sweep."""
    return write_page(
        file,
        **content_of(sweep),
        configs=[("sweep", (sweep.root / "config.yaml").read_text(encoding="utf-8"))],
        made_from=[f"{len(sweep.rows)} points x {len(sweep.seeds)} seeds"],
    )


def content_of(sweep: Sweep) -> dict[str, Any]:
    """What stands on the page of a sweep: ``name``, ``verdict``, ``facts`` and ``sections``."""
    root, rows, metrics, seeds = sweep.root, sweep.rows, sweep.metrics, sweep.seeds
    runs, stages = sweep.runs, sweep.stages
    first_seed = {name: each[0] for name, each in runs.items() if each}
    failed = sum(len(row.errors) for row in rows)
    count = len(rows) * len(seeds)
    keys = " and ".join(rows[0].settings) or "nothing"
    named = list(rows[0].settings) == [NAMED]
    what = "compares" if named else f"varies {keys}:"
    text = (
        f"This sweep {what} {len(rows)} {'named runs' if named else 'points'} with {len(seeds)} "
        f"{'seed' if len(seeds) == 1 else 'seeds'} each. Runs share what no swept key reaches: there are "
        f"{stages} stages in all."
    )
    word = f"{failed} of {count} runs failed" if failed else f"All {count} runs finished"
    if evaluated(first_seed):
        judged = overall(first_seed)
        word = word if failed else judged.word
        text = f"With seed {seeds[0]}: {judged.text} {text}"
    head, cells = table_of(rows, metrics, len(seeds))
    first = 1 + len(rows[0].settings)  # numbers stay on one line
    cells = [row[:first] + [text.replace(" ", "\u00a0") for text in row[first:]] for row in cells]
    note = (
        "Mean ± standard deviation over seeds. "
        if len(seeds) > 1
        else "One seed; intervals are 95 %, over the data that the stage was measured on. "
    ) + "; ".join(f"{title(name)}: {path}" for name, path in metrics.items())
    tables = [Table("Points", head, cells, note + "."), *filter(None, [seeds_table(runs)])]
    if failed:
        errors = [[row.point, str(seed), error] for row in rows for seed, error in row.errors.items()]
        tables.append(Table("Failed runs", ["point", "seed", "error"], errors))
    plots = [plot(rows, name, path) for name, path in metrics.items()]
    return {
        "name": root.resolve().name,
        "verdict": Verdict(word, "bad" if failed else "good", text),
        "facts": [
            ("points", str(len(rows)), "rows of the table"),
            ("seeds", str(len(seeds)), "each point"),
            ("runs finished", str(count - failed), f"of {count}"),
        ],
        "sections": [Section(POINTS, plots, tables), *sections(first_seed)],
    }


# ------------------------------------------------------------------------------------------------- plots


@dataclass(frozen=True)
class Line:
    """Points that belong together: (position on the x axis, row), and a label for the legend."""

    label: str
    points: list[tuple[float, Row]]


def plot(rows: Sequence[Row], metric: str, path: str) -> Plot:
    """A metric over the first swept key, one line for each value of the others."""
    scale, ticks_at, lines = lines_of(rows, metric)
    places = [x for x, _ in ticks_at]
    marks: list[Mark] = []
    if scale == "log":
        marks.append(lambda axes: axes.set_xscale("log"))
    elif scale == "symlog":
        marks.append(lambda axes: axes.set_xscale("symlog", linthresh=min(x for x in places if x > 0)))
    for i, line in enumerate(lines):
        fraction = (i - (len(lines) - 1) / 2) / 80  # of the axis, so that error bars do not hide each other
        numbers = [row.numbers(metric) for _, row in line.points]
        marks.append(
            curve(
                [dodge_x(x, fraction, scale, places) for x, _ in line.points],
                [n["mean"] for n in numbers],
                literal(cut_label(line.label, 40)) if line.label else None,
                yerr=list(zip(*(error_of(n) for n in numbers), strict=True)),
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=4,
                capsize=3,
                linewidth=1.2,
                linestyle="none" if scale in ("category", "rows") else "-",
            )
        )
    if len(ticks_at) <= (16 if scale == "rows" else 8) or scale == "category":
        turned = scale == "category" and sum(len(text) for _, text in ticks_at) > 40
        turn = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if turned else {}
        marks.append(ticks(places, [literal(text) for _, text in ticks_at], **turn))
    key = next(iter(rows[0].settings), "point")
    x_label = "point (row of the table)" if scale == "rows" else with_unit(key, key)
    y_label = cut_label(with_unit(title(metric), path), 36)
    y_label = y_label.replace(" (", "\n(") if len(y_label) > 24 else y_label
    return Plot(title(metric), draw(marks, literal(x_label), literal(y_label)), reading(rows, metric))


def dodge_x(x: float, fraction: float, scale: str, places: Sequence[float]) -> float:
    """A position moved by a fraction of the axis."""
    low, high = min(places), max(places)
    if scale == "log":
        return x * (high / low) ** fraction
    return x if scale == "symlog" else x + fraction * max(high - low, 1.0 if scale == "category" else 0.0)


def lines_of(rows: Sequence[Row], metric: str) -> tuple[str, list[tuple[float, str]], list[Line]]:
    """The kind of x axis, its ticks, and the lines; rows without a number are left out.

    Where lines would be too many or have one point each, the x axis counts the ``rows`` of the table.
    """
    keys = list(rows[0].settings)
    there = [row for row in rows if row.values[metric]]
    groups: dict[str, list[Row]] = {}
    for row in there:
        rest = ", ".join(f"{k.split('.')[-1]} = {cut_label(plain_value(row.settings[k]))}" for k in keys[1:])
        groups.setdefault(rest, []).append(row)
    if not keys or len(groups) > len(COLOURS) or (len(groups) > 1 and len(groups) == len(there)):
        at = {row.point: float(i) for i, row in enumerate(rows, 1)}
        line = Line("", [(at[row.point], row) for row in there])
        return "rows", [(x, f"{x:.0f}") for x in at.values()], [line]
    values = list(dict.fromkeys(plain_value(row.settings[keys[0]]) for row in there))
    raw = [row.settings[keys[0]] for row in there]
    scale = scale_of(raw)
    if scale == "category":
        position = {text: float(i) for i, text in enumerate(values)}
    else:
        position = {plain_value(value): float(value) for value in raw}
    lines = []
    for label, members in groups.items():
        placed = [(position[plain_value(row.settings[keys[0]])], row) for row in members]
        lines.append(Line(label, placed if scale == "category" else sorted(placed, key=lambda p: p[0])))
    return scale, sorted((x, cut_label(text)) for text, x in position.items()), lines


def scale_of(values: Sequence[Any]) -> str:
    """``linear``, ``log`` for positive numbers over more than a decade, ``symlog`` with a zero among them,
    ``category`` for everything that is no number."""
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return "category"
    positive = [v for v in values if v > 0]
    if min(values) < 0 or not positive or max(positive) <= 10 * min(positive):
        return "linear"
    return "log" if len(positive) == len(values) else "symlog"


def error_of(n: dict[str, Any]) -> tuple[float, float]:
    """How far the error bar goes down and up."""
    if n["sd"] is not None:
        return n["sd"], n["sd"]
    return (
        (0.0, 0.0) if n["low"] is None else (max(0.0, n["mean"] - n["low"]), max(0.0, n["high"] - n["mean"]))
    )


def reading(rows: Sequence[Row], metric: str) -> str:
    """Lowest and highest point, how far they are apart, and what the bars are."""
    there = [row for row in rows if row.values[metric]]
    order = sorted(there, key=lambda row: row.numbers(metric)["mean"])
    if len(there) == 1:
        text = f"{order[0].cell(metric)} at {where(order[0])}"
    else:
        low, high = order[0], order[-1]
        gap = high.numbers(metric)["mean"] - low.numbers(metric)["mean"]
        text = f"Lowest at {where(low)}: {low.cell(metric)}; highest at {where(high)}: {high.cell(metric)}"
        spread = [n["sd"] for row in there if (n := row.numbers(metric))["sd"] is not None]
        pooled = math.sqrt(statistics.fmean(sd**2 for sd in spread)) if spread else 0.0
        if pooled:
            text += (
                f". They differ by {rounded(gap, pooled)}, {gap / pooled:.1f} standard deviations over seeds"
            )
    counts = sorted({row.numbers(metric)["n"] for row in there})
    if counts[-1] > 1:
        number = f"{counts[0]} to {counts[-1]}" if counts[0] < counts[-1] else f"{counts[0]}"
        text += f". Bars: ± 1 standard deviation over {number} seeds"
    elif any(row.bounds[metric] for row in there):
        text += ". Bars: 95 % intervals of one seed"
    missing = len(rows) - len(there)
    return text + (f". {missing} of {len(rows)} points have no number." if missing else ".")


def where(row: Row) -> str:
    """``kl_coef = 0.1, gamma = 1``, or the name of a point that has one."""
    if list(row.settings) == [NAMED]:
        return str(row.settings[NAMED])
    return (
        ", ".join(f"{k.split('.')[-1]} = {cut_label(plain_value(v))}" for k, v in row.settings.items())
        or "base"
    )


def with_unit(name: str, key: str) -> str:
    unit = UNITS.get(re.split(r"[./]", key)[-1])
    return f"{name} ({unit})" if unit else name


def cut_label(text: str, limit: int = 24) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def literal(text: str) -> str:
    """Text that matplotlib shows as it stands, not as mathematics."""
    return text.replace("$", r"\$")
