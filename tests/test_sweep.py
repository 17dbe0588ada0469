"""Sweeps, small and real: what is shared, going on, failing, the table's numbers, the page."""

import csv
import itertools
import json
import random
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from preferl import cli, pipeline
from preferl.reporting import sweeps
from preferl.reporting.gather import finished_stages
from preferl.runs.errors import UsageError
from preferl.runs.shipped import FOLDER
from preferl.runs.stage import Stage
from preferl.stages import collect, report, reward, sft
from preferl.stages.sft import SftConfig
from preferl.sweep.numbers import metrics_of
from preferl.sweep.plan import Run, SweepConfig, SweepOptions, name_of, plan_all, points_of
from preferl.sweep.run import run as run_sweep
from summaries import repeatable

ROOT = Path(__file__).parents[1]


def world_sweep(root, **options) -> SweepConfig:
    """A policy, its pairs and reward models, in seconds."""
    return SweepConfig(
        output_dir=str(root),
        stages=["sft", "collect", "reward"],
        num_threads=1,
        device="cpu",
        response_length=24,
        temperature=0.8,
        sft={
            "hidden_size": 32,
            "num_heads": 4,
            "vocab_size": 600,
            "num_train_epochs": 0.05,
            "check_samples": 8,
            "num_evals": 1,
        },
        collect={"pairs": {"train": 48, "dev": 24, "rl": 0, "eval": 32}},
        reward={"num_evals": 2, "normalise_samples": 32},
        sweep=SweepOptions(**options),
    )


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """A small file of preferences: the polite answer is chosen."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = []
    for i, split in enumerate(["train"] * 24 + ["dev"] * 8 + ["eval"] * 16 + ["rl"] * 2):
        words = rng.sample(["red", "blue", "dog", "sun", "park", "sky", "play", "answer"], 3)
        rows.append(
            {
                "prompt": f"Question {i}?",
                "chosen": " ".join(words) + " please",
                "rejected": " ".join(words[::-1]),
                "split": split,
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def reward_sweep(tmp_path, policy_directory, pairs):
    """Makes a sweep of the reward stage alone: under a second a run."""

    def make(**options) -> SweepConfig:
        return SweepConfig(
            output_dir=str(tmp_path / "sweep"),
            stages=["reward"],
            num_threads=1,
            device="cpu",
            response_length=4,
            model_name_or_path=str(policy_directory),
            dataset_name=str(pairs),
            reward={"num_evals": 1, "normalise_samples": 4, "max_length": 48},
            sweep=SweepOptions(**options),
        )

    return make


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep over the reward model's learning rate, two seeds."""
    root = tmp_path_factory.mktemp("world") / "sweep"
    config = world_sweep(root, grid={"reward.learning_rate": ["1e-3", 1e-2]}, seeds=[0, 1])
    return config, run_sweep(config)


def done_files(root) -> dict[str, int]:
    """Every finished stage below a directory, with the time it was finished."""
    return {str(p.parent.relative_to(root)): p.stat().st_mtime_ns for p in Path(root).rglob("DONE")}


def changed(config: SweepConfig, **changes) -> SweepConfig:
    """The same sweep with keys of the run set."""
    return SweepConfig(**config.base.changed(changes).given, sweep=config.options)


def planned(config: SweepConfig) -> list[Run]:
    return plan_all(config.root, points_of(config), config.options.seeds)


def options_of(run: Run, name: str):
    """The options that a stage of a run will be given."""
    return next(stage for stage in run.stages if stage.name == name).placed(run.places)


def places(config: SweepConfig) -> set[str]:
    """Where the stages of a sweep would lie."""
    root = config.root
    return {str(path.relative_to(root)) for run in planned(config) for path in run.where.values()}


def test_stages_before_the_swept_key_are_made_once_for_each_seed(swept):
    config, outcome = swept
    assert (outcome.exit_code, outcome.errors, outcome.runs) == (0, [], 4)
    shared = {f"base/seed-{seed}/{stage}" for seed in (0, 1) for stage in ("sft", "collect")}
    own = {f"reward.learning_rate={lr}/seed-{seed}/reward" for lr in ("0.001", "0.01") for seed in (0, 1)}
    assert set(done_files(config.root)) == shared | own
    for path in own:
        stored = yaml.safe_load((config.root / path / "config.yaml").read_text())
        base = config.root / "base" / f"seed-{stored['seed']}"
        assert stored["model_name_or_path"] == str(base / "sft")
        assert stored["dataset_name"] == str(base / "collect")
        assert f"seed-{stored['seed']}/" in path
        assert f"={stored['learning_rate']}/" in path


def test_a_run_of_a_sweep_is_what_preferl_run_does(swept, tmp_path):
    config, _ = swept
    alone = {"output_dir": str(tmp_path / "run"), "seed": 1, "reward.learning_rate": 1e-2}
    pipeline.run(config.base.changed(alone))
    summaries = [
        json.loads((path / "reward" / "summary.json").read_text())
        for path in (
            config.root / "reward.learning_rate=0.01" / "seed-1",
            tmp_path / "run",
        )
    ]
    assert repeatable(summaries[0]) == repeatable(summaries[1])


def test_a_runs_page_has_the_stages_that_it_shares(swept, tmp_path):
    config, _ = swept
    run = config.root / "reward.learning_rate=0.01" / "seed-1"
    found = finished_stages(run)
    assert list(found) == ["sft", "collect", "reward"]
    assert found["sft"].path == (config.root / "base/seed-1/sft").resolve()
    page = report.write(run, tmp_path / "page.html").read_text()
    assert "reward.learning_rate=0.01/seed-1</h1>" in page
    # What a run is said to share lies in its sweep.
    elsewhere = tmp_path / "a" / "seed-0"
    elsewhere.mkdir(parents=True)
    (elsewhere / "stages.json").write_text(json.dumps({"sft": "../../../out/sft"}))
    with pytest.raises(UsageError, match="outside of the sweep"):
        finished_stages(elsewhere)


def test_the_table_is_the_summaries_mean_and_sd(swept):
    config, _ = swept
    root = config.root
    table = json.loads((root / "table.json").read_text())
    with open(root / "table.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [row["settings"] for row in table["rows"]] == [
        {"reward.learning_rate": 0.001},
        {"reward.learning_rate": 0.01},
    ]
    assert table["metrics"]["accuracy"] == "reward.eval/accuracy"
    assert not [path for path in table["metrics"].values() if not path.startswith("reward.")]
    for row, line, lr in zip(table["rows"], lines, ("0.001", "0.01"), strict=True):
        for name, key in (("accuracy", "eval/accuracy"), ("log_loss", "eval/loss")):
            a, b = (
                json.loads((root / f"reward.learning_rate={lr}/seed-{s}/reward/summary.json").read_text())[
                    key
                ]
                for s in (0, 1)
            )
            number = row["metrics"][name]
            assert number["values"] == {"0": a, "1": b}
            assert number["n"] == 2
            assert number["mean"] == pytest.approx((a + b) / 2, abs=1e-15)
            assert number["sd"] == pytest.approx(abs(a - b) / 2**0.5, abs=1e-12)  # of two: |a − b| / √2
            assert number["low"] is None
            assert float(line[f"{name}_mean"]) == number["mean"]
            assert float(line[f"{name}_sd"]) == number["sd"]
        assert line["reward.learning_rate"] == lr
        assert line["failed"] == "0"


def test_the_same_command_again_computes_nothing(swept, monkeypatch, capsys):
    config, _ = swept
    before = done_files(config.root)
    page = (config.root / "report.html").read_text()

    def never(*_, **__):
        raise AssertionError("a finished stage was run again")

    for stage in ("sft", "collect", "reward"):
        monkeypatch.setattr(f"preferl.stages.{stage}.run", never)
    assert run_sweep(config).exit_code == 0
    assert done_files(config.root) == before
    assert (config.root / "report.html").read_text() == page
    assert cli.main(["report", str(config.root), "--output", f"{config.root}/again.html"]) == 0
    again = (config.root / "again.html").read_text()
    assert again.split("<details")[0] == page.split("<details")[0]
    out = capsys.readouterr().out
    assert "reward.learning_rate" in out
    assert "±" in out
    assert "\x1b" not in out


class Page(HTMLParser):
    """Collects tags, text and anything that would fetch or run."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.fetches = [], "", []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if (name in ("src", "href") and not (value or "").startswith("#")) or name.startswith("on"):
                self.fetches.append((tag, name, value))

    def handle_data(self, data):
        self.text += data


def test_a_sweep_has_a_summary_in_markdown(swept, capsys):
    config, _ = swept
    assert cli.main(["report", str(config.root), "--format", "md"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"## {config.root.name}: ")
    assert "**Points**" in text
    rows = json.loads((config.root / "table.json").read_text())["rows"]
    points = text.split("**Points**")[1].split("\n\n")[1].splitlines()[2:]
    assert len(points) == len(rows)


def test_the_report_has_a_plot_and_a_sentence_for_each_metric(swept):
    config, outcome = swept
    page = Page(outcome.report)
    assert page.tags.count("svg") == 4
    assert page.tags.count("figcaption") == 4
    assert not page.fetches
    assert "script" not in page.tags
    rows = json.loads((config.root / "table.json").read_text())["rows"]
    means = [row["metrics"]["log_loss"]["mean"] for row in rows]
    lowest = "0.001" if means[0] < means[1] else "0.01"
    text = page.text[page.text.index("log loss") :]
    assert f"Lowest at learning_rate = {lowest}:" in text
    for words in ("All 4 runs finished", "2 sft, 2 collect, 4 reward", "± 1 standard deviation over 2 seeds",
                  "log loss (nats)", "reward.learning_rate"):  # fmt: skip
        assert words in page.text


def test_a_sweep_grows_and_loses_nothing(reward_sweep):
    first = reward_sweep(grid={"reward.learning_rate": [1e-3]}, seeds=[0])
    run_sweep(first)
    before = done_files(first.root)
    grown = reward_sweep(grid={"reward.learning_rate": [1e-2, 1e-3]}, seeds=[0, 1])
    outcome = run_sweep(grown)
    after = done_files(first.root)
    assert outcome.runs == len(after) == 4
    assert before.items() <= after.items()
    run_sweep(reward_sweep(grid={"reward.learning_rate": [1e-2]}, seeds=[0, 1]))
    assert done_files(first.root) == after
    table = json.loads((first.root / "table.json").read_text())
    assert [row["point"] for row in table["rows"]] == ["reward.learning_rate=0.01"]


def test_one_seed_shows_its_interval(reward_sweep):
    config = reward_sweep(points=[{}, {"reward.num_train_epochs": 2, "reward.train_batch_size": 8}])
    run_sweep(config)
    rows = json.loads((config.root / "table.json").read_text())["rows"]
    name = "reward.num_train_epochs=2.0,reward.train_batch_size=8"
    assert [row["point"] for row in rows] == ["base", name]
    assert rows[0]["settings"] == {"reward.num_train_epochs": 1.0, "reward.train_batch_size": 16}
    summary = json.loads((config.root / name / "seed-0/reward/summary.json").read_text())
    assert rows[1]["metrics"]["accuracy"] == {
        "mean": summary["eval/accuracy"],
        "sd": None,
        "n": 1,
        "low": summary["eval/accuracy_low"],
        "high": summary["eval/accuracy_high"],
        "values": {"0": summary["eval/accuracy"]},
    }
    assert summary["updates"] == 6
    assert "fraction_of_bayes_mean" in (config.root / "table.csv").read_text()
    # It is varied for how long is trained: the last weights stand beside the best checkpoint's.
    for metric, key in (("last_dev_loss", "final_loss"), ("last_dev_accuracy", "final_accuracy")):
        assert rows[1]["metrics"][metric]["mean"] == summary[f"dev/{key}"]
    page = Page(config.root / "report.html")
    assert "95 % intervals of one seed" in page.text
    # People's labels: nobody knows the best possible, and no plot claims it.
    assert page.tags.count("svg") == 7


def test_a_run_that_fails_is_recorded_and_the_others_go_on(reward_sweep, tmp_path, capsys):
    config = reward_sweep(grid={"reward.learning_rate": [1e30, 1e-3]})
    file = tmp_path / "sweep.yaml"
    file.write_text(config.to_yaml())
    assert cli.main(["sweep", "--config", str(file)]) == 4
    captured = capsys.readouterr()
    assert "1 of 2 runs failed" in captured.err
    assert "failed: reward.learning_rate=1e+30, seed 0: DivergedError" in captured.out
    root = config.root
    rows = json.loads((root / "table.json").read_text())["rows"]
    assert rows[0]["errors"]["0"].startswith("DivergedError")
    assert rows[0]["metrics"]["accuracy"]["n"] == 0
    assert rows[1]["metrics"]["accuracy"]["n"] == 1
    assert "Traceback" in (root / rows[0]["point"] / "seed-0" / "error.txt").read_text()
    page = Page(root / "report.html")
    assert "1 of 2 runs failed" in page.text
    assert "DivergedError" in page.text
    # Mended, the same sweep is whole, and the finished run was not touched.
    before = done_files(root)
    config.options.grid = {"reward.learning_rate": [1e-3]}
    assert run_sweep(config).errors == []
    assert done_files(root) == before


def test_a_failed_run_is_tried_again_and_its_error_goes(reward_sweep, monkeypatch):
    config = reward_sweep(grid={"reward.learning_rate": [1e-3]})
    original = reward.run

    def broken(options, fresh):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(reward, "run", broken)
    outcome = run_sweep(config)
    note = config.root / "reward.learning_rate=0.001/seed-0/error.txt"
    assert outcome.errors == ["reward.learning_rate=0.001/seed-0: RuntimeError: out of memory"]
    assert outcome.exit_code == 1
    assert note.exists()
    monkeypatch.setattr(reward, "run", original)
    assert run_sweep(config).exit_code == 0
    assert not note.exists()


def test_a_shared_stage_that_fails_is_tried_once(tmp_path, monkeypatch):
    tried = []

    def broken(options, fresh):
        tried.append(options.seed)
        raise UsageError("no such model")

    monkeypatch.setattr("preferl.stages.sft.run", broken)
    config = world_sweep(tmp_path / "s", grid={"reward.learning_rate": [1e-3, 1e-2, 0.1]}, seeds=[0, 1])
    outcome = run_sweep(config)
    assert tried == [0, 1]
    assert len(outcome.errors) == 6
    assert outcome.exit_code == 2


def test_an_interrupt_stops_the_sweep_and_the_tables_are_there(reward_sweep, monkeypatch):
    config = reward_sweep(grid={"reward.learning_rate": [1e-3, 1e-2]})
    original, calls = reward.run, []

    def interrupted(options, fresh):
        calls.append(options.learning_rate)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(options, fresh)

    monkeypatch.setattr(reward, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(config)
    rows = json.loads((config.root / "table.json").read_text())["rows"]
    assert [row["metrics"]["accuracy"]["n"] for row in rows] == [1, 0]
    run_sweep(config)
    assert calls == [1e-3, 1e-2, 1e-2]


@pytest.fixture
def made():
    """What the stages of ``recorded`` put into their data."""
    return [1]


@pytest.fixture
def recorded(monkeypatch, made):
    """Stages that only leave their files, and the list of those that ran."""
    ran = []

    def stand_in(name):
        def run(options, fresh=False):
            with Stage(name, options, fresh) as stage:
                if not stage.is_finished:
                    ran.append("/".join(stage.path.parts[-3:]))
                    stage.begin()
                    stage.data.mkdir()
                    (stage.data / "rows.jsonl").write_text(f"{name}, made as number {made[0]}")
                    stage.finish(**{"eval/loss": 1.0, "eval/accuracy": 0.5})
            return stage.path

        return run

    for name in ("sft", "collect", "reward"):
        monkeypatch.setattr(f"preferl.stages.{name}.run", stand_in(name))
    monkeypatch.setattr("preferl.reporting.sweeps.sections", lambda runs: [])  # they have measured nothing
    return ran


def test_fresh_makes_every_stage_again_once(tmp_path, recorded):
    config = world_sweep(tmp_path / "s", grid={"reward.learning_rate": [1e-3, 1e-2]}, seeds=[0, 1])
    run_sweep(config)
    first = list(recorded)
    assert len(first) == len(set(first)) == 8
    run_sweep(config)
    assert recorded == first
    run_sweep(config, fresh=True)
    assert recorded == first * 2


def test_a_redo_that_was_interrupted_goes_on_as_one(tmp_path, recorded, monkeypatch):
    """With ``--fresh`` and without it, and what was done in it is not done once more."""
    config = world_sweep(tmp_path / "s", grid={"reward.learning_rate": [1e-3, 1e-2]}, seeds=[0, 1])
    run_sweep(config)
    first = list(recorded)
    for again in (True, False):
        recorded.clear()
        stop_at = len(first) // 2
        finish = Stage.finish

        def finish_or_stop(stage, stop_at=stop_at, finish=finish, **summary):
            if len(recorded) == stop_at:
                raise KeyboardInterrupt
            finish(stage, **summary)

        monkeypatch.setattr(Stage, "finish", finish_or_stop)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(config, fresh=True)
        monkeypatch.setattr(Stage, "finish", finish)
        stopped = list(recorded)
        recorded.clear()
        run_sweep(config, fresh=again)
        assert stopped[:-1] + recorded == first
        recorded.clear()
        run_sweep(config)
        assert recorded == []


def test_what_reads_from_a_stage_that_became_another_is_made_anew(tmp_path, recorded, made, capsys):
    config = world_sweep(tmp_path / "s", grid={"reward.learning_rate": [1e-3, 1e-2]}, seeds=[0, 1])
    run_sweep(config)
    recorded.clear()
    # The same bytes again: nothing else has to be done.
    (tmp_path / "s/base/seed-0/collect/DONE").unlink()
    run_sweep(config)
    assert recorded == ["base/seed-0/collect"]
    recorded.clear()
    (tmp_path / "s/base/seed-0/collect/DONE").unlink()
    made[0] = 2
    run_sweep(config)
    assert "reward: done again: dataset_name: " in capsys.readouterr().out
    assert recorded == [
        "base/seed-0/collect",
        "reward.learning_rate=0.001/seed-0/reward",
        "reward.learning_rate=0.01/seed-0/reward",
    ]


@pytest.mark.parametrize(
    ("changes", "options", "expected"),
    [
        ({}, {"grid": {"sft.hidden_size": [32]}}, {"sft.hidden_size=32": {"sft", "collect", "reward"}}),
        ({}, {"grid": {"temperature": [0.7]}}, {"temperature=0.7": {"sft", "collect", "reward"}}),
        (
            {"sft.temperature": 0.5},
            {"grid": {"temperature": [0.7]}},
            {"base": {"sft"}, "temperature=0.7": {"collect", "reward"}},
        ),
        (
            {},
            {"grid": {"collect.pairs.train": [5], "reward.num_evals": [1]}},
            {
                "base": {"sft"},
                "collect.pairs.train=5": {"collect"},
                "collect.pairs.train=5,reward.num_evals=1": {"reward"},
            },
        ),
        (
            {"reward.model_name_or_path": "other/model"},
            {"grid": {"sft.hidden_size": [32]}},
            {"sft.hidden_size=32": {"sft", "collect", "reward"}},
        ),
        (
            {"stages": ["sft", "collect", "reward", "rl", "evaluate"]},
            {"grid": {"rl.kl_coef": [0.1], "evaluate.temperature": [0.5]}},
            {
                "base": {"sft", "collect", "reward"},
                "rl.kl_coef=0.1": {"rl"},
                "rl.kl_coef=0.1,evaluate.temperature=0.5": {"evaluate"},
            },
        ),
        # A reward model of another size than the policy: its data stay the same.
        (
            {"stages": ["sft", "collect", "backbone", "reward"]},
            {"grid": {"backbone.hidden_size": [32]}},
            {"base": {"sft", "collect"}, "backbone.hidden_size=32": {"backbone", "reward"}},
        ),
        # The policy is chosen by hand: nothing of the swept stage reaches rl.
        (
            {
                "stages": ["sft", "rl"],
                "rl": {"model_name_or_path": "p", "dataset_name": "world", "reward_model": "r"},
            },
            {"grid": {"sft.hidden_size": [32]}},
            {"sft.hidden_size=32": {"sft"}, "base": {"rl"}},
        ),
    ],
)
def test_a_stage_lies_under_the_keys_that_reach_it(tmp_path, changes, options, expected):
    config = changed(world_sweep(tmp_path, **options), **changes)
    assert places(config) == {
        f"{name}/seed-0/{stage}" for name, stages in expected.items() for stage in stages
    }


def test_a_stage_with_its_own_seed_is_shared_by_all_seeds(tmp_path):
    config = changed(world_sweep(tmp_path, grid={"reward.num_evals": [1]}, seeds=[0, 1]), **{"sft.seed": 7})
    seeds = [(options_of(run, "sft").seed, options_of(run, "reward").seed) for run in planned(config)]
    assert seeds == [(7, 0), (7, 1)]
    assert places(config) == {
        "base/every-seed/sft",
        *(
            f"{path}"
            for s in (0, 1)
            for path in (f"base/seed-{s}/collect", f"reward.num_evals=1/seed-{s}/reward")
        ),
    }


def test_equal_places_mean_equal_options(tmp_path):
    """Over a grid in every stage: one directory, one configuration."""
    grid = {"sft.hidden_size": [16, 32], "temperature": [0.8, 1.0], "reward.seed": [0, 5]}
    config = world_sweep(tmp_path, grid=grid, points=[{}, {"sft.seed": 3}], seeds=[0, 1])
    options = {}
    for run in planned(config):
        for stage, path in run.where.items():
            assert options.setdefault(path, options_of(run, stage)) == options_of(run, stage)
            assert options_of(run, stage).output_dir == str(path)
    assert len(options) < 3 * len(planned(config))


def test_stages_of_equal_content_are_one(tmp_path, recorded):
    """A value that is the base's changes nothing; what reads from it is the same too."""
    usual = SftConfig().learning_rate
    config = world_sweep(tmp_path / "s", points=[{}, {"sft.learning_rate": usual}])
    assert places(config) == {f"base/seed-0/{stage}" for stage in ("sft", "collect", "reward")}
    run_sweep(config)
    assert len(recorded) == 3
    table = json.loads((tmp_path / "s" / "table.json").read_text())
    assert [row["metrics"]["accuracy"]["mean"] for row in table["rows"]] == [0.5, 0.5]
    # Growing at the front, a sweep finds again what it made, wherever that lies.
    grown = world_sweep(tmp_path / "s", points=[{"sft.learning_rate": usual}, {"sft.learning_rate": 0.1}])
    run_sweep(grown)
    assert recorded[3:] == [f"sft.learning_rate=0.1/seed-0/{s}" for s in ("sft", "collect", "reward")]
    assert places(grown) > {f"base/seed-0/{stage}" for stage in ("sft", "collect", "reward")}


def test_an_older_sweep_has_its_page(swept, tmp_path, capsys):
    """Its configuration held every option of every stage; the page needs only the table and the places."""
    config, outcome = swept
    root = tmp_path / config.root.name
    shutil.copytree(config.root, root)
    for mark in root.rglob(".preferl.json"):
        mark.unlink()
    (root / "config.yaml").write_text(
        "output_dir: runs/s\nsft: {output_dir: runs/sft}\nsweep: {seeds: [0]}\n"
    )
    table = json.loads((root / "table.json").read_text())
    del table["seeds"]
    (root / "table.json").write_text(json.dumps(table))
    assert cli.main(["report", str(root)]) == 0
    assert "reward.learning_rate" in capsys.readouterr().out
    old, new = (path.read_text().split("<details")[0] for path in (root / "report.html", outcome.report))
    assert old == new
    (root / "table.json").write_text("{")
    assert cli.main(["report", str(root)]) == 2
    assert "run the sweep again" in capsys.readouterr().err


def test_named_points_refer_to_stages_of_their_own_and_of_each_other(tmp_path):
    """``@/stage`` and ``@name/stage`` become the directories where those stages lie, also inside a text."""
    points = [
        {"name": "few labels", "collect.pairs.train": 10},
        {
            "name": "more",
            "collect.add_to": "@few labels/collect",
            "collect.adversarial": "@few labels/reward",
        },
        {"name": "mixed", "rl.reward_model": "0.7*@/reward + 0.3*min(@few labels/reward, concise)"},
    ]
    config = world_sweep(tmp_path, points=points, seeds=[0, 1])
    config = changed(config, stages=[*config.base.stages, "rl", "evaluate"])
    runs = planned(config)
    few, more, mixed = (run for run in runs if run.seed == 1)
    assert few.path == tmp_path / "few-labels" / "seed-1"
    assert few.where["collect"] == few.path / "collect"
    assert options_of(more, "collect").add_to == str(few.where["collect"])
    assert options_of(more, "collect").adversarial == str(few.where["reward"])
    assert {few.where["collect"], few.where["reward"]} <= set(more.needs(more.stages[1]))
    # The reward model of the mixture is the one without changes: nothing that the point sets reaches it.
    assert mixed.where["reward"] == tmp_path / "base" / "seed-1" / "reward"
    text = f"0.7*{mixed.where['reward']} + 0.3*min({few.where['reward']}, concise)"
    assert options_of(mixed, "rl").reward_model == text
    assert options_of(mixed, "evaluate").reward_model == text  # what it was trained against
    assert set(mixed.needs(mixed.stages[3])) == {
        mixed.where["sft"],
        mixed.where["reward"],
        few.where["reward"],
    }


def test_what_a_failed_point_would_have_given_is_not_waited_for(tmp_path, monkeypatch):
    """A point that reads from a stage of another that failed fails with its error; the rest goes on."""
    config = world_sweep(
        tmp_path / "sweep",
        points=[{"name": "a", "collect.pairs.train": 9}, {"name": "b", "reward.dataset_name": "@a/collect"}],
    )

    def run(options, fresh=False):
        raise UsageError("no labels today")

    monkeypatch.setattr(collect, "run", run)
    monkeypatch.setattr(sft, "run", lambda options, fresh=False: None)
    outcome = run_sweep(config)
    assert [error.split(":")[0] for error in outcome.errors] == ["a/seed-0", "b/seed-0"]
    assert all("no labels today" in error for error in outcome.errors)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"grid": {"reward.learning_rat": [1]}},
            ["reward.learning_rat", "did you mean 'reward.learning_rate'"],
        ),
        ({"grid": {"reward.learning_rate": [1e-3, "fast"]}}, ["reward.learning_rate", "fast", "float"]),
        ({"points": [{"colect.seed": 1}]}, ["colect.seed", "collect.seed"]),
        ({"grid": {"collect.pairs": [{"train": 3}]}}, ["collect.pairs", "collect.pairs."]),
        ({"grid": {"seed": [1, 2]}}, ["sweep.seeds"]),
        ({"grid": {"reward.output_dir": ["/etc"]}}, ["output_dir"]),
        ({"grid": {"rl.kl_coef": [0.1]}}, ["rl.kl_coef", "changes nothing"]),
        ({"grid": {"reward.learning_rate": []}}, ["no values"]),
        ({}, ["nothing varies"]),
        ({"grid": {"reward.seed": [1]}, "seeds": []}, ["sweep.seeds"]),
        ({"grid": {"reward.seed": [1]}, "seeds": [1, 1]}, ["sweep.seeds"]),
        (
            {"grid": {"reward.seed": [1]}, "metrics": {"a": "rewrd.ece"}},
            ["rewrd.ece", "did you mean 'reward'"],
        ),
        ({"grid": {"reward.seed": [1]}, "metrics": {"a": "rl.kl"}}, ["rl.kl", "sft, collect, reward"]),
        ({"grid": {"stages": [["sft", "dream"]]}}, ["dream"]),
        ({"points": [{"name": "a/b"}]}, ["a/b", "no @ or /"]),
        ({"points": [{"name": "A"}, {"name": "A", "reward.seed": 1}]}, ["two points are called 'A'"]),
        ({"points": [{"name": "A"}, {}]}, ["the same point"]),
        ({"points": [{"name": "base", "reward.seed": 1}]}, ["'base'", "take another"]),
        (
            {"points": [{"name": "A"}, {"name": "B", "reward.dataset_name": "@A/colect"}]},
            ["'@A/colect' is no stage", "did you mean '@A/collect'"],
        ),
        ({"points": [{"name": "B", "reward.dataset_name": "@C/collect"}, {"name": "C"}]}, ["@C/collect"]),
        ({"points": [{"name": "B", "reward.dataset_name": "@/rl"}]}, ["'@/rl' names no stage of this run"]),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, recorded, options, words):
    with pytest.raises(UsageError) as error:
        run_sweep(world_sweep(tmp_path / "s", **options))
    for word in words:
        assert word in str(error.value)
    assert not recorded
    assert not (tmp_path / "s").exists()


def test_other_options_are_refused_before_anything_runs(tmp_path, recorded):
    config = world_sweep(tmp_path / "s", grid={"reward.learning_rate": [1e-3]})
    run_sweep(config)
    recorded.clear()
    other = changed(config, **{"collect.label_scale": 2.0})
    other.options.grid["reward.learning_rate"] = [0.5, 1e-3]
    with pytest.raises(UsageError, match=r"collect.*label_scale.*--fresh"):
        run_sweep(other)
    assert not recorded


def test_directories_of_others_are_left_alone(tmp_path, recorded):
    config = world_sweep(tmp_path / "s", grid={"reward.learning_rate": [1e-3]})
    (tmp_path / "s").mkdir()
    (tmp_path / "s/thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="holds no preferl sweep"):
        run_sweep(config, fresh=True)
    (tmp_path / "s/thesis.txt").rename(tmp_path / "thesis.txt")
    (tmp_path / "s/config.yaml").write_text("output_dir: a run\n")
    with pytest.raises(UsageError, match="holds no preferl sweep"):
        run_sweep(config, fresh=True)
    assert (tmp_path / "s/config.yaml").read_text() == "output_dir: a run\n"


def test_a_metric_that_no_summary_has_names_the_nearest(tmp_path, recorded):
    metrics = {"right": "reward.eval/accuracy", "wrong": "reward.eval/acuracy"}
    config = world_sweep(tmp_path / "s", grid={"reward.learning_rate": [1e-3]}, metrics=metrics)
    with pytest.raises(UsageError, match=r"wrong.*'reward\.eval/acuracy'.*'reward\.eval/accuracy'"):
        run_sweep(config)
    rows = json.loads((tmp_path / "s/table.json").read_text())["rows"]
    assert rows[0]["metrics"]["right"]["mean"] == 0.5


NASTY = [
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "a b",
    "a-b",
    "A",
    "a",
    "a,b=c",
    "~",
]
NASTY += [
    "\n",
    "\0x",
    "é",
    "x" * 300,
    "x" * 301,
    "keyword:<script>",
    "con",
    "$HOME",
    None,
    True,
    1,
    1.5,
    [1, 2],
]


def test_names_are_safe_as_paths_and_different():
    names = [name_of({"collect.annotator": value}) for value in NASTY]
    assert len({name.lower() for name in names}) == len(names)
    for name in names:
        assert len(name) < 150
        assert Path(name).name == name
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._=,+-")
    assert name_of({"a.b": 1, "c": 0.001}) == "a.b=1,c=0.001"
    assert name_of({"a": "b,c=d"}) != name_of({"a": "b", "c": "d"})
    assert name_of({}) == "base"


def test_no_value_leads_out_of_the_directory(tmp_path, recorded):
    values = ["../../../escaped", "/etc/escaped", "world"]
    run_sweep(world_sweep(tmp_path / "in/s", grid={"collect.annotator": values}))
    root = tmp_path / "in/s"
    assert {p.relative_to(tmp_path).parts[:2] for p in tmp_path.rglob("*") if p.is_file()} == {("in", "s")}
    assert len(list(root.glob("collect.annotator=*/seed-0/reward/DONE"))) == 3


def rows_for(settings, metric="m", seeds=2, failed=()):
    """Made-up rows: the value rises by 0.1 from point to point, seeds lie 0.02 apart."""
    rows = []
    for i, setting in enumerate(settings):
        values = {} if i in failed else {seed: 0.5 + 0.1 * i + 0.02 * seed for seed in range(seeds)}
        errors = dict.fromkeys(range(seeds), f"DivergedError: {ATTACK}") if i in failed else {}
        point = name_of(setting)
        rows.append(sweeps.Row(point, setting, {metric: values}, {metric: {}}, errors))
    return rows


def report_of(root, rows, metrics, text="") -> Path:
    """The page of made-up rows."""
    (root / "config.yaml").write_text(text)
    found = sweeps.Sweep(root, rows, metrics, [0, 1], text, {})
    return sweeps.write_report(root / "report.html", found)


ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)> $\\frac{1}$ _hidden {{ 7 * 7 }}"


def test_everything_shown_is_escaped(tmp_path):
    settings = [{"collect.annotator": a, ATTACK: b} for a in (ATTACK, "world") for b in (ATTACK, "b")]
    rows = rows_for(settings, metric=ATTACK, failed=[3])
    page = Page(report_of(tmp_path, rows, {ATTACK: "reward.x"}, ATTACK))
    assert not {"script", "img"} & set(page.tags)
    assert not page.fetches
    assert page.tags.count("svg") == 1
    assert ATTACK in page.text
    assert "2 of 8 runs failed" in page.text
    assert f"DivergedError: {ATTACK}" in page.text


def test_plots_show_dollars_and_backslashes_as_they_are(tmp_path):
    rows = rows_for([{"reward.x": x, "reward.y": y} for x in ("$\\frac{1}$", "\\$") for y in ("$a_1$", "_b")])
    text = Page(report_of(tmp_path, rows, {"m": "a.kl"})).text
    plot = text[text.index("Table and curves") : text.index("Lowest at")]
    for shown in ("$\\frac{1}$", "\\$", "y = $a_1$", "y = _b"):
        assert shown in plot


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1, 2, 5, 10], "linear"),
        ([1, 2, 5, 11], "log"),
        ([1e-5, 1e-3], "log"),
        ([0, 0.01, 1], "symlog"),
        ([0, 1, 2], "linear"),
        ([-1, 100], "linear"),
        ([0], "linear"),
        (["a", "b"], "category"),
        ([True, False], "category"),
        ([None, 100], "category"),
    ],
)
def test_the_axis_fits_the_values(values, scale, tmp_path):
    rows = rows_for([{"reward.x": value} for value in values])
    assert sweeps.lines_of(rows, "m")[0] == sweeps.scale_of(values) == scale
    assert Page(report_of(tmp_path, rows, {"m": "a.kl"})).tags.count("svg") == 1


def test_two_keys_make_one_line_for_each_value_of_the_second():
    grid = [{"a.x": x, "b.y": y} for x, y in itertools.product([3, 1, 2], ["p", "q"])]
    scale, ticks, lines = sweeps.lines_of(rows_for(grid), "m")
    assert scale == "linear"
    assert [text for _, text in ticks] == ["1", "2", "3"]
    assert [line.label for line in lines] == ["y = p", "y = q"]
    for line in lines:
        assert [x for x, _ in line.points] == [1, 2, 3]
        assert [row.settings["a.x"] for _, row in line.points] == [1, 2, 3]


def test_a_point_without_a_number_does_not_stretch_the_axis():
    scale, ticks, _ = sweeps.lines_of(rows_for([{"a.x": x} for x in (1, 2, 1e30)], failed=[2]), "m")
    assert (scale, ticks) == ("linear", [(1.0, "1"), (2.0, "2")])


def test_too_many_lines_become_rows_of_the_table():
    grid = [{"a.x": x, "b.y": y} for x, y in itertools.product([1, 2], range(9))]
    scale, ticks, lines = sweeps.lines_of(rows_for(grid), "m")
    assert (scale, len(lines), len(ticks)) == ("rows", 1, 18)
    corners = [{"a.x": 1, "b.y": 1}, {"a.x": 2, "b.y": 2}]
    assert sweeps.lines_of(rows_for(corners), "m")[0] == "rows"


def test_the_sentence_is_computed_from_the_numbers():
    rows = rows_for([{"reward.x": x} for x in (1, 2, 3)], failed=[2])
    text = sweeps.reading(rows, "m")
    sd = statistics.stdev([0.5, 0.52])
    assert "Lowest at x = 1: 0.510 ± 0.014; highest at x = 2: 0.610 ± 0.014" in text
    assert f"differ by 0.100, {0.1 / sd:.1f} standard deviations over seeds" in text
    assert "± 1 standard deviation over 2 seeds" in text
    assert "1 of 3 points have no number" in text
    assert "standard deviation" not in sweeps.reading(rows_for([{"reward.x": 1}], seeds=1), "m")


def test_shipped_sweeps_can_run():
    files = sorted((FOLDER / "sweeps").glob("*.yaml"))
    assert files
    for file in files:
        config = SweepConfig(**yaml.safe_load(file.read_text(encoding="utf-8")))
        runs = planned(config)
        assert len(runs) > len(config.options.seeds)
        assert metrics_of(config, runs)
