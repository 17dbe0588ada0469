"""Progress of long steps: a live bar in a terminal, plain lines elsewhere."""

import contextlib
import time
import unicodedata
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from preferl.runs import distributed

console = Console(highlight=False, soft_wrap=True, quiet=not distributed.is_main())
PLAIN_INTERVAL_S = 10.0
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


def format_numbers(numbers: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in numbers.items())


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
