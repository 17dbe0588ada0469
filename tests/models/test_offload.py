"""Offloading, with the meta device in the part of a GPU: what is used is there, what is not is at home."""

import torch

from preferl.models.offload import CPU, Offload

META = torch.device("meta")


class Kept(torch.nn.Linear):
    """A layer that survives the meta device, which forgets numbers: it keeps them for its way back."""

    def to(self, device):
        if device == META:
            self.numbers = self.weight.data
        numbers = self.numbers.to(META) if device == META else self.numbers
        self.weight = torch.nn.Parameter(numbers)
        return self


def test_a_frozen_model_is_there_while_it_is_used():
    model, offload = Kept(2, 2, bias=False), Offload(META, True)
    before = model.weight.clone()
    with offload.present(model):
        assert model.weight.device == META
        with offload.present(model):  # inside a longer use nothing moves
            pass
        assert model.weight.device == META
    assert torch.equal(model.weight, before)


def test_what_rests_is_at_home_and_what_shares_weights_stays():
    stays, shares, rests = (torch.nn.Linear(2, 2, bias=False) for _ in range(3))
    shares.weight = stays.weight
    offload = Offload(CPU, True, home=META)
    offload.rest(shares, rests, beside=[stays])
    assert (stays.weight.device, rests.weight.device) == (CPU, META)


def test_an_optimisers_state_is_at_home_between_its_steps():
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    with Offload(CPU, True, home=META).stepping(optimizer):
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        moments = [value for state in optimizer.state.values() for value in state.values()]
        assert all(value.device == CPU for value in moments)
    moments = [value for state in optimizer.state.values() for value in state.values()]
    assert len(moments) == 6
    assert all(value.device == META for value in moments)


def test_on_a_cpu_nothing_moves():
    offload, layer = Offload(CPU, True), torch.nn.Linear(2, 2)
    offload.rest(layer)
    with offload.present(layer):
        assert layer.weight.device == CPU
    assert not offload.on
