"""Checkpoints inside a stage: ``state/step_N/``, tensors as safetensors and the rest as JSON, never a pickle.

A checkpoint appears whole or not at all, and the one before it goes only when it is there. Numbers survive
JSON exactly (Python writes the shortest text that reads back as the same float).
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from preferl.runs import distributed

TENSORS, VALUES = "tensors.safetensors", "values.json"


@dataclass(frozen=True)
class Checkpoint:
    """The state after ``step`` steps, as ``save`` was given it."""

    step: int
    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]


@distributed.main_writes
def save(directory: Path, step: int, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    """Writes ``directory/step_N`` and then removes older checkpoints."""
    target, temporary = directory / f"step_{step}", directory / f".step_{step}.tmp"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    # Tied weights share memory, which safetensors refuses.
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, temporary / TENSORS)
    (temporary / VALUES).write_text(json.dumps(values) + "\n", encoding="utf-8")
    for name in (TENSORS, VALUES):
        with open(temporary / name, "rb") as file:
            os.fsync(file.fileno())
    if target.exists():
        shutil.rmtree(target)
    os.replace(temporary, target)
    for path in directory.iterdir():
        if path != target:
            shutil.rmtree(path)


def latest(directory: Path) -> Checkpoint | None:
    """The last whole checkpoint, or None."""
    found = [int(path.name.removeprefix("step_")) for path in directory.glob("step_*")]
    if not found:
        return None
    path = directory / f"step_{max(found)}"
    values = json.loads((path / VALUES).read_text(encoding="utf-8"))
    return Checkpoint(max(found), load_file(path / TENSORS), values)


@distributed.main_writes
def clear(directory: Path) -> None:
    """Removes all checkpoints, of a stage that is finished."""
    if directory.is_dir():
        shutil.rmtree(directory)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The moments of every parameter, as ``<index>/<name>``."""
    return {
        f"{index}/{name}": tensor
        for index, moments in optimizer.state_dict()["state"].items()
        for name, tensor in moments.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Gives an optimiser the moments of ``optimizer_tensors``; its learning rate is the scheduler's."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
