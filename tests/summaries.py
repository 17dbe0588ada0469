"""Summaries of stages without what a clock or the machine decides."""

from typing import Any


def repeatable(value: Any) -> Any:
    """A summary without times, memory and notes, however deep."""
    if isinstance(value, dict):
        return {
            k: repeatable(v)
            for k, v in value.items()
            if "seconds" not in k and not k.endswith("_cpu") and k not in ("peak_memory_mib", "notes")
        }
    return [repeatable(v) for v in value] if isinstance(value, list) else value
