"""How weights are kept: frozen ones as they were stored, and once for several models; trained ones in
float32."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import families
from preferl.learning.optim import adamw
from preferl.models import load
from preferl.models.passes import call
from preferl.models.storage import (
    StoredLinear,
    Weights,
    own_weights,
    same_weights,
    share_weights,
    stored_dtype,
    twin,
)
from preferl.options.shared import OptimOptions
from preferl.runs.errors import UsageError
from small_models import make_language_model

CPU = torch.device("cpu")
IDS = torch.tensor([[10, 11, 12, 13, 14, 15, 16, 17]])


def logits_of(model):
    mask = torch.ones_like(IDS)
    return call(model, IDS, mask, mask.cumsum(-1) - 1).logits


@pytest.fixture(scope="module")
def in_bf16(tmp_path_factory, tokenizer):
    """A language model stored in bfloat16."""
    path = tmp_path_factory.mktemp("bf16")
    model = make_language_model("qwen3", tokenizer).to(torch.bfloat16)
    load.save(model, tokenizer, path / "model")
    return path


@torch.no_grad()
def test_a_frozen_model_is_kept_as_it_was_stored_and_computes_as_a_trained_one(in_bf16):
    """Half the memory, and the same numbers bit for bit: the KL of policy and reference begins at 0."""
    frozen, _ = load.load_policy(str(in_bf16), CPU)
    trained, _ = load.load_policy(str(in_bf16), CPU, weights=Weights.TRAINED)
    matrices = [p for p in frozen.parameters() if p.dim() == 2]
    assert {p.dtype for p in matrices} == {torch.bfloat16}
    assert {p.dtype for p in frozen.parameters() if p.dim() == 1} == {torch.float32}
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in frozen.parameters())
    assert logits_of(frozen).dtype == torch.float32
    assert torch.equal(logits_of(frozen), logits_of(trained))
    assert same_weights(frozen, trained)


def test_gradients_flow_through_a_stored_layer_as_through_one_in_float32():
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3).to(torch.bfloat16).requires_grad_(False)
    plain = torch.nn.Linear(5, 3).requires_grad_(False)
    plain.load_state_dict(layer.state_dict())
    layer.bias.data = layer.bias.data.float()
    layer.__class__ = StoredLinear
    x, x_plain = (torch.arange(10.0).view(2, 5).requires_grad_() for _ in range(2))
    (layer(x) ** 2).sum().backward()
    (plain(x_plain) ** 2).sum().backward()
    assert torch.equal(x.grad, x_plain.grad)
    # In float64 against the definition.
    x64 = torch.rand(4, 5, dtype=torch.float64, requires_grad=True)
    layer.bias.data = layer.bias.data.double()
    assert torch.autograd.gradcheck(layer, (x64,))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.__class__(5, 3)(x).dtype == torch.bfloat16


# Families whose linear layers, embeddings and caches are unlike Llama's.
@pytest.mark.parametrize("kind", ["gpt2", "gemma3", "qwen3_moe", "opt", "falcon", "mamba2", "phi3", "bloom"])
@torch.no_grad()
def test_families_compute_the_same_from_narrow_weights(tmp_path, kind):
    model = families.decoder(kind).to(torch.bfloat16)
    load.save(model, families.character_tokenizer(), tmp_path / "model")
    frozen, trained = (
        load.load_policy(str(tmp_path), CPU, weights=weights)[0]
        for weights in (Weights.FROZEN, Weights.TRAINED)
    )
    torch.testing.assert_close(logits_of(frozen), logits_of(trained), atol=1e-5, rtol=1e-5)
    # Mamba 2 casts what it computes to the dtype of its weights, which are widened for that.
    matrices = {p.dtype for p in frozen.parameters() if p.dim() == 2}
    assert (torch.bfloat16 in matrices) == (kind != "mamba2")


def test_the_files_say_what_is_stored_and_not_the_configuration(in_bf16, tmp_path, tokenizer):
    assert stored_dtype(str(in_bf16 / "model")) == torch.bfloat16
    model = make_language_model("qwen3", tokenizer)
    load.save(model, tokenizer, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    frozen, _ = load.load_policy(str(tmp_path), CPU)
    assert same_weights(frozen, model)
    # One tensor in float32 among others in bfloat16: all are float32, or it would be rounded.
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    name = next(key for key in tensors if "q_proj" in key)
    mixed = {key: t if key == name else t.to(torch.bfloat16) for key, t in tensors.items()}
    save_file(mixed, file, metadata={"format": "pt"})
    assert stored_dtype(str(tmp_path / "model")) == torch.float32


def test_a_frozen_model_is_saved_as_it_was_stored(in_bf16, tmp_path):
    frozen, tokenizer = load.load_policy(str(in_bf16), CPU)
    load.save(frozen, tokenizer, tmp_path / "model")
    before, after = (load_file(p / "model" / "model.safetensors") for p in (in_bf16, tmp_path))
    assert {key: t.dtype for key, t in after.items()} == {key: t.dtype for key, t in before.items()}
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_updates_of_a_usual_size_vanish_in_bfloat16_and_are_refused():
    """AdamW moves a weight by about the learning rate: 1 + 1e-6 is 1 in bfloat16, and so is 1 + 1e-3."""
    for rate in (1e-6, 1e-3):
        narrow = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        optimizer = torch.optim.AdamW([narrow], lr=rate, weight_decay=0.0)
        for _ in range(100):
            narrow.grad = torch.ones_like(narrow)
            optimizer.step()
        assert torch.equal(narrow, torch.ones_like(narrow))
    with pytest.raises(UsageError, match="bfloat16 cannot be trained"):
        adamw([narrow], OptimOptions())
    wide = torch.nn.Parameter(torch.ones(4))
    wide.grad = torch.ones_like(wide)
    adamw([wide], OptimOptions(learning_rate=1e-6)).step()
    assert bool((wide != 1).all())


def test_eight_bit_adamw_takes_the_steps_of_adamw():
    """Its moments are blocks of 256 numbers in eight bits each: near, and a quarter of the memory."""
    torch.manual_seed(0)
    target = torch.randn(64, 128)
    found = {}
    for optim in ("adamw", "adamw_8bit"):
        weight = torch.nn.Parameter(torch.zeros(64, 128))
        optimizer = adamw([weight], OptimOptions(learning_rate=0.05, optim=optim))
        for _ in range(60):
            loss = F.mse_loss(weight, target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        state = optimizer.state[weight]
        size = sum(t.numel() * t.element_size() for t in state.values() if isinstance(t, torch.Tensor))
        found[optim] = loss.item(), size
    assert found["adamw_8bit"][0] == pytest.approx(found["adamw"][0], rel=0.1)
    assert found["adamw_8bit"][1] < 0.4 * found["adamw"][1]
    with pytest.raises(UsageError, match="unknown; use adamw or adamw_8bit"):
        adamw([torch.nn.Parameter(torch.ones(1))], OptimOptions(optim="adam8"))


# ------------------------------------------------------------------------------------- once for several roles


def test_a_twin_has_modules_of_its_own_and_the_same_weights(tokenizer):
    model = make_language_model("qwen3", tokenizer).requires_grad_(False)
    other = twin(model)
    assert other is not model
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert not set(map(id, model.modules())) & set(map(id, other.modules()))
    assert other.lm_head.weight is other.get_input_embeddings().weight  # tied weights stay tied


def test_weights_are_shared_where_they_are_equal_and_frozen(tokenizer):
    first = make_language_model("llama", tokenizer).requires_grad_(False)
    other = make_language_model("llama", tokenizer).requires_grad_(False)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    share = share_weights(first, other)
    assert 0.5 < share < 1
    assert other.model.layers[0].mlp.up_proj.weight is first.model.layers[0].mlp.up_proj.weight
    assert other.model.layers[1].mlp.up_proj.weight is not first.model.layers[1].mlp.up_proj.weight
    # Norms are all ones at first: each is one of its own, and stays so.
    assert len({id(m.weight) for n, m in other.named_modules() if n.endswith("norm")}) == 5
    trained = make_language_model("llama", tokenizer)
    assert share_weights(trained, make_language_model("llama", tokenizer)) == 0


def test_own_weights_are_copies_and_stay_tied(tokenizer):
    model = make_language_model("qwen3", tokenizer).requires_grad_(False)
    other = twin(model)
    own_weights(other)
    assert not set(map(id, model.parameters())) & set(map(id, other.parameters()))
    assert same_weights(model, other)
    assert other.lm_head.weight is other.get_input_embeddings().weight
