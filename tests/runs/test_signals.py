"""SIGINT, SIGTERM and SIGHUP: what was begun is ended and saved, and never is anything waited for too long.

Each case is a process of its own, which loads nothing heavy and says what it does.
"""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

START = """
import os, signal, sys, time
from preferl.runs import signals
from preferl.runs.errors import Interrupted

def work(seconds):
    "A piece of work that no signal cuts short."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)

def ready():
    open("ready", "w").close()

try:
    with signals.handled():
        {body}
except Interrupted as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""
UPDATES = """
        for step in range(1, 100):
            with signals.patient():
                ready()
                work(0.3)
                if signals.asked():
                    print("saved", step, flush=True)
"""
BOTH = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@contextlib.contextmanager
def process(body: str, place: Path, **options):
    """A program in which ``body`` runs with the signals handled, once it has said that it is ready."""
    program = textwrap.dedent(START).replace("{body}", body.strip().replace("\n    ", "\n    "))
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": place}
    running = subprocess.Popen([sys.executable, "-c", program], **usual | options)
    try:
        until((place / "ready").exists)
        yield running
    finally:
        running.kill()
        running.communicate()


def until(happened, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", BOTH)
def test_an_update_is_ended_and_saved(tmp_path, number):
    with process(UPDATES, tmp_path) as running:
        running.send_signal(number)
        out, err = running.communicate(timeout=30)
    assert running.returncode == 75
    saved, said = out.splitlines()
    assert saved.startswith("saved ")
    assert said == f"interrupted by {number.name}; the same command goes on from what is saved"
    assert err.startswith(f"preferl: {number.name}: ends what it has begun, saves it and stops, within 10 s")


def test_what_takes_too_long_is_left(tmp_path):
    body = """
        signals.GRACE_S = 1.0
        with signals.patient():
            ready()
            work(60)
"""
    with process(body, tmp_path) as running:
        began = time.monotonic()
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=30)
    assert running.returncode == 75
    assert 0.9 < time.monotonic() - began < 20
    assert "SIGTERM: what was begun did not end within 1 s and is lost; the last checkpoint or part" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_twice_means_now(tmp_path, number):
    body = """
        with signals.patient():
            ready()
            work(60)
"""
    with process(body, tmp_path) as running:
        running.send_signal(number)
        time.sleep(0.5)
        assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=8)
    assert running.returncode == 75
    assert "SIGTERM again: stops now; the last checkpoint or part counts" in err


def test_a_terminal_that_closes_says_so_more_than_once(tmp_path):
    with process(UPDATES.replace("0.3", "1.5"), tmp_path) as running:
        for _ in range(2):
            running.send_signal(signal.SIGHUP)
            time.sleep(0.5)
        out, _ = running.communicate(timeout=30)
    assert running.returncode == 75
    assert out.startswith("saved ")


def test_without_its_terminal_it_still_saves(tmp_path):
    """Whatever is written to a terminal that is gone fails."""
    body = UPDATES.replace('print("saved", step, flush=True)', 'print("x", flush=True); open("saved", "w")')
    ours, theirs = pty.openpty()
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with process(body, tmp_path, start_new_session=True, **streams) as running:
        os.close(theirs)
        os.close(ours)
        running.send_signal(signal.SIGHUP)
        running.wait(timeout=30)
    assert running.returncode == 75
    assert (tmp_path / "saved").exists()


def test_what_cannot_be_saved_is_left_at_once(tmp_path):
    with process("ready(); work(60)", tmp_path) as running:
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=8)
    assert running.returncode == 75
    assert out.startswith("interrupted by SIGTERM")
    assert not err


@pytest.mark.parametrize("number", BOTH)
def test_what_was_ignored_at_the_start_stays_ignored(tmp_path, number):
    """As under nohup, or in the background of a script."""
    body = "ready(); work(1.5); print('done')"

    def ignore():
        signal.signal(number, signal.SIG_IGN)

    with process(body, tmp_path, preexec_fn=ignore) as running:
        running.send_signal(number)
        out, _ = running.communicate(timeout=30)
    assert (running.returncode, out) == (0, "done\n")


def test_an_import_cannot_swallow_it(tmp_path):
    module = """
import time
try:
    open("ready", "w").close()
    time.sleep(60)
except BaseException:
    pass
"""
    (tmp_path / "heavy.py").write_text(module)
    with process("sys.path.insert(0, '.'); import heavy; work(60)", tmp_path) as running:
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=8)
    assert running.returncode == 75
    assert not out
    assert err == "preferl: interrupted by SIGINT; the same command goes on from what is saved\n"


def test_nothing_is_left_of_it_afterwards(tmp_path):
    body = """
        ready()
    import threading
    assert [t.name for t in threading.enumerate() if t.name == "signals"] == [] or not time.sleep(0.5)
    assert "signals" not in [t.name for t in threading.enumerate()]
    assert signal.set_wakeup_fd(-1) == -1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    with signals.patient():
        work(60)
"""
    with process(body, tmp_path) as running:
        time.sleep(1.5)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=8)
    assert running.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_a_server_has_its_own(tmp_path):
    body = """
        with signals.released():
            ready()
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signals._on_signal
"""
    with process(body, tmp_path) as running:
        _, err = running.communicate(timeout=8)
    assert (running.returncode, err) == (0, "")


def test_a_dialogue_goes_on_after_a_signal(tmp_path):
    body = """
        signals.GRACE_S = 0.3
        with signals.released():
            try:
                ready()
                work(30)
            except KeyboardInterrupt:
                work(1.5)
                print("goes on", flush=True)
"""
    with process(body, tmp_path) as running:
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
    assert (running.returncode, out, err) == (0, "goes on\n", "")


def test_the_library_has_none(tmp_path):
    """Python programs keep their own handlers."""
    program = "import signal, preferl, preferl.runs.signals; print(signal.getsignal(signal.SIGINT).__name__)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out == "default_int_handler\n"


def test_the_first_second_of_a_command(tmp_path):
    """A signal in its imports: no traceback, exit 75."""
    command = [sys.executable, "-X", "importtime", "-m", "preferl", "sft", "--output_dir", "out"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        for line in running.stderr:
            if "preferl.cli" in line:  # the heavy ones follow
                break
        time.sleep(0.3)
        running.send_signal(signal.SIGINT)
        said = [line for line in running.stderr.read().splitlines() if not line.startswith("import time:")]
    assert running.returncode == 75
    assert said == ["preferl: interrupted by SIGINT; the same command goes on from what is saved"]
    assert not (tmp_path / "out").exists()


PROCESSES = """
import os, signal, sys, time
from pathlib import Path
import torch
from preferl.runs import distributed, signals
from preferl.runs.checkpoint import Checkpoints
from preferl.runs.errors import Interrupted

step = 0
try:
    with signals.handled(), distributed.process_group():
        checkpoints = Checkpoints(Path("state"), 200, 50)
        for step in range(1, 200):
            with signals.patient():
                if step == 5 and distributed.rank() == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05 * (1 + distributed.rank()))
                if checkpoints.due(step):
                    checkpoints.save(step, {"x": torch.ones(2)}, {})
except Interrupted as error:
    Path(f"rank-{os.environ['RANK']}").write_text(f"{step}: {error}")
    sys.exit(error.exit_code)
"""


def test_processes_stop_after_the_same_update(tmp_path):
    """Only one of them was asked to."""
    (tmp_path / "program.py").write_text(PROCESSES)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    began = time.monotonic()
    ended = subprocess.run(
        [*launcher, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert time.monotonic() - began < 60
    assert ended.returncode == 1  # torchrun's own, whatever a process ended with
    assert "exitcode  : 75" in ended.stderr
    said = [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)]
    assert (
        said[0]
        == "5: interrupted by a signal to another process; the same command goes on from what is saved"
    )
    assert said[1] == "5: interrupted by SIGTERM; the same command goes on from what is saved"
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step_5"]
