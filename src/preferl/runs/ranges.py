"""Which numbers an option can have, said beside its type and checked whenever options are made.

    learning_rate: NonNegative = 1e-4
    max_steps: Count | None = None

A dataclass that inherits ``RangedOptions`` holds no number out of its range, wherever it came from: a flag, a
YAML file, a run's stage, a sweep's point, a keyword from Python. So it is refused by name before data is read
or a model is loaded.
"""

import functools
import math
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from preferl.runs.errors import UsageError


@dataclass(frozen=True)
class Range:
    """From ``low`` to ``high``, both included; with ``above`` the lower end is not, with ``below`` the upper.
    NaN is never in it, infinity only where ``infinite`` says so.

    Example:
        >>> Range(0, 0.5).holds(0.6), str(Range(0, 0.5))
        (False, 'between 0 and 0.5')
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    infinite: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a number is in it."""
        if not isinstance(value, int | float):
            return False
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under and (self.infinite or math.isfinite(value))

    def __str__(self) -> str:
        """How it is said: "0 or more"."""
        if math.isinf(self.low):
            return "finite"
        low = f"above {self.low}" if self.above else f"{self.low} or more"
        if math.isinf(self.high):
            return low
        if not (self.above or self.below):
            return f"between {self.low} and {self.high}"
        return f"{low} and {'below' if self.below else 'at most'} {self.high}"

    __repr__ = __str__  # what an option's help shows behind its type


Finite = Annotated[float, Range()]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Bound = Annotated[
    float, Range(0, above=True, infinite=True)
]  # of a gradient, of a ratio; it may bind nothing
Share = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, below=True)]
ErrorRate = Annotated[float, Range(0, 0.5)]  # above a half a label says the opposite
Natural = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
Several = Annotated[int, Range(2)]
Seed = Annotated[int, Range(0, 2**64 - 1)]  # what torch takes


@dataclass(kw_only=True)  # or jsonargparse would not take what inherits it for a dataclass
class RangedOptions:
    """Options whose numbers lie in the ranges of their types.

    Raises:
        UsageError: as of ``check_ranges``.
    """

    def __post_init__(self) -> None:
        check_ranges(self)


def check_ranges(options: Any) -> None:
    """Refuses numbers out of their ranges.

    Raises:
        UsageError: one is; the message names the option, its value and the range.
    """
    words = words_of(type(options))
    for name, range_ in ranges_of(type(options)).items():
        value = getattr(options, name)
        if value in words.get(name, ()):
            continue
        values = value if isinstance(value, list) else [value]
        if not all(each is None or range_.holds(each) for each in values):
            what = "every number of it" if isinstance(value, list) else "it"
            raise UsageError(f"{name} is {value}; {what} must be {range_}")


@functools.cache
def ranges_of(options: type) -> dict[str, Range]:
    """Name -> range of the options of a dataclass that have one."""
    hints = typing.get_type_hints(options, include_extras=True)
    return {name: range_ for name, hint in hints.items() for range_ in _ranges_in(hint)}


@functools.cache
def words_of(options: type) -> dict[str, tuple[str, ...]]:
    """Name -> words that an option takes in the place of a number, as ``Positive | Literal["none"]`` does."""
    hints = typing.get_type_hints(options)
    found = {}
    for name, hint in hints.items():
        words = [
            word
            for part in typing.get_args(hint)
            if typing.get_origin(part) is typing.Literal
            for word in typing.get_args(part)
        ]
        if words:
            found[name] = tuple(words)
    return found


def _ranges_in(hint: Any) -> Iterator[Range]:
    """The range in a type, however deep: ``list[Count] | None`` has that of ``Count``."""
    for part in getattr(hint, "__metadata__", ()):
        if isinstance(part, Range):
            yield part
    for part in typing.get_args(hint):
        yield from _ranges_in(part)


def without_ranges(hint: Any) -> str:
    """A type as messages name it: ``int | None`` for ``Count | None``."""
    text = hint.__name__ if type(hint) is type else str(hint).replace("typing.Optional", "Optional")
    plain = re.sub(r"(?:typing\.)?Annotated\[(\w+), [^]]*\]", r"\1", text)
    return re.sub(r"Optional\[(\w+)\]", r"\1 | None", plain)
