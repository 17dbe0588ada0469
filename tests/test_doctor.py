"""``preferl doctor --config``: what each stage will take, before there is anything to take it."""

import json

import pytest
import torch
import yaml
from transformers import AutoConfig

from preferl import cli, doctor
from preferl.models import plan, tiny

GIB = 2**30


@pytest.fixture
def model(tmp_path) -> str:
    """The configuration of a model of 135 million parameters, without weights."""
    AutoConfig.for_model(
        "llama", vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, intermediate_size=1536, tie_word_embeddings=True,
    ).save_pretrained(tmp_path / "model")  # fmt: skip
    return str(tmp_path / "model")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """The probe of this machine's speed ends at once."""
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.01)


def written(path, **options) -> str:
    path.write_text(yaml.safe_dump(options))
    return str(path)


def test_every_training_stage_of_a_run_is_planned_though_none_is_there(model, tmp_path, capsys):
    file = written(
        tmp_path / "run.yaml",
        output_dir=str(tmp_path / "run"),
        model_name_or_path=model,
        dataset_name="world",
        stages=["sft", "collect", "reward", "rl"],
        sft={"max_steps": 3},
        rl={"lora_r": 8, "device": "cpu"},
    )
    assert cli.main(["doctor", "--config", file]) == 0
    said = "".join(capsys.readouterr())
    for stage in ("sft", "reward", "rl"):  # what collect makes is no model
        assert f"{stage}: plan: " in said
    assert "passes over a row (a gradient counts two): policy 7, reference 1, reward 1, critic 7" in said
    assert "hours for 48 rows" in said
    assert "hours for each 1,000 rows" in said  # of the reward model: its pairs are not there yet


def test_a_run_that_names_no_stages_is_planned_as_it_will_be_run(model, tmp_path, capsys):
    pairs = [{"prompt": f"Thing {i}?", "chosen": "Yes.", "rejected": "No."} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    tiny.train_tokenizer([row["prompt"] for row in pairs], 300).save_pretrained(
        model
    )  # a stage looks into it
    file = written(
        tmp_path / "run.yaml", model_name_or_path=model, dataset_name=str(tmp_path / "pairs.jsonl"),
        dpo={"max_steps": 2, "lora_r": 4}, device="cpu",
    )  # fmt: skip
    assert cli.main(["doctor", "--config", file]) == 0
    said = capsys.readouterr().out
    assert "holds comparisons, and there are options of dpo" in said
    assert "dpo: plan: " in said
    assert "rl: plan: " not in said


def test_one_stage_that_does_not_fit_is_a_problem_with_what_would(model, tmp_path, capsys, monkeypatch):
    file = written(tmp_path / "dpo.yaml", model_name_or_path=model, max_steps=2, device="cpu")
    monkeypatch.setattr(plan, "machine_memory", lambda: 2.5 * GIB)
    assert cli.main(["doctor", "--config", file, "--stage", "dpo"]) == 1
    said = "".join(capsys.readouterr())
    assert "problem: dpo needs 3." in said
    assert "it would with --lora_r 16" in said
    assert "reference" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "{}"], "say of which with --stage"),
        (["--config", "{}", "--stage", "audit"], "trains nothing and has no plan"),
        (["--config", "none.yaml"], "none.yaml is no file"),
        (["--stages"], "takes --config FILE and --stage NAME, and no --stages"),
    ],
)
def test_what_is_no_configuration_is_refused(arguments, message, tmp_path, capsys):
    file = written(tmp_path / "one.yaml", max_steps=2)
    assert cli.main(["doctor", *(text.format(file) for text in arguments)]) == 2
    assert message in "".join(capsys.readouterr())


def test_a_busy_machine_is_told_how_many_threads_help(monkeypatch):
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (0.2, 0.0, 0.0))
    assert doctor.busy_line(2) == ""
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (5.2, 0.0, 0.0))
    assert doctor.busy_line(8) == ""  # there is room
    assert "5.2 of 4 cores" in doctor.busy_line(4)
    assert "--num_threads 1 is faster than 4" in doctor.busy_line(4)


def test_what_is_not_installed_is_said_with_what_it_is_for(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "is_installed", lambda name: name != "bitsandbytes")
    assert doctor.extra_lines() == [
        "not installed: bitsandbytes (QLoRA and AdamW in eight bits); pip install 'preferl[quant]'"
    ]
    assert set(doctor.packages_of("label")) >= {"fastapi", "uvicorn", "sqlalchemy"}
    doctor.main()
    said = capsys.readouterr().out
    assert "bitsandbytes" in said
    assert "GiB free of" in said


def test_a_gpu_that_torch_does_not_see_is_a_problem_with_the_remedy(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.gpu_without_torch() == []
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", None)
    (problem,) = doctor.gpu_without_torch()
    assert "pip install --force-reinstall torch" in problem
