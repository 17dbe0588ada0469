"""The card of a run: what it says is what the run's files say, and nothing in it is private or markup."""

import json
import shlex
import sys

import pytest
import yaml
from huggingface_hub import ModelCard

from preferl import cli
from preferl.options.rl import RlConfig as RL
from preferl.reporting.gather import finished_stages
from preferl.reporting.markdown import cell
from preferl.reporting.verdict import verdict
from preferl.runs.config import instantiate, parser_for
from preferl.runs.errors import UsageError
from preferl.runs.record import read_config
from preferl.share.card import common, license_of, model_card
from preferl.share.private import Names, Private, local_names
from preferl.share.subject import read
from preferl.stages import report

PRIVATE = ("adalovelace", "gpu-box-17", "/home", "/tmp", "my_runs", r"my\_runs", "llm.internal")


def card_of(run, stage=None, **more) -> ModelCard:
    return ModelCard(str(model_card(read(run.path, stage), **more)))


def test_its_front_matter_says_what_the_hub_looks_for(run):
    data = card_of(run, title="ann/polite", license="mit").data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "text-generation", "mit")
    assert data.base_model == "org/base"
    assert data.datasets == ["org/talk"]
    assert {"preferl", "rlhf", "rloo"} <= set(data.tags)
    assert data.model_name == "polite"
    values = {result.metric_name: result.metric_value for result in data.eval_results}
    assert values["win rate against the start by gold reward, 95 % interval [0.540, 0.740]"] == 0.64
    assert values["KL to the start, nats per response"] == 3.46
    assert {result.dataset_type for result in data.eval_results} == {"org/talk"}


def test_it_says_how_it_was_made_and_what_came_out(run):
    text = card_of(run).text
    found = verdict(finished_stages(run.path))
    assert f"**{cell(found.word)}.** {cell(found.text)}" in text
    assert "RLOO against the reward “reward” under a KL penalty of 0.05 (fixed)" in text
    assert "[org/base](https://huggingface.co/org/base) (0123456789abcdef)" in text
    assert "| reward | 3 pairs, 2 updates | " in text
    assert "dataset\\_name: labels of people.jsonl (0123456789abcdef)" in text
    assert "labels of people.jsonl: 4 of 4 rows used" in text
    assert "| win rate by gold reward | 64.0" in text
    assert "Signs of gaming that rose beyond noise: none." in text
    assert "another temperature than 0.7" in text
    assert "| the model org/base | not known to preferl: look |" in text
    again = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert again["rl"] == {"algorithm": "rloo", "kl_coef": 0.05}
    assert "preferl run --config config.yaml" in text


def test_nothing_in_it_is_private(run):
    for stage in (None, "reward", "sft"):
        text = str(card_of(run, stage))
        assert not [word for word in PRIVATE if word in text], stage
    assert "judge:https://[server]/v1\\#large" not in text  # an option that the card does not show


def test_a_reward_model_has_a_card_of_its_own(run):
    card = card_of(run, "reward")
    assert "AutoModelForSequenceClassification" in card.text
    assert "reward-model" in card.data.tags
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("accuracy", 0.8)]
    assert "| rl |" not in card.text
    assert "KL penalty" not in card.text


def test_foreign_text_is_no_markup(run):
    """Names of a run, of rewards and of notes come from others."""
    evil = "<img src=x onerror=xss()> | **b** [a](javascript:xss) ```"
    config = read_config(run.path / "rl") | {"reward_model": evil}
    (run.path / "rl" / "config.yaml").write_text(yaml.safe_dump(config))
    summary = json.loads((run.path / "reward" / "summary.json").read_text()) | {"notes": [evil]}
    (run.path / "reward" / "summary.json").write_text(json.dumps(summary))
    given = yaml.safe_load((run.path / "config.yaml").read_text()) | {"phrases": {"x": ["````"]}}
    (run.path / "config.yaml").write_text(yaml.safe_dump(given))
    text = card_of(run, title="ann/x").text
    before, code, after = text.split("`````")
    assert "````" in code  # which does not end its block
    assert "<img" not in before + after
    assert "](javascript" not in before + after
    assert before.count("| **b**") == 0


def test_commands_of_stages_by_themselves_give_their_options_back(run):
    """Of a stage's directory there is no configuration of a run."""
    text = str(model_card(read(run.path / "rl")))
    (line,) = [line for line in text.splitlines() if line.startswith("preferl rl ")]
    words = shlex.split(line)[2:]
    parser = parser_for(RL, "rl", "", words)
    found = instantiate(parser, RL, parser.parse_args(words))
    assert (found.algorithm, found.kl_coef, found.dataset_name) == ("rloo", 0.05, "org/talk")
    assert (found.model_name_or_path, found.reward_model) == ("sft", "reward")


def test_licences_are_those_that_cards_name(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\nText.\n")
    assert license_of("pairs.jsonl", tmp_path / "pairs.jsonl", "dataset") == "cc-by-4.0"
    assert license_of("folder", tmp_path, "model") == "cc-by-4.0"
    (tmp_path / "README.md").write_text("---\nlicense: [1\n---\n")
    assert license_of("folder", tmp_path, "model") is None
    assert license_of("org/never-seen", None, "model") is None
    assert common([("a", "mit"), ("b", "mit")]) == "mit"
    assert common([("a", "mit"), ("b", None)]) == common([("a", "mit"), ("b", "gpl")]) == "unknown"


def test_which_model_is_meant(run):
    assert read(run.path).record.path.name == "rl"
    assert read(run.path / "reward").record.kind == "reward"
    assert [name for name, _ in read(run.path, "reward").steps()] == ["sft", "reward"]
    with pytest.raises(UsageError, match="no finished stage critic; those with a model are reward, rl, sft"):
        read(run.path, "critic")
    with pytest.raises(UsageError, match="has no adapter/; it has model, value_model"):
        read(run.path, part="adapter")
    with pytest.raises(UsageError, match="none made a model"):
        read(run.path / "evaluate")


def test_two_paths_never_get_one_name(tmp_path):
    names = Names()
    for text in ("/a/pairs.jsonl", "/b/pairs.jsonl", "/a/pairs.jsonl"):
        names.add(text, tmp_path / text.strip("/"))
    assert names.of_text == {"/a/pairs.jsonl": "pairs.jsonl", "/b/pairs.jsonl": "pairs.jsonl-2"}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("0.5*/srv/x/rewards/a + 0.5*concise", "0.5*a + 0.5*concise"),
        (r"in /srv/my\_x/rewards: 3 rows", "in rewards: 3 rows"),
        ("in /srv/a&amp;b/c now", "in c now"),
        ("ask http://10.0.0.7:8000/v1", "ask https://[server]/v1"),
        ("token hf_abcdefghijklmnopqrst here", "token [key] here"),
        (r"token hf\_abcdefghijklmnopqrst here", "token [key] here"),
        ("judges-own-secret-value", "[key]"),
        ("and/or, 1/2, https://huggingface.co/a/b", "and/or, 1/2, https://huggingface.co/a/b"),
        ("adalovelace@gpu-box-17", "[user]@[machine]"),
    ],
)
def test_what_stands_in_place_of_what_is_private(home, text, clean):
    names = {"/srv/x/rewards/a": "a", "/srv/my_x/rewards": "rewards", "/srv/a&b/c": "c"}
    private = Private(names | {"http://10.0.0.7:8000": "https://[server]"})
    assert private.clean(text) == clean
    assert not private.found_in(private.clean(text))
    if text != clean:
        assert private.found_in(text) or "10.0.0.7" in text


def test_paths_are_found_where_stages_write_them(run):
    names = local_names(run.path, list(finished_stages(run.path).values()))
    assert names[str(run.path / "rl")] == "rl"
    assert names[str(run.home / "labels of people.jsonl")] == "labels of people.jsonl"
    assert names["http://llm.internal.example:8000"] == "https://[server]"
    assert not {"/", "org/base", "world"} & names.keys()


def test_the_report_still_shows_paths_here(run):
    """Only what is shared is without them: on this machine one wants to know where things lie."""
    options = dict(report.configs(report.read([run.path]).runs))["reward"]
    assert str(run.home / "labels of people.jsonl") in options


def test_on_a_terminal_it_does_nothing_to_it(run, capsys, monkeypatch):
    summary = json.loads((run.path / "reward" / "summary.json").read_text()) | {"notes": ["evil\x1b[2J"]}
    (run.path / "reward" / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["card", str(run.path)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_the_command_prints_or_writes_it(run, capsys):
    assert cli.main(["card", str(run.path)]) == 0
    printed = capsys.readouterr().out
    assert printed == str(model_card(read(run.path)))
    assert cli.main(["card", "my_runs/polite", "--output", "CARD.md", "--license", "mit"]) == 0
    assert ModelCard((run.home / "CARD.md").read_text()).data.license == "mit"
    assert cli.main(["card", "my_runs/polite", "--output", "CARD.md"]) == 2
    assert "--fresh" in capsys.readouterr().err
    assert cli.main(["card", "my_runs/polite", "--publik"]) == 2
    assert "no option --publik" in capsys.readouterr().err
