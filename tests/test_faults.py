"""Some rows of the table of faults, in the processes and with the commands of ``benchmarks/faults.py``."""

import subprocess
import sys
from pathlib import Path

import pytest

import fault_rows
from preferl.cli import main

# The rest is run by the benchmark: disks that must be mounted, commands that take long.
CHOSEN = {
    "disks": ("full: model of sft", "full: checkpoint of rl", "vanished in the middle: evaluate"),
    "damaged": ("manifest.json: cut", "weights: cut", "tokenizer.json: cut", "metrics.jsonl: last line cut"),
    "data": ("not UTF-8", "a name of control characters", "a column of control characters"),
    "numbers": (
        "a reward of NaN",
        "a gold of infinity",
        "an annotator of",
        "weights that overflow",
        "diverges",
    ),
    "hostile": ("code of its own", "a pickle", "template: ", "a stage that leads outside"),
    "databases": ("no database", "a damaged database"),
}


@pytest.fixture(scope="module")
def table() -> str:
    """What the benchmark prints of the chosen rows."""
    command = [sys.executable, str(Path(fault_rows.__file__).with_name("faults.py"))]
    for group, names in CHOSEN.items():
        command += ["--group", group]
        command += [f"--only={name}" for name in names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    return done.stdout + done.stderr


def test_chosen_faults_end_as_they_must(table):
    assert "WRONG" not in table, table
    assert ", 0 wrong" in table, table
    assert int(table.splitlines()[-1].split()[0]) >= 25


def test_the_table_is_large_and_its_rows_differ():
    rows = [fault for group in fault_rows.GROUPS.values() for fault in group]
    assert len(rows) >= 60
    assert len({fault.name for fault in rows}) == len(rows)
    assert all(fault.says or fault.code == 4 for fault in rows)


def test_errors_do_nothing_to_a_terminal(capsys):
    assert main(["\x1b]0;owned\x07\r\u202ename"]) == 2
    assert capsys.readouterr().err.startswith(
        "preferl: error: unknown command '\\x1b]0;owned\\x07\\r\\u202ename'"
    )
