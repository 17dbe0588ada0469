"""Offloading: on one GPU, frozen models and the optimisers' state lie in the CPU's memory while nobody uses
them. The simplest form: a whole model, or a whole optimiser, moves at a time."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

CPU = torch.device("cpu")


class Offload:
    """Where what is not used lies.

    Args:
        device: what computes.
        on: whether anything moves; where the device is ``home`` nothing does.
        home: where what is not used lies.
    """

    def __init__(self, device: torch.device, on: bool, home: torch.device = CPU):
        self.device, self.home, self.on = device, home, on and device.type != home.type

    def rest(self, *models: Any, beside: Iterable[Any] = ()) -> None:
        """Puts frozen models where they lie while nobody uses them. One that shares weights with a model that
        stays (``beside``) stays too."""
        stays = {id(p) for model in beside for p in model.parameters()}
        for model in models if self.on else ():
            if not any(id(p) in stays for p in model.parameters()):
                model.to(self.home)

    @contextlib.contextmanager
    def present(self, model: Any) -> Iterator[None]:
        """A model is on the device as long as the context lasts, and then again where it was."""
        moves = self.on and next(model.parameters()).device.type == self.home.type
        if moves:
            model.to(self.device)
        try:
            yield
        finally:
            if moves:
                model.to(self.home)

    @contextlib.contextmanager
    def stepping(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """An optimiser's state is on the device as long as the context lasts, and then at home."""
        if self.on:
            _move_state(optimizer, self.device)
        try:
            yield
        finally:
            if self.on:
                _move_state(optimizer, self.home)


def _move_state(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    for state in optimizer.state.values():
        for name, value in state.items():
            if torch.is_tensor(value):
                state[name] = value.to(device)
