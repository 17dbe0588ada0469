"""Activation checkpointing: the same loss and gradient, less kept, and nothing left behind."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from preferl.models.recompute import recomputing
from preferl.runs.errors import UsageError
from small_models import make_language_model

IDS = torch.arange(2, 26).view(2, 12)


def kept_and_gradient(model, on: bool) -> tuple[int, torch.Tensor, torch.Tensor]:
    """How many numbers autograd keeps for the gradient of a pass, its loss, and the gradient."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            sizes[place] = tensor.untyped_storage().nbytes() // tensor.element_size()
            held.append(tensor)  # or its place would be used again
        return tensor

    held: list[torch.Tensor] = []
    model.zero_grad()
    with recomputing(model, on=on):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        kept = sum(sizes.values())
        loss.backward()
    return kept, loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_the_gradient_is_the_same_and_less_is_kept(kind, tokenizer):
    model = make_language_model(kind, tokenizer)  # GPT-2 with dropout, which stays off
    before = {name: part.training for name, part in model.named_modules()}
    kept, loss, gradient = kept_and_gradient(model, on=False)
    kept_again, loss_again, gradient_again = kept_and_gradient(model, on=True)
    assert kept_again < kept / 2
    torch.testing.assert_close(loss_again, loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient_again, gradient, atol=1e-5 * float(gradient.abs().max()), rtol=0)
    assert {name: part.training for name, part in model.named_modules()} == before
    assert kept_and_gradient(model, on=False)[0] == kept


def test_dropout_that_a_layer_does_itself_is_off_and_comes_back():
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "opt", vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
        word_embed_proj_dim=32, max_position_embeddings=64, dropout=0.5,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    _, loss, gradient = kept_and_gradient(model, on=False)
    _, loss_again, gradient_again = kept_and_gradient(model, on=True)
    torch.testing.assert_close(loss_again, loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient_again, gradient, atol=1e-5 * float(gradient.abs().max()), rtol=0)
    assert model.model.decoder.layers[0].dropout == 0.5


def test_a_family_that_cannot_is_refused_by_name(tokenizer, monkeypatch):
    model = make_language_model("llama", tokenizer)
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(UsageError, match="a llama model again; leave it out"), recomputing(model):
        pass
    with recomputing(model, None, on=False):
        pass
