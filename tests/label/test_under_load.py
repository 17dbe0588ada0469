"""benchmarks/label_load.py and label_crash.py, short: several people at once, and a server that is killed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script, *arguments):
    command = [sys.executable, BENCHMARKS / script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_item_gets_exactly_its_judgements(url):
    said = run("label_load.py", "--people", "6", "--items", "25", "--think", "0", "--db", url)
    assert "25 of 25" in said
    assert re.search(r"judgements +75 ", said)
    assert re.search(r"judged twice by one +0", said)
    assert re.search(r"answers 5xx +0", said)


@pytest.mark.slow
def test_no_acknowledged_judgement_is_lost_when_the_server_is_killed():
    said = run("label_crash.py", "--kills", "4", "--writers", "6")
    assert int(re.search(r"acknowledged judgements (\d+)", said)[1]) > 6
    assert re.search(r"lost +0\n", said)
    assert re.search(r"doubled +0\n", said)
    assert "intact" in said
