"""LoRA and QLoRA in every stage that trains: what moves, what is shared, and what is written."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from preferl.learning import models
from preferl.models import load
from preferl.models.reward import RewardModel, load_reward_model
from preferl.runs.errors import UsageError
from preferl.stages import dpo, evaluate, reward, rl, sft
from small_models import write_pairs

CPU = torch.device("cpu")
SMALL = {"num_threads": 1, "device": "cpu", "lora_r": 4, "response_length": 8}


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    return str(write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl"))


@pytest.fixture
def options(tmp_path, policy_directory, pairs_file):
    own = {"model_name_or_path": str(policy_directory), "dataset_name": pairs_file}
    return SMALL | own | {"output_dir": str(tmp_path / "stage"), "max_steps": 12, "train_batch_size": 8}


def summary_of(path):
    return json.loads((path / "summary.json").read_text())


def merged_by_hand(base, path):
    """W + (alpha / r) B A of every adapted layer, from the files."""
    config = json.loads((path / "adapter" / "adapter_config.json").read_text())
    adapter = load_file(path / "adapter" / "adapter_model.safetensors")
    tensors = dict(base.state_dict())
    for name, down in adapter.items():
        if name.endswith("lora_A.weight"):
            up = adapter[name.replace("lora_A", "lora_B")]
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") + ".weight"
            tensors[layer] = tensors[layer] + config["lora_alpha"] / config["r"] * (up @ down)
    return tensors


@pytest.mark.parametrize("in_4bit", [False, True])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_language_model_trains_lora_weights(options, stage, in_4bit, policy_directory, capsys):
    """The loss falls, the adapter is written, and model/ is the unquantised base with it merged in."""
    module, kind = (sft, sft.SftConfig) if stage == "sft" else (dpo, dpo.DpoConfig)
    config = kind(**options, learning_rate=2e-2, load_in_4bit=in_4bit, check_samples=8, num_evals=12)
    path = module.run(config)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["dev/loss"] for row in rows if "dev/loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    base = load.load_policy(str(policy_directory), CPU)[0]
    written = AutoModelForCausalLM.from_pretrained(path / "model").state_dict()
    expected = merged_by_hand(base, path)
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(written[name], tensor, atol=1e-6, rtol=1e-5)
    moved = [name for name, t in base.state_dict().items() if not torch.equal(t, written[name])]
    assert moved
    assert all("_proj" in name for name in moved)
    notes = json.loads((path / "adapter" / "preferl.json").read_text())
    assert notes["load_in_4bit"] == in_4bit
    assert ("merged into" in " ".join(capsys.readouterr().out.split())) == in_4bit
    if stage == "dpo":
        checks = summary_of(path)["checks"]
        assert checks[0].startswith("log-ratios before the first update")


def test_adapted_layers_are_those_named(options):
    path = sft.run(sft.SftConfig(**options, lora_target_modules=["q_proj", "up_proj"], check_samples=0))
    names = load_file(path / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in names} == {"q_proj", "up_proj"}


@pytest.mark.parametrize("module", [sft, dpo, reward])
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"lora_target_modules": ["c_attn"]}, "no linear layer that is called so; there are down_proj, gate"),
        ({"lora_r": 0, "lora_target_modules": ["q_proj"]}, "give --lora_r too"),
        ({"lora_r": 0, "load_in_4bit": True}, "give --lora_r 16 as well"),
        ({"optim": "adam_8bit"}, "use adamw or adamw_8bit"),
    ],
)
def test_what_cannot_be_is_one_sentence(options, module, changes, text):
    kind = {sft: sft.SftConfig, dpo: dpo.DpoConfig, reward: reward.RewardConfig}[module]
    with pytest.raises(UsageError, match=text):
        module.run(kind(**options | changes))


def test_lora_on_a_model_that_is_yet_to_be_made_is_refused(options):
    with pytest.raises(UsageError, match="give --model_name_or_path"):
        sft.run(sft.SftConfig(**options | {"model_name_or_path": None}))


@pytest.fixture(scope="module")
def quantised(tmp_path_factory, policy_directory):
    """A directory in which a model is stored in four bits, as bitsandbytes saves it."""
    path = tmp_path_factory.mktemp("quantised")
    model = AutoModelForCausalLM.from_pretrained(
        policy_directory,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        device_map="cpu",
    )
    model.save_pretrained(path)
    load.load_tokenizer(str(policy_directory)).save_pretrained(path)
    return path


def test_a_model_stored_quantised_is_not_trained_as_a_whole(options, quantised):
    whole = options | {"lora_r": 0, "model_name_or_path": str(quantised)}
    with pytest.raises(UsageError, match=r"stored quantised \(bitsandbytes\).*--lora_r 16"):
        sft.run(sft.SftConfig(**whole))
    path = sft.run(sft.SftConfig(**options | {"model_name_or_path": str(quantised)}, check_samples=4))
    assert (path / "adapter" / "adapter_model.safetensors").exists()
    # No unquantised model is there to merge it into: the weights are dequantised.
    kept = {t.dtype for t in load_file(path / "model" / "model.safetensors").values()}
    assert kept == {torch.float32}


def test_a_start_that_is_an_adapter_cannot_be_quantised(options):
    path = sft.run(sft.SftConfig(**options, check_samples=0))
    again = options | {"model_name_or_path": str(path / "adapter"), "output_dir": options["output_dir"] + "2"}
    with pytest.raises(UsageError, match="start from the merged one"):
        dpo.run(dpo.DpoConfig(**again, load_in_4bit=True))
    # The merged one is what a stage's directory stands for.
    whole = again | {"model_name_or_path": str(path)}
    dpo.run(dpo.DpoConfig(**whole, load_in_4bit=True, check_samples=0))


def test_four_roles_stand_on_one_quantised_base(options, tmp_path, policy_directory, pairs_file):
    """A reward model trained on the quantised base is on it in rl too; one of the whole base is not."""
    rewards = {
        in_4bit: reward.run(
            reward.RewardConfig(
                **options | {"output_dir": str(tmp_path / f"reward-{in_4bit}")},
                load_in_4bit=in_4bit,
                learning_rate=1e-2,
                audit=False,
            )
        )
        for in_4bit in (True, False)
    }
    config = rl.RlConfig(
        **SMALL,
        output_dir=str(tmp_path / "rl"),
        model_name_or_path=str(policy_directory),
        reward_model=str(rewards[True]),
        dataset_name=pairs_file,
        load_in_4bit=True,
        num_iterations=2,
        batch_size=16,
        learning_rate=1e-2,
        eval_prompts=4,
    )
    loaded, _, scorer = models.load_models(config, True, CPU)
    used = models.memory(loaded, scorer)
    assert used["reference"]["weights_mib"] == 0
    assert used["reward"]["weights_mib"] < 0.5 * used["policy"]["weights_mib"]
    path = rl.run(config)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert rows[1]["train/kl"] == pytest.approx(0, abs=1e-4)
    assert rows[2]["train/first_ratio_error"] < 1e-4
    assert rows[2]["train/kl"] != 0
    assert (path / "value_adapter" / "adapter_model.safetensors").exists()
    base = load.load_policy(str(policy_directory), CPU)[0]
    written = AutoModelForCausalLM.from_pretrained(path / "model").state_dict()
    for name, tensor in merged_by_hand(base, path).items():
        torch.testing.assert_close(written[name], tensor, atol=1e-6, rtol=1e-5)

    apart = dataclasses.replace(config, reward_model=str(rewards[False]))
    loaded, _, scorer = models.load_models(apart, True, CPU)
    used = models.memory(loaded, scorer)
    assert used["reward"]["weights_mib"] > 0.5 * used["policy"]["weights_mib"]


def test_a_reward_model_of_qlora_scores_as_its_adapter_on_the_whole_base(options, policy_directory):
    path = reward.run(
        reward.RewardConfig(**options, load_in_4bit=True, learning_rate=1e-2, audit=False, num_evals=2)
    )
    prompts, texts = ["Tell me."] * 2, ["Thanks, it is nice.", "No! It is bad."]
    whole = RewardModel.load(str(path), "cpu")(prompts, texts)
    put_together = RewardModel(*load_reward_model(str(path / "adapter"), CPU))(prompts, texts)
    assert whole == pytest.approx(put_together, abs=1e-4)
    assert whole[0] > whole[1]


def test_a_base_in_bfloat16_stays_so_and_the_kl_begins_at_zero(tmp_path, tokenizer, pairs_file):
    """Policy and reference compute in float32 from the weights as they are stored, whichever of them is
    trained; what is merged is stored as the base was."""
    from small_models import make_language_model

    start = tmp_path / "start" / "model"
    load.save(make_language_model("qwen3", tokenizer).to(torch.bfloat16), tokenizer, start)
    for lora_r in (0, 4):
        config = rl.RlConfig(
            **SMALL | {"lora_r": lora_r},
            output_dir=str(tmp_path / f"rl-{lora_r}"),
            model_name_or_path=str(tmp_path / "start"),
            reward_model="length",
            dataset_name=pairs_file,
            algorithm="rloo",
            num_iterations=2,
            batch_size=16,
            learning_rate=1e-2,
            eval_prompts=4,
        )
        path = rl.run(config)
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert abs(rows[1]["train/kl"]) < 1e-4
        assert rows[1]["train/first_ratio_error"] < 1e-4
        kept = {t.dtype for t in load_file(path / "model" / "model.safetensors").values()}
        assert kept == {torch.bfloat16 if lora_r else torch.float32}
        used = summary_of(path)["memory"]
        whole = 4 * load.parameter_count(load.load_policy(str(path), CPU)[0]) / 2**20
        assert used["reference" if lora_r == 0 else "policy"]["weights_mib"] < 0.7 * whole


def test_evaluate_says_that_the_training_sampled_the_quantised_model(options, policy_directory, tmp_path):
    path = sft.run(sft.SftConfig(**options, load_in_4bit=True, check_samples=0))
    measured = evaluate.run(
        evaluate.EvaluateConfig(
            output_dir=str(tmp_path / "evaluate"),
            model_name_or_path=str(path),
            ref_model=str(policy_directory),
            reward_model="length",
            dataset_name=options["dataset_name"],
            best_of=[],
            response_length=8,
            num_threads=1,
            device="cpu",
        )
    )
    assert any("adapter merged into the model as it is stored" in n for n in summary_of(measured)["notes"])
