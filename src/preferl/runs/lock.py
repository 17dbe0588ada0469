"""One command at a time in a directory: a lock of the operating system, which the kernel frees at death.

The lock's file says who holds it, for messages alone. Not every network file system shares locks between
machines: a holder on another host counts as long as it has touched the file in the last five minutes. Who
only reads (``report``, ``doctor``) needs no lock and asks ``holder_of``.
"""

import contextlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from preferl.runs.errors import UsageError
from preferl.runs.mark import read_mark

LOCK = ".preferl.lock"
HEARTBEAT_S, STALE_S = 30.0, 300.0
PATIENCE_S = 0.5  # a reader that looks whether a lock is held holds it for an instant
DEPTH = 4  # a stage lies in a run, an ensemble's member in a stage, a run in a point of a sweep

_held: set[Path] = set()  # by this process


@dataclass(frozen=True)
class Holder:
    """Who works in a directory.

    Example: ``Holder(4711, "laptop", "2026-11-30 09:12:00", "preferl run --config my.yaml")``.
    """

    pid: int
    host: str
    started: str
    command: str

    def __str__(self) -> str:
        return f"'{self.command}' (process {self.pid} on {self.host}, since {self.started})"


def this_process() -> Holder:
    command = " ".join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])
    return Holder(os.getpid(), platform.node(), time.strftime("%Y-%m-%d %H:%M:%S"), command[:200])


def holder_of(path: Path) -> Holder | None:
    """Who works in a directory now; None where nobody does. Changes nothing."""
    said = _read(path)
    if said is None:
        return None
    if said.host != platform.node():
        return said if _is_alive(path) else None
    try:
        with FileLock(path / LOCK, timeout=0):
            return None
    except Timeout:
        return said
    except OSError:  # not ours to open, as on a disk that can only be read
        return said if _is_alive(path) else None


def refuse_if_held(path: Path) -> None:
    """Refuses a directory in which another command works, or that lies in such a run or sweep.

    Raises:
        UsageError: names the other command. Nothing has been changed.
    """
    place = path.resolve()
    for directory in (place, *list(place.parents)[:DEPTH]):
        if directory in _held or (directory != place and read_mark(directory) is None):
            continue
        holder = holder_of(directory)
        if holder is not None:
            raise UsageError(
                f"{directory} is in use by {holder}; wait for it, stop it, or choose another --output_dir "
                f"(nothing was changed)"
            )


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keeps other commands out of a directory that bears the mark, as long as the context lasts.

    Raises:
        UsageError: another command works there; it is named.
    """
    refuse_if_held(path)
    place = path.resolve()
    try:
        acquired = FileLock(place / LOCK, timeout=PATIENCE_S, thread_local=False).acquire()
    except Timeout as error:
        raise UsageError(f"{path} is in use by {_read(path) or 'another command'}; wait for it") from error
    with acquired, _named(place):
        yield


@contextlib.contextmanager
def _named(place: Path) -> Iterator[None]:
    """Says who holds a directory, and that it still lives, as long as the context lasts."""
    stopped = threading.Event()
    (place / LOCK).write_text(json.dumps(asdict(this_process())) + "\n", encoding="utf-8")
    threading.Thread(target=_beat, args=(place / LOCK, stopped), daemon=True).start()
    _held.add(place)
    try:
        yield
    finally:
        stopped.set()
        _held.discard(place)
        with contextlib.suppress(OSError):  # where the disk has gone the kernel frees the lock all the same
            os.truncate(place / LOCK, 0)


def _beat(file: Path, stopped: threading.Event) -> None:
    """Touches the lock's file, so that other hosts see that its holder lives."""
    while not stopped.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):
            os.utime(file)


def _read(path: Path) -> Holder | None:
    """Whom the lock's file names; None where there is none, or it was let go."""
    try:
        return Holder(**json.loads((path / LOCK).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _is_alive(path: Path) -> bool:
    return time.time() - (path / LOCK).stat().st_mtime < STALE_S
