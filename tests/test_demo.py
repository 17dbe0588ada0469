"""The demo as a person runs it, with less SFT and RL and fewer rows to measure on, so that it takes minutes.

One run takes too long for several seeds: the bounds lie far outside the spread over seeds, which
benchmarks/seeds.py prints for the whole demo.
"""

import subprocess
import sys

import pytest

from preferl.runs.record import StageRecord

SHORTER = [
    "--sft.num_train_epochs=2",
    "--rl.num_iterations=12",
    '--collect.pairs={"train": 2500, "dev": 300, "rl": 100, "eval": 1000}',
    "--evaluate.max_eval_prompts=150",
    "--evaluate.best_of_prompts=16",
]


@pytest.mark.slow
def test_the_demo_reaches_what_it_promises(tmp_path):
    # Other tests run beside it, and threads that share a core wait for each other.
    options = ["--output_dir", str(tmp_path / "demo"), "--num_threads", "1", *SHORTER]
    command = [sys.executable, "-m", "preferl", "demo", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert done.stdout.strip().splitlines()[-1].endswith("report.html")
    sft, reward, rl, evaluate = (
        StageRecord(tmp_path / "demo" / name).summary for name in ("sft", "reward", "rl", "evaluate")
    )
    assert sft["dev/well_formed_rate"] > 0.85
    assert reward["eval/pairs"] >= 900
    assert reward["eval/fraction_of_bayes"] > 0.88
    assert rl["iterations"] == 12
    gold = evaluate["comparison"]["gold"]
    assert gold["difference_low"] > 0
    assert gold["win_rate"] > 0.6
    assert evaluate["policies"]["policy"]["eos_rate"] > 0.95
    assert 0 < evaluate["policies"]["policy"]["kl"] < 15
    assert max(s["peak_memory_mib"] for s in (sft, reward, rl, evaluate)) < 2048
