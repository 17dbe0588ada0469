"""Progress of long steps: a live bar in a terminal, plain lines elsewhere; every so often samples, and a line
where a step takes much longer than those before it."""

import contextlib
import statistics
import time
import unicodedata
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from preferl.runs import distributed

_heard: ContextVar[set[str] | None] = ContextVar("heard", default=None)
console = Console(highlight=False, soft_wrap=True, quiet=not distributed.is_main())
PLAIN_INTERVAL_S = 10.0
# Between samples on the console: in a terminal, and in logs, which are to stay readable.
SAMPLES_INTERVAL_S, PLAIN_SAMPLES_INTERVAL_S = 60.0, 600.0
PLAIN_WIDTH = 120  # of a line with a sample
# Unicode's control, format (bidirectional among them), surrogate, line and paragraph separators.
UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing is said or shown as long as the context lasts."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


@contextlib.contextmanager
def on_stderr() -> Iterator[None]:
    """What is said goes to standard error as long as the context lasts: standard output is for an answer."""
    before, console.stderr = console.stderr, True
    try:
        yield
    finally:
        console.stderr = before


@contextlib.contextmanager
def each_note_once() -> Iterator[None]:
    """Notes about data are news the first time only, as long as the context lasts: the stages of a run read
    the same rows."""
    token = _heard.set(set())
    try:
        yield
    finally:
        _heard.reset(token)


def is_new(note: str) -> bool:
    """Whether a note was not said before, where each is said once."""
    heard = _heard.get()
    if heard is None:
        return True
    first = note not in heard
    heard.add(note)
    return first


def say(text: str) -> None:
    """One line for the person who runs the program."""
    console.print(printable(text), markup=False)


def printable(text: str, keep: str = "") -> str:
    """A text that does nothing to a terminal: control characters, and those that turn the direction of
    writing, stand there as Python writes them (``\\x1b``). Names and rows come from others.

    Args:
        text: what is to be shown.
        keep: characters that stay as they are, as the ends of lines.

    Example:
        >>> printable("evil\\x1b[2J\\rname")
        'evil\\\\x1b[2J\\\\rname'
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in UNPRINTABLE and char not in keep
        else char
        for char in text
    )


def shortened(text: str, width: int) -> str:
    """A text in one line of at most so many characters, with its beginning and its end.

    Example:
        >>> shortened("A long question,\\n\\nwith much detail. Why?", 24)
        'A long questi … il. Why?'
    """
    text = " ".join(printable(text.replace("\n", " ").replace("\t", " ")).split())
    if len(text) <= width:
        return text
    end = (width - 3) * 2 // 5
    return f"{text[: width - 3 - end]} … {text[-end:]}"


@dataclass(frozen=True)
class Sample:
    """A response to show on the console, with its numbers, as ``{"reward": 0.8}``."""

    prompt: str
    response: str
    numbers: Mapping[str, float]


class Steps:
    """Counts the steps of one piece of work and shows step / total, ETA and named numbers.

    Example:
        >>> with Steps("rl", 50) as steps:
        ...     steps.advance(reward=0.31, kl=1.2)
    """

    def __init__(self, title: str, total: int):
        self.title, self.total, self.step = title, total, 0
        self.started = self.last_line = time.monotonic()
        self.shown = ""
        self.last_samples: float | None = None
        self.bar: Progress | None = None

    def __enter__(self) -> "Steps":
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description:>9}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=console,
            )
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total, numbers="")
        return self

    def advance(self, count: int = 1, **numbers: float) -> None:
        """Counts ``count`` steps; ``numbers`` are shown beside the bar."""
        self.step += count
        self.shown = format_numbers(numbers) or self.shown
        if self.bar:
            self.bar.update(self.task, completed=self.step, numbers=self.shown)
            return
        now = time.monotonic()
        if now - self.last_line >= PLAIN_INTERVAL_S and self.step < self.total:
            self.last_line = now
            left = (now - self.started) / max(self.step, 1) * (self.total - self.step)
            say(f"{self.title:>9}  {self.step}/{self.total}  ETA {clock(left)}  {self.shown}")

    def samples(self, fresh: Sequence[Sample]) -> None:
        """Shows samples of this step, two lines each: at first, at last and every so often between."""
        now = time.monotonic()
        interval = SAMPLES_INTERVAL_S if self.bar else PLAIN_SAMPLES_INTERVAL_S
        is_last = self.step >= self.total
        if self.last_samples is not None and not is_last and now - self.last_samples < interval:
            return
        self.last_samples = now
        width = console.width if self.bar else PLAIN_WIDTH
        for sample in fresh:
            start = f"{self.title:>9}  {self.step}/{self.total}  {format_numbers(sample.numbers)}  "
            say(start + shortened(sample.prompt, max(width - len(start), 20)))
            arrow = " " * 9 + "  → "
            say(arrow + shortened(sample.response, max(width - len(arrow), 20)))

    def more(self, count: int) -> None:
        """There are ``count`` steps more than thought."""
        self.total += count
        if self.bar:
            self.bar.update(self.task, total=self.total)

    def __exit__(self, *exception: object) -> None:
        if self.bar:
            self.bar.stop()
        elif exception[0] is None:
            spent = clock(time.monotonic() - self.started)
            say(f"{self.title:>9}  {self.step}/{self.total}  took {spent}  {self.shown}")


class Pace:
    """Says when a step suddenly takes ``SLOW`` times as long as those before it: once, and again only after
    steps have been as fast as usual in between.

    Args:
        title: of the work, as ``rl``.
        step: what one step is called.
    """

    SLOW, RECOVERED = 10.0, 2.0  # times the usual
    LEAST_S = 1.0  # of a shorter step nobody minds
    LEAST_STEPS, MOST_STEPS = 5, 50  # before it, to know what is usual

    def __init__(self, title: str, step: str = "step"):
        self.title, self.step = title, step
        self.before: deque[tuple[float, float]] = deque(maxlen=self.MOST_STEPS)
        self.is_slow = False

    def note(self, number: int, seconds: float, work: float = 1.0, detail: str = "") -> None:
        """Takes note of a step.

        Args:
            number: of the step.
            seconds: what it took, without what is not in every step (held-out rows, checkpoints).
            work: how much there was to do in it, as tokens: a step with more to do may take longer.
            detail: what more to say of a slow one.
        """
        if len(self.before) >= self.LEAST_STEPS:
            median = statistics.median(before for before, _ in self.before)
            median_work = statistics.median(before for _, before in self.before)
            usual = median * (max(1.0, work / median_work) if median_work else 1.0)
            if seconds < self.RECOVERED * usual:
                self.is_slow = False
            elif seconds >= max(self.SLOW * usual, self.LEAST_S) and not self.is_slow:
                self.is_slow = True
                say(
                    f"{self.title}: {self.step} {number} took {seconds:.3g} s{detail}, the median of the "
                    f"{len(self.before)} before it {median:.2g} s"
                )
        self.before.append((seconds, work))


def format_numbers(numbers: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in numbers.items())


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
