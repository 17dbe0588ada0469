"""One optimiser step: clipped to the norm, in the direction of the gradient, and nothing is left over."""

import math

import pytest
import torch

from preferl.models.optim import clip_and_step
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
