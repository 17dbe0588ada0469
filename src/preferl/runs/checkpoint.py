"""What a stage keeps in ``state/`` so that it can go on: tensors as safetensors, the rest as JSON, never a
pickle.

Two kinds. A training loop writes ``step_N/``, all of its state after step N (``Checkpoints``). A stage that
samples or scores keeps ``part_NAME/``, each piece of work that is ready (``Parts``). Either appears whole or
not at all, with a ``contents.json`` that says whose it is and has the SHA-256 of every file: what is partial,
changed, foreign or under another name is said and passed over. Numbers survive JSON exactly (Python writes
the shortest text that reads back as the same float).
"""

import json
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from preferl.runs import distributed, signals
from preferl.runs.files import sha256_of
from preferl.runs.mark import PROGRAM, remove
from preferl.runs.progress import say

TENSORS, VALUES, CONTENTS = "tensors.safetensors", "values.json", "contents.json"
FORMAT = 1  # of the three together
TORCH, RANDOM = "random/torch", "random"  # states of generators beside what a part holds
KEPT = 2  # checkpoints: the one before the last is there if the last turns out to be damaged
A_RUN = 10  # checkpoints of a run, unless the person says otherwise
LARGEST_SHARE = 0.1  # of a run's time may go into writing them


@dataclass(frozen=True)
class Checkpoint:
    """The state after ``step`` steps, as ``save`` was given it."""

    step: int
    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]


def latest(directory: Path, owner: str = "", before: float = math.inf) -> Checkpoint | None:
    """The last whole checkpoint of a run, or None. What cannot be gone on from is named and passed over.

    Args:
        directory: ``state/`` of the stage.
        owner: what its checkpoints belong to, as they were written with.
        before: only of earlier steps than this.
    """
    for name in _strays(directory):
        say(f"{directory / name} is passed over: it has no name of a checkpoint or of a part")
    for step in reversed(_steps(directory)):
        if step >= before:
            continue
        found = _read_whole(directory / f"step_{step}", owner)
        if found is not None:
            return Checkpoint(step, *found)
    return None


def parts_ready(directory: Path) -> int:
    """How many pieces of work ``Parts`` has kept."""
    return sum(1 for _ in directory.glob("part_*"))


def has_work(directory: Path) -> bool:
    """Whether ``state/`` keeps anything to go on from."""
    return bool(_steps(directory)) or parts_ready(directory) > 0


class Checkpoints:
    """When a training loop saves, and what is kept of it.

    Args:
        directory: ``state/`` of the stage.
        steps: of the whole run.
        every: steps between checkpoints; None for about ten a run, fewer only where writing them would take
            over a tenth of its time; 0 for none.
        owner: what they belong to (``Stage.owner``); another owner's are never gone on from.
    """

    def __init__(self, directory: Path, steps: int, every: int | None, owner: str = ""):
        self.directory, self.steps, self.owner = directory, steps, owner
        self.chosen = every is not None
        self.every = max(1, steps // A_RUN) if every is None else every
        self.started, self.writing, self.last = time.monotonic(), 0.0, 0.0

    def due(self, step: int) -> bool:
        """Whether to save after this step; the first process decides for all. A signal that asks to stop
        makes it due."""
        if signals.asked():
            return bool(self.every)
        if not self.every or step % self.every or step >= self.steps:
            return False
        affordable = self.writing + self.last <= LARGEST_SHARE * (time.monotonic() - self.started)
        return distributed.from_main(self.chosen or not self.writing or affordable)

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Writes ``step_N`` and then removes all but this one and the one before it."""
        began = time.monotonic()
        self._write(step, tensors, values)
        self.last = time.monotonic() - began
        self.writing += self.last
        if signals.pending():
            say(f"saved after step {step} of {self.steps} in {self.directory}")

    @distributed.main_writes
    def _write(self, step: int, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        _write(self.directory / f"step_{step}", tensors, values, self.owner)
        there = _steps(self.directory)
        kept = [other for other in there if other <= step][-KEPT:]  # a later one was found damaged
        for other in set(there) - set(kept):
            remove(self.directory / f"step_{other}")


class Parts:
    """Pieces of work that are computed once: an interrupted stage reads those that are ready.

    Args:
        directory: ``state/`` of the stage.
        owner: what they belong to (``Stage.owner``); another owner's are made again.
    """

    def __init__(self, directory: Path, owner: str = ""):
        self.directory, self.owner = directory, owner

    def get(
        self, name: str, compute: Callable[[], tuple[dict[str, torch.Tensor], dict[str, Any]]]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and plain values of the part ``name``, as ``compute`` gave them now or before."""
        path = self.directory / f"part_{name}"
        found = _read_whole(path, self.owner)
        if found is None:
            with signals.patient():  # a signal that asks to stop waits until the part is kept
                tensors, values = compute()
                state = random_state()
                _write(path, tensors | {TORCH: torch.get_rng_state()}, values | {RANDOM: state}, self.owner)
            found = _read(path, self.owner)
        tensors, values = found
        # What a function of a person's own draws next is what it would have drawn.
        torch.set_rng_state(tensors.pop(TORCH))
        restore_random_state(values.pop(RANDOM))
        return tensors, values


def _steps(directory: Path) -> list[int]:
    """The steps of the checkpoints that are there, in order."""
    names = [path.name.removeprefix("step_") for path in directory.glob("step_*")]
    return sorted(int(name) for name in names if name.isdigit())


def _strays(directory: Path) -> list[str]:
    """What lies in ``state/`` and was not put there by this file. A kill leaves names that begin with a
    dot."""
    if not directory.is_dir():
        return []
    ours = {f"step_{step}" for step in _steps(directory)}
    names = sorted(path.name for path in directory.iterdir())
    return [name for name in names if name not in ours and not name.startswith((".", "part_"))]


def _read_whole(path: Path, owner: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """What is there, or None where there is nothing. What a power cut, a full disk or a person has changed is
    said, and made again."""
    if not path.exists():
        return None
    try:
        return _read(path, owner)
    except (FileNotFoundError, NotADirectoryError, ValueError, SafetensorError) as error:
        say(f"{path} is passed over, and made again: {error}")
        return None


def _read(path: Path, owner: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and values.

    Raises:
        ValueError: they are not those that were written here for this owner; says why.
        FileNotFoundError: a file is missing.
    """
    contents = json.loads((path / CONTENTS).read_text(encoding="utf-8"))
    if not isinstance(contents, dict) or contents.get("program") != PROGRAM:
        raise ValueError(f"{PROGRAM} did not write it")
    if contents.get("format") != FORMAT:
        raise ValueError(f"its format is {contents.get('format')!r}; this {PROGRAM} reads {FORMAT}")
    if contents.get("name") != path.name:
        raise ValueError(f"it was written under another name, {contents.get('name')}")
    if contents.get("owner") != owner:
        raise ValueError("it is of another run: other options, or made from something else")
    for name in (TENSORS, VALUES):
        if contents.get(f"sha256 of {name}") != sha256_of(path / name):
            raise ValueError(f"{name} is not what was written: its SHA-256 has changed")
    return load_file(path / TENSORS), json.loads((path / VALUES).read_text(encoding="utf-8"))


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors on the CPU of which no two share memory, which safetensors refuses: copies of tied weights and
    of views alone, since a copy of all would double what a run takes."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        storage = here.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != here.nbytes:
            here = here.clone()
        seen.add(storage.data_ptr())
        found[name] = here
    return found


def _write(target: Path, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any], owner: str) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    remove(temporary)
    temporary.mkdir(parents=True)
    save_file(_apart(tensors), temporary / TENSORS)
    (temporary / VALUES).write_text(json.dumps(values) + "\n", encoding="utf-8")
    contents: dict[str, Any] = {"program": PROGRAM, "format": FORMAT, "name": target.name, "owner": owner}
    contents |= {f"sha256 of {name}": sha256_of(temporary / name) for name in (TENSORS, VALUES)}
    (temporary / CONTENTS).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    for name in (TENSORS, VALUES, CONTENTS):
        with open(temporary / name, "rb") as file:
            os.fsync(file.fileno())
    remove(target)
    os.replace(temporary, target)


# ------------------------------------------------------------------------------- generators of random numbers


def random_state() -> list[Any]:
    """The states of Python's and of numpy's own generator, as JSON can hold them."""
    of_numpy: Any = np.random.get_state(legacy=True)
    kind, keys, *rest = of_numpy
    return [random.getstate(), [kind, keys.tolist(), *rest]]


def restore_random_state(state: list[Any]) -> None:
    """Puts ``random_state`` back."""
    (version, numbers, gauss), of_numpy = state
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(of_numpy))


# ---------------------------------------------------------------------- models and optimisers by their names


def named_state(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Weights as ``weights/<name>`` and the optimiser's moments as ``moments/<name>/<moment>``.

    Args:
        parameters: name -> parameter, of all that the optimiser trains.
        optimizer: of these parameters.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weights/{name}"] = parameter
        for moment, value in optimizer.state.get(parameter, {}).items():
            # bitsandbytes counts steps in Python's integers.
            tensors[f"moments/{name}/{moment}"] = torch.tensor(value) if isinstance(value, int) else value
    return tensors


@torch.no_grad()
def restore_named_state(
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Puts ``named_state`` back; the learning rate is the scheduler's.

    Raises:
        KeyError: a parameter is not in the checkpoint.
    """
    numbers = {id(p): i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    moments: dict[int, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        parameter.copy_(tensors[f"weights/{name}"])
        start = f"moments/{name}/"
        own = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        if own:
            moments[numbers[id(parameter)]] = {
                key: int(value) if value.dtype == torch.int64 and value.dim() == 0 else value
                for key, value in own.items()
            }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def restore_schedule(
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler, state: dict[str, Any]
) -> None:
    """Gives a scheduler its state and its optimiser the learning rate that follows from it."""
    scheduler.load_state_dict(state)
    for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate


def below(start: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with ``start``, without it."""
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
