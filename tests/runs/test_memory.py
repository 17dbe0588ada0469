"""How much memory a process may use: the machine's, or what the control groups that it lies in leave it."""

import ctypes
import math
import subprocess
import sys

import pytest

from preferl.runs import memory

GIB = 2**30


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A hierarchy of control groups, the inner one this process's."""
    inner = tmp_path / "slice" / "job"
    inner.mkdir(parents=True)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "own_cgroup", lambda: inner)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    return inner


def test_the_least_limit_of_all_groups_counts(groups):
    assert memory.machine_memory() == 16 * GIB
    (groups / "memory.max").write_text("max\n")
    (groups.parent / "memory.max").write_text(f"{4 * GIB}\n")
    assert memory.machine_memory() == 4 * GIB
    (groups / "memory.max").write_text(f"{3 * GIB}\n")
    assert memory.machine_memory() == 3 * GIB


def test_the_limit_of_the_first_version_of_control_groups_counts_too(groups):
    (groups.parents[1] / "memory").mkdir()
    (groups.parents[1] / "memory" / "memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    assert memory.machine_memory() == 2 * GIB


def test_what_is_free_is_what_the_machine_and_the_group_have_left(groups):
    assert memory.free_memory() == 8 * GIB
    (groups / "memory.max").write_text(f"{3 * GIB}\n")
    (groups / "memory.current").write_text(f"{GIB}\n")
    assert memory.free_memory() == 2 * GIB


def test_a_system_that_says_nothing_has_no_limit(groups, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "nothing")
    assert memory.machine_memory() == math.inf
    assert memory.free_memory() == math.inf
    memory.give_back()  # wherever it runs


GAPS = """
import sys
import torch
from preferl.runs import memory

if sys.argv[1] == "mapped":
    memory.map_large_tensors()
for _ in range(3):
    torch.ones(6 << 20)  # what is freed raises the bound above which memory is mapped
kept, freed = [], []
for _ in range(100):
    freed.append(torch.ones(1 << 19))
    kept.append(torch.ones(1 << 14))
del freed
with open("/proc/self/statm", encoding="ascii") as file:
    print(int(file.read().split()[1]) * 4096)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_what_is_freed_between_what_is_kept_goes_back_to_the_system():
    """200 MiB in pieces of two, a little that stays after each of them."""

    def left(how):
        done = subprocess.run(
            [sys.executable, "-c", GAPS, how], capture_output=True, text=True, check=True, timeout=120
        )
        return int(done.stdout) / 2**20

    assert left("mapped") < left("as it is") - 100
