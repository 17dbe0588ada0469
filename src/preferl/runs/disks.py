"""A disk that is full, read-only or gone, said as such: which path, what survives, what to do.

Everything that preferl writes it writes beside its place and then moves there, so that a disk that fails
leaves what was there before, and the same command goes on once there is room.
"""

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from preferl.runs.errors import UsageError

# What is wrong with a disk, by the number of the system's error.
WRONG = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full for this user (quota)",
    errno.EFBIG: "takes no larger file (a limit on the size of files)",
    errno.EROFS: "is read-only",
    errno.EIO: "fails to read or write",
    errno.ENODEV: "is gone",
    errno.ENXIO: "is gone",
    errno.ESTALE: "is gone",
    errno.ENOTCONN: "is gone",
}
REMEDY = "make room, or mend the disk, and run the same command again: it goes on from there"


class DiskError(UsageError):
    """A disk is full, read-only or gone; what was written before is whole."""


@contextlib.contextmanager
def watched(directory: Path) -> Iterator[None]:
    """Errors of the disk below ``directory`` become ``DiskError``, which says what survives there.

    Raises:
        DiskError: the body failed because of the disk.
    """
    try:
        yield
    except Exception as error:
        wrong = what_is_wrong(error)
        if wrong is not None:
            raise DiskError(f"{wrong}; {survivors(directory)}; {REMEDY}") from error
        if isinstance(error, FileNotFoundError) and _inside(error, directory) and not directory.is_dir():
            raise gone(directory) from error
        raise


def check_still_there(directory: Path, file: str) -> None:
    """Before a stage is called finished: what it wrote first must still be there.

    Raises:
        DiskError: the directory was taken away meanwhile, and what lies there now is not all of it.
    """
    if not (directory / file).exists():
        raise gone(directory)


def gone(directory: Path) -> DiskError:
    """The error of a stage whose directory was taken away from under it."""
    return DiskError(
        f"{directory} is gone, or some of it: its disk was taken away, or somebody deleted it; bring it "
        f"back, or delete what is left of it, and run the same command again"
    )


def what_is_wrong(error: BaseException) -> str | None:
    """A sentence about the disk where the error is one of the disk's; None where it is none."""
    number, path = _number_of(error), getattr(error, "filename", None)
    if number not in WRONG:
        return None
    return f"the disk {WRONG[number]}: {path}" if path else f"the disk {WRONG[number]}"


def _number_of(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # safetensors keeps the system's error in its text alone: "No space left on device (os error 28)".
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _inside(error: BaseException, directory: Path) -> bool:
    """Whether an error is about a file below a directory."""
    path = getattr(error, "filename", None)
    return isinstance(path, str) and Path(path).is_relative_to(directory)


def survivors(directory: Path) -> str:
    """What of a stage is whole, as messages name it."""
    steps = sorted(int(name) for path in directory.glob("state/step_*") if (name := path.name[5:]).isdigit())
    if steps:
        return f"{directory} keeps its checkpoint of step {steps[-1]}"
    parts = len(list(directory.glob("state/part_*")))
    if parts:
        return f"{directory} keeps {parts} parts of its work"
    return f"what was finished before is whole, nothing in {directory} is half written"
