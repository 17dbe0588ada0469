"""Stages under torchrun, and whether they made what one process makes."""

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from equal_runs import timeless
from preferl import cli
from preferl.runs import distributed, progress
from preferl.runs.files import read_jsonl

STAGES = ("sft", "reward", "dpo", "rl")
# What bitsandbytes does when it is imported, as it is with transformers' trainer.
WARNINGS = "default,ignore:`torch.jit.script_method` is deprecated"


def torchrun(
    stage: str, processes: int, config: Any, *flags: str, program: Sequence[str] = ("-m", "preferl")
) -> subprocess.CompletedProcess:
    """``torchrun --nproc_per_node N -m preferl STAGE``, or another program that is given the same words."""
    Path("config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [sys.executable, *launcher, *program, stage, "--config", "config.yaml", *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": WARNINGS},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def forked(stage: str, processes: int, config: Any, *flags: str) -> subprocess.CompletedProcess:
    """The same by torchrun's own agent, whose processes are forked from one that has loaded preferl already:
    each is spared the seconds of CPU that loading takes. What the command itself says and does at its start
    and in failures is ``torchrun``'s to test."""
    Path("config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    multiprocessing.set_forkserver_preload(["preferl.cli", *(f"preferl.stages.{name}" for name in STAGES)])
    with tempfile.TemporaryDirectory() as logs, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        launch = elastic_launch(
            LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                run_id=uuid.uuid4().hex,
                max_restarts=0,
                start_method="forkserver",
                logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=Std.ALL),
            ),
            command,
        )
        code = 0
        try:
            launch(stage, "--config", "config.yaml", *flags)
        except ChildFailedError:
            code = 1
        texts = {
            kind: "".join(path.read_text() for path in sorted(Path(logs).rglob(f"{kind}.log")))
            for kind in ("stdout", "stderr")
        }
    return subprocess.CompletedProcess([stage], code, texts["stdout"], texts["stderr"])


def command(*arguments: str) -> None:
    """What each of the forked processes does."""
    warnings.resetwarnings()
    warnings.filterwarnings("ignore", "`torch.jit.script_method` is deprecated")
    progress.console.quiet = not distributed.is_main()  # as where it is loaded by each of them
    sys.path.insert(0, "")  # as under python -m
    code = cli.main(list(arguments))
    if code:
        sys.exit(code)


def assert_same(one: Path, several: Path, limit: float = 1e-5) -> None:
    """The same samples, weights to ``limit``, numbers to ten times that."""
    alike(metrics_of(one), metrics_of(several), 10 * limit)
    alike(samples_of(one), samples_of(several), 10 * limit)
    alike(summary_of(one), summary_of(several), 10 * limit)
    for name in ("model", "value_model", "adapter"):
        assert (one / name).exists() == (several / name).exists()
        for file in sorted(path.name for path in (one / name).glob("*.safetensors")):
            a, b = (load_file(path / name / file) for path in (one, several))
            assert max(float((a[key] - b[key]).abs().max()) for key in a) < limit


def alike(expected: Any, found: Any, limit: float) -> None:
    """Asserts that two trees are equal, numbers that are no counts to ``limit``."""
    if isinstance(expected, dict):
        assert expected.keys() == found.keys()
        for key, inside in expected.items():
            alike(inside, found[key], limit)
    elif isinstance(expected, list):
        assert len(expected) == len(found)
        for first, second in zip(expected, found, strict=True):
            alike(first, second, limit)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=limit, rel=limit)
    else:
        assert found == expected


def metrics_of(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics without the clocks."""
    return timeless(read_jsonl(path / "metrics.jsonl"))


def samples_of(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path / "samples.jsonl")


def summary_of(path: Path) -> dict[str, Any]:
    """The summary without the clocks, and without what says how many processes there were."""
    summary = timeless(json.loads((path / "summary.json").read_text()))
    return {key: value for key, value in summary.items() if key != "processes"}
