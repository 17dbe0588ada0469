"""Disks that are full, read-only or gone; what is written is written whole."""

import errno
import json
import os
import re
import subprocess

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file

from preferl.cli import main
from preferl.data.containers import read_rows
from preferl.data.files import LONGEST_LINE
from preferl.data.records import DataError
from preferl.models.load import load_policy, save
from preferl.runs import memory
from preferl.runs.disks import DiskError, check_still_there, watched, what_is_wrong
from preferl.runs.errors import UsageError
from preferl.runs.files import read_json, read_jsonl, read_yaml, whole_directory, write_atomically


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB of its own, where the system lets us make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("nobody here may mount a disk; the table of faults limits the size of files instead")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_file_on_a_full_disk_stays_what_it_was(small_disk):
    path = small_disk / "kept.json"
    write_atomically(path, '{"a": 1}')
    with pytest.raises(OSError, match="No space left") as error:
        write_atomically(path, "x" * 100_000)
    assert what_is_wrong(error.value) == f"the disk is full: {path}"
    assert read_json(path) == {"a": 1}
    assert [p.name for p in small_disk.iterdir()] == ["kept.json"]


def test_a_model_on_a_full_disk_is_not_there_at_all(small_disk, policy_directory):
    import torch

    model, tokenizer = load_policy(str(policy_directory), torch.device("cpu"))
    with (
        pytest.raises(DiskError, match="the disk is full; what was finished before is whole"),
        watched(small_disk),
    ):
        save(model, tokenizer, small_disk / "model")
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_is_read_only_is_said(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(DiskError, match="the disk is read-only"), watched(small_disk):
        write_atomically(small_disk / "a", "b")


def test_what_survives_is_named(tmp_path):
    (tmp_path / "state" / "step_20").mkdir(parents=True)
    (tmp_path / "state" / "step_9").mkdir()
    with pytest.raises(DiskError, match=r"keeps its checkpoint of step 20; make room"), watched(tmp_path):
        raise SafetensorError('I/O error: Os { code: 28, message: "No space left" } (os error 28)')
    with pytest.raises(OSError, match="other"), watched(tmp_path):
        raise OSError(errno.EPERM, "other")


def test_a_directory_that_is_gone_is_said(tmp_path):
    stage = tmp_path / "stage"
    with pytest.raises(DiskError, match="is gone, or some of it"), watched(stage):
        (stage / "metrics.jsonl").open("a")
    with pytest.raises(DiskError, match="is gone"):
        check_still_there(tmp_path, "manifest.json")


def test_a_whole_directory_leaves_what_is_not_its_own(tmp_path):
    place = tmp_path / "model"
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    (place / "config.json").write_text("old")

    def fail() -> None:
        with whole_directory(place) as directory:
            (directory / "config.json").write_text("half")
            raise RuntimeError("while it was written")

    with pytest.raises(RuntimeError, match="while it was written"):
        fail()
    assert (place / "config.json").read_text() == "old"
    with whole_directory(place) as directory:
        (directory / "config.json").write_text("new")
        assert (place / "config.json").read_text() == "old"
    assert {p.name: p.read_text() for p in place.iterdir()} == {"notes.txt": "mine", "config.json": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


# --------------------------------------------------------------------------------------------- damaged files


def test_damaged_files_of_a_run_are_named(tmp_path):
    path = tmp_path / "file"
    for content in (b"{", b"[1]", b"\xff", b"a: [1\nb: }"):
        path.write_bytes(content)
        for read in (read_json, read_yaml):
            with pytest.raises(UsageError, match=f"{path} is damaged"):
                read(path)
    path.write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(UsageError, match=f"{path}:2 is damaged"):
        read_jsonl(path)
    path.write_text('{"a": 1}\n{"a": 2')  # as a kill leaves it
    assert read_jsonl(path) == [{"a": 1}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.txt"])
def test_a_line_that_is_no_row_is_refused_before_it_is_read(tmp_path, name):
    path = tmp_path / name
    good = '{"prompt": "' + "a" * (LONGEST_LINE - 20) + '"}'
    path.write_text(f"{good}\n{good}")
    assert len(list(read_rows(str(path)))) == (2 if name.endswith("jsonl") else 1)
    with open(path, "a") as file:
        file.write("\n" + "b" * 50_000_000)
    with pytest.raises(DataError, match=rf"{name}:3: the line has more than 8 MiB"):
        list(read_rows(str(path)))


# ---------------------------------------------------------------------------------------------------- memory


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A control group whose count of kills the test sets."""
    group = tmp_path / "group"
    group.mkdir()
    monkeypatch.setattr(memory, "own_cgroup", lambda: group)

    def set_to(kills: int) -> None:
        (group / "memory.events").write_text(f"low 0\noom 9\noom_kill {kills}\n")

    set_to(3)
    return set_to


def test_the_start_after_a_kill_for_want_of_memory_says_so(tmp_path, counted):
    state = tmp_path / "state"
    assert memory.ended_by_kernel(state) is None
    memory.note_start(state)
    assert memory.ended_by_kernel(state) is None  # killed by somebody else
    counted(4)
    assert "out-of-memory killer; lower micro_batch_size" in (memory.ended_by_kernel(state) or "")
    memory.forget_start(state)  # it ended by itself
    assert memory.ended_by_kernel(state) is None
    (state / memory.STARTED).write_text("{")
    assert memory.ended_by_kernel(state) is None


def test_another_start_of_the_machine_counts_anew(tmp_path, counted):
    memory.note_start(tmp_path)
    noted = json.loads((tmp_path / memory.STARTED).read_text())
    (tmp_path / memory.STARTED).write_text(json.dumps(noted | {"boot": "another"}))
    counted(9)
    assert memory.ended_by_kernel(tmp_path) is None


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A small sft in an empty folder."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"a{i}?", "completion": "b" * (i % 9 + 1)} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ["--vocab_size", "300", "--hidden_size", "16", "--num_heads", "2", "--max_length", "32"]
    return ["sft", "--dataset_name", "rows.jsonl", "--output_dir", "out", "--check_samples", "0", *sizes]


def test_a_stage_that_was_killed_for_want_of_memory_says_so(tmp_path, monkeypatch, capsys, counted, command):
    """The whole way, with a real kill: the kernel's own count is all that is ours."""
    process = os.fork()
    if process == 0:
        from preferl.stages import sft

        monkeypatch.setattr(sft, "train", lambda *rest: os.kill(os.getpid(), 9))
        main(command)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -9
    assert (tmp_path / "out" / "state" / memory.STARTED).exists()
    counted(4)
    assert main(command) == 0
    assert "ended by the kernel's out-of-memory killer" in capsys.readouterr().out
    assert not (tmp_path / "out" / "state").exists()


def test_the_last_good_weights_stay_where_a_loss_diverges(tmp_path, capsys, command):
    options = [
        "--learning_rate",
        "1e30",
        "--save_every",
        "1",
        "--train_batch_size",
        "4",
        "--warmup_ratio",
        "0.5",
    ]
    assert main([*command, *options]) == 4
    said = capsys.readouterr()
    assert "stopped before the update" in said.err
    (kept,) = re.findall(r"out keeps its checkpoint of step (\d+)", said.out)
    tensors = load_file(tmp_path / "out" / "state" / f"step_{kept}" / "tensors.safetensors")
    assert all(
        bool(tensor.isfinite().all()) for name, tensor in tensors.items() if name.startswith("weights/")
    )
    assert not (tmp_path / "out" / "model").exists()
    assert not (tmp_path / "out" / "DONE").exists()


def test_what_this_machine_can_never_hold_is_refused(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 1048576 kB\nSwapTotal: 1048576 kB\nMemFree: 9 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "own_cgroup", lambda: tmp_path)
    assert memory.machine_memory() == 2**31
    (tmp_path / "memory.max").write_text("1073741824\n")
    assert memory.machine_memory() == 2**30
    memory.refuse_too_large(2**30, "it")
    with pytest.raises(
        UsageError, match=r"it needs 2.0 GiB for its weights alone, and this machine has 1.0 GiB"
    ):
        memory.refuse_too_large(2**31, "it")
