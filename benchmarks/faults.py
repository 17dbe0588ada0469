"""Everything that can go wrong outside of preferl: how does each command end, and what does it say?

Disks that are full, read-only or gone, signals, a second command on one directory, damaged files, bad rows,
numbers that are none, models that mean harm, names that do, options out of range. Each row is the real
command in a process of its own, forked from one that has imported everything. A row holds where the command
ends with the right exit code and one line that names the thing, without a traceback, "a defect" or a control
character; where the damage can be taken away, the same command then ends with 0.

    python benchmarks/faults.py                      # all rows; ends with 1 if any does not hold
    python benchmarks/faults.py --group disks        # some of them
"""

import argparse
import contextlib
import hashlib
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from fault_rows import GROUPS
from fault_world import DONE, INTERRUPTED, Fault, build, until

SECONDS = 120.0  # of one command
FORBIDDEN = ("Traceback", "a defect of preferl")


def main() -> int:
    """Runs the table; returns 1 where a row does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--group", choices=GROUPS, action="append", help="only these rows")
    parser.add_argument("--only", action="append", help="only rows whose name holds this, or another such")
    options = parser.parse_args()
    faults = [fault for group in options.group or GROUPS for fault in GROUPS[group]]
    if options.only:
        faults = [fault for fault in faults if any(part in fault.name for part in options.only)]
    started, broken = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="preferl-faults-") as folder:
        world = small_world(Path(folder))
        for fault in faults:
            outcome = check(fault, world, Path(folder) / "row")
            broken += bool(outcome.wrong)
            print(f"{fault.name} | preferl {shown(fault)} | {outcome.code} | {outcome.line}", flush=True)
            for reason in outcome.wrong:
                print(f"    WRONG: {reason}", flush=True)
    seconds = time.monotonic() - started
    print(f"{len(faults)} faults, {broken} wrong, {seconds:.0f} s")
    return 1 if broken else 0


@dataclass(frozen=True)
class Outcome:
    """How a row ended: exit code, its last line, and what is wrong with that."""

    code: int
    line: str
    wrong: list[str]


def small_world(folder: Path) -> Path:
    """A folder in which every stage is finished; all rows begin with a copy."""
    warm()
    world = folder / "world"
    world.mkdir(parents=True)

    def preferl(command: str) -> None:
        code, text = run(shlex.split(command), world)
        assert code == 0, f"{command}\n{text}"

    build(world, preferl)
    return world


def warm() -> None:
    """Imports what every command imports, once."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch

    torch.set_num_threads(1)
    from preferl import pipeline, sweep
    from preferl.label import commands

    assert pipeline
    assert sweep
    assert commands


def check(fault: Fault, world: Path, folder: Path) -> Outcome:
    """Runs a row in a copy of the world."""
    shutil.copytree(world, folder)
    try:
        fault.prepare(folder)
        before = {name: digest(folder / name) for name in fault.kept}
        with at_work(fault, folder) as first:
            code, text = run(arguments_of(fault), folder, fault)
        if fault.during is not None and code == -signal.SIGKILL:  # the row's point is how it goes on
            code, text = run(arguments_of(fault), folder)
        wrong = list(faults_of(fault, code, text))
        if first is not None and str(first) not in last_line(text):
            wrong.append(f"it does not name the process {first}")
        wrong += [f"{name} is not what it was" for name in before if digest(folder / name) != before[name]]
        if (folder / "ran").exists():
            wrong.append("code of the model was run")
        if fault.mend is not None:
            fault.mend(folder)
            again, after = run(arguments_of(fault), folder)
            if again != DONE:
                wrong.append(f"mended, the same command ends with {again}: {last_line(after)}")
        return Outcome(code, last_line(text), wrong)
    finally:
        remove(folder)


@contextlib.contextmanager
def at_work(fault: Fault, folder: Path) -> Iterator[int | None]:
    """The row's first command, at work as long as the context lasts; yields its process."""
    if fault.first is None:
        yield None
        return
    process = start(shlex.split(fault.first), folder, folder / "first.txt", None)
    try:
        until(lambda: any((folder / "out" / "state").glob("step_*")))
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def remove(folder: Path) -> None:
    """The row's folder, and a disk that it has mounted."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.ismount(folder / "out"):
            subprocess.run(["umount", str(folder / "out")], check=True)
    shutil.rmtree(folder)


def faults_of(fault: Fault, code: int, text: str) -> Iterator[str]:
    """What is wrong with how a command ended."""
    if code != fault.code:
        yield f"exit code {code}, not {fault.code}"
    for word in FORBIDDEN:
        if word in text:
            yield f"it says '{word}'"
    errors = [line for line in text.splitlines() if re.match(r"preferl.*: error: ", line)]
    if code not in (DONE, INTERRUPTED) and len(errors) != 1:
        yield f"{len(errors)} lines of errors"
    said = text if fault.code == DONE else last_line(text)
    if fault.says not in said:
        yield f"it does not say {fault.says!r}"
    odd = {char for char in text if unicodedata.category(char) in ("Cc", "Cf") and char != "\n"}
    if odd:
        yield f"control characters in what it says: {sorted(map(ascii, odd))}"


def run(arguments: list[str], folder: Path, fault: Fault | None = None) -> tuple[int, str]:
    """``preferl ARGUMENTS`` in a folder; returns the exit code (negative for a signal) and what it said."""
    said = folder / "said.txt"
    process = start(arguments, folder, said, fault)
    if fault is not None and fault.during is not None:
        fault.during(process, folder)
    limit = time.monotonic() + SECONDS
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), said.read_text(errors="replace")
        if time.monotonic() > limit:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.01)


def start(arguments: list[str], folder: Path, said: Path, fault: Fault | None) -> int:
    """Forks the command; returns its process."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        become_command(arguments, folder, said, fault)
    return process


def become_command(arguments: list[str], folder: Path, said: Path, fault: Fault | None) -> None:
    """This process, forked a moment ago, becomes the command and ends."""
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        out = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if fault is not None and fault.ignored is not None:
            signal.signal(fault.ignored, signal.SIG_IGN)
        if fault is not None and fault.largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.largest, resource.RLIM_INFINITY))
        sys.argv = ["preferl", *arguments]
        from preferl.cli import main as preferl

        code = preferl(arguments)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:  # noqa: BLE001 - shown, and then counted as wrong
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def arguments_of(fault: Fault) -> list[str]:
    return shlex.split(fault.command)


def shown(fault: Fault) -> str:
    """The command for a person to read."""
    words = [word.encode("unicode_escape").decode() for word in arguments_of(fault)]
    return shorten(" ".join(words), 60, placeholder=" …")


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
