"""The stages of a run on a person's own data follow from what the data is; what cannot work is refused before
a model is loaded."""

import json
from pathlib import Path

import pytest

from preferl import cli
from preferl.models import load, tiny
from preferl.pipeline import RunConfig, resolve
from preferl.runs.errors import UsageError
from preferl.stage_choice import with_stages
from small_models import TEXTS, make_language_model

CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
PROMPTS = [{"prompt": f"Name a fruit, number {i}."} for i in range(12)]
PAIRS = [row | {"chosen": "An apple.", "rejected": "A stone."} for row in PROMPTS]
KINDS = {
    "pairs": PAIRS,
    "prompts": PROMPTS,
    "demonstrations": [row | {"completion": "A pear."} for row in PROMPTS],
    "labels": [row | {"completion": "A plum.", "label": i % 2 == 0} for i, row in enumerate(PROMPTS)],
    "both labels": [
        row | {"completion": text, "label": good}
        for row in PROMPTS
        for text, good in (("A plum.", True), ("A stone.", False))
    ],
    "ratings": [row | {"completion": "A fig.", "ratings": {"help": 1.0, "truth": 0.5}} for row in PROMPTS],
}
EVALUATED = ["evaluate", "report"]


@pytest.fixture
def data(tmp_path) -> dict[str, str]:
    """A file of each kind."""
    for kind, rows in KINDS.items():
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {kind: str(tmp_path / f"{kind}.jsonl") for kind in KINDS}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """The same model with a chat template of its own and without."""
    folder = tmp_path_factory.mktemp("models")
    for name, template in (("base", None), ("instruct", CHAT)):
        tokenizer = tiny.train_tokenizer(TEXTS, 300)
        tokenizer.chat_template = template
        load.save(make_language_model("llama", tokenizer), tokenizer, folder / name)
    return {name: str(folder / name) for name in ("base", "instruct")}


@pytest.mark.parametrize(
    ("kind", "options", "model", "stages"),
    [
        ("pairs", {}, None, ["sft", "reward", "rl", *EVALUATED]),
        ("pairs", {}, "base", ["sft", "reward", "rl", *EVALUATED]),
        ("pairs", {}, "instruct", ["reward", "rl", *EVALUATED]),
        ("pairs", {"sft": {"learning_rate": 1e-5}}, "instruct", ["sft", "reward", "rl", *EVALUATED]),
        ("pairs", {"dpo": {"beta": 0.2}}, "instruct", ["reward", "dpo", *EVALUATED]),
        ("pairs", {"rl": {"reward_model": "length"}}, "instruct", ["rl", *EVALUATED]),
        (
            "pairs",
            {"collect": {"annotator": "concise"}},
            "base",
            ["sft", "collect", "reward", "rl", *EVALUATED],
        ),
        ("demonstrations", {}, "instruct", ["sft", "report"]),
        ("demonstrations", {"rl": {"reward_model": "length"}}, "instruct", ["rl", *EVALUATED]),
        ("demonstrations", {"rl": {"reward_model": "length"}}, None, ["sft", "rl", *EVALUATED]),
        ("labels", {}, "instruct", ["dpo", "report"]),
        ("both labels", {}, "instruct", ["dpo", "report"]),
        ("prompts", {"rl": {"reward_model": "length"}}, "base", ["rl", *EVALUATED]),
        (
            "prompts",
            {"collect": {"annotator": "concise"}},
            "instruct",
            ["collect", "reward", "rl", *EVALUATED],
        ),
    ],
)
def test_the_stages_follow_from_the_data(kind, options, model, stages, data, models):
    base = {"model_name_or_path": models[model]} if model else {}
    config, said = with_stages(RunConfig(dataset_name=data[kind], **base, **options))
    assert config.stages == stages
    assert said is not None
    assert ", ".join(stages) in said
    assert "--stages" in said


@pytest.mark.parametrize(
    ("kind", "options", "fix"),
    [
        ("prompts", {}, "--rl.reward_model"),
        ("prompts", {"rl": {"reward_model": "length"}}, "--model_name_or_path"),
        ("prompts", {"rl": {"reward_model": "length"}}, "--columns completion="),
        ("ratings", {}, "--reward.reward_mixture '1*help'"),
    ],
)
def test_what_cannot_work_is_refused_with_what_is_missing(kind, options, fix, data):
    with pytest.raises(UsageError, match="holds") as error:
        with_stages(RunConfig(dataset_name=data[kind], **options))
    assert fix in str(error.value)


def test_stages_that_are_listed_and_the_world_stay(data):
    listed = RunConfig(dataset_name=data["pairs"], stages=["reward"])
    assert with_stages(listed) == (listed, None)
    world = RunConfig(rl={"kl_coef": 0.2})
    assert with_stages(world) == (world, None)


def test_no_stage_has_the_world_because_a_data_set_was_forgotten(data, models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = models["base"]
    for stage in ("sft", "collect", "rl", "best_of"):
        assert cli.main([stage, "--model_name_or_path", base, "--output_dir", f"out-{stage}"]) == 2
        error = capsys.readouterr().err
        assert "no data set is named" in error
        assert "--dataset_name" in error
        assert not (tmp_path / f"out-{stage}").exists()
    assert cli.main(["run", "--model_name_or_path", base]) == 2
    assert "no data set is named" in capsys.readouterr().err
    # Of an own data set the stage rl was not told.
    given = {"stages": ["sft", "rl"], "sft": {"dataset_name": data["demonstrations"]}}
    with pytest.raises(UsageError, match="no data set is named"):
        resolve(RunConfig(**given))
    assert resolve(RunConfig(dataset_name="world", model_name_or_path=base))["sft"].dataset_name == "world"
    assert resolve(RunConfig())["rl"].dataset_name == "world"


def test_the_world_s_truth_is_asked_of_no_other_prompt(data, models, tmp_path, capsys):
    """Before anything is sampled."""
    out = ["--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    given = ["--model_name_or_path", models["base"], "--dataset_name", data["prompts"], *out]
    for command in (
        ["collect", *given],
        ["rl", *given, "--reward_model", "0.5*length + 0.5*world"],
        ["rl", *given, "--reward_model", "length", "--gold", "world"],
        ["best_of", *given, "--reward_model", "world"],
        ["evaluate", *given, "--ref_model", models["base"], "--reward_model", "world"],
    ):
        assert cli.main(command) == 2, command
        error = capsys.readouterr().err
        assert "Name a fruit" in error
        assert "not one of its prompts" in error
        assert "defect" not in error
        assert not (Path(tmp_path / "out") / "samples.jsonl").exists()


def test_an_evaluation_on_few_prompts_is_said_to_tell_little(tmp_path):
    for count, few in ((60, True), (600, False)):
        rows = [row | {"prompt": f"Name a fruit, number {i}."} for i, row in enumerate(PAIRS * (count // 12))]
        (tmp_path / f"{count}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        _, said = with_stages(RunConfig(dataset_name=str(tmp_path / f"{count}.jsonl")))
        assert ("too few to tell all but large gains from chance" in said) == few
