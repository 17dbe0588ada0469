"""How a page writes numbers, intervals and texts. A number that is not finite, such as the end of an
interval that one prompt does not determine, is an ellipsis."""

import math
from collections.abc import Callable
from typing import Any

from preferl.statistics.intervals import Estimate

MAX_TEXT = 1200  # characters of a response that a table shows
MAX_BAD = 12  # characters of what should have been a number


def written(value: float, form: str, unit: str = "") -> str:
    """A number with a true minus sign, and its unit."""
    return f"{value:{form}}{unit}".replace("-", "−") if math.isfinite(value) else "…"


def format_2f(value: float) -> str:
    return written(value, "z.2f")


def format_1f(value: float) -> str:
    return written(value, ".1f")


def signed_2f(value: float) -> str:
    return written(value, "+z.2f")


def percent(value: float) -> str:
    return written(100 * value, "z.1f", "\u00a0%")


def signed_percent(value: float) -> str:
    return written(100 * value, "+z.1f", "\u00a0%")


def finite(value: Any) -> float | None:
    """A value of a row as a number; None where it is missing, text (as NaN is in a file) or not finite."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def marked(value: Any) -> tuple[str, bool]:
    """A value of a row as text, and whether it is a bad one: missing, NaN or infinite."""
    number = finite(value)
    if number is not None:
        return format_2f(number), False
    return ("missing" if value is None else str(value)[:MAX_BAD]), True


def brackets(row: dict[str, Any], key: str, form: Callable[[float], str]) -> str:
    """[low, high] of a 95 % interval."""
    return Estimate.read(row, key).ends(form)


def with_interval(row: dict[str, Any], key: str, form: Callable[[float], str] = format_2f) -> str:
    """A value and its 95 % interval; a dash where it is not known."""
    return Estimate.read(row, key).text(form) if row.get(key) is not None else "–"


def with_error(row: dict[str, Any], key: str) -> str:
    """A value ± its standard error."""
    return f"{format_2f(row[key])} ± {format_2f(row[f'{key}_se'])}"


def estimate(row: dict[str, Any] | None, form: Callable[[float], str]) -> str:
    """An audit's estimate with its interval, or a dash."""
    return Estimate.read(row).text(form) if row is not None else "–"


def cut_text(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " …"
