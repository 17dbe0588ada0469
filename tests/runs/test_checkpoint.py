"""Checkpoints and parts: what is partial, changed, foreign or stray is named, and the one before is taken."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from preferl.runs.checkpoint import CONTENTS, TENSORS, VALUES, Checkpoints, Parts, _apart, latest

OWNER = "this run"


@pytest.fixture
def state(tmp_path) -> Path:
    """Two checkpoints of one run."""
    checkpoints = Checkpoints(tmp_path / "state", 10, 2, OWNER)
    for step in (4, 6):
        checkpoints.save(step, {"weights": torch.full((50,), float(step))}, {"step": step})
    return tmp_path / "state"


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)


def change(path: Path, key: str, value: object) -> None:
    file = path / CONTENTS
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))


DAMAGES = {
    "a bit of the tensors": (lambda path: flip_a_bit(path / TENSORS), "tensors.safetensors is not what was"),
    "a bit of the values": (lambda path: flip_a_bit(path / VALUES), "values.json is not what was written"),
    "half of the tensors": (
        lambda path: (path / TENSORS).write_bytes((path / TENSORS).read_bytes()[:100]),
        "tensors.safetensors is not what was written",
    ),
    "no tensors": (lambda path: (path / TENSORS).unlink(), "No such file"),
    "no contents": (lambda path: (path / CONTENTS).unlink(), "No such file"),
    "half of the contents": (lambda path: (path / CONTENTS).write_text('{"program": "pre'), "Unterminated"),
    "an empty folder": (lambda path: [file.unlink() for file in path.iterdir()], "No such file"),
    "another program's": (lambda path: change(path, "program", "other"), "preferl did not write it"),
    "no mapping": (lambda path: (path / CONTENTS).write_text("[]"), "preferl did not write it"),
    "a later format": (lambda path: change(path, "format", 9), "its format is 9; this preferl reads 1"),
    "another run's": (lambda path: change(path, "owner", "another run"), "it is of another run"),
    "copied": (
        lambda path: (shutil.rmtree(path), shutil.copytree(path.with_name("step_4"), path)),
        "it was written under another name, step_4",
    ),
}


@pytest.mark.parametrize("kind", list(DAMAGES))
def test_what_cannot_be_gone_on_from_is_named_and_the_one_before_is_taken(state, kind, capsys):
    damage, reason = DAMAGES[kind]
    damage(state / "step_6")
    found = latest(state, OWNER)
    assert found is not None
    assert found.step == found.values["step"] == 4
    assert torch.equal(found.tensors["weights"], torch.full((50,), 4.0))
    said = capsys.readouterr().out
    assert said.startswith(f"{state / 'step_6'} is passed over, and made again: ")
    assert reason in said
    assert said.count("\n") == 1
    # The next one replaces what was damaged, and what was sound stays beside it.
    Checkpoints(state, 10, 2, OWNER).save(6, {}, {"step": 6})
    assert latest(state, OWNER).values == {"step": 6}
    assert sorted(path.name for path in state.iterdir()) == ["step_4", "step_6"]


def test_a_whole_folder_of_another_run_is_not_gone_on_from(state, capsys):
    assert latest(state, "another run") is None
    assert capsys.readouterr().out.count("it is of another run") == 2


def test_what_has_no_name_of_ours_is_named_and_left(state, capsys):
    for name in ("step_6b", "notes.txt", "step_"):
        (state / name).mkdir()
    (state / ".step_8.tmp").mkdir()  # a kill leaves such
    assert latest(state, OWNER).step == 6
    said = capsys.readouterr().out
    assert [line.split("/")[-1].split(" ")[0] for line in said.splitlines()] == [
        "notes.txt",
        "step_",
        "step_6b",
    ]
    assert (state / "notes.txt").exists()


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind != "copied"])
def test_a_part_that_is_not_what_was_kept_is_made_again(tmp_path, kind, capsys):
    calls = []

    def compute():
        calls.append(1)
        return {"x": torch.arange(50)}, {"texts": ["a"]}

    parts = Parts(tmp_path, OWNER)
    for _ in range(2):
        parts.get("train-0", compute)
    assert calls == [1]
    damage, reason = DAMAGES[kind]
    damage(tmp_path / "part_train-0")
    tensors, values = parts.get("train-0", compute)
    assert calls == [1, 1]
    assert torch.equal(tensors["x"], torch.arange(50))
    assert values == {"texts": ["a"]}
    assert "part_train-0 is passed over, and made again: " in (said := capsys.readouterr().out)
    assert reason in said
    parts.get("train-0", compute)
    assert calls == [1, 1]


def test_a_function_that_draws_goes_on_where_it_was(tmp_path):
    """A reward of a person's own may draw from the generators that every program has."""

    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))]

    def compute():
        return {}, {"drawn": draw()}

    def both(parts):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        return [parts.get(name, compute)[1]["drawn"] for name in ("a", "b")]

    whole = both(Parts(tmp_path / "whole"))
    half = Parts(tmp_path / "half")
    assert both(half) == whole
    shutil.rmtree(tmp_path / "half" / "part_b")
    assert both(half) == whole


def test_only_what_shares_memory_is_copied_before_it_is_written():
    """Of a real model weights and moments are gigabytes: a copy of all would double what a run takes."""
    weight, wide = torch.arange(6.0), torch.arange(8.0)
    tensors = {"weight": weight, "tied": weight, "view": wide[:4], "state": torch.get_rng_state()}
    apart = _apart(tensors)
    assert all(torch.equal(apart[name], tensor) for name, tensor in tensors.items())
    places = [tensor.data_ptr() for tensor in apart.values()]
    assert len(set(places)) == len(places)
    assert apart["weight"].data_ptr() == weight.data_ptr()
    assert apart["state"].data_ptr() == tensors["state"].data_ptr()
