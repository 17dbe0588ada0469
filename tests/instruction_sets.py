"""Runs the numeric part of the suite under several instruction sets: `make instruction-sets`.

A processor with AVX-512, one with AVX2 and one with neither add in other orders, and what is trained drifts
apart. torch, oneDNN and MKL read from the environment which of their kernels to take, so one machine can
stand for three. Prints for each set what torch says it computes with, and how many tests passed and failed.

    python tests/instruction_sets.py                          every set, every file
    python tests/instruction_sets.py --sets avx2 --files tests/stages/test_optimum.py
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
SETS = {
    "native": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "sse": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}
# Where numbers are computed and models are trained. The rest reads and writes files, and serves pages.
FILES = [
    "tests/maths",
    "tests/models",
    "tests/sampling",
    "tests/learning",
    "tests/interop",
    "tests/stages/test_best_of.py",
    "tests/stages/test_dpo.py",
    "tests/stages/test_evaluate.py",
    "tests/stages/test_optimum.py",
    "tests/stages/test_reward.py",
    "tests/stages/test_rl.py",
    "tests/stages/test_rl_invariances.py",
    "tests/stages/test_rl_models.py",
    "tests/stages/test_rl_watch.py",
    "tests/stages/test_sft.py",
]


@dataclass(frozen=True)
class Found:
    """Tests by outcome, and the name and message of those that failed."""

    capability: str
    outcomes: Counter[str]
    failures: list[str]
    seconds: float


def capability(environment: dict[str, str]) -> str:
    """What torch computes with in this environment, in its own words."""
    command = [sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def run(name: str, files: list[str]) -> Found:
    """Runs the tests in a process of their own, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | SETS[name]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        report = Path(place, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}"]
        done = subprocess.run(
            [*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        # 1: some test failed. Anything else: they did not run.
        if done.returncode not in (0, 1):
            raise SystemExit(f"{name}: pytest ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    outcomes, failures = Counter(map(outcome, cases)), []
    for case in cases:
        if outcome(case) == "failed":
            message = case[0].get("message", "").splitlines()
            failures.append(f"{case.get('classname')}::{case.get('name')}: {message[0] if message else ''}")
    return Found(capability(environment), outcomes, failures, time.perf_counter() - started)


def outcome(case: ElementTree.Element) -> str:
    """Of one test of the report: an error of its set-up is a failure too."""
    tags = {child.tag for child in case}
    if tags & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in tags else "passed"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--files", nargs="+", default=FILES, help="by default the numeric part of the suite")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="sets at a time")
    options = parser.parse_args()
    failed = 0
    print(f"{'set':10}{'torch':10}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = pool.map(lambda name: run(name, options.files), options.sets)
        for name, found in zip(options.sets, runs, strict=True):
            counts = [found.outcomes[kind] for kind in ("passed", "failed", "skipped")]
            cells = "".join(f"{count:>{width}}" for count, width in zip(counts, (8, 8, 9), strict=True))
            print(f"{name:10}{found.capability:10}{cells}{found.seconds:>9.0f}", flush=True)
            for line in found.failures:
                print(f"    {line}")
            failed += counts[1]
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
