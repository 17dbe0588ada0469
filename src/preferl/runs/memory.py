"""How much memory this machine has, and whether its kernel has ended a process for want of it."""

import contextlib
import ctypes
import json
import math
from pathlib import Path
from typing import Any

from preferl.runs import distributed
from preferl.runs.errors import UsageError
from preferl.runs.files import write_atomically

CGROUP = Path("/sys/fs/cgroup")
MEMINFO, VMSTAT = Path("/proc/meminfo"), Path("/proc/vmstat")
BOOT = Path("/proc/sys/kernel/random/boot_id")
MIB, GIB = 2**20, 2**30


def machine_memory() -> float:
    """Bytes that a process can have at most, swap included: of the machine, or of the container where that is
    less. Infinite where the system does not say."""
    return min(_of_machine(), _of_container())


def free_memory() -> float:
    """Bytes that processes can still have now, what files in memory take included. Infinite where the system
    does not say."""
    in_container = _of_container()
    try:
        used = int((own_cgroup() / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        used = 0
    return min(_meminfo("MemAvailable", "SwapFree"), in_container - used)


def _of_machine() -> float:
    return _meminfo("MemTotal", "SwapTotal")


def _meminfo(*names: str) -> float:
    """The sum of some rows of /proc/meminfo, in bytes."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return math.inf
    kib = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(1024 * int(kib[name].split()[0]) for name in names if name in kib)


def _of_container() -> float:
    """The least of the limits of this process's control group, of those that it lies in (cgroup v2), and of
    cgroup v1's."""
    own = own_cgroup()
    groups = [own, *(group for group in own.parents if group.is_relative_to(CGROUP))]
    files = [group / "memory.max" for group in groups] + [CGROUP / "memory" / "memory.limit_in_bytes"]
    return min(_limit(file) for file in files)


def _limit(file: Path) -> float:
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return math.inf
    return math.inf if text == "max" else int(text)


def own_cgroup() -> Path:
    """The directory of this process's control group (cgroup v2); it may not be there."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return CGROUP
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    path = CGROUP / own.lstrip("/")
    return path if path.is_dir() else CGROUP  # in a container the path may be the host's


def give_back() -> None:
    """Lets the C library return to the system what this process has freed: it keeps what lies between things
    that are still used, which after the training is as much as its activations. Nothing where it is not
    glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


MMAP_THRESHOLD = 1 << 20  # bytes
M_MMAP_THRESHOLD = -3  # of mallopt(3)


def map_large_tensors() -> None:
    """Lets the C library take memory for every tensor of a mebibyte or more from the system, and give it back
    when it is freed, from here on in this process. By itself it raises that bound to 32 MiB as it goes, and
    activations then leave gaps that are never used again. A step of 135M parameters with LoRA takes 2.1 GiB
    so and 3.1 without, and a sixth more time. Nothing where it is not glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)


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


# -------------------------------------------------------------------------- who ended the last try of a stage

STARTED = ".started.json"  # in ``state/``, as long as a process works there: only a kill leaves it behind


@distributed.main_writes
def note_start(state: Path) -> None:
    """Keeps how many processes the kernel has ended for want of memory until now."""
    write_atomically(state / STARTED, json.dumps(_kills()) + "\n")


def forget_start(state: Path) -> None:
    """This process ends by itself, with or without an error."""
    (state / STARTED).unlink(missing_ok=True)


def ended_by_kernel(state: Path) -> str | None:
    """A sentence where the last try in ``state`` was probably ended by the kernel's out-of-memory killer: it
    was killed, and the kernel has ended processes of this control group since it began."""
    try:
        before = json.loads((state / STARTED).read_text(encoding="utf-8"))
        now = _kills()
        killed = before["boot"] == now["boot"] and before["group"] == now["group"]
        killed = killed and before["kills"] < now["kills"]
    except (OSError, ValueError, KeyError, TypeError):  # no last try, or a system that counts nothing
        return None
    if not killed:
        return None
    return (
        "the last try was probably ended by the kernel's out-of-memory killer; lower micro_batch_size, "
        "sampling_batch_size or max_length, or take a smaller model"
    )


def _kills() -> dict[str, Any]:
    """The kernel's count of processes that it ended because memory ran out, and since when and of which
    control group; None where it does not say."""
    found: dict[str, Any] = {"boot": None, "group": str(own_cgroup()), "kills": None}
    events = own_cgroup() / "memory.events"  # of cgroup v2; the machine's own count where there is none
    try:
        found["boot"] = BOOT.read_text(encoding="ascii").strip()
        lines = (events if events.exists() else VMSTAT).read_text(encoding="ascii").splitlines()
    except OSError:
        return found
    counts = dict(line.split() for line in lines)
    return found | {"kills": int(counts["oom_kill"])} if "oom_kill" in counts else found
