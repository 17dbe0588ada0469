"""``preferl doctor``: versions, devices, disk and known problems, without loading a model."""

import importlib.util
import os
import shutil
from pathlib import Path

from preferl.runs.environment import environment
from preferl.runs.lock import holder_of
from preferl.runs.mark import read_mark
from preferl.runs.progress import say

GIB = 2**30


def main(folder: Path | None = None) -> int:
    """Prints what this machine has; returns 0 where nothing is wrong, 1 otherwise."""
    folder = folder or Path.cwd()
    found = environment()
    say(f"preferl {found['preferl']}, Python {found['python']}, {found['platform']}")
    say("  " + ", ".join(f"{name} {version}" for name, version in found["packages"].items()))
    problems = [f"{name} is not installed" for name, v in found["packages"].items() if v == "not installed"]
    problems += device_lines()
    free = shutil.disk_usage(folder).free
    say(f"  disk: {free / GIB:.1f} GiB free in {folder}")
    if free < 2 * GIB:
        problems.append(f"less than 2 GiB free in {folder}: a run may not be saved whole")
    data = os.environ.get("PREFERL_DATA")
    if data:
        say(f"  PREFERL_DATA: {data}")
        if not Path(data).is_dir():
            problems.append(f"PREFERL_DATA names {data}, which is no folder")
    else:
        say("  PREFERL_DATA is not set: data sets named in configurations come from the Hub")
    for line in at_work(folder / "runs"):
        say(f"  {line}")
    if not os.access(folder, os.W_OK):
        problems.append(f"{folder} cannot be written")
    for problem in problems:
        say(f"  problem: {problem}")
    say("no known problem" if not problems else f"{len(problems)} problem(s)")
    return 1 if problems else 0


def at_work(runs: Path) -> list[str]:
    """Which runs, sweeps and stages a command is working on now, and which command that is."""
    if not runs.is_dir():
        return []
    holders = {path: holder_of(path) for path in sorted(runs.iterdir()) if read_mark(path) is not None}
    return [f"running: {path}, by {holder}" for path, holder in holders.items() if holder is not None]


def device_lines() -> list[str]:
    """Says which devices there are; returns problems."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    say(f"  CPU: {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        say("  GPU: none that torch sees; everything runs on the CPU in float32")
        return []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        say(f"  GPU {index}: {properties.name}, {properties.total_memory / GIB:.0f} GiB")
    if not torch.cuda.is_bf16_supported():
        return ["the GPU has no bfloat16; float32 is used, at twice the memory"]
    return []
