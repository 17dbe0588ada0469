"""The benchmark of kills, shortened: every command that is killed ends with the bytes of one that is not."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "kill.py"
COMMANDS = ("sft", "dpo", "rl", "collect", "evaluate", "reward, 2 members", "audit, judge", "run")


def test_commands_that_are_killed_go_on_to_the_same_bytes():
    """Each once, at a drawn instant; the whole table takes up to two hours."""
    arguments = [*COMMANDS, "--kills", "1", "--fresh", "0"]
    ended = subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [line.split("|")[1:-1] for line in ended.stdout.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == list(COMMANDS)
    for _, kills, went_on, from_start, was_done, differences, *_ in rows:
        assert int(kills) >= 1
        assert int(kills) == int(went_on) + int(from_start) + int(was_done)
        assert int(differences) == 0
    assert any(int(row[2]) for row in rows)  # went on from a checkpoint or a part
