"""SIGINT, SIGTERM and SIGHUP: the update or part that was begun is ended and saved, then the program leaves
with exit code 75.

Only the command line asks for this (``handled``); a Python program that uses preferl keeps its own handlers,
and is never asked to stop by this file. A signal during a piece of work that can be saved (``patient``) waits
for its end; at any other moment ``Interrupted`` is raised at once, because files are whole at every instant.
A thread, which a long call into C does not hold up, sees to it that ten seconds or a second signal are the
end in any case.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from preferl.runs import distributed
from preferl.runs.errors import INTERRUPTED, Interrupted

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # those that this system has
GRACE_S = 10.0  # for what was begun
AGAIN_S = 0.2  # a signal so soon after the first one is the same one, sent to the group and to the process
GOES_ON = "the same command goes on from what is saved"


@dataclass
class _Asked:
    """What has been asked of this process. ``patience`` counts the pieces of work around the present one;
    ``agreed`` is what all processes know of each other."""

    number: int | None = None
    patience: int = 0
    agreed: bool = False
    installed: bool = False


_asked = _Asked()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handles the signals that the process did not ignore when it started, as long as the context lasts."""
    global _asked
    if _asked.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = {getattr(signal, name) for name in NAMES if hasattr(signal, name)}
    taken = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before: dict[int, Any] = {}
    _asked = _Asked(installed=True)
    # The kernel's side of Python writes a signal's number here at once, whatever the main thread is doing.
    woken, waking = socket.socketpair()
    waking.setblocking(False)
    earlier = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(woken, set(taken)), name="signals", daemon=True).start()
    try:
        for number in taken:
            before[number] = signal.signal(number, _on_signal)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(earlier)
        waking.close()  # which ends the thread
        _asked = _Asked()


@contextlib.contextmanager
def released() -> Iterator[None]:
    """The usual handlers of Python, for a server that has its own, or a dialogue in which Ctrl+C only ends an
    answer; those of ``handled`` afterwards."""
    usual = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    before = {}
    for name, handler in usual.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is _on_signal:
            before[number] = signal.signal(number, handler)
    # Nor does the thread hear of them, which would count its seconds to the end.
    earlier = signal.set_wakeup_fd(-1) if before else None
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if earlier is not None:
            signal.set_wakeup_fd(earlier, warn_on_full_buffer=False)


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """One piece of work that is saved at its end: a signal waits for that, and then stops the program.

    Raises:
        Interrupted: one came.
    """
    _asked.patience += 1
    try:
        yield
    finally:
        _asked.patience -= 1
    # Several processes stop together, at the update at which all of them know of it (``asked``).
    stop = _asked.agreed if distributed.world_size() > 1 else pending()
    if stop and not _asked.patience:
        raise Interrupted(f"interrupted by {_name(_asked.number)}; {GOES_ON}")


def are_handled() -> bool:
    """Whether Ctrl+C raises ``Interrupted`` here, so that a KeyboardInterrupt is somebody else's."""
    return _asked.installed


def pending() -> bool:
    """Whether this process, or by ``asked`` another one, was asked to stop."""
    return _asked.number is not None or _asked.agreed


def asked() -> bool:
    """Whether any process was asked to stop. All of them call this at the same place and get the same."""
    if distributed.world_size() > 1:
        import torch

        own = torch.tensor(float(_asked.number is not None))
        _asked.agreed = bool(distributed.all_reduce(own))
    return pending()


def _name(number: int | None) -> str:
    return "a signal to another process" if number is None else signal.Signals(number).name


def _on_signal(number: int, frame: FrameType | None) -> None:
    """In the main thread, between two of Python's instructions."""
    if _asked.number is not None:
        return  # a second one is for the thread
    _asked.number = number
    if number == getattr(signal, "SIGHUP", None):
        _leave_terminal()
    if _asked.patience:
        _say(
            f"{_name(number)}: ends what it has begun, saves it and stops, within {GRACE_S:g} s; once more "
            f"to stop now"
        )
        return
    # An exception inside an import may end as another one, or as none; nothing worth keeping happens there.
    if _is_importing(frame):
        _leave(f"interrupted by {_name(number)}; {GOES_ON}")
    raise Interrupted(f"interrupted by {_name(number)}; {GOES_ON}")


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _watch(woken: socket.socket, numbers: set[int]) -> None:
    """The thread: after the first signal, leaves at the second one or after ``GRACE_S``."""
    with woken:
        first, began = _next(woken, numbers, None), time.monotonic()
        while first is not None:
            left = began + GRACE_S - time.monotonic()
            again = _next(woken, numbers, left) if left > 0 else 0
            if again == 0:
                _leave(
                    f"{_name(first)}: what was begun did not end within {GRACE_S:g} s and is lost; the last "
                    f"checkpoint or part counts, and the same command goes on from there"
                )
            if again is None:
                return
            # A terminal that closes sends SIGHUP more than once.
            hangs_up = again == getattr(signal, "SIGHUP", None)
            if not hangs_up and time.monotonic() - began >= AGAIN_S:
                _leave(
                    f"{_name(again)} again: stops now; the last checkpoint or part counts, and the same "
                    f"command goes on from there"
                )


def _next(woken: socket.socket, numbers: set[int], seconds: float | None) -> int | None:
    """The next of some signals; 0 where none came in time, None where nobody handles them any more."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        woken.settimeout(None if end is None else max(end - time.monotonic(), 0.001))
        try:
            came = woken.recv(1)
        except TimeoutError:
            return 0
        except OSError:
            return None
        if not came:
            return None
        if came[0] in numbers:
            return came[0]


def _leave(text: str) -> None:
    _say(text)
    os._exit(INTERRUPTED)


def _say(text: str) -> None:
    """To stderr, past Python's buffers, whose locks the main thread may hold."""
    if distributed.is_main():
        with contextlib.suppress(OSError):
            os.write(2, f"preferl: {text}\n".encode())


def _leave_terminal() -> None:
    """A terminal that has gone away fails whatever is written to it, which must not stop the saving."""
    for output in (1, 2):
        try:
            os.write(output, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, output)
            os.close(nowhere)
