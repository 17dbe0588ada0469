"""One command at a time in a directory."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from preferl import cli
from preferl.options.shared import StageOptions
from preferl.reporting.gather import gather
from preferl.runs import lock
from preferl.runs.errors import UsageError
from preferl.runs.lock import LOCK, Holder, hold, holder_of, refuse_if_held
from preferl.runs.mark import claim
from preferl.runs.stage import Stage

OTHER = """
import sys, time
from pathlib import Path
from preferl.runs.lock import hold
from preferl.runs.mark import claim
path = Path(sys.argv[1])
claim(path, sys.argv[2], "sft")
with hold(path):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def elsewhere():
    """Starts another process that holds a directory; returns it."""
    started = []

    def start(path, kind="stage"):
        other = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(path), kind], stdout=subprocess.PIPE, text=True
        )
        started.append(other)
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        return other

    yield start
    for other in started:
        other.kill()
        other.communicate()


@dataclass(kw_only=True)
class Options(StageOptions):
    output_dir: str = ""


def test_a_second_command_is_refused_by_the_first_ones_name(tmp_path, elsewhere, capsys):
    other = elsewhere(tmp_path / "sft")
    for fresh in ([], ["--fresh"]):
        assert cli.main(["sft", "--output_dir", str(tmp_path / "sft"), *fresh]) == 2
        assert f"in use by 'python {tmp_path}/sft stage' (process {other.pid} on " in " ".join(
            capsys.readouterr().err.replace("-c ", "python ").split()
        )
    assert not (tmp_path / "sft" / "config.yaml").exists()


@pytest.mark.parametrize("inside", ["sft", "reward/member-0", "point/seed-0/rl"])
def test_nor_does_a_command_work_inside_a_run_that_is_held(tmp_path, elsewhere, inside):
    elsewhere(tmp_path / "run", "run")
    with pytest.raises(UsageError, match=r"run is in use by .* choose another --output_dir"):
        refuse_if_held(tmp_path / "run" / inside)
    refuse_if_held(tmp_path / "another")


def test_the_kernel_frees_the_lock_of_a_process_that_was_killed(tmp_path, elsewhere):
    other = elsewhere(tmp_path / "sft")
    assert holder_of(tmp_path / "sft").pid == other.pid
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert json.loads((tmp_path / "sft" / LOCK).read_text())["pid"] == other.pid
    assert holder_of(tmp_path / "sft") is None
    with Stage("sft", Options(output_dir=str(tmp_path / "sft"))) as stage:
        stage.begin()
        assert holder_of(stage.path).pid == os.getpid()
        stage.finish()
    assert holder_of(stage.path) is None


def test_who_only_reads_says_what_is_running(tmp_path, elsewhere, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("sft", "reward"):
        with Stage(name, Options(output_dir=f"runs/mine/{name}")) as stage:
            stage.begin()
            if name == "sft":
                stage.log(step=1, **{"train/loss": 1.0})
                stage.finish()
    claim(tmp_path / "runs" / "mine", "run", "mine")
    other = elsewhere(tmp_path / "runs" / "mine", "run")
    cli.main(["doctor"])
    assert f"running: {tmp_path}/runs/mine, by 'python" in capsys.readouterr().out.replace("-c ", "python ")
    other.kill()
    other.wait()
    lines = {}
    for state in ("stopped", "running"):
        with hold(tmp_path / "runs/mine/reward") if state == "running" else contextlib.nullcontext():
            lines[state] = gather([Path("runs/mine")]).notes
    assert lines["stopped"][0].startswith("Unfinished, and so not in here: runs/mine/reward")
    assert lines["running"] == ["Still running, and so not in here: runs/mine/reward."]


def test_two_calls_in_one_process_do_not_share_a_directory(tmp_path):
    claim(tmp_path / "a", "run", "a")
    with hold(tmp_path / "a"):
        refuse_if_held(tmp_path / "a" / "sft")  # a run works in its own stages
        with pytest.raises(UsageError, match="in use"), hold(tmp_path / "a"):
            pass
        assert holder_of(tmp_path / "a").pid == os.getpid()
    with hold(tmp_path / "a"):
        pass


def test_a_holder_on_another_host_counts_while_its_heart_beats(tmp_path):
    """Where the file system shares no locks between machines, the file's time is all that there is."""
    claim(tmp_path / "a", "run", "a")
    file = tmp_path / "a" / LOCK
    file.write_text(json.dumps(asdict(Holder(7, "another-host", "2026-11-01 09:00:00", "preferl run"))))
    with pytest.raises(UsageError, match=r"'preferl run' \(process 7 on another-host, since 2026-11-01"):
        refuse_if_held(tmp_path / "a")
    late = time.time() - lock.STALE_S - 1
    os.utime(file, (late, late))
    assert holder_of(tmp_path / "a") is None
    with hold(tmp_path / "a"):
        assert holder_of(tmp_path / "a").pid == os.getpid()


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.05)
    claim(tmp_path / "a", "run", "a")
    with hold(tmp_path / "a"):
        os.utime(tmp_path / "a" / LOCK, (1, 1))
        deadline = time.monotonic() + 20
        while (tmp_path / "a" / LOCK).stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_what_another_command_did_meanwhile_is_seen(tmp_path):
    """Between the first look at a directory and the beginning, in which models are loaded."""
    options = Options(output_dir=str(tmp_path / "sft"))
    with Stage("sft", options) as late:
        with Stage("sft", options) as early:
            early.begin()
            early.finish()
        with pytest.raises(UsageError, match="was changed by another command meanwhile"):
            late.begin()
    assert (tmp_path / "sft" / "DONE").exists()
