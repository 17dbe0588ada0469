"""The loop that trains sft, reward and dpo, on a model small enough to follow by hand."""

import dataclasses
import itertools
import json
import math
import random
import signal
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preferl.data.tokens import Extent
from preferl.learning import fit as loop
from preferl.learning.fit import EXTENDABLE, Objective, fit, plan_batches
from preferl.options.learning import FitOptions
from preferl.options.shared import StageOptions
from preferl.runs import checkpoint, signals
from preferl.runs.errors import DivergedError, Interrupted, UsageError
from preferl.runs.found import examine
from preferl.runs.inputs import identify
from preferl.runs.stage import Stage


@dataclass(kw_only=True)
class Options(FitOptions, StageOptions):
    output_dir: str = ""


class Line(torch.nn.Module):
    """w * x + b, without b where it is frozen."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([1.0, -0.5]))
        self.b = torch.nn.Parameter(torch.zeros(1))
        self.frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x_N2):
        return x_N2 @ self.w + self.b


def data(seed=0, n=24):
    generator = torch.Generator().manual_seed(seed)
    x_N2 = torch.randn(n, 2, generator=generator)
    return x_N2, x_N2 @ torch.tensor([2.0, 1.0]) + 0.3 + 0.1 * torch.randn(n, generator=generator)


X, Y = data()
DEV_X, DEV_Y = data(1)
WEIGHT = torch.arange(1, 25).float()  # what a row counts, as the tokens of a text


def objective(model, weighted=False, measured=True):
    """Squared error; ``weighted`` rows count as different numbers of tokens do."""

    def weights(rows):
        return WEIGHT[list(rows)] if weighted else torch.ones(len(rows))

    def step(rows):
        error = model(X[list(rows)]) - Y[list(rows)]
        close = int((error.abs() < 1).sum())
        return (weights(rows) * error**2).sum(), {"train/close": (close, len(rows))}

    def measure():
        return {"dev/loss": float(((model(DEV_X) - DEV_Y) ** 2).mean().detach())} if measured else {}

    return Objective(model, step, lambda rows: float(weights(rows).sum()), measure)


def options(tmp_path, **changes) -> Options:
    usual = {"train_batch_size": 8, "learning_rate": 0.05, "num_train_epochs": 4.0, "num_evals": 4}
    return Options(output_dir=str(tmp_path), seed=0, num_threads=1, device="cpu", **usual | changes)


def train(path, config=None, saved=None, model=None, weighted=False, measured=True, **how):
    """A whole run in a directory; returns the model, what fit says of it, and the rows that were logged."""
    config, model = config or options(path), model or Line()
    batches = plan_batches([1] * len(X), config, random.Random(0))
    with Stage("sft", config, extendable=EXTENDABLE) as stage:
        saved = stage.begin({}) if saved is None else saved
        fitted = fit(objective(model, weighted, measured), batches, config, stage, saved, **how)
    return model, fitted, rows_of(path)


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def flat(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# -------------------------------------------------------------------------------------------------- epochs


@pytest.mark.parametrize(
    ("rows", "epochs", "batch", "updates"),
    [(10, 20, 16, 20), (50, 1, 32, 2), (64, 1, 32, 2), (65, 1, 32, 3), (1, 3, 8, 3)],
)
def test_epochs_are_passes(rows, epochs, batch, updates):
    config = FitOptions(num_train_epochs=epochs, train_batch_size=batch)
    batches = plan_batches(list(range(rows)), config, random.Random(0))
    assert len(batches) == updates
    assert Counter(i for part in batches for i in part) == dict.fromkeys(range(rows), epochs)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=80),
    st.integers(1, 4),
    st.floats(0, 0.99),
    st.integers(1, 20),
)
def test_every_pass_reads_every_row_once(lengths, epochs, part, batch):
    config = FitOptions(num_train_epochs=epochs + part, train_batch_size=batch)
    batches = plan_batches(lengths, config, random.Random(1))
    each = math.ceil(len(lengths) / batch)
    assert len(batches) == max(1, round((epochs + part) * each))
    for epoch in range(epochs):
        rows = [i for one in batches[epoch * each : (epoch + 1) * each] for i in one]
        assert sorted(rows) == list(range(len(lengths)))
    rest = [i for one in batches[epochs * each :] for i in one]
    assert len(rest) == len(set(rest))


def test_max_steps_ends_the_run_and_the_schedule(tmp_path):
    _, fitted, rows = train(tmp_path, options(tmp_path, max_steps=5, num_train_epochs=100.0, num_evals=2))
    assert fitted.step == len(rows) == 5
    assert rows[-1]["learning_rate"] == pytest.approx(0.1 * 0.05)  # lr_end_factor
    assert [row["step"] for row in rows if "dev/loss" in row] == [2, 5]


@pytest.mark.parametrize(("steps", "evals"), [(12, 4), (13, 4), (3, 10), (1, 3), (52, 3)])
def test_held_out_rows_are_measured_as_often_as_asked_and_at_the_end(tmp_path, steps, evals):
    _, _, rows = train(tmp_path, options(tmp_path, max_steps=steps, num_evals=evals))
    measured = [row["step"] for row in rows if "dev/loss" in row]
    assert len(measured) == min(steps, evals)
    assert measured[-1] == steps


# --------------------------------------------------------------------------------------------- the update


@pytest.mark.parametrize("weighted", [False, True])
def test_micro_batches_change_nothing_but_rounding(tmp_path, weighted):
    """Gradients, what is logged, and where it ends: the count of the whole batch divides every part."""
    model, _, rows = train(tmp_path / "whole", weighted=weighted)
    for size in (1, 3, 5):
        config = options(tmp_path / str(size), micro_batch_size=size)
        other, _, parts = train(tmp_path / str(size), config, weighted=weighted)
        torch.testing.assert_close(flat(other), flat(model), atol=1e-5, rtol=1e-5)
        for row, part in zip(rows, parts, strict=True):
            assert part == pytest.approx(row, rel=1e-4)


def test_an_update_is_one_step_of_adamw_on_the_mean_over_the_batch(tmp_path):
    """By hand: the gradient of sum(w e^2) / sum(w), clipped, then AdamW's first step."""
    config = options(tmp_path, max_steps=1, weight_decay=0.1, max_grad_norm=0.5, lr_scheduler_type="constant")
    config = dataclasses.replace(config, warmup_ratio=0.0)
    batch = plan_batches([1] * len(X), config, random.Random(0))[0]
    start = Line()
    model, _, rows = train(tmp_path, config, weighted=True)
    w, b = start.w.detach().clone().requires_grad_(), start.b.detach().clone().requires_grad_()
    error, weight = X[batch] @ w + b - Y[batch], WEIGHT[batch]
    loss = (weight * error**2).sum() / weight.sum()
    loss.backward()
    assert rows[0]["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert rows[0]["train/close"] == pytest.approx(float((error.abs() < 1).float().mean()))
    norm = torch.cat([w.grad, b.grad]).norm()
    assert rows[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    for parameter, now in ((w, model.w), (b, model.b)):
        clipped = parameter.grad * min(1, 0.5 / float(norm))
        expected = parameter * (1 - 0.05 * 0.1) - 0.05 * clipped / (clipped.abs() + 1e-8)
        torch.testing.assert_close(now.detach(), expected.detach(), atol=1e-5, rtol=1e-5)
    assert model.frozen.item() == 1


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    model = Line()
    broken = dataclasses.replace(objective(model), step=lambda rows: (model.w.sum() * math.inf, {}))
    config = options(tmp_path)
    with Stage("sft", config, extendable=EXTENDABLE) as stage:
        stage.begin({})
        with pytest.raises(DivergedError, match="sft update 1: the loss is inf; stopped before the update"):
            fit(broken, [[0, 1]], config, stage)
    assert torch.equal(flat(model), flat(Line()))


# -------------------------------------------------------------------------------------- what is kept of it


def test_the_best_weights_are_those_of_the_lowest_dev_loss(tmp_path):
    """So large a rate that it overshoots: the last weights are not the best ones."""
    wild = {"learning_rate": 1.5, "lr_scheduler_type": "constant", "num_evals": 12}
    model, fitted, rows = train(tmp_path / "best", options(tmp_path / "best", **wild), keep="best")
    losses = {row["step"]: row["dev/loss"] for row in rows if "dev/loss" in row}
    assert fitted.best_step == min(losses, key=losses.__getitem__) < 12
    assert objective(model).measure()["dev/loss"] == pytest.approx(min(losses.values()))
    last, fitted, rows = train(tmp_path / "last", options(tmp_path / "last", **wild))
    assert objective(last).measure()["dev/loss"] == pytest.approx(rows[-1]["dev/loss"])
    assert fitted.last == {"dev/loss": rows[-1]["dev/loss"]}


def test_training_stops_when_nothing_gets_better(tmp_path):
    wild = {"learning_rate": 1.5, "lr_scheduler_type": "constant", "num_evals": 40, "max_steps": 40}
    _, fitted, rows = train(tmp_path, options(tmp_path, **wild), keep="best", patience=3)
    assert fitted.misses == 3
    assert fitted.step == len(rows) == fitted.best_step + 3 < 40


def test_without_dev_rows_the_last_weights_stay(tmp_path):
    model, fitted, rows = train(tmp_path, keep="best", patience=1, measured=False)
    assert (fitted.step, fitted.best_loss, fitted.last) == (12, math.inf, {})
    again, _, _ = train(tmp_path / "again", options(tmp_path / "again"), measured=False)
    assert torch.equal(flat(model), flat(again))
    assert not any("dev/loss" in row for row in rows)


def test_the_average_is_measured_and_kept_and_made_only_where_asked(tmp_path, monkeypatch):
    """Decay 1 - 1 / (share * updates); the weights that train are never replaced by it."""
    seen = []
    step = loop.clip_and_step

    def spy(optimizer, *rest):
        norm = step(optimizer, *rest)
        seen.append([p.detach().clone() for group in optimizer.param_groups for p in group["params"]])
        return norm

    monkeypatch.setattr(loop, "clip_and_step", spy)
    config = options(tmp_path / "averaged", max_steps=6, num_evals=3)
    model, _, rows = train(tmp_path / "averaged", config, weight_average=0.5)
    averaged, trained = [p.clone() for p in seen[0]], list(seen)
    for weights in trained[1:]:
        averaged = [a + (p - a) / 3 for a, p in zip(averaged, weights, strict=True)]  # decay 2/3
    kept = [p.detach() for p in model.parameters() if p.requires_grad]
    for found, expected in zip(kept, averaged, strict=True):
        torch.testing.assert_close(found, expected)
    assert objective(model).measure()["dev/loss"] == pytest.approx(rows[-1]["dev/loss"])
    seen.clear()
    plain, _, _ = train(tmp_path / "plain", options(tmp_path / "plain", max_steps=6, num_evals=3))
    for found, expected in zip(seen, trained, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(flat(plain), flat(model))


def test_measuring_first_logs_step_zero(tmp_path):
    _, _, rows = train(tmp_path, measure_first=True)
    assert rows[0] == {"step": 0, "dev/loss": pytest.approx(objective(Line()).measure()["dev/loss"])}
    assert [row["step"] for row in rows] == list(range(13))


# ------------------------------------------------------------------------------------------ going on again


class Killed(Exception):
    pass


def interrupted(config, at, **how) -> None:
    """A run that is killed in its update number ``at`` (from 0), while a line is being written."""
    usual = objective(Line())
    updates = itertools.count()

    def killed(numbers):
        if next(updates) == at:
            raise Killed
        return usual.step(numbers)

    batches = plan_batches([1] * len(X), config, random.Random(0))
    with Stage("sft", config, extendable=EXTENDABLE) as stage:
        assert stage.begin({}) is None
        with pytest.raises(Killed):
            fit(dataclasses.replace(usual, step=killed), batches, config, stage, **how)
    with open(stage.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "tr')


@pytest.mark.parametrize("at", [1, 4, 7, 11])
@pytest.mark.parametrize("how", [{}, {"keep": "best", "patience": 5, "weight_average": 0.3}])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path, at, how):
    wild = {"learning_rate": 0.4, "save_every": 2, "num_evals": 6, "weight_decay": 0.1}
    whole, fitted, rows = train(tmp_path / "whole", options(tmp_path / "whole", **wild), **how)
    path = tmp_path / "parts"
    config, model = options(path, **wild), Line()
    interrupted(config, at, **how)
    kept = sorted(p.name for p in (path / "state").iterdir()) if (path / "state").exists() else []
    assert len(kept) <= 2
    batches = plan_batches([1] * len(X), config, random.Random(0))
    with Stage("sft", config, extendable=EXTENDABLE) as stage:
        saved = stage.begin({})
        assert (saved.step if saved else 0) == at // 2 * 2
        again = fit(objective(model), batches, config, stage, saved, **how)
    assert torch.equal(flat(model), flat(whole))
    assert rows_of(path) == rows
    assert again.plain() == fitted.plain()


def test_the_best_weights_of_before_an_interruption_are_kept(tmp_path):
    """So large a rate that nothing gets better afterwards."""
    wild = {"learning_rate": 1.5, "lr_scheduler_type": "constant", "num_evals": 12, "save_every": 2}
    whole, fitted, _ = train(tmp_path / "whole", options(tmp_path / "whole", **wild), keep="best")
    assert fitted.best_step <= 10
    config = options(tmp_path / "parts", **wild)
    interrupted(config, 11, keep="best")
    model, again, _ = train(tmp_path / "parts", config, keep="best")
    assert torch.equal(flat(model), flat(whole))
    assert again.best_step == fitted.best_step


# ----------------------------------------------------------------------------------------- longer than before

CONSTANT = {"lr_scheduler_type": "constant", "warmup_ratio": 0.0, "save_every": 2}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"max_steps": 8}, {"max_steps": 14}),
        ({"num_train_epochs": 2.5}, {"num_train_epochs": 4.0}),
        ({"max_steps": 8, "warmup_ratio": 0.25}, {"max_steps": 9, "warmup_ratio": 0.25}),
    ],
)
def test_more_updates_extend_a_run_to_the_same_weights(tmp_path, before, after, capsys):
    whole, _, rows = train(tmp_path / "whole", options(tmp_path / "whole", **CONSTANT | after))
    path = tmp_path / "parts"
    interrupted(options(path, **CONSTANT | before), 5)
    config, model = options(path, **CONSTANT | after), Line()
    batches = plan_batches([1] * len(X), config, random.Random(0))
    with Stage("sft", config, extendable=EXTENDABLE) as stage:
        saved = stage.begin({})
        fit(objective(model), batches, config, stage, saved)
        stage.finish()
    assert "goes on after step 4" in capsys.readouterr().out
    assert torch.equal(flat(model), flat(whole))
    trained = [{k: v for k, v in row.items() if not k.startswith("dev/")} for row in rows]
    assert [{k: v for k, v in row.items() if not k.startswith("dev/")} for row in rows_of(path)] == trained
    assert examine(path, "sft", identify(dataclasses.asdict(config))).is_this_finished(path)
    with pytest.raises(UsageError, match=r"state of a finished stage is not kept.*--model_name_or_path"):
        Stage("sft", dataclasses.replace(config, max_steps=30), extendable=EXTENDABLE)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({}, {"max_steps": 14, "lr_scheduler_type": "cosine"}, "lr_scheduler_type cosine ends where the run"),
        ({}, {"max_steps": 14, "lr_scheduler_type": "linear"}, "lr_scheduler_type linear ends where the run"),
        ({}, {"max_steps": 30, "warmup_ratio": 0.25}, "warmup_ratio 0.25 is a share of all updates"),
        ({}, {"max_steps": 7}, "max_steps can only grow"),
        ({}, {"max_steps": None, "num_train_epochs": 9.0}, "the length was given by max_steps"),
        ({"max_steps": None}, {"max_steps": None, "num_train_epochs": 3.0}, "num_train_epochs can only grow"),
        (
            {"max_steps": None},
            {"max_steps": None, "num_train_epochs": 9.0, "warmup_ratio": 0.25},
            "warmup_ratio 0.25 is a share",
        ),
    ],
)
def test_a_longer_run_that_would_have_been_another_is_refused(tmp_path, before, after, reason):
    own = {name: value for name, value in after.items() if name not in ("max_steps", "num_train_epochs")}
    started = options(tmp_path, **CONSTANT | {"max_steps": 8} | own | before)
    interrupted(started, 5)
    kept = sorted(path for path in tmp_path.rglob("*"))
    config = options(tmp_path, **CONSTANT | after)
    with pytest.raises(
        UsageError, match=f"is unfinished, and cannot go on with .*{reason}.*--fresh to begin"
    ):
        Stage("sft", config, extendable=EXTENDABLE)
    assert sorted(path for path in tmp_path.rglob("*")) == kept
    with Stage("sft", started, extendable=EXTENDABLE) as stage:
        assert stage.begin({}).step == 4


def test_a_signal_in_the_last_update_loses_nothing(tmp_path, monkeypatch, capsys):
    """It is saved after the last one too, from which only the end is left to do."""
    whole, fitted, rows = train(tmp_path / "whole", options(tmp_path / "whole"))
    config = options(tmp_path / "stopped")
    usual, updates = objective(Line()), itertools.count(1)

    def asked_in_the_last(numbers):
        if next(updates) == len(rows):
            monkeypatch.setattr(signals._asked, "number", signal.SIGTERM)
        return usual.step(numbers)

    batches = plan_batches([1] * len(X), config, random.Random(0))
    with Stage("sft", config, extendable=EXTENDABLE) as stage:
        stage.begin({})
        with pytest.raises(Interrupted, match="interrupted by SIGTERM"):
            fit(dataclasses.replace(usual, step=asked_in_the_last), batches, config, stage)
    monkeypatch.undo()
    assert f"saved after step {len(rows)} of {len(rows)}" in capsys.readouterr().out
    model, again, seen = train(tmp_path / "stopped", config)
    assert torch.equal(flat(model), flat(whole))
    assert seen == rows
    assert again.plain() == fitted.plain()


def test_checkpoints_are_keyed_by_parameter_names(tmp_path):
    config = options(tmp_path, save_every=4)
    with Stage("sft", config, extendable=EXTENDABLE) as stage:
        stage.begin({})
        fit(objective(Line()), plan_batches([1] * 24, config, random.Random(0)), config, stage)
        saved = checkpoint.latest(stage.state, stage.owner)
    assert saved is not None
    assert {name for name in saved.tensors if name.startswith("weights/")} == {"weights/w", "weights/b"}
    assert "moments/w/exp_avg" in saved.tensors
    assert saved.step == 8  # the last step needs none


@pytest.mark.parametrize(("every", "kept"), [(0, []), (5, [5, 10]), (12, []), (1, [10, 11])])
def test_save_every_says_when(tmp_path, every, kept):
    config = options(tmp_path, save_every=every)
    with Stage("sft", config, extendable=EXTENDABLE) as stage:
        stage.begin({})
        fit(objective(Line()), plan_batches([1] * 24, config, random.Random(0)), config, stage)
        state = stage.state
    assert sorted(int(p.name.removeprefix("step_")) for p in state.glob("step_*")) == kept


def test_by_default_about_ten_are_written_and_fewer_where_writing_is_slow(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])

    def written(seconds_of_a_step, seconds_of_a_write):
        checkpoints = checkpoint.Checkpoints(tmp_path, 100, None)
        monkeypatch.setattr(checkpoints, "_write", lambda *_: now.__setitem__(0, now[0] + seconds_of_a_write))
        steps = []
        for step in range(1, 101):
            now[0] += seconds_of_a_step
            if checkpoints.due(step):
                checkpoints.save(step, {}, {})
                steps.append(step)
        return steps

    assert written(1.0, 0.1) == list(range(10, 100, 10))
    slow = written(1.0, 5.0)  # half the time of ten steps: at most a tenth of the run may go into it
    assert slow[0] == 10
    assert len(slow) * 5.0 <= 0.1 * (100 + 5.0 * len(slow)) + 5.0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_train_epochs", 0.0),
        ("num_train_epochs", math.inf),
        ("num_train_epochs", math.nan),
        ("train_batch_size", 0),
        ("micro_batch_size", 0),
        ("num_evals", 0),
        ("max_steps", 0),
        ("save_every", -1),
    ],
)
def test_options_that_cannot_work_are_refused(option, value):
    with pytest.raises(UsageError, match=option):
        FitOptions(**{option: value})


def said_of_durations(tmp_path, capsys, monkeypatch, seconds, extent=None) -> list[str]:
    """What is said of updates that last so long by the clock, beside measurements that last far longer."""
    now, lasting = 0.0, iter(seconds)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)
    config = options(tmp_path, max_steps=len(seconds))
    usual = objective(Line())

    def step(rows):
        nonlocal now
        now += next(lasting)
        return usual.step(rows)

    def measure():
        nonlocal now
        now += 1000.0
        return usual.measure()

    changes = {} if extent is None else {"extent": extent}
    timed = dataclasses.replace(usual, step=step, measure=measure, **changes)
    with Stage("sft", config) as stage:
        stage.begin({})
        fit(timed, [range(8 * (i == 7), 8 + 8 * (i == 7)) for i in range(len(seconds))], config, stage)
    return [line for line in capsys.readouterr().out.splitlines() if "median" in line]


def test_only_an_update_that_is_slow_itself_is_said(tmp_path, capsys, monkeypatch):
    assert said_of_durations(tmp_path, capsys, monkeypatch, [2.0] * 7 + [30.0] + [2.0] * 4) == [
        "sft: update 8 took 30 s, the median of the 7 before it 2 s"
    ]


def test_a_batch_of_more_tokens_may_take_longer(tmp_path, capsys, monkeypatch):
    long_rows = {"extent": lambda row: Extent((100 if row >= 8 else 10,))}
    seconds = [2.0] * 7 + [30.0] + [2.0] * 4
    assert not said_of_durations(tmp_path, capsys, monkeypatch, seconds, **long_rows)
