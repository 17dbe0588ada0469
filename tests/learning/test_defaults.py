"""Options by the model at hand: where it began, its size, all weights or LoRA; what was given wins."""

import dataclasses
import itertools
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig

from preferl import cli
from preferl.learning import defaults
from preferl.learning.defaults import completed
from preferl.models import load, tiny
from preferl.models.reward import load_reward_model
from preferl.options.defaults import TABLE, Row, Start
from preferl.runs.record import StageRecord
from preferl.stages import reward, sft
from preferl.stages.dpo import DpoConfig
from preferl.stages.reward import RewardConfig
from preferl.stages.rl import RlConfig
from preferl.stages.sft import SftConfig
from small_models import make_language_model

CONFIGS = {"sft": SftConfig, "reward": RewardConfig, "dpo": DpoConfig, "rl": RlConfig}
# What the table decides; nothing else of a stage depends on the model.
OPEN = {
    "sft": {"learning_rate", "train_batch_size"},
    "reward": {"learning_rate", "train_batch_size"},
    "dpo": {"learning_rate", "train_batch_size"},
    "rl": {"learning_rate", "critic_learning_rate", "kl_coef", "batch_size"},
}
CPU = torch.device("cpu")
QUICK = ["--device", "cpu", "--num_threads", "1"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, tokenizer) -> Path:
    """A model that says nothing of where it began, as any that others publish."""
    path = tmp_path_factory.mktemp("pretrained")
    model = make_language_model("llama", tokenizer)
    delattr(model.config, tiny.ORIGIN)
    load.save(model, tokenizer, path)
    assert tiny.ORIGIN not in json.loads((path / "config.json").read_text())
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": f"Name thing {i}.", "chosen": "Thanks, this.", "rejected": "No."} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_table_decides_for_every_start_and_leaves_nothing_open(kind):
    for new, lora, size in itertools.product((True, False), (True, False), (1e5, 1e8, 5e9, 5e10)):
        config = completed(kind, CONFIGS[kind](), Start(new, int(size), lora))
        values = {name: getattr(config, name) for name in OPEN[kind]}
        assert None not in values.values()
        untouched = dataclasses.asdict(CONFIGS[kind]()) | values
        assert dataclasses.asdict(config) == untouched


def test_the_small_world_has_the_rates_that_its_numbers_were_made_with():
    new = Start(True, 1_000_000)
    assert completed("sft", SftConfig(), dataclasses.replace(new, untrained=True)).learning_rate == 4e-3
    assert completed("sft", SftConfig(), new).learning_rate == 1e-3
    assert completed("reward", RewardConfig(), new).learning_rate == 1e-3
    assert completed("reward", RewardConfig(), new).train_batch_size == 16
    assert completed("dpo", DpoConfig(), new).learning_rate == 3e-4
    rl = completed("rl", RlConfig(), new)
    assert (rl.learning_rate, rl.critic_learning_rate, rl.kl_coef, rl.batch_size) == (5e-4, 5e-4, 0.1, 128)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_pretrained_model_moves_by_less_the_larger_it_is_and_lora_weights_by_more(kind):
    rates, lora = (
        [
            completed(kind, CONFIGS[kind](), Start(False, int(n), kind_)).learning_rate
            for n in (1e8, 5e9, 5e10)
        ]
        for kind_ in (False, True)
    )
    assert sorted(rates, reverse=True) == rates
    assert rates[0] <= 2e-5
    assert lora == [pytest.approx(10 * rate) for rate in rates]


def test_what_was_given_stays():
    given = RlConfig(learning_rate=7e-6, kl_coef=0.0, batch_size=12)
    config = completed("rl", given, Start(False, 10**8))
    assert (config.learning_rate, config.kl_coef, config.batch_size) == (7e-6, 0.0, 12)
    left = completed("rl", RlConfig(), Start(False, 10**8), leave=("critic_learning_rate",))
    assert left.critic_learning_rate is None


def row_in_docs(row: Row) -> str:
    """A row of the table as docs/models.md has it."""
    size = f"below {row.below / 1e9:g} B" if math.isfinite(row.below) else "any other"
    if row.start != "pretrained":
        size = "any"
    batch = row.values.get("train_batch_size") or row.values["batch_size"]
    coef = f"{row.values['kl_coef']:g}" if "kl_coef" in row.values else ""
    lora = f"{row.lora:g}" if row.lora else "the same"
    behind = f"; LoRA: {row.lora_source}" if row.lora else ""
    cells = [row.stage, row.start, size, f"{row.values['learning_rate']:g}", lora, f"{batch:g}", coef]
    return f"| {' | '.join(cells)} | {row.source}{behind} |"


def test_the_documents_have_the_table():
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    section = text.split("## Defaults by the model at hand")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if re.match(r"\| (sft|reward|dpo|rl) ", line)]
    assert rows == [row_in_docs(row) for row in TABLE]


# --------------------------------------------------------------------------------------- where a model began


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_where_a_model_began_is_kept_by_what_is_trained_from_it_and_in_copies(
    pooling, tmp_path, policy_directory, pairs
):
    config = RewardConfig(
        model_name_or_path=str(policy_directory), dataset_name=str(pairs), output_dir=str(tmp_path / "rm"),
        num_train_epochs=1, num_evals=1, audit=False, device="cpu", num_threads=1, pooling=pooling,
    )  # fmt: skip
    made = reward.run(config)
    assert StageRecord(made).config["learning_rate"] == 1e-3
    copy = shutil.copytree(made / "model", tmp_path / "copied")
    assert getattr(AutoConfig.from_pretrained(copy), tiny.ORIGIN) == tiny.NEW
    model, _ = load_reward_model(str(copy), CPU)
    assert defaults.start_of(model, str(copy)).new


def test_a_model_of_an_older_preferl_is_known_by_the_stages_that_made_it(tmp_path):
    made = sft.run(
        SftConfig(output_dir=str(tmp_path / "sft"), max_rows=40, max_steps=1, num_evals=1, check_samples=0,
                  hidden_size=16, num_heads=2, vocab_size=300, device="cpu", num_threads=1)
    )  # fmt: skip
    further = sft.run(
        SftConfig(model_name_or_path=str(made), output_dir=str(tmp_path / "more"), dataset_name="world",
                  max_rows=40, max_steps=1, num_evals=1, check_samples=0, device="cpu", num_threads=1)
    )  # fmt: skip
    assert StageRecord(made).config["learning_rate"] == 4e-3
    assert StageRecord(further).config["learning_rate"] == 1e-3
    for stage in (made, further):
        file = stage / "model" / "config.json"
        plain = json.loads(file.read_text())
        assert plain.pop(tiny.ORIGIN) == tiny.NEW
        file.write_text(json.dumps(plain))
    for name in (made, further, further / "model"):
        model, _ = load.load_policy(str(name), CPU)
        assert defaults.start_of(model, str(name)).new
        assert getattr(model.config, tiny.ORIGIN) == tiny.NEW  # and says so from now on
    copied = shutil.copytree(further / "model", tmp_path / "copied")  # nothing tells any more
    assert not defaults.start_of(load.load_policy(str(copied), CPU)[0], str(copied)).new


def test_an_sft_of_a_pretrained_model_leaves_it_pretrained(tmp_path, pretrained, pairs):
    made = sft.run(
        SftConfig(model_name_or_path=str(pretrained), dataset_name=str(pairs), max_steps=1, num_evals=1,
                  output_dir=str(tmp_path / "sft"), check_samples=0, device="cpu", num_threads=1)
    )  # fmt: skip
    assert StageRecord(made).config["learning_rate"] == 2e-5
    assert not defaults.start_of(load.load_policy(str(made), CPU)[0], str(made)).new


# ---------------------------------------------------------------------------------------------- in the stages


def rl_options(model, pairs):
    """One iteration of rl, as flags."""
    named = ["--model_name_or_path", str(model), "--dataset_name", str(pairs), "--reward_model", "length"]
    sizes = ["--response_length", "6", "--num_iterations", "1", "--batch_size", "8", "--eval_every", "0"]
    return [*named, *sizes]


def test_a_stage_says_what_it_chose_and_why_and_records_it_beside_what_was_given(
    tmp_path, pretrained, pairs, capsys
):
    options = rl_options(pretrained, pairs)
    assert cli.main(["rl", *options, *QUICK, "--output_dir", str(tmp_path / "rl")]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"rl: learning_rate 1e-05, critic_learning_rate 1e-05, kl_coef 0.05 by default: pretrained, 0\.0 M "
        r"parameters, all weights trained \(Ziegler et al. 2019",
        said,
    )
    assert yaml.safe_load((tmp_path / "rl" / "config.yaml").read_text())["learning_rate"] is None
    chosen = json.loads((tmp_path / "rl" / "manifest.json").read_text())["chosen"]
    assert (chosen["learning_rate"], chosen["kl_coef"]) == (1e-5, 0.05)
    assert "batch_size" not in chosen
    assert StageRecord(tmp_path / "rl").config["kl_coef"] == 0.05
    lora = ["--lora_r", "2", "--algorithm", "rloo", "--output_dir", str(tmp_path / "lora")]
    assert cli.main(["rl", *options, *lora, *QUICK]) == 0
    assert "rl: learning_rate 0.0001, kl_coef 0.05 by default" in capsys.readouterr().out
    # The same command again: it is finished, whatever was chosen.
    assert cli.main(["rl", *options, *lora, *QUICK]) == 0
    assert "finished before" in capsys.readouterr().out


def test_a_rate_that_is_given_for_the_policy_is_the_critics_too(tmp_path, pretrained, pairs):
    options = rl_options(pretrained, pairs)
    given = ["--learning_rate", "3e-4", "--output_dir", str(tmp_path / "rl")]
    assert cli.main(["rl", *options, *given, *QUICK]) == 0
    chosen = json.loads((tmp_path / "rl" / "manifest.json").read_text())["chosen"]
    assert not {"learning_rate", "critic_learning_rate"} & chosen.keys()


def test_an_interrupted_stage_goes_on_with_what_was_chosen_for_it(tmp_path, pretrained, pairs, monkeypatch):
    config = DpoConfig(
        model_name_or_path=str(pretrained), dataset_name=str(pairs), output_dir=str(tmp_path / "dpo"),
        num_train_epochs=2.0, save_every=1, num_evals=1, check_samples=0, response_length=6, device="cpu",
        num_threads=1, lr_scheduler_type="constant", warmup_ratio=0.0,
    )  # fmt: skip
    from preferl.stages import dpo

    def stop(step, row):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dpo.run(config, callbacks=[stop])
    # A preferl of another table would choose another rate and smaller batches now: three pairs in each.
    changed = {"learning_rate": 0.5, "train_batch_size": 3}
    other = [dataclasses.replace(row, values=row.values | changed) for row in TABLE]
    monkeypatch.setattr(defaults, "TABLE", tuple(other))
    path = dpo.run(config)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    rates = [row["learning_rate"] for row in rows if row["step"]]
    assert rates == [1e-6] * len(rates)
    assert len(rates) in (4, 6)  # of at most 40 pairs, 16 in each; with three there would be more than 20
