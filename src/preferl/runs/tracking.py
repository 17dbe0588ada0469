"""Trackers: TensorBoard, W&B and trackio are told what a stage logs, through the one door of ``Stage``.

A stage knows nothing of them. Options come at the beginning, numbers by step, rows of ``samples.jsonl`` as
tables, ``summary.json`` at the end; the verdict and the report of a run have a place of their own. What
trackers write lies in the stage's directory, or in the run's, where they can be told so; a person's own
environment variables (``WANDB_MODE``, ``TRACKIO_DIR``, …) win. A tracker that fails is named with its error
and left out from there on: it ends no run. Their packages are loaded where they are used.
"""

import contextlib
import functools
import io
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import yaml

from preferl.runs import distributed
from preferl.runs.errors import UsageError
from preferl.runs.files import NOT_FINITE, plain, read_json, write_json
from preferl.runs.mark import Mark, read_mark
from preferl.runs.progress import printable, say

PROJECT = "preferl"
IDS = ".tracking.json"  # tracker -> its name for what it tracks; of a stage in state/
UPLOAD_S = 60.0  # what was not sent by then stays on disk
CONNECT_S = 30.0
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Tracked:
    """What is tracked: a stage, or the report of a run.

    Args:
        path: its directory.
        options: what it was made with.
        ids: the file that keeps the trackers' names for it, so that it can be gone on with.
        after: the step of the checkpoint from which it goes on; None at the beginning, also where nothing had
            been kept: then the trackers begin anew too.
        known: the last step of which the trackers were told before it was interrupted.
    """

    path: Path
    options: Mapping[str, Any]
    ids: Path
    after: int | None = None
    known: int = -1

    @cached_property
    def above(self) -> list[tuple[Path, Mark]]:
        """The run or stage in which it lies, and the sweep, from the inside."""
        found = [(parent, read_mark(parent)) for parent in list(self.path.resolve().parents)[:4]]
        return [(parent, mark) for parent, mark in found if mark is not None]

    @property
    def root(self) -> Path:
        """The outermost directory that is preferl's; alone it is its own."""
        return self.above[-1][0] if self.above else self.path.resolve()

    @property
    def name(self) -> str:
        """As ``demo/rl``; in a sweep as ``lr/kl_coef-0.1/seed-0/rl``."""
        return self.path.resolve().relative_to(self.root.parent).as_posix()

    @property
    def group(self) -> str | None:
        """The run's name, under which its stages lie together."""
        runs = [path for path, mark in self.above if mark.kind == "run"]
        return runs[0].relative_to(self.root.parent).as_posix() if runs else None


class Tracker(Protocol):
    """What is told to a tracker. Every method may raise."""

    where: str
    """How a person looks at what it keeps."""

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None: ...
    def samples(self, step: int, rows: Rows) -> None: ...
    def summary(self, step: int, values: Mapping[str, Any]) -> None: ...
    def report(self, verdict: str, text: str, page: Path) -> None: ...
    def close(self, done: bool) -> None: ...


class TensorBoard:
    """Event files in ``tensorboard/`` of the directory: ``--logdir`` of a run shows all of its stages."""

    def __init__(self, tracked: Tracked, id: str, resumed: bool):
        from torch.utils.tensorboard import SummaryWriter

        # What was written after the checkpoint is hidden: those steps come again.
        purged = None if tracked.after is None else tracked.after + 1
        self.writer = SummaryWriter(tracked.path / "tensorboard", purge_step=purged, flush_secs=10)
        self.where = f"tensorboard --logdir {shown(tracked.root)}"
        if not resumed:
            self.writer.add_text("options", as_code(tracked.options), 0)

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def samples(self, step: int, rows: Rows) -> None:
        self.writer.add_text("samples", as_table(rows), step)

    def summary(self, step: int, values: Mapping[str, Any]) -> None:
        self.writer.add_text("summary", as_code(values), step)

    def report(self, verdict: str, text: str, page: Path) -> None:
        self.writer.add_text("verdict", verdict, 0)
        self.writer.add_text("report", f"{text}\n\n`{page}`", 0)

    def close(self, done: bool) -> None:
        self.writer.close()


class Wandb:
    """A run of Weights & Biases. Without a key it stays on this machine, in ``wandb/`` of the directory."""

    def __init__(self, tracked: Tracked, id: str, resumed: bool):
        import wandb

        self.wandb = wandb
        settings = wandb.Settings(
            **unless_set(
                WANDB_SILENT={"silent": True},
                WANDB_CONSOLE={"console": "off"},
                WANDB_INIT_TIMEOUT={"init_timeout": CONNECT_S},
                WANDB_FINISH_TIMEOUT={"finish_timeout": UPLOAD_S, "finish_timeout_raises": True},
            )
        )
        # Without a key nobody is asked for one. A run of a person's own in this process has a mode already.
        has_mode = "WANDB_MODE" in os.environ or wandb.run is not None
        if not has_mode:
            wandb.setup(settings)
        without_key = not has_mode and not wandb.login(prompt=False, verify=False)
        self.run = wandb.init(
            config=dict(tracked.options),
            job_type=tracked.path.name,
            mode="offline" if without_key else None,
            reinit="create_new",  # one of a person's own goes on beside it
            settings=settings,
            **unless_set(
                WANDB_DIR={"dir": str(tracked.path)},
                WANDB_PROJECT={"project": PROJECT},
                WANDB_NAME={"name": tracked.name},
                WANDB_RUN_GROUP={"group": tracked.group},
                WANDB_RUN_ID={"id": id},
                WANDB_RESUME={"resume": "allow"},
            ),
        )
        if self.run.url:
            self.where = self.run.url
        elif without_key:
            self.where = f"offline, as it has no key (`wandb login`); {self._later(tracked)}"
        else:
            self.where = self._later(tracked)

    def _later(self, tracked: Tracked) -> str:
        """The command that uploads what was kept here, of all stages of a run at once."""
        folder = Path(self.run.dir).resolve().parents[1]  # wandb/ of the stage, or where WANDB_DIR says
        if tracked.group and folder.is_relative_to(tracked.path.resolve()):
            folder = tracked.path.resolve().parent / "*" / folder.name
        return f"wandb sync {shown(folder)}/offline-run-*"

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def samples(self, step: int, rows: Rows) -> None:
        names, data = as_cells(rows)
        table = self.wandb.Table(columns=names, data=data, allow_mixed_types=True)
        self.run.log({"samples": table}, step=step)

    def summary(self, step: int, values: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(values))

    def report(self, verdict: str, text: str, page: Path) -> None:
        self.run.summary.update({"verdict": verdict})
        self.run.log({"report": self.wandb.Html(str(page), inject=False)})
        artifact = self.wandb.Artifact(f"report-{self.run.id}", "report")
        artifact.add_file(str(page))
        self.run.log_artifact(artifact)

    def close(self, done: bool) -> None:
        self.run.finish(exit_code=0 if done else 1)


class Trackio:
    """A run of trackio. It keeps all runs of a process in one directory, which is chosen when it is loaded:
    ``trackio/`` of the first run, unless ``TRACKIO_DIR`` says where."""

    def __init__(self, tracked: Tracked, id: str, resumed: bool):
        with environment_for_loading(TRACKIO_DIR=str(tracked.root / "trackio")):
            import trackio
            from trackio import context_vars
            from trackio.utils import TRACKIO_DIR

        self.trackio = trackio
        # It would finish the run that is current: a person's own, or that of the stage around this one.
        current = context_vars.current_run.get()
        context_vars.current_run.set(None)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it says the same in seven lines
                self.run = trackio.init(
                    project=PROJECT,
                    name=tracked.name,
                    group=tracked.group,
                    config=dict(tracked.options),
                    resume="allow" if resumed else "never",
                    embed=False,
                )
        finally:
            context_vars.current_run.set(current)
        local = f"TRACKIO_DIR={shown(Path(TRACKIO_DIR))} trackio show --project {PROJECT}"
        self.where = self.run.url or local

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def samples(self, step: int, rows: Rows) -> None:
        names, data = as_cells(rows)
        self.run.log({"samples": self.trackio.Table(columns=names, data=data)}, step=step)

    def summary(self, step: int, values: Mapping[str, Any]) -> None:
        self.run.log({"summary": self.trackio.Markdown(as_code(values))}, step=step)

    def report(self, verdict: str, text: str, page: Path) -> None:
        self.run.log(
            {"verdict": self.trackio.Markdown(verdict), "report": self.trackio.Markdown(text)}, step=0
        )
        self.run.log_artifact(page, name=page.name, type="report")

    def close(self, done: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.run.finish()


TRACKERS: dict[str, Callable[[Tracked, str, bool], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}


class Trackers:
    """Several trackers of one thing. One that fails is named with its error and left out from there on.

    Args:
        names: of ``TRACKERS``; the first of several processes alone tells them anything.
        tracked: what is tracked.
        title: how it is called on the console.
    """

    def __init__(self, names: Sequence[str], tracked: Tracked, title: str):
        self.tracked, self.title = tracked, title
        self.step = max(0, tracked.after or 0)
        self.open: dict[str, Tracker] = {}
        self.told_before: set[str] = set()
        if names and distributed.rank() == 0:
            ids = {} if tracked.after is None else ids_in(tracked.ids)
            self.told_before = set(ids) & set(names)
            ids |= {name: secrets.token_hex(8) for name in names if name not in ids}
            write_json(tracked.ids, ids)
            for name in names:
                self._guarded(name, lambda name=name: self._begin(name, ids[name]))

    def _begin(self, name: str, id: str) -> None:
        self.open[name] = TRACKERS[name](self.tracked, id, name in self.told_before)
        say_once(f"report_to {name}: {self.open[name].where}")

    def numbers(self, row: Mapping[str, Any]) -> None:
        """A row of ``metrics.jsonl``. One without a step is of a split, whose name its numbers get."""
        if not self.open:
            return
        if "step" in row:
            self.step = row["step"]
        found = numbers_of({key: value for key, value in row.items() if key not in ("step", "split")})
        if "split" in row:
            found = {f"{row['split']}/{name}": value for name, value in found.items()}
        self._tell(self.step, lambda tracker: tracker.numbers(self.step, found))

    def samples(self, rows: Rows) -> None:
        """Rows of ``samples.jsonl``."""
        if rows:
            iteration = rows[0].get("iteration")  # without one they follow the training
            step = self.step if iteration is None else iteration
            self._tell(iteration, lambda tracker: tracker.samples(step, rows))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The stage is done."""
        self._tell(None, lambda tracker: tracker.summary(self.step, summary))
        self.close(done=True)

    def report(self, verdict: str, text: str, page: Path) -> None:
        """The verdict on a run, its summary in Markdown, and its page."""
        self._tell(None, lambda tracker: tracker.report(verdict, text, page))
        self.close(done=True)

    def close(self, done: bool = False) -> None:
        """Nothing more is told; what was told is sent."""
        self._tell(None, lambda tracker: tracker.close(done))
        self.open.clear()

    def _tell(self, step: int | None, what: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.open.items()):
            # A stage repeats itself bit for bit: what was told of these steps before still holds.
            # TensorBoard hides them instead, and is told again.
            repeated = step is not None and step <= self.tracked.known and name in self.told_before
            if not repeated or name == "tensorboard":
                self._guarded(name, lambda tracker=tracker: what(tracker))

    def _guarded(self, name: str, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:  # noqa: BLE001 - said by name; a tracker ends no run
            self.open.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            say(f"{self.title}: {name} failed and is left out from here on ({reason}); the files are whole")


@functools.cache
def say_once(text: str) -> None:
    """What every stage of a run would say."""
    say(text)


def report(
    run: Path, names: Sequence[str], options: Mapping[str, Any], verdict: str, text: str, page: Path
) -> None:
    """Tells trackers the outcome of a run, under its name and ``report``.

    Args:
        run: its directory.
        names: of the trackers.
        options: its configuration.
        verdict: in a word.
        text: its summary in Markdown.
        page: ``report.html``.
    """
    place = run / "report"
    # Told again, it takes the place of the one before.
    trackers = Trackers(names, Tracked(place, options, place / IDS, after=-1), "report")
    trackers.report(verdict, text, page)


def is_reported(run: Path, names: Sequence[str]) -> bool:
    """Whether all of these trackers know the outcome of a run."""
    return set(names) <= set(ids_in(run / "report" / IDS))


def ids_in(file: Path) -> dict[str, str]:
    """The names that trackers had; none where the file is damaged: they begin anew then."""
    with contextlib.suppress(OSError, UsageError):
        return {name: str(id) for name, id in read_json(file).items()}
    return {}


# -------------------------------------------------------------------------------------------- what is told


def numbers_of(row: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """The numbers of a row, of nested ones too. Of a list of names, as ``alarms``, how many there are.

    Example:
        >>> numbers_of({"train/kl": 0.5, "alarms": ["far"], "left_out": {"tied": 3}, "annotator": "world"})
        {'train/kl': 0.5, 'alarms': 1.0, 'left_out/tied': 3.0}
    """
    found: dict[str, float] = {}
    for key, value in plain(dict(row)).items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            found |= numbers_of(value, f"{name}/")
        elif isinstance(value, int | float) or value in NOT_FINITE:
            found[name] = float(value)
        elif isinstance(value, list) and all(isinstance(part, str) for part in value):
            found[name] = float(len(value))
    return found


def columns_of(rows: Rows) -> list[str]:
    """Every column of some rows, in their order."""
    return list(dict.fromkeys(name for row in rows for name in row))


def as_cells(rows: Rows) -> tuple[list[Any], list[Any]]:
    """The names of the columns of some rows, and the values of each: numbers and texts; others as text."""

    def cell(value: Any) -> Any:
        return value if value is None or isinstance(value, str | int | float) else str(value)

    names = columns_of(rows)
    return names, [[cell(plain(row.get(name))) for name in names] for row in rows]


def as_code(values: Mapping[str, Any]) -> str:
    """Values as a block of Markdown that changes nothing in them."""
    text = yaml.safe_dump(plain(dict(values)), sort_keys=False, allow_unicode=True)
    return "\n".join(f"    {line}" for line in text.splitlines())


def as_table(rows: Rows) -> str:
    """Rows as a table of Markdown; what a text holds is only shown."""
    names = columns_of(rows)
    lines = [[in_table(name) for name in names], ["---"] * len(names)]
    lines += [[in_table(row.get(name, "")) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_table(value: Any) -> str:
    """A value as Markdown that only shows it, in one line."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    marks = str.maketrans({mark: f"&#{ord(mark)};" for mark in "&<>|*_`[]\\"})
    return "<br>".join(printable(line).translate(marks) for line in text.splitlines())


# ------------------------------------------------------------------------------------------- where it lies


def unless_set(**values: dict[str, Any]) -> dict[str, Any]:
    """What stands under environment variables that a person has not set, in one.

    Example: ``unless_set(WANDB_DIR={"dir": "runs/demo/rl"})``.
    """
    found: dict[str, Any] = {}
    for variable, arguments in values.items():
        if variable not in os.environ:
            found |= arguments
    return found


@contextlib.contextmanager
def environment_for_loading(**values: str) -> Iterator[None]:
    """Environment variables for a package that reads them when it is loaded; a person's own stay."""
    chosen = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name in chosen:
            del os.environ[name]


def shown(path: Path) -> str:
    """A path as one types it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
