"""How much memory this machine has, and whether its kernel has ended a process for want of it."""

import math
from pathlib import Path

from preferl.runs.errors import UsageError

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
GIB = 2**30


def machine_memory() -> float:
    """Bytes that a process can have at most, swap included: of the machine, or of the container where that is
    less. Infinite where the system does not say."""
    return min(_of_machine(), _of_container())


def _of_machine() -> float:
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return math.inf
    kib = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(1024 * int(kib[name].split()[0]) for name in ("MemTotal", "SwapTotal") if name in kib)


def _of_container() -> float:
    try:
        limit = (own_cgroup() / "memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return math.inf
    return math.inf if limit == "max" else int(limit)


def own_cgroup() -> Path:
    """The directory of this process's control group (cgroup v2); it may not be there."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return CGROUP
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    path = CGROUP / own.lstrip("/")
    return path if path.is_dir() else CGROUP  # in a container the path may be the host's


def refuse_too_large(bytes_needed: float, what: str) -> None:
    """Before a model is built: one that can never fit is refused.

    Raises:
        UsageError: the machine has less memory than its weights take.
    """
    there = machine_memory()
    if bytes_needed > there:
        raise UsageError(
            f"{what} needs {bytes_needed / GIB:,.1f} GiB for its weights alone, and this machine has "
            f"{there / GIB:,.1f} GiB; look at the sizes in its configuration, or take a smaller model"
        )


def kills_for_memory() -> int | None:
    """How many processes of this control group the kernel has ended because memory ran out; None where it
    does not say."""
    try:
        lines = (own_cgroup() / "memory.events").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    counts = dict(line.split() for line in lines if len(line.split()) == 2)
    return int(counts["oom_kill"]) if "oom_kill" in counts else None
