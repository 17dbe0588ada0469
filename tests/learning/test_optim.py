"""An optimiser step is clipped, along the gradient, and leaves nothing over; and the learning rate."""

import math

import pytest
import torch

from preferl.learning.optim import clip_and_step, schedule
from preferl.options.shared import OptimOptions
from preferl.runs.errors import DivergedError


def weights(*values: float) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(torch.tensor(values))
    return weight, torch.optim.SGD([weight], lr=1.0)


@pytest.mark.parametrize(("limit", "moved"), [(10.0, [3.0, 4.0]), (1.0, [0.6, 0.8])])
def test_a_step_follows_the_clipped_gradient(limit, moved):
    weight, optimizer = weights(0.0, 0.0)
    for _ in range(2):
        (weight @ torch.tensor([3.0, 4.0])).backward()
        before = weight.detach().clone()
        assert clip_and_step(optimizer, limit, "here") == pytest.approx(5)
        torch.testing.assert_close(before - weight.detach(), torch.tensor(moved))


def test_a_gradient_that_is_no_number_moves_nothing():
    weight, optimizer = weights(1.0, 2.0)
    (weight @ torch.tensor([math.nan, 1.0])).backward()
    with pytest.raises(DivergedError, match="here: the gradient's norm is nan"):
        clip_and_step(optimizer, 1.0, "here")
    assert weight.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.2 + 0.4 * (1 + 0.5**0.5), 0.6, 0.2 + 0.4 * (1 - 0.5**0.5), 0.2]),
    ],
)
def test_the_learning_rate_rises_and_falls_to_its_end(kind, expected):
    _, optimizer = weights(1.0)
    options = OptimOptions(lr_scheduler_type=kind, warmup_ratio=2 / 6, lr_end_factor=0.2)
    scheduler, rates = schedule(optimizer, options, 6), []
    for _ in expected:
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected)
