"""What saves memory changes nothing else: each lever on and off has the same loss and the same gradient; and
what a step computes is on one device."""

import dataclasses
import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError, FakeTensorMode
from transformers import AutoModelForSequenceClassification

from preferl.learning import comparisons, fit, learner
from preferl.learning.algorithms import MicroBatch, find_algorithm
from preferl.maths import preference
from preferl.models import output_head, passes
from preferl.models.critic import token_values
from preferl.models.packing import flat_scores
from preferl.sampling.logprobs import distributions, policy_logprobs
from preferl.sampling.samples import Sampling, written_samples
from preferl.stages import dpo, reward, rl, sft
from small_models import make_language_model

LEVERS = {
    "nothing": {},
    "passes by tokens": {"micro_batch_tokens": 64},
    "passes by rows": {"micro_batch_size": 3},
    "activations again": {"gradient_checkpointing": True},
    "all": {"micro_batch_tokens": 64, "micro_batch_size": 3, "gradient_checkpointing": True},
}
PARTS = {"logits by parts": 4 * 300 * 5}  # bytes: five tokens at a time
COMMON = {"device": "cpu", "num_threads": 1, "learning_rate": 1e-3}
FIT = {"train_batch_size": 8, "max_steps": 1, "num_evals": 1, "save_every": 0}
PAIRS = [
    {"prompt": f"Name thing {i}.", "chosen": " It is this one." * (1 + i % 3), "rejected": " I may be wrong."}
    for i in range(30)
]


@pytest.fixture
def case(request, policy_directory, tmp_path, monkeypatch):
    """A stage and its options, by name."""
    path = tmp_path / "rows.jsonl"
    rows, kind = PAIRS, request.param.removesuffix(" with LoRA")
    if kind == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    usual = COMMON | {"model_name_or_path": str(policy_directory), "dataset_name": str(path)}
    usual |= {"lora_r": 4} if kind != request.param else {}
    if kind == "sft":
        return sft, sft.SftConfig(**usual | FIT, check_samples=0)
    if kind == "dpo":
        return dpo, dpo.DpoConfig(**usual | FIT, check_samples=0)
    if kind == "kto":
        return dpo, dpo.DpoConfig(**usual | FIT, check_samples=0, loss_type="kto")
    if kind == "reward":
        return reward, reward.RewardConfig(**usual | FIT, audit=False)
    algorithm = kind.removeprefix("rl ")
    return rl, rl.RlConfig(
        **usual, algorithm=algorithm, reward_model="length", num_iterations=1, batch_size=8,
        num_mini_batches=1, num_ppo_epochs=1, response_length=10, eval_every=0, save_every=0,
    )  # fmt: skip


class Stop(Exception):
    """The gradient is there; nothing more is needed."""


def first_gradient(stage, config, monkeypatch) -> list[torch.Tensor]:
    """The gradients with which the optimisers of a run would make their first step."""
    found = []

    def look(optimizer, max_grad_norm, where):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        found.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        if stage is not rl or config.algorithm != "ppo" or len(found) == 2:
            raise Stop
        return 1.0

    with monkeypatch.context() as patch:
        patch.setattr(fit, "clip_and_step", look)
        patch.setattr(learner, "clip_and_step", look)
        with pytest.raises(Stop):
            stage.run(config)
    return found


@pytest.mark.parametrize(
    "case",
    [
        *("sft", "dpo", "kto", "reward", "rl ppo", "rl rloo", "rl online_dpo"),
        *("sft with LoRA", "dpo with LoRA", "reward with LoRA", "rl ppo with LoRA"),
    ],
    indirect=True,
)
def test_every_lever_leaves_the_gradient_as_it_is(case, tmp_path, monkeypatch):
    stage, config = case
    found = {}
    for name, changes in LEVERS.items():
        out = str(tmp_path / name.replace(" ", "-"))
        torch.manual_seed(0)
        found[name] = first_gradient(
            stage, dataclasses.replace(config, output_dir=out, **changes), monkeypatch
        )
    for name, most in PARTS.items():
        monkeypatch.setattr(output_head, "LOGITS_BYTES", most)
        out = dataclasses.replace(config, output_dir=str(tmp_path / "parts"))
        found[name] = first_gradient(stage, out, monkeypatch)
    whole = found.pop("nothing")
    assert whole[0].abs().max() > 1e-4
    for name, gradients in found.items():
        for gradient, expected in zip(gradients, whole, strict=True):
            largest = float(expected.abs().max())
            torch.testing.assert_close(gradient, expected, atol=1e-5 * largest, rtol=0, msg=f"{name} differs")


def test_a_run_is_that_of_the_whole_batch_whatever_the_passes(policy_directory, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    losses = []
    for number, changes in enumerate(LEVERS.values()):
        config = dpo.DpoConfig(
            **COMMON | FIT | {"max_steps": 3}, **changes, output_dir=str(tmp_path / str(number)),
            model_name_or_path=str(policy_directory), dataset_name=str(rows), check_samples=0,
        )  # fmt: skip
        path = dpo.run(config)
        logged = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["train/loss"] for row in logged if "train/loss" in row])
    assert len(losses[0]) == 3
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], abs=1e-5)


def test_passes_are_as_small_as_asked(policy_directory, tmp_path, monkeypatch):
    """What a pass reads never has more padded tokens than asked, but for a single pair."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    seen = []
    whole = passes.call

    def call(model, ids_BS, *arguments, **options):
        seen.append(tuple(ids_BS.shape))
        return whole(model, ids_BS, *arguments, **options)

    monkeypatch.setattr(passes, "call", call)
    config = dpo.DpoConfig(
        **COMMON | FIT, output_dir=str(tmp_path / "dpo"), model_name_or_path=str(policy_directory),
        dataset_name=str(rows), check_samples=0, micro_batch_tokens=128,
    )  # fmt: skip
    dpo.run(config)
    assert max(rows for rows, _ in seen) > 2
    assert all(rows <= 2 or rows * width <= 128 for rows, width in seen)


# ------------------------------------------------------------------------------------------------ one device


@pytest.fixture
def on_meta(tokenizer, monkeypatch):
    """A language model and one with a scalar head, whose weights are on the meta device, in a mode that
    raises where devices are mixed."""
    real = make_language_model("llama", tokenizer)
    real.config.num_labels = 1
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        with torch.device("meta"):
            language_model = type(real)(real.config).eval()
            scorer = AutoModelForSequenceClassification.from_config(real.config).eval()
        # What is found by trying cannot be tried here: nothing has a value.
        for model in (language_model, scorer.base_model):
            monkeypatch.setitem(passes._respecting, model, True)
        yield mode, language_model, scorer


ROWS = [([3, 4, 5, 6], [7, 8, 1]), ([3, 4], [9, 1]), ([5, 5, 5], [6, 6, 6, 1]), ([2], [3, 1])]


def samples():
    return written_samples(*map(list, zip(*ROWS, strict=True)), 0, Sampling(1.0, 8, (0,), (1,)))


def has_gradient(loss: torch.Tensor, model: torch.nn.Module) -> bool:
    loss.backward()
    return loss.device.type == "meta" and any(p.grad is not None for p in model.parameters())


def test_sft_is_on_one_device(on_meta):
    _, model, _ = on_meta
    rows = [(prompt + response, len(prompt)) for prompt, response in ROWS]
    loss, _ = sft.response_loss(model, *sft.tensors(rows, 0, torch.device("meta")))
    assert has_gradient(loss, model)
    with pytest.raises(FakeTensorDeviceMismatchError):  # the mode sees what it is for
        sft.response_loss(model, *sft.tensors(rows, 0, torch.device("cpu")))


def test_dpo_is_on_one_device(on_meta):
    _, model, _ = on_meta
    logp_B2 = dpo.whole_responses(policy_logprobs(model, samples()))
    reference_B = torch.zeros(2, device="meta")
    loss_B = preference.dpo_loss(logp_B2[:, 0], logp_B2[:, 1], reference_B, reference_B, 0.1)
    assert has_gradient(loss_B.sum(), model)


def test_reward_is_on_one_device(on_meta):
    _, _, model = on_meta
    groups = [[prompt + response, [*prompt, 9, 1]] for prompt, response in ROWS]
    score_GK = flat_scores(model, 0, groups).view(-1, 2)
    mask_GK, rank_GK = torch.ones(4, 2, device="meta"), torch.tensor([[0, 1]] * 4).to("meta")
    scored = comparisons.Scored(score_GK, mask_GK, rank_GK, torch.zeros(4, 2, 2, device="meta"))
    loss_G = comparisons.LOSSES["bradley_terry"].per_comparison(scored, comparisons.ComparisonOptions())
    assert has_gradient(loss_G.sum(), model)


@pytest.mark.parametrize("name", ["ppo", "rloo", "online_dpo"])
def test_rl_is_on_one_device(on_meta, name):
    _, model, critic = on_meta
    part, algorithm = samples(), find_algorithm(name)
    policy = distributions(model, part)
    zeros_BT = torch.zeros(part.mask_BT.shape, device="meta")
    micro = MicroBatch(
        logp_BT=policy.logprobs(),
        old_logp_BT=zeros_BT,
        ref_logp_BT=zeros_BT,
        advantage_BT=zeros_BT,
        mask_BT=part.mask_BT.to("meta"),
        score_PG=torch.zeros(2, 2, device="meta"),
        weight_B=torch.ones(4, device="meta"),
        pairs=2,
        kl_coef=0.1,
    )
    loss, _ = algorithm.over.reduce(algorithm.loss(micro, rl.RlConfig()), micro)
    assert has_gradient(loss + policy.entropy().sum() * 0, model)
    value_BT = token_values(
        critic, part.tokens_BS.to("meta"), part.attention_BS.to("meta"), part.prompt_width
    )
    assert has_gradient(value_BT.sum(), critic)
