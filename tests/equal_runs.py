"""Whether two stages on disk are the same, but for what a clock or the machine decides."""

import json
from pathlib import Path
from typing import Any

CLOCK = ("seconds", "per_second")  # in the names of times and rates
FOLDERS = ("model", "adapter", "value_model", "data")


def timeless(value: Any) -> Any:
    """Numbers of a stage without keys of time, rate and memory, however deep."""
    if isinstance(value, dict):
        return {
            key: timeless(inside)
            for key, inside in value.items()
            if not any(word in key for word in CLOCK) and not key.endswith(("_cpu", "memory_mib"))
        }
    return [timeless(inside) for inside in value] if isinstance(value, list) else value


def bytes_of(stage: Path) -> dict[str, bytes]:
    """Path in the stage's directory -> content, of all that must be equal byte for byte."""
    files = [stage / "samples.jsonl", stage / "audit.json"]
    files += [path for folder in FOLDERS for path in sorted((stage / folder).rglob("*"))]
    return {str(path.relative_to(stage)): path.read_bytes() for path in files if path.is_file()}


def metrics_of(stage: Path) -> list[dict[str, Any]]:
    path = stage / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def equal_runs(one: Path, other: Path) -> None:
    """Asserts that two stages are equal, with the members of an ensemble in them."""
    found, expected = bytes_of(one), bytes_of(other)
    assert found.keys() == expected.keys()
    different = [name for name, content in found.items() if content != expected[name]]
    assert not different, f"{different} of {one} and {other} differ"
    assert timeless(metrics_of(one)) == timeless(metrics_of(other))
    summaries = [json.loads((stage / "summary.json").read_text()) for stage in (one, other)]
    assert timeless(summaries[0]) == timeless(summaries[1])
    members = [sorted(path.name for path in stage.glob("member-*")) for stage in (one, other)]
    assert members[0] == members[1]
    for member in members[0]:
        equal_runs(one / member, other / member)
