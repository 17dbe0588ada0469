"""The whole pipeline, small: every stage, its files, going on after an interruption, and the report."""

import itertools
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import yaml

from preferl import cli, pipeline, resolved
from preferl.options.defaults import TABLE
from preferl.pipeline import RunConfig
from preferl.reporting.formats import percent, with_interval
from preferl.reporting.gather import finished_stages
from preferl.reporting.verdict import verdict
from preferl.runs.errors import UsageError
from preferl.runs.record import StageRecord, stage_records
from preferl.share.card import model_card
from preferl.share.options import PushOptions
from preferl.share.push import push
from preferl.share.subject import read
from preferl.stages import report, reward, sft
from preferl.stages.evaluate import EvaluateConfig, training_signals
from preferl.stages.rl import RlConfig
from preferl.statistics.intervals import Estimate
from summaries import repeatable
from xss import FOREIGN, PAYLOADS, WATCH

TINY_SFT = {
    "hidden_size": 32,
    "num_heads": 4,
    "vocab_size": 600,
    "num_train_epochs": 0.3,
    "check_samples": 16,
    "num_evals": 2,
}


def small(root, **changes) -> RunConfig:
    """The demo in a few seconds: everything is there, little is learned."""
    config = RunConfig(
        output_dir=str(root / "run"),
        num_threads=1,
        device="cpu",
        response_length=24,
        temperature=0.8,
        sft=TINY_SFT,
        collect={"pairs": {"train": 96, "dev": 24, "rl": 8, "eval": 48}},
        reward={"num_evals": 2},
        rl={"num_iterations": 2, "batch_size": 8, "eval_prompts": 4},
        evaluate={"max_eval_prompts": 24, "best_of_prompts": 8, "best_of": [2, 4]},
    )
    return config.changed(changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished small run."""
    root = tmp_path_factory.mktemp("small")
    config = small(root)
    return config, pipeline.run(config).parent


def test_every_stage_leaves_its_files(finished):
    _, run = finished
    records = dict(stage_records(run))
    assert list(records) == ["sft", "collect", "reward", "rl", "evaluate"]
    for name, record in records.items():
        assert record.done, name
        assert record.summary["seconds"] > 0
        assert record.config["seed"] == 0
        assert record.manifest["environment"]["packages"]["torch"]
    for name in ("sft", "reward", "rl"):
        assert (run / name / "model" / "model.safetensors").exists()
    assert {p.name for p in (run / "collect" / "data").iterdir()} == {
        f"{s}.jsonl" for s in ("train", "dev", "rl", "eval")
    }
    for name in ("config.yaml", "command.txt", "env.json", "report.html"):
        assert (run / name).exists()
    parent = records["rl"].manifest["parents"]["model_name_or_path"]
    assert parent["path"] == "../sft"
    assert len(parent["hash"]) == 64


def test_the_trackers_of_a_run_learn_its_verdict_once(finished, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, run = finished
    copy = shutil.copytree(run, tmp_path / "run")
    config = config.changed({"report_to": "tensorboard"})
    for is_new in (True, False):
        assert pipeline.write_report(copy, config, is_new) == copy / "report.html"
        (file,) = (copy / "report" / "tensorboard").iterdir()  # what is known is not told again
    events = EventAccumulator(str(file))
    events.Reload()
    told = {
        tag.split("/")[0]: events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }
    assert told["verdict"] == verdict(dict(finished_stages(run))).word
    assert told["report"].startswith(f"## run: {told['verdict']}\n")
    assert "report_to: tensorboard" in told["options"]


def test_pairs_carry_their_provenance(finished):
    _, run = finished
    rows = [json.loads(line) for line in (run / "collect" / "data" / "eval.jsonl").read_text().splitlines()]
    assert len(rows) == 48
    for row in rows:
        assert row["split"] == "eval"
        assert row["annotator"] == "world"
        assert row["chosen"] != row["rejected"]
        p = 1 / (1 + 2.718281828459045 ** (row["gold_rejected"] - row["gold_chosen"]))
        assert row["p_chosen"] == pytest.approx(p, abs=1e-9)


def test_no_eval_prompt_trained_anything(finished):
    _, run = finished

    def asked(name):
        lines = (run / "collect" / "data" / f"{name}.jsonl").read_text().splitlines()
        return {json.loads(line)["prompt"][0]["content"] for line in lines}

    evaluated = {row["prompt"] for row in StageRecord(run / "evaluate").samples}
    sampled = {row["prompt"] for row in StageRecord(run / "rl").samples}
    assert not evaluated & (asked("train") | asked("dev") | sampled)
    assert not asked("eval") & (asked("train") | asked("dev"))


def test_summaries_say_what_was_measured(finished):
    _, run = finished
    records = dict(stage_records(run))
    reward, evaluate = records["reward"].summary, records["evaluate"].summary
    assert reward["eval/pairs"] == 48
    assert reward["eval/accuracy_low"] < reward["eval/accuracy"] < reward["eval/accuracy_high"]
    assert reward["eval/fraction_of_bayes"] == pytest.approx(
        reward["eval/expected_accuracy"] / reward["eval/bayes_accuracy"]
    )
    assert records["sft"].summary["dev/well_formed_rate"] <= records["sft"].summary["dev/eos_rate"] <= 1
    comparison = evaluate["comparison"]["gold"]
    assert comparison["difference_low"] <= comparison["difference"] <= comparison["difference_high"]
    assert comparison["n"] == 24
    assert [row["n"] for row in evaluate["best_of"]] == [2, 4]
    assert evaluate["best_of"][1]["score"] > evaluate["best_of"][0]["score"]
    assert evaluate["cost"]["training"]["policy"] == 16


def test_the_same_command_again_does_nothing(finished, capsys):
    config, run = finished
    before = {p: p.stat().st_mtime_ns for p in run.rglob("DONE")}
    pipeline.run(config)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("DONE")} == before


def test_an_interrupted_run_goes_on_at_its_stage(finished, tmp_path, monkeypatch):
    config, run = finished
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "copy")
    config = small(tmp_path, output_dir=str(tmp_path / "again"))
    pipeline.run(config.changed({"stages": ["sft", "collect"]}))
    calls = []
    original = reward.run

    def stopped(options, fresh):
        calls.append("reward")
        raise KeyboardInterrupt

    monkeypatch.setattr(reward, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(config)
    sft_done = (tmp_path / "again" / "sft" / "DONE").stat().st_mtime_ns
    monkeypatch.setattr(reward, "run", original)
    pipeline.run(config)
    assert (tmp_path / "again" / "sft" / "DONE").stat().st_mtime_ns == sft_done
    # An interrupted run ends with the same numbers as one that was not.
    for stage in ("reward", "rl", "evaluate"):
        first, second = StageRecord(run / stage), StageRecord(tmp_path / "again" / stage)
        assert repeatable(first.summary) == repeatable(second.summary), stage


def test_a_run_has_a_card_and_files_to_share(finished, capsys):
    """Of real files of every stage; what is sent, and that nothing private is, is in tests/share."""
    _, run = finished
    record = dict(stage_records(run))
    for stage, kind in (("rl", "text-generation"), ("reward", "text-classification"), ("sft", None)):
        card = model_card(read(run, stage))
        assert str(run.parent) not in str(card)
        tasks = [result.task_type for result in card.data.eval_results or []]
        assert set(tasks) == ({kind} if kind else set()), stage
    value = record["evaluate"].summary["comparison"]["gold"]["win_rate"]
    results = {r.metric_name: r.metric_value for r in model_card(read(run)).data.eval_results}
    assert round(value, 4) in results.values()
    assert push(run, "ann/small", PushOptions(dry_run=True, with_data=True)) is None
    said = capsys.readouterr().out
    for file in ("README.md", "report.html", "model.safetensors", "collect/train.jsonl"):
        assert file in said


def test_other_options_on_a_finished_stage_are_refused_unless_fresh(finished, tmp_path):
    config, run = finished
    changed = config.changed({"seed": 1})
    with pytest.raises(UsageError, match=r"seed: 0 -> 1.*--fresh"):
        pipeline.run(changed)
    assert (run / "sft" / "DONE").exists()


@pytest.mark.parametrize("damage", ["model_name_or_path: [1,", "- a list\n- of things\n", "\x00"])
def test_a_damaged_configuration_of_a_stage_is_named_before_the_run_begins(finished, tmp_path, damage):
    config, run = finished
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "sft" / "config.yaml").write_text(damage)
    with pytest.raises(UsageError, match=r"sft.*damaged.*--fresh"):
        pipeline.run(config.changed({"output_dir": str(copy)}))
    assert (copy / "sft" / "DONE").exists()


def test_a_foreign_directory_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="holds no preferl run"):
        pipeline.run(small(tmp_path), fresh=True)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"stages": ["sft", "dream"]}, "dream"), ({"stages": ["collect"]}, "model_name_or_path")],
)
def test_stages_that_cannot_run_are_refused(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        pipeline.run(small(tmp_path, **changes))


def test_shared_options_reach_the_stages_and_own_options_win(tmp_path):
    stages = pipeline.resolve(small(tmp_path, seed=3, **{"rl.seed": 9, "rl.temperature": 0.5}))
    assert (stages["sft"].seed, stages["rl"].seed) == (3, 9)
    assert (stages["sft"].temperature, stages["rl"].temperature) == (0.8, 0.5)
    assert stages["reward"].dataset_name.endswith("collect")
    assert stages["evaluate"].gold == stages["rl"].gold == "world"
    human = small(tmp_path, stages=["sft", "reward", "rl"], dataset_name="people.jsonl")
    stages = pipeline.resolve(human)
    assert stages["reward"].dataset_name == stages["rl"].dataset_name == "people.jsonl"
    assert stages["reward"].reference_policy == stages["rl"].model_name_or_path
    assert stages["rl"].gold is None


def test_gold_is_the_worlds_own_reward_whoever_labelled(tmp_path):
    """An annotator is what the reward model was taught to be like, and no truth."""
    names = ["sft", "collect", "reward", "best_of", "rl", "evaluate"]
    labelled = {"stages": names, "collect.annotator": "sentiment"}
    stages = pipeline.resolve(small(tmp_path, **labelled))
    assert {stages[name].gold for name in ("best_of", "rl", "evaluate")} == {"world"}
    assert stages["rl"].annotator == "sentiment"  # what the reward is checked against
    given = {"evaluate.gold": "sentiment", "rl.annotator": "length"}
    stages = pipeline.resolve(small(tmp_path, **labelled | given))
    assert stages["evaluate"].gold == "sentiment"
    assert (stages["rl"].gold, stages["rl"].annotator) == ("world", "length")
    stages = pipeline.resolve(small(tmp_path, **labelled | {"dataset_name": "other.jsonl"}))
    assert {stages[name].gold for name in ("best_of", "rl", "evaluate")} == {None}
    stages = pipeline.resolve(small(tmp_path, **labelled | {"evaluate.dataset_name": "other.jsonl"}))
    assert (stages["rl"].gold, stages["evaluate"].gold) == ("world", None)


def test_what_trained_or_labelled_is_told_from_what_is_named_gold(finished, tmp_path):
    """From the stages behind a policy: its reward, the reward's parts, and who labelled the pairs."""
    _, run = finished
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "collect" / "config.yaml"
    path.write_text(path.read_text().replace("annotator: world", "annotator: sentiment"))
    own = StageRecord(copy / "evaluate").config
    for place in (copy / "reward" / "config.yaml", copy / "rl" / "config.yaml"):
        place.write_text(place.read_text().replace(str(run), str(copy)))
    policy = {"model_name_or_path": str(copy / "rl"), "reward_model": str(copy / "reward")}

    def signals(**changes):
        return training_signals(EvaluateConfig(**own | policy | changes))

    trained, labelled = "is the reward that was trained on", "labelled the pairs"
    assert signals(gold="world") == signals(gold="concise") == signals(gold=None) == {}
    assert signals(gold="sentiment") == {"gold": labelled}
    assert signals(gold=str(copy / "reward")) == {"gold": trained}
    assert signals(gold="world", held_out_reward="sentiment") == {"held_out": labelled}
    mixed = f"0.5*{copy / 'reward'} + 0.5*concise"
    assert signals(reward_model=mixed, gold="concise") == {"gold": trained}
    assert signals(reward_model=mixed, gold="sentiment") == {"gold": labelled}
    assert signals(reward_model="10*world", gold="world") == {}  # the world's own is the truth
    assert (
        signals(reward_model="instructions", gold="instructions") == {}
    )  # and so is what a function decides


def test_an_explicit_option_wins_where_it_equals_the_default(tmp_path):
    own = {"sft.seed": 0, "evaluate.temperature": 1.0, "rl.reward_model": "runs/reward"}
    stages = pipeline.resolve(small(tmp_path, seed=3, **own))
    assert stages["sft"].seed == sft.SftConfig().seed == 0
    assert stages["evaluate"].temperature == EvaluateConfig().temperature == 1.0
    assert stages["rl"].reward_model == RlConfig().reward_model == "runs/reward"
    assert (stages["rl"].seed, stages["rl"].temperature) == (3, 0.8)
    assert stages["evaluate"].reward_model == "runs/reward"  # what the policy was trained against


@pytest.mark.parametrize(
    ("flags", "stage", "option", "value"),
    [
        (["--evaluate.temperature", "1.0"], "evaluate", "temperature", 1.0),
        (["--sft.seed", "0", "--seed", "3"], "sft", "seed", 0),
        (["--seed", "3"], "sft", "seed", 3),
        (["--temperature", "1.0"], "rl", "temperature", 1.0),
        (["--reward.num_train_epochs", "1"], "reward", "num_train_epochs", 1.0),
        (["--distil.learning_rate", "0.004"], "distil", "learning_rate", 0.004),
        ([], "distil", "learning_rate", 0.001),  # by the model at hand
        (["--rl.gold", "null"], "rl", "gold", None),
        ([], "rl", "gold", "world"),
    ],
)
def test_flags_of_the_demo_win_over_its_file(flags, stage, option, value, capsys):
    stages = "[sft, collect, reward, best_of, distil, rl, evaluate]"
    assert cli.main(["demo", "--stages", stages, *flags, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)[stage][option] == value


def test_the_printed_configuration_gives_itself_back(tmp_path, capsys):
    flags = ["--seed", "3", "--rl.kl_coef", "0.2", "--collect.pairs.train", "70"]
    assert cli.main(["demo", *flags, "--print_config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    assert cli.main(["run", "--config", str(tmp_path / "printed.yaml"), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(printed)


def test_the_printed_configuration_says_what_the_stages_chose(finished):
    config, run = finished
    printed = resolved.run_yaml(config)
    tree, found = yaml.safe_load(printed), 0
    for name in ("sft", "reward", "rl"):
        for option, value in StageRecord(run / name).manifest["chosen"].items():
            if option in next(row.values for row in TABLE if row.stage == name):
                assert tree[name][option] == value, (name, option)
                found += 1
    assert found == 7  # rates and sizes of batches, and the coefficient of rl
    assert "learning_rate: 0.004  # by default: initialised now, all weights trained" in printed


def test_what_a_stage_prints_is_by_the_model_that_it_is_given(finished, capsys):
    _, run = finished
    lora = ["--lora_r", "4", "--model_name_or_path", str(run / "sft")]
    assert cli.main(["rl", *lora, "--kl_coef", "0.3", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"learning_rate: 0\.0005 +# by default: initialised by preferl, .* LoRA", printed)
    assert "\nkl_coef: 0.3\n" in printed
    assert yaml.safe_load(printed)["critic_learning_rate"] is None  # the policy's
    head = ["--value_model", "head", "--model_name_or_path", str(run / "sft")]
    assert cli.main(["rl", *head, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["critic_learning_rate"] is None  # there is no such model
    assert cli.main(["sweep", "--config", "smollm2", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["rl"]["kl_coef"] == 0.05  # its own


def test_the_printed_configuration_of_rounds_can_be_run(tmp_path, capsys):
    assert cli.main(["demo", "--rounds", "2", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert not {"collect-2", "reward-2", "rl-2"} & set(yaml.safe_load(printed))
    (tmp_path / "printed.yaml").write_text(printed)
    assert cli.main(["run", "--config", str(tmp_path / "printed.yaml"), "--print_config"]) == 0


def test_a_stage_of_a_name_of_its_own_says_its_kind_and_refers_to_others(tmp_path):
    config = small(
        tmp_path,
        stages=["sft", "collect", "reward", "wide", "best_of", "again", "evaluate"],
        wide={"kind": "reward", "num_members": 2},
        best_of={"reward_model": "0.5*@/reward + 0.5*mean(@/wide)"},
        again={"kind": "sft", "model_name_or_path": "@/sft", "dataset_name": "@/best_of"},
    )
    planned = {stage.name: stage for stage in pipeline.plan(config)}
    assert (planned["wide"].kind, planned["again"].kind) == ("reward", "sft")
    assert planned["best_of"].reads == ("@/sft", "@/reward", "@/wide")
    assert set(planned["again"].reads) == {"@/sft", "@/best_of"}
    root, stages = str(tmp_path / "run"), pipeline.resolve(config)
    assert stages["best_of"].reward_model == f"0.5*{root}/reward + 0.5*mean({root}/wide)"
    assert stages["wide"].dataset_name == f"{root}/collect"
    assert stages["again"].output_dir == f"{root}/again"
    assert stages["evaluate"].model_name_or_path == f"{root}/again"
    assert stages["evaluate"].reward_model == f"{root}/wide"  # the newest reward model


def test_a_stage_of_a_name_of_its_own_runs_from_the_command_line(finished, tmp_path, capsys):
    _, run = finished
    flags = ["--stages", "[again]", "--again.kind", "sft", "--again.model_name_or_path", str(run / "sft")]
    more = ["--again.num_train_epochs", "0.01", "--again.check_samples", "2", "--dpo.beta", "0.2"]
    out = ["--output_dir", str(tmp_path / "own"), "--response_length", "8", "--num_threads", "1"]
    assert cli.main(["run", *flags, *more, *out]) == 0
    assert "the options of dpo are not used" in capsys.readouterr().out
    record = StageRecord(tmp_path / "own" / "again")
    assert (record.kind, record.done) == ("sft", True)
    # What a run keeps gives it back.
    kept = ["--config", str(tmp_path / "own" / "config.yaml"), "--print_config"]
    assert cli.main(["run", *kept]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["again"]["model_name_or_path"] == str(run / "sft")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": ["sft", "colect"]}, "'colect' is no stage; did you mean 'collect'"),
        ({"stages": "sft, colect"}, "'colect' is no stage; did you mean 'collect'"),
        ({"stages": ["sft", "mine"]}, "--mine.kind sft"),
        ({"mine": {"kind": "sfd"}}, "mine.kind is 'sfd'"),
        ({"rl": {"kind": "sft"}}, "rl is a stage of kind rl"),
        ({"stages": ["sft", "sft"]}, "stands there twice"),
        ({"rl.reward_model": "@/rewards"}, "'@/rewards' names no stage of this run that comes before"),
        ({"collect.adversarial": "@/reward"}, "those are: sft"),
        ({"rl.reward_model": "@other/reward"}, "only a sweep has points"),
        ({"rl.kl_coeff": 0.2}, "stage rl has no option 'kl_coeff'; did you mean 'kl_coef'"),
        ({"rl.output_dir": "elsewhere"}, "give one --output_dir"),
        ({"temprature": 0.2}, "no option 'temprature'; did you mean 'temperature'"),
    ],
)
def test_configurations_that_cannot_work_are_refused(tmp_path, changes, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        pipeline.run(small(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_content_is_kind_options_and_what_is_read(tmp_path):
    def content(**changes):
        return {stage.name: stage.content for stage in pipeline.plan(small(tmp_path, **changes))}

    usual = content()
    same = {"output_dir": "elsewhere", "num_threads": 2, "rl.save_every": 3, "sft.temperature": 0.8}
    assert content(**same) == usual
    differs = {
        name for name, value in content(**{"collect.label_scale": 2.0}).items() if value != usual[name]
    }
    assert differs == {"collect", "reward", "rl", "evaluate"}
    differs = {name for name, value in content(seed=1).items() if value != usual[name]}
    assert differs == set(usual)


def test_a_reward_model_can_start_from_a_language_model_of_its_own(tmp_path):
    wide = TINY_SFT | {"hidden_size": 48, "vocab_size": 400, "num_train_epochs": 0.1, "check_samples": 4}
    config = small(tmp_path, stages=["sft", "collect", "backbone", "reward"], backbone=wide)
    run = pipeline.run(config)
    sizes = {
        name: json.loads((run / name / "model" / "config.json").read_text())
        for name in ("sft", "backbone", "reward")
    }
    assert {name: size["hidden_size"] for name, size in sizes.items()} == {
        "sft": 32,
        "backbone": 48,
        "reward": 48,
    }
    assert sizes["reward"]["vocab_size"] == sizes["backbone"]["vocab_size"] < sizes["sft"]["vocab_size"]
    assert StageRecord(run / "reward").manifest["parents"]["model_name_or_path"]["path"] == "../backbone"
    assert "backbone" not in RunConfig().stages


class Page(HTMLParser):
    """Collects tags, text and anything that would fetch."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.fetches = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and not (value or "").startswith("#"):
                self.fetches.append((tag, name, value))
            if name.startswith("on"):
                self.fetches.append((tag, name, value))

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_is_one_file_that_fetches_nothing(finished):
    _, run = finished
    html = (run / "report.html").read_text(encoding="utf-8")
    assert len(html) < 3_000_000
    page = Page()
    page.feed(html)
    assert not page.fetches
    assert page.tags.count("script") == 1  # its own, which sorts the responses
    assert page.tags.count("svg") == page.tags.count("figcaption") == 13
    assert page.tags.count("article") == 24
    text = " ".join(page.text)
    for words in ("held-out prompts", "win rate", "best-of-4", "Reward model, audited", "What it cost", "KL"):
        assert words in text


def test_the_report_escapes_what_it_shows(finished, tmp_path):
    _, run = finished
    copy = tmp_path / "<b>run"
    shutil.copytree(run, copy)
    rows = StageRecord(copy / "evaluate").samples
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    for row in rows:
        row["policy"] = row["reference"] = row["prompt"] = attack
    found = json.loads((copy / "reward" / "audit.json").read_text())
    for row in found["disagreements"]:
        row["prompt"] = row["chosen"] = row["rejected"] = attack
    (copy / "reward" / "audit.json").write_text(json.dumps(found))
    (copy / "evaluate" / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    page = Page()
    page.feed(report.write(copy).read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not page.fetches
    assert attack in " ".join(page.text)


@pytest.mark.slow
def test_no_text_in_a_report_runs(finished, tmp_path, browser):
    """In a real browser; a report is a file, so that nothing but its own policy and escaping protects it."""
    _, run = finished
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    page = browser.new_page()
    page.add_init_script(WATCH)
    texts = list(dict.fromkeys(PAYLOADS))
    shown = 0
    fields = ("prompt", "policy", "reference")
    for start in range(0, len(texts), 30):
        few = texts[start : start + 30]
        upcoming = itertools.cycle(few)
        rows = StageRecord(copy / "evaluate").samples[:10]
        rows = [row | {field: next(upcoming) for field in fields} for row in rows]
        (copy / "evaluate" / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        found = json.loads((copy / "reward" / "audit.json").read_text())
        for row in found["disagreements"]:
            row |= {field: next(upcoming) for field in ("prompt", "chosen", "rejected")}
        (copy / "reward" / "audit.json").write_text(json.dumps(found))
        page.goto(report.write(copy).as_uri())
        assert page.evaluate("window.ran") == [], few
        assert page.evaluate(FOREIGN) == [], few
        shown += len(few)
    page.close()
    assert shown == len(texts)


def edit(record, **values):
    record.summary["comparison"].update(values)
    return record


@pytest.mark.parametrize(
    ("proxy", "gold", "word"),
    [
        ((1, 2), (1, 2), "Better"),
        ((1, 2), (-2, -1), "Reward hacked"),
        ((1, 2), (-1, 1), "No clear gain"),
        ((-2, -1), (-2, -1), "Worse"),
        ((1, 2), None, "Better by the training signal only"),
    ],
)
def test_the_verdict_follows_the_intervals(finished, proxy, gold, word):
    _, run = finished
    record = StageRecord(run / "evaluate")
    record.summary["signs"] = []  # of so small a model they are luck
    for name, bounds in (("score", proxy), ("gold", gold)):
        if bounds is None:
            del record.summary["comparison"][name]
        else:
            record.summary["comparison"][name] |= {"difference_low": bounds[0], "difference_high": bounds[1]}
    assert verdict({"evaluate": record}).word == word


def test_a_run_of_an_ensemble_against_a_worst_case_has_its_report(finished, tmp_path):
    config, run = finished
    ensemble = config.changed(
        {
            "output_dir": str(tmp_path / "run"),
            "stages": ["reward", "rl", "evaluate", "report"],
            "model_name_or_path": str(run / "sft"),
            "reward.num_members": 2,
            "reward.dataset_name": str(run / "collect"),
            "reward.lora_r": 2,
            "rl.reward_model": "1*min(@/reward) + 0.1*concise",
            "rl.gold": "world:helpful",
            "evaluate.reward_model": "mean-1sd(@/reward)",
        }
    )
    text = pipeline.run(ensemble).read_text(encoding="utf-8")
    assert "Reward model, audited" in text
    assert "held-out, all members agree (" in text
    record = StageRecord(tmp_path / "run" / "rl")
    steps = [row for row in record.metrics if "train/reward" in row]
    parts = [name for name in steps[0] if name.startswith("train/reward/")]
    assert len(parts) == 2
    for row in steps:
        low, concise = (row[name] for name in sorted(parts, key=lambda name: "concise" in name))
        assert row["train/reward"] == pytest.approx(low + 0.1 * concise, abs=1e-5)
    assert [name.rsplit("/", 1)[-1] for name in record.summary["frozen_hashes"]] == [
        "reference",
        "member-0",
        "member-1",
    ]
    found = json.loads((tmp_path / "run" / "reward" / "audit.json").read_text())
    assert found["members"]["members"] == 2


def test_part_of_a_run_has_a_report_too(finished, tmp_path):
    _, run = finished
    (tmp_path / "part").mkdir()
    shutil.copytree(run / "sft", tmp_path / "part" / "sft")
    html = report.write(tmp_path / "part").read_text(encoding="utf-8")
    assert "Not evaluated" in html
    assert re.search(r"<svg", html)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no stage"):
        report.write(tmp_path / "empty")


def test_one_stage_and_stages_anywhere_have_a_page(finished, tmp_path, capsys):
    _, run = finished
    for name in ("sft", "reward", "rl", "evaluate"):
        shutil.copytree(run / name, tmp_path / f"by-{name}" / "x")
    assert cli.main(["report", str(tmp_path / "by-reward" / "x")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["report: verdict: Reward model", str(tmp_path / "by-reward" / "x" / "report.html")]
    page = (tmp_path / "by-reward" / "x" / "report.html").read_text()
    assert "Reward model, audited" in page
    # Copies know each other by their content: none of the paths in their manifests is there.
    places = [str(tmp_path / f"by-{name}" / "x") for name in ("evaluate", "rl", "sft", "reward")]
    assert cli.main(["report", *places]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [
        f"report: verdict: {verdict(finished_stages(run)).word}",
        str(tmp_path / "by-evaluate" / "comparison.html"),
    ]
    page = (tmp_path / "by-evaluate" / "comparison.html").read_text()
    for words in ("Policies side by side", "RL: reward", "SFT loss", "Reward model, audited"):
        assert words in page


def test_a_number_has_one_interval_wherever_it_is_read(finished):
    _, run = finished
    record = StageRecord(run / "reward")
    told = Estimate.read(record.summary, "eval/accuracy")
    audit = record.audit
    for found in (audit["accuracy"]["accuracy"], audit["calibration"]["unseen"]["accuracy"]):
        assert Estimate.read(found) == told
    shown = with_interval(record.summary, "eval/accuracy", percent).replace("\u00a0", " ")
    page = (run / "report.html").read_text().replace("\u00a0", " ")
    assert page.count(shown) >= 2


def test_rounds_label_what_the_policy_writes_and_train_the_reward_model_on_it(tmp_path):
    """collect -> reward -> rl twice: the second labels samples of the first policy and adds them; the KL is
    to the SFT model still; evaluate and the report show the last."""
    config = small(tmp_path, rounds=2)
    page = pipeline.run(config)
    run, records = page.parent, dict(stage_records(page.parent))
    order = ["sft", "collect", "reward", "rl", "collect-2", "reward-2", "rl-2", "evaluate"]
    assert list(records) == order
    pairs = [records[name].summary["train_pairs"] for name in ("reward", "reward-2")]
    assert pairs[1] > 1.5 * pairs[0]
    assert records["rl-2"].manifest["parents"]["model_name_or_path"]["path"] == "../rl"
    assert records["rl-2"].manifest["parents"]["ref_model"]["path"] == "../sft"
    assert records["rl-2"].manifest["parents"]["reward_model"]["path"] == "../reward-2"
    assert records["evaluate"].manifest["parents"]["model_name_or_path"]["path"] == "../rl-2"
    assert records["evaluate"].manifest["parents"]["reward_model"]["path"] == "../reward-2"
    last = [row for row in records["rl"].metrics if "dev/kl_exact" in row][-1]
    first = records["rl-2"].metrics[0]
    assert first["dev/kl_exact"] > 0.3 * last["dev/kl_exact"] > 0.01  # other draws of the same policy
    # The policy cost what both rounds cost, and its curves go on from one to the other.
    spent = [records[name].summary["forward_passes"] for name in ("rl", "rl-2")]
    found = records["evaluate"].summary
    assert found["cost"]["training_total"] == sum(sum(passes.values()) for passes in spent)
    assert found["training"]["cpu_seconds"] > 1.5 * sum(
        row.get("cpu_seconds", 0) for row in records["rl-2"].metrics
    )
    text = page.read_text()
    assert "Rounds" in text
    assert "rl, round 1" in text
    assert "Dotted: after 2 another round begins" in text
    stamp = {name: (run / name / "DONE").read_text() for name in order}
    pipeline.run(config)
    assert {name: (run / name / "DONE").read_text() for name in order} == stamp


def test_a_reference_names_the_newest_stage_of_its_name(tmp_path):
    """In each round the reward model of that round, and the last one afterwards; a number names one."""
    own = {"rl.reward_model": "0.5*@/reward + 0.5*concise", "evaluate.gold": "@/reward-2"}
    stages = pipeline.resolve(small(tmp_path, rounds=3, **own))
    for name, number in (("rl", ""), ("rl-2", "-2"), ("rl-3", "-3"), ("evaluate", "-3")):
        text = f"0.5*{tmp_path / 'run' / f'reward{number}'} + 0.5*concise"
        assert stages[name].reward_model == text
    assert stages["evaluate"].gold == str(tmp_path / "run" / "reward-2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "1 or more"),
        ({"rounds": 2, "stages": ["sft", "collect", "reward"]}, "needs the stages"),
    ],
)
def test_rounds_that_cannot_be_are_refused(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        pipeline.run(small(tmp_path, **changes))


def test_a_run_of_an_older_version_is_refused_with_the_way_out(finished, tmp_path):
    _, run = finished
    shutil.copytree(run, tmp_path / "old")
    path = tmp_path / "old" / "evaluate" / "summary.json"
    summary = json.loads(path.read_text())
    del summary["references"]
    path.write_text(json.dumps(summary))
    with pytest.raises(UsageError, match=r"no references\); run `evaluate` again with --fresh"):
        report.write(tmp_path / "old")
    path.write_text("{")
    with pytest.raises(UsageError, match=r"is damaged .*--fresh"):
        report.write(tmp_path / "old")


def test_runs_are_compared_on_one_page(finished, tmp_path):
    _, run = finished
    shutil.copytree(run, tmp_path / "other")
    page = Page()
    page.feed(report.compare([run, tmp_path / "other"]).read_text(encoding="utf-8"))
    text = " ".join(page.text)
    assert not page.fetches
    assert page.tags.count("svg") == page.tags.count("figcaption") >= 5
    for words in (
        "Runs side by side",
        "gained",
        "At equal cost",
        "Best-of-n against the trained policy",
        "forward passes",
    ):
        assert words in text
    (run.parent / "comparison.html").unlink()


def test_the_report_shows_alarms_and_the_memory_of_every_model(finished):
    _, run = finished
    text = (run / "report.html").read_text()
    assert "Memory of the models" in text
    for role in ("policy", "reference", "reward", "value", "together"):
        assert f"<td>{role}</td>" in text
    record = dict(stage_records(run))["rl"]
    assert ("Alarms" in text) == bool(record.summary["alarms"])
