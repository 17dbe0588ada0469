"""The loop that trains sft, reward and dpo: batches, gradients, measurements, checkpoints.

A stage says what a row is worth (``Objective``); everything else is here. A loss is a sum over the rows of a
micro-batch divided by a count of the whole batch, so that micro-batches, and processes that share a batch
out, change nothing but rounding. A run that was interrupted goes on from its last checkpoint to the same
bytes.
"""

import contextlib
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from preferl.data.tokens import Extent, endless_buckets
from preferl.learning.meter import Meter
from preferl.learning.micro_batches import MicroBatches
from preferl.learning.optim import adamw, clip_and_step, not_longer, other_rates, schedule
from preferl.models.offload import Offload
from preferl.models.recompute import recomputing
from preferl.options.learning import FitOptions
from preferl.runs import distributed, memory, signals
from preferl.runs.checkpoint import (
    Checkpoint,
    Checkpoints,
    below,
    named_state,
    restore_named_state,
    restore_schedule,
)
from preferl.runs.devices import derived_seed
from preferl.runs.errors import DivergedError
from preferl.runs.progress import Pace, Steps
from preferl.runs.stage import Stage, WhyNot

Sums = dict[str, tuple[float, float]]
"""Name -> a sum over rows and what it is divided by, as ``{"train/accuracy": (3, 4)}``."""


@dataclass(frozen=True)
class Objective:
    """What is trained.

    Args:
        model: its trainable parameters are trained in place.
        step: the loss of some rows, summed and with its gradient, and sums of what else is to be logged.
        count: what the loss of some rows is divided by: their number, their tokens.
        measure: held-out rows, as ``{"dev/loss": 0.61}``; None or {} where there are none.
        prepare: called with all rows of a batch before its micro-batches, in all processes: for what a loss
            needs to know of the whole batch.
        extent: what a row is in a pass; by default nothing that counts.
    """

    model: torch.nn.Module
    step: Callable[[Sequence[int]], tuple[torch.Tensor, Sums]]
    count: Callable[[Sequence[int]], float] = len
    measure: Callable[[], dict[str, float]] = dict
    prepare: Callable[[Sequence[int]], None] = lambda rows: None
    extent: Callable[[int], Extent] = lambda row: Extent((0,))


@dataclass
class Fitted:
    """How far a run is, and what it leaves: everything but weights, moments and schedule.

    ``best`` and ``last`` are measurements of held-out rows, ``best_weights`` the weights of the best one.
    """

    step: int = 0
    best_step: int = 0
    misses: int = 0
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    best_weights: dict[str, torch.Tensor] | None = None

    @property
    def best_loss(self) -> float:
        return self.best.get("dev/loss", math.inf)

    def plain(self) -> dict[str, Any]:
        """All but the weights, for a checkpoint."""
        names = ("step", "best_step", "misses", "best", "last")
        return {name: getattr(self, name) for name in names}


def plan_batches(lengths: Sequence[int], options: FitOptions, rng: random.Random) -> list[list[int]]:
    """The numbers of the rows of every update of a run; rows of like length share a batch. A pass over the
    rows reads each of them once, the last of its batches may be smaller.

    Args:
        lengths: tokens of each row.
        options: epochs (part of one is part of its batches), or ``max_steps``, and the size of a batch.
        rng: orders the rows, anew in each epoch.
    """
    updates = options.max_steps
    if updates is None:
        each_epoch = math.ceil(len(lengths) / options.train_batch_size)
        updates = max(1, round(options.num_train_epochs * each_epoch))
    return list(itertools.islice(endless_buckets(lengths, options.train_batch_size, rng), updates))


def fit(
    objective: Objective,
    batches: Sequence[Sequence[int]],
    options: FitOptions,
    stage: Stage,
    saved: Checkpoint | None = None,
    keep: str = "last",
    patience: int | None = None,
    weight_average: float = 0.0,
    measure_first: bool = False,
) -> Fitted:
    """Trains an objective's model in place.

    Args:
        objective: what is trained.
        batches: row numbers of every update (``plan_batches``).
        options: of the optimiser, the measurements and the checkpoints.
        stage: where rows are logged and checkpoints kept.
        saved: the checkpoint of this very run to go on from.
        keep: ``last``, or ``best``: at the end the model has the weights of the lowest ``dev/loss``.
        patience: stop after so many measurements without a lower ``dev/loss``.
        weight_average: share of the updates over which an exponential moving average of the weights reaches
            (Polyak & Juditsky 1992); it is what is measured and kept. 0 for none.
        measure_first: measure before the first update too.

    Raises:
        DivergedError: a loss or a gradient is not finite; the weights are those before that update.
    """
    run = _Run(objective, len(batches), options, stage, weight_average, keep == "best")
    if saved is not None:
        run.restore(saved)
    elif measure_first:
        run.measure()
        if run.fitted.last:
            stage.log(step=0, **run.fitted.last)
    measured = {round(run.steps * k / options.num_evals) for k in range(1, options.num_evals + 1)}
    pace = Pace(stage.name, "update")
    with Steps(stage.name, run.steps) as progress:
        progress.advance(run.fitted.step)
        for step in range(run.fitted.step + 1, run.steps + 1):
            with signals.patient():
                started = time.perf_counter()
                row = {"step": step, **run.update(batches[step - 1], step)}
                pace.note(step, time.perf_counter() - started, run.tokens(batches[step - 1]))
                run.fitted.step = step
                if step in measured:
                    row |= run.measure()
                stage.log(**row, learning_rate=run.scheduler.get_last_lr()[0])
                progress.advance(**run.what_matters(row))
                if patience is not None and run.fitted.misses >= patience:
                    stage.say(f"dev log-loss rose {run.fitted.misses} times; stopped at update {step}")
                    break
                if run.checkpoints.due(step):
                    run.checkpoints.save(step, *run.snapshot())
    run.keep()
    memory.give_back()  # before models are saved, merged and sampled from
    return run.fitted


class _Run:
    """The moving parts of ``fit``."""

    def __init__(
        self,
        objective: Objective,
        steps: int,
        options: FitOptions,
        stage: Stage,
        weight_average: float,
        keeps_best: bool,
    ):
        self.objective, self.options, self.keeps_best = objective, options, keeps_best
        self.name, self.seed = stage.name, stage.config.seed
        named = objective.model.named_parameters()
        self.parameters = {name: p for name, p in named if p.requires_grad}
        self.steps = steps
        self.optimizer = adamw(self.parameters.values(), options)
        self.scheduler = schedule(self.optimizer, options, self.steps)
        self.checkpoints = Checkpoints(stage.state, self.steps, options.save_every, stage.owner)
        device = next(iter(self.parameters.values())).device
        self.offload = Offload(device, options.offload)
        self.micro_batches = MicroBatches(options)
        self.micro_batches.record = lambda tokens: stage.choose_anew(micro_batch_tokens=tokens)
        self.fitted = Fitted()
        self.average: WeightAverage | None = None
        if weight_average:
            self.average = WeightAverage(self.parameters, 1 - 1 / max(1.0, weight_average * self.steps))

    def tokens(self, rows: Sequence[int]) -> int:
        """Of a batch."""
        extents = [self.objective.extent(i) for i in rows]
        return sum(extent.sequences * sum(extent.widths) for extent in extents)

    def what_matters(self, row: Mapping[str, float]) -> dict[str, float]:
        """The numbers of an update that are shown while it runs, and the last ones of held-out rows."""
        last = self.fitted.last
        names = {"dev_loss": "dev/loss", "dev_accuracy": "dev/accuracy"}
        return {"loss": row["train/loss"]} | {k: last[name] for k, name in names.items() if name in last}

    def update(self, rows: Sequence[int], step: int) -> dict[str, float]:
        """One update on a batch; returns what is logged of it."""
        where = f"{self.name} update {step}"
        self.objective.prepare(rows)
        row = self.micro_batches.accumulated(
            lambda: self.accumulate(rows, step, where), self.optimizer.zero_grad
        )
        distributed.all_reduce_gradients(self.optimizer)
        with self.offload.stepping(self.optimizer):
            norm = clip_and_step(self.optimizer, self.options.max_grad_norm, where)
        self.scheduler.step()
        if self.average is not None:
            self.average.update()
        return row | {"grad_norm": norm}

    def accumulate(self, rows: Sequence[int], step: int, where: str) -> dict[str, float]:
        """Adds up the gradient of a batch, micro-batch by micro-batch; returns what all processes saw."""
        # Dropout's random numbers belong to the step, on every device and in every process: a run that goes
        # on here draws the same ones.
        torch.manual_seed(derived_seed(self.seed, self.name, "update", step, distributed.rank()))
        total, seen = self.objective.count(rows), Meter()
        own = distributed.shard(rows)
        parts = self.micro_batches.parts([self.objective.extent(i) for i in own])
        recompute = bool(self.options.gradient_checkpointing)
        with distributed.sync_errors(), recomputing(self.objective.model, on=recompute):
            for place in parts:
                part = own[place]
                loss_sum, sums = self.objective.step(part)
                # Divided by the whole batch's count: micro-batches add up to the batch's gradient.
                loss = loss_sum / total
                value = loss.item()
                if not math.isfinite(value):
                    raise DivergedError(
                        f"{where}: the loss is {value}; stopped before the update. "
                        f"Lower the learning rate, or look at the rows of this batch"
                    )
                loss.backward()
                loss_of_part = (value * total, self.objective.count(part))
                for name, (sum_, count) in {"train/loss": loss_of_part, **sums}.items():
                    if count:
                        seen.add(name, sum_ / count, count)
        return seen.of_all().means()

    def measure(self) -> dict[str, float]:
        """Held-out rows, with the averaged weights where there are such; keeps the best weights."""
        fitted = self.fitted
        with self.average.applied() if self.average else contextlib.nullcontext():
            found = self.objective.measure()
            fitted.last = found
            if "dev/loss" in found:
                better = found["dev/loss"] < fitted.best_loss
                fitted.misses = 0 if better else fitted.misses + 1
                if better:
                    fitted.best, fitted.best_step = found, fitted.step
                if better and self.keeps_best:
                    fitted.best_weights = {n: p.detach().clone() for n, p in self.parameters.items()}
        return found

    @torch.no_grad()
    def keep(self) -> None:
        """Leaves the best weights in the model, or the last (averaged, where there is an average)."""
        chosen = self.fitted.best_weights
        if chosen is None and self.average is not None:
            chosen = self.average.values
        for name, value in (chosen or {}).items():
            self.parameters[name].copy_(value)

    def snapshot(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Everything that the next update depends on, as tensors and plain values."""
        tensors = named_state(self.parameters, self.optimizer)
        if self.average is not None and self.average.values is not None:
            tensors |= {f"average/{name}": value for name, value in self.average.values.items()}
        if self.fitted.best_weights is not None:
            tensors |= {f"best/{name}": value for name, value in self.fitted.best_weights.items()}
        return tensors, {
            "scheduler": self.scheduler.state_dict(),
            "fitted": self.fitted.plain(),
            "micro_batch_tokens": self.micro_batches.tokens,
        }

    def restore(self, saved: Checkpoint) -> None:
        """Puts ``snapshot`` back."""
        restore_named_state(self.parameters, self.optimizer, saved.tensors)
        restore_schedule(self.optimizer, self.scheduler, saved.values["scheduler"])
        if self.average is not None:
            self.average.restore(below("average/", saved.tensors))
        self.fitted = Fitted(**saved.values["fitted"])
        self.micro_batches.tokens = saved.values.get("micro_batch_tokens", self.micro_batches.tokens)
        best = below("best/", saved.tensors)
        if best:
            self.fitted.best_weights = {n: best[n].to(p.device) for n, p in self.parameters.items()}


class WeightAverage:
    """An exponential moving average of some parameters (Polyak & Juditsky 1992; for reward models Rame et al.
    2024). ``values`` is None before the first update."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float):
        self.parameters = dict(parameters)
        self._average = get_ema_multi_avg_fn(decay)
        self.values: dict[str, torch.Tensor] | None = None

    def update(self) -> None:
        """Takes the parameters as they are now into the average."""
        if self.values is None:
            self.values = {name: p.detach().clone() for name, p in self.parameters.items()}
            return
        current = [p.detach() for p in self.parameters.values()]
        self._average(list(self.values.values()), current, 0)

    def restore(self, values: Mapping[str, torch.Tensor]) -> None:
        """Puts saved values back."""
        if values:
            self.values = {name: values[name].to(p.device) for name, p in self.parameters.items()}

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters have the averaged values, for as long as the context lasts."""
        if self.values is None:
            yield
            return
        own = {name: p.data for name, p in self.parameters.items()}
        try:
            for name, p in self.parameters.items():
                p.data = self.values[name]
            yield
        finally:
            for name, p in self.parameters.items():
                p.data = own[name]


def why_not_longer(stored: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """Why a run with other epochs or updates is no continuation of one that was interrupted; None where its
    weights are those of a run that had been given so many from the start.

    Args:
        stored: the options of the one that was interrupted.
        options: those of today.
    """
    before, after = _length(stored), _length(options)
    if before == after:  # max_steps decides, and the epochs mean nothing
        return None
    return not_longer(before, after) or other_rates(options, stored["max_steps"], options["max_steps"])


def _length(options: Mapping[str, Any]) -> tuple[str, float]:
    if options["max_steps"] is not None:
        return "max_steps", options["max_steps"]
    return "num_train_epochs", options["num_train_epochs"]


EXTENDABLE: Mapping[str, WhyNot] = {"num_train_epochs": why_not_longer, "max_steps": why_not_longer}
"""What may grow in an unfinished stage that is nothing but ``fit``, and keeps its last weights."""
