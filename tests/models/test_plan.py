"""The plan: what it counts is what is there, what it chooses fits, and what cannot fit is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from preferl.models import plan, shapes
from preferl.models.lora import with_lora
from preferl.options.shared import LoraOptions
from preferl.runs.errors import UsageError
from preferl.runs.stage import Stage
from preferl.stages import dpo, reward, rl, sft

GIB = 2**30
CPU = plan.Machine(16 * GIB, 16 * GIB, "this machine", True)
GPU = plan.Machine(80 * GIB, 80 * GIB, "a GPU", False)
FAMILIES = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 192, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 2, "intermediate_size": 192, "head_dim": 16},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "activation_function": "gelu"},
}


def configuration(family: str = "llama", **changes):
    """A transformer of three layers, small enough to build."""
    usual = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    usual = {"vocab_size": 128} if family == "gpt2" else usual
    return AutoConfig.for_model(family, **usual | FAMILIES[family] | changes)


def real_model():
    """SmolLM2-135M's sizes, without weights."""
    return configuration(
        vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, intermediate_size=1536,
    )  # fmt: skip


@pytest.fixture
def real_directory(tmp_path) -> str:
    """A configuration of those sizes, as a directory without weights."""
    real_model().save_pretrained(tmp_path / "real")
    return str(tmp_path / "real")


def kept_for_the_gradient(model, ids_BS: torch.Tensor) -> int:
    """Bytes that autograd keeps of a pass through the layers."""
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    held = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            sizes[place] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS), use_cache=False)
    return sum(sizes.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_lora_weights_are_counted_as_they_are_built(family):
    config = configuration(family)
    model = AutoModelForCausalLM.from_config(config)
    shape = shapes.shape_of(config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    adapted = with_lora(model, "", LoraOptions(lora_r=4))
    assert shape.lora(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("family", "lora_r"), [("llama", 0), ("llama", 4), ("qwen3", 0), ("gpt2", 0)], ids=str
)
def test_the_formula_of_activations_is_what_autograd_keeps(family, lora_r):
    config = configuration(family)
    model = AutoModelForCausalLM.from_config(config).eval()
    trunk = model.base_model
    if lora_r:
        trunk = with_lora(model, "", LoraOptions(lora_r=lora_r)).get_base_model().base_model
    counted = kept_for_the_gradient(trunk, torch.arange(96).view(2, 48) % 128)
    shape = shapes.shape_of(config)
    planned = shape.layers * shape.kept_per_token(48, lora_r) * 96
    assert planned == pytest.approx(counted, rel=0.2)


def work(**changes) -> plan.Work:
    usual = {"row_tokens": 512, "length": 512, "batch_rows": 32, "cached_tokens": 8192}
    roles = [plan.Role("policy", real_model(), trained=True), plan.Role("reference", real_model())]
    return plan.Work(**{"roles": roles} | usual | changes)


def test_what_each_role_takes():
    found = plan.with_tokens(work(), plan.Levers(), torch.float32, 512, False)
    policy, reference = found.needs["policy"], found.needs["reference"]
    n = 134_515_008
    assert (policy.weights, policy.gradients, policy.optimiser) == (4 * n, 4 * n, 8 * n)
    assert (reference.weights, reference.gradients, reference.optimiser) == (4 * n, 0, 0)
    assert policy.cache == 8192 * 2 * 30 * 192 * 4
    assert found.total == pytest.approx(5 * 4 * n + policy.in_pass)
    stored = [plan.Role("reference", real_model(), stored=torch.bfloat16)]
    assert plan.with_tokens(work(roles=stored), plan.Levers(), torch.float32, 1, False).kept == 2 * n
    shared = [plan.Role("reference", real_model(), owns_base=False)]
    assert plan.with_tokens(work(roles=shared), plan.Levers(), torch.float32, 1, False).kept == 0


@pytest.mark.parametrize(
    "lever",
    [
        {"micro_batch_tokens": 256},
        {"gradient_checkpointing": True},
        {"lora_r": 8},
        {"optim": "adamw_8bit"},
    ],
    ids=lambda lever: next(iter(lever)),
)
def test_every_lever_makes_it_smaller(lever):
    usual = plan.Levers(micro_batch_tokens=1024, gradient_checkpointing=False)
    many = work(row_tokens=128)
    before = plan.plan(many, usual, torch.float32, CPU).total
    assert plan.plan(many, dataclasses.replace(usual, **lever), torch.float32, CPU).total < before


def test_four_bits_make_frozen_weights_smaller():
    lora = plan.Levers(lora_r=8)
    before = plan.plan(work(), lora, torch.float32, CPU).kept
    after = plan.plan(work(), dataclasses.replace(lora, load_in_4bit=True), torch.float32, CPU).kept
    assert after < before / 2


def test_passes_are_a_power_of_two_that_has_room_whatever_is_free():
    for machine in (CPU, GPU, dataclasses.replace(CPU, most=4 * GIB)):
        found = plan.plan(work(), plan.Levers(), torch.float32, machine)
        assert found.tokens.bit_count() == 1
        assert found.fits(machine)
        busy = dataclasses.replace(machine, free=GIB)
        assert plan.plan(work(), plan.Levers(), torch.float32, busy) == found
        assert "only 1.0 GiB are free" in plan.lines(found, busy)[1]
    on_gpu = plan.plan(work(), plan.Levers(), torch.float32, GPU)
    assert on_gpu.tokens > plan.plan(work(), plan.Levers(), torch.float32, CPU).tokens
    assert not on_gpu.recompute


def test_activations_are_made_again_where_a_row_would_not_fit_and_an_option_wins():
    pairs = work(row_tokens=1024)
    assert plan.plan(pairs, plan.Levers(), torch.float32, CPU).recompute
    given = plan.Levers(gradient_checkpointing=False, micro_batch_tokens=300)
    found = plan.plan(pairs, given, torch.float32, CPU)
    assert (found.recompute, found.tokens) == (False, 300)


@pytest.mark.parametrize(
    ("config", "roles"),
    [
        (sft.SftConfig(model_name_or_path="{}"), "policy*"),
        (dpo.DpoConfig(model_name_or_path="{}"), "policy* reference"),
        (dpo.DpoConfig(model_name_or_path="{}", lora_r=4), "policy* (reference)"),
        (reward.RewardConfig(model_name_or_path="{}"), "reward*"),
        (rl.RlConfig(model_name_or_path="{}", reward_model="length"), "policy* reference critic*"),
        (
            rl.RlConfig(model_name_or_path="{}", reward_model="0.5*{} + length"),
            "policy* reference reward critic*",
        ),
        (
            rl.RlConfig(model_name_or_path="{}", reward_model="length", lora_r=4),
            "policy* (reference) (critic*)",
        ),
        (rl.RlConfig(model_name_or_path="{}", reward_model="length", algorithm="rloo"), "policy* reference"),
    ],
)  # fmt: skip
def test_who_plays_a_part_in_a_stage(config, roles, real_directory):
    names = {
        name: getattr(config, name)
        for name in ("model_name_or_path", "reward_model")
        if hasattr(config, name)
    }
    config = dataclasses.replace(config, **{k: v.format(real_directory) for k, v in names.items()})
    module = {"SftConfig": sft, "DpoConfig": dpo, "RewardConfig": reward, "RlConfig": rl}[
        type(config).__name__
    ]
    found = []
    for role in module.work_of(config).roles:
        text = role.name + "*" * role.trained
        found.append(text if role.owns_base else f"({text})")
    assert " ".join(found) == roles


def test_what_cannot_fit_is_refused_before_anything_is_loaded(real_directory, tmp_path, monkeypatch):
    """The directory has no weights: whoever tried to load it would say that instead."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"a {i}", "completion": "b"}) + "\n" for i in range(9)))
    config = sft.SftConfig(
        output_dir=str(tmp_path / "sft"),
        model_name_or_path=real_directory,
        dataset_name=str(rows),
        device="cpu",
    )
    monkeypatch.setattr(plan, "machine_memory", lambda: 2.0 * GIB)
    with pytest.raises(
        UsageError, match=r"sft needs 3\.\d GiB, and may have 2\.0 GiB .* with --lora_r 16 \(1"
    ):
        sft.run(config)
    monkeypatch.setattr(plan, "machine_memory", lambda: 0.6 * GIB)
    with pytest.raises(UsageError, match="no setting here makes it fit"):
        sft.run(config)


def test_a_small_model_is_not_planned_for_and_what_was_chosen_is_written(policy_directory, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"a {i}", "completion": "b"}) + "\n" for i in range(30)))
    config = sft.SftConfig(
        output_dir=str(tmp_path / "sft"), model_name_or_path=str(policy_directory), dataset_name=str(rows),
        max_steps=2, check_samples=0, device="cpu",
    )  # fmt: skip
    path = sft.run(config)
    assert "plan:" not in "".join(capsys.readouterr())
    chosen = json.loads((path / "manifest.json").read_text())["chosen"]
    assert chosen["micro_batch_tokens"] == shapes.MOST_TOKENS
    assert chosen["gradient_checkpointing"] is False


def test_what_was_chosen_stays_where_a_stage_goes_on(policy_directory, tmp_path):
    config = sft.SftConfig(
        output_dir=str(tmp_path / "sft"), model_name_or_path=str(policy_directory), device="cpu"
    )
    with Stage("sft", config) as stage:
        assert plan.settled(config, stage, sft.work_of).micro_batch_tokens == shapes.MOST_TOKENS
        stage.begin()
        stage.choose_anew(micro_batch_tokens=64)  # as a GPU's memory ran out
    with Stage("sft", config) as stage:
        again = plan.settled(config, stage, sft.work_of)
        assert (again.micro_batch_tokens, again.gradient_checkpointing) == (64, False)
        given = dataclasses.replace(config, micro_batch_tokens=32)
        assert plan.settled(given, stage, sft.work_of).micro_batch_tokens == 32
    assert Path(config.output_dir).exists()
