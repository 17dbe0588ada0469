"""The best_of stage: what is chosen, what it says of it, and what is trained on it."""

import dataclasses
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from preferl import pipeline
from preferl.data.records import SPLITS, DataError, prompt_key, prompt_text
from preferl.data.sources import load_source
from preferl.judging.scorers import load_scorer
from preferl.models import load
from preferl.models.reward import load_reward_model
from preferl.pipeline import RunConfig
from preferl.runs.errors import DivergedError, UsageError
from preferl.runs.record import StageRecord
from preferl.runs.stage import Stage
from preferl.sampling.policy import Policy
from preferl.stages import best_of, sft
from preferl.stages.best_of import BestOfConfig, Choices, Kept
from preferl.stages.sft import SftConfig
from preferl.statistics import mean_interval
from preferl.sweep.numbers import metrics_of
from preferl.sweep.plan import SweepConfig, SweepOptions, plan_all, points_of
from summaries import repeatable

CPU = torch.device("cpu")
SMALL = {"device": "cpu", "num_threads": 1, "response_length": 16}


def candidates(scores, texts=None, finished=None, gold=None, prompt="p") -> Choices:
    N = len(scores)
    return Choices(
        prompt,
        texts or [f"text {i}" for i in range(N)],
        np.array([True] * N if finished is None else finished),
        np.arange(1, N + 1),
        np.array(scores, dtype=float),
        None if gold is None else np.array(gold, dtype=float),
    )


# --------------------------------------------------------------------------------------- what is chosen


def test_the_best_different_responses_are_chosen_best_first():
    row = candidates([1, 5, 3, 5, 4], texts=["a", "b", "c", "d", "b"])
    assert best_of.best_numbers(row, 1, None) == [1], "of equal scores the earlier"
    assert best_of.best_numbers(row, 3, None) == [1, 3, 2], "b is there once"
    assert best_of.best_numbers(row, 5, None) == [1, 3, 2, 0]
    assert best_of.best_numbers(row, 5, 3.0) == [1, 3, 2], "a score of min_score is enough"
    assert best_of.best_numbers(row, 5, 5.5) == []


def test_what_was_cut_off_or_is_empty_is_never_chosen():
    row = candidates([9, 8, 1], texts=["cut off", " \n", "ends"], finished=[False, True, True])
    assert best_of.best_numbers(row, 3, None) == [2]
    assert best_of.best_numbers(candidates([9, 8], finished=[False, False]), 2, None) == []


def test_prompts_are_left_out_for_a_reason_that_is_counted():
    rows = [
        candidates([1, 2], prompt="a"),
        candidates([9, 9], finished=[False, False], prompt="b"),
        candidates([9, 5], texts=["", "cut off"], finished=[True, False], prompt="c"),
        candidates([-1, 0], prompt="d"),
        candidates([4, 3], prompt="e"),
        candidates([3, 0], prompt="f"),
    ]
    kept, left_out = best_of.choose(rows, BestOfConfig(min_score=0.5))
    assert [(k.row.prompt, k.numbers, k.score) for k in kept] == [("a", [1], 2), ("e", [0], 4), ("f", [0], 3)]
    assert left_out == {
        "all cut off": 1,
        "all finished ones empty": 1,
        "below min_score": 1,
        "below top_fraction": 0,
    }
    kept, left_out = best_of.choose(rows, BestOfConfig(min_score=0.5, top_fraction=0.5))
    assert [k.row.prompt for k in kept] == ["e", "f"], "two of three, in the prompts' order"
    assert left_out["below top_fraction"] == 1


@pytest.mark.parametrize(("fraction", "prompts", "wanted"), [(0.1, 30, 3), (0.07, 100, 7), (0.01, 3, 1)])
def test_a_share_of_the_prompts_is_rounded_up_once(fraction, prompts, wanted):
    rows = [candidates([i]) for i in range(prompts)]
    kept, left_out = best_of.choose(rows, BestOfConfig(top_fraction=fraction))
    assert [k.score for k in kept] == list(range(prompts - wanted, prompts))
    assert left_out["below top_fraction"] == prompts - wanted


def test_numbers_weigh_every_prompt_the_same_and_the_gain_is_on_the_kept_prompts():
    rows = [candidates([0, 6], gold=[2, 1]), candidates([1, 3], gold=[0, 4]), candidates([-9, -9])]
    rows[2] = dataclasses.replace(rows[2], finished_N=np.array([False, False]), gold_N=np.array([0.0, 0.0]))
    found = best_of.describe(rows, [Kept(rows[0], [1]), Kept(rows[1], [1, 0])])
    assert found["sampled"]["score"] == pytest.approx((3 + 2 - 9) / 3)
    assert (found["sampled"]["prompts"], found["sampled"]["responses"]) == (3, 6)
    assert found["sampled"]["cut_off"] == pytest.approx(2 / 6)
    assert found["sampled"]["length"] == pytest.approx(1.5)
    assert (found["kept"]["prompts"], found["kept"]["responses"]) == (2, 3)
    assert found["kept"]["score"] == pytest.approx((6 + 2) / 2)
    assert found["kept"]["gold"] == pytest.approx((1 + 2) / 2)
    assert found["kept"]["length"] == pytest.approx((2 + 1.5) / 2)
    assert found["gain"]["score"] == pytest.approx(((6 - 3) + (2 - 2)) / 2)
    assert found["gain"]["gold"] == pytest.approx(((1 - 1.5) + (2 - 2)) / 2)
    _, low, high = mean_interval([6, 2])
    assert (found["kept"]["score_low"], found["kept"]["score_high"]) == (low, high)
    _, low, high = mean_interval([3, 0])
    assert (found["gain"]["score_low"], found["gain"]["score_high"]) == (low, high)
    nothing = best_of.describe(rows[2:], [])
    assert nothing["kept"] == {"prompts": 0, "responses": 0}
    assert "gain" not in nothing
    assert best_of.describe([], [])["sampled"] == {"prompts": 0, "responses": 0}


def test_the_bound_of_the_kl_is_that_of_best_of_n_and_of_nothing_else():
    assert best_of.kl_bound(BestOfConfig(num_generations=8)) == pytest.approx(math.log(8) - 7 / 8)
    for change in ({"keep": 2}, {"min_score": 0.0}, {"top_fraction": 0.5}):
        assert best_of.kl_bound(BestOfConfig(num_generations=8, **change)) is None


# ------------------------------------------------------------------------------------------- the stage


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    """Demonstrations of different lengths in all four splits."""
    rows = [
        {
            "prompt": f"What is {i} plus {j}?",
            "completion": (f"It is {i + j}.", f"{i + j}.", f"I think that it is {i + j}.")[(i + j) % 3],
            "split": SPLITS[(i * 7 + j) % 4],
        }
        for i in range(12)
        for j in range(8)
    ]
    path = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def policy(tmp_path_factory, data_file):
    """A small model that answers, and mostly ends its answers."""
    config = SftConfig(
        output_dir=str(tmp_path_factory.mktemp("sft") / "sft"),
        dataset_name=str(data_file),
        hidden_size=32,
        num_heads=4,
        vocab_size=300,
        num_train_epochs=40,
        train_batch_size=8,
        num_evals=1,
        check_samples=4,
        max_length=64,
        **SMALL,
    )
    return sft.run(config)


@pytest.fixture
def config(tmp_path, data_file, policy):
    return BestOfConfig(
        output_dir=str(tmp_path / "best_of"),
        dataset_name=str(data_file),
        model_name_or_path=str(policy),
        reward_model="length",
        gold="concise",
        num_generations=6,
        dev_prompts=5,
        **SMALL,
    )


def sampled_again(config, split, prompts):
    """The candidates of a split, drawn once more outside the stage."""
    policy = Policy.load(config.model_name_or_path, CPU)
    scorer, gold = load_scorer(config.reward_model, CPU), load_scorer(config.gold, CPU)
    with tempfile.TemporaryDirectory() as folder, best_of.Steps("again", len(prompts)) as steps:
        stage = Stage("best_of", dataclasses.replace(config, output_dir=folder))
        return best_of.sample(policy, scorer, gold, prompts, split, config, stage, steps)


def test_the_kept_response_has_the_highest_reward_of_the_finished_ones(config):
    written = load_source(str(best_of.run(config)))
    prompts, _ = best_of.prompts_to_answer(load_source(config.dataset_name), config)
    cut_off = chosen_below_the_longest = 0
    for split in ("train", "dev"):
        rows = sampled_again(config, split, prompts[split])
        expected = {}
        for row in rows:
            assert len(row.responses) == 6
            texts = [t for t, done in zip(row.responses, row.finished_N, strict=True) if done and t.strip()]
            cut_off += 6 - int(row.finished_N.sum())
            if texts:
                expected[row.prompt] = max(texts, key=len)
                chosen_below_the_longest += len(expected[row.prompt]) < max(map(len, row.responses))
        found = {d.prompt: d.response for d in written[split].demonstrations}
        assert found == expected
        for d in written[split].demonstrations:
            assert d.columns["score"] == pytest.approx(len(d.response) / 100)
            assert d.columns["gold"] == pytest.approx(-len(d.response.split()) / 10)
    assert cut_off, "the test needs responses that were cut off"
    assert chosen_below_the_longest, "and among them one with the highest reward"


def test_prompts_keep_their_splits_and_no_eval_prompt_trains(config):
    source, written = load_source(config.dataset_name), load_source(str(best_of.run(config)))
    asked = {split: {prompt_text(d.prompt) for d in written[split].demonstrations} for split in SPLITS}
    known = {split: {prompt_text(p.prompt) for p in source[split].prompts} for split in SPLITS}
    assert asked["train"]
    assert asked["train"] <= known["rl"]
    assert asked["dev"] < known["dev"]
    assert 0 < len(asked["dev"]) <= 5
    assert not asked["rl"] | asked["eval"]
    assert {d.columns["prompt_split"] for d in written["train"].demonstrations} == {"rl"}


def test_it_repeats_bit_for_bit_and_follows_its_seed(config, tmp_path):
    def texts(**changes):
        stage = best_of.run(dataclasses.replace(config, output_dir=str(tmp_path / "next"), **changes), True)
        summary = StageRecord(stage).summary
        return (
            {p.name: p.read_bytes() for p in stage.glob("data/*")},
            (stage / "samples.jsonl").read_bytes(),
            repeatable(summary),
        )

    first = texts()
    assert set(first[0]) == {"train.jsonl", "dev.jsonl"}
    assert texts() == first
    assert texts(seed=1)[0] != first[0]
    assert texts(temperature=0.5)[0] != first[0]


def test_the_seed_and_the_split_draw_other_responses_to_the_same_prompts(config):
    prompts = load_source(config.dataset_name)["rl"].prompts[:4]
    again = dataclasses.replace(config, seed=1)
    draws = [
        [row.responses for row in sampled_again(options, split, prompts)]
        for options, split in ((config, "train"), (config, "train"), (again, "train"), (config, "dev"))
    ]
    assert draws[0] == draws[1]
    assert draws[0] not in draws[2:]
    assert draws[2] != draws[3]


def test_the_summary_says_what_was_sampled_kept_and_paid(config):
    stage = best_of.run(config)
    summary = StageRecord(stage).summary
    prompts, _ = best_of.prompts_to_answer(load_source(config.dataset_name), config)
    rows = sampled_again(config, "train", prompts["train"])
    train, dev = summary["splits"]["train"], summary["splits"]["dev"]
    assert train["sampled"]["prompts"] == len(rows) == 24
    assert train["sampled"]["responses"] == 6 * 24
    for measure, of in (("score", "score_N"), ("gold", "gold_N")):
        mean, low, high = mean_interval([getattr(row, of).mean() for row in rows])
        found = [train["sampled"][measure + end] for end in ("", "_low", "_high")]
        assert found == pytest.approx([mean, low, high])
    assert train["sampled"]["cut_off"] == pytest.approx(np.mean([~row.finished_N for row in rows]))
    assert train["sampled"]["length"] == pytest.approx(np.mean([row.length_N for row in rows]))
    kept = [json.loads(line) for line in (stage / "data" / "train.jsonl").read_text().splitlines()]
    assert train["kept"]["responses"] == train["kept"]["prompts"] == len(kept)
    assert train["kept"]["score"] == pytest.approx(np.mean([row["score"] for row in kept]))
    assert train["kept"]["score_low"] < train["kept"]["score"] < train["kept"]["score_high"]
    assert train["gain"]["score_low"] > 0
    assert len(kept) + sum(train["left_out"].values()) == 24
    assert dev["sampled"]["prompts"] == 5
    assert summary["forward_passes"] == {"policy": 6 * 29, "reward": 0}, "length is no language model"
    assert summary["kl_bound"] == pytest.approx(math.log(6) - 5 / 6)
    assert summary["peak_memory_mib"] > 0
    assert summary["notes"]
    shown = StageRecord(stage).samples
    assert len(shown) == 20 + 5
    for row in shown:
        assert row["worst_score"] <= row["best_score"] or not row["best_finished"] or row["worst_finished"]
        assert row["best_score"] == pytest.approx(len(row["best"]) / 100)
        assert row["worst_gold"] == pytest.approx(-len(row["worst"].split()) / 10)


def test_a_reward_is_told_which_responses_ended(config, tmp_path, monkeypatch):
    body = "def reward(prompts, completions, finished): return [float(f) for f in finished]\n"
    (tmp_path / "ends_by_itself.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    config.reward_model = "ends_by_itself:reward"
    found = StageRecord(best_of.run(config)).summary["splits"]["train"]["sampled"]
    assert 0 < found["cut_off"] < 1
    assert found["score"] == pytest.approx(1 - found["cut_off"])


def test_some_of_the_prompts_are_drawn_by_the_seed(config):
    source, config.max_prompts = load_source(config.dataset_name), 8
    draws = []
    for seed in (0, 1):
        prompts, _ = best_of.prompts_to_answer(source, dataclasses.replace(config, seed=seed))
        drawn = {record.prompt for record in prompts["train"]}
        assert len(drawn) == len(prompts["train"]) == 8
        assert drawn < {record.prompt for record in source["rl"].prompts}
        draws.append(drawn)
    first = [record.prompt for record in source["rl"].prompts[:8]]
    assert len({frozenset(draw) for draw in (*draws, first)}) == 3


def test_reward_models_are_counted_one_by_one(config, policy, tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        model, tokenizer = load_reward_model(str(policy), CPU, new_head_allowed=True)
        load.save(model, tokenizer, tmp_path / name / "model")
    config.reward_model, config.gold, config.max_prompts = f"min({tmp_path}/a, {tmp_path}/b)", None, 3
    summary = StageRecord(best_of.run(config)).summary
    assert summary["forward_passes"] == {"policy": 6 * (3 + 5), "reward": 2 * 6 * (3 + 5)}
    assert "gold" not in summary["splits"]["train"]["kept"]
    assert summary["splits"]["train"]["sampled"]["prompts"] == 3


def test_several_responses_are_kept_best_first_and_below_a_reward_none(config):
    everything = load_source(str(best_of.run(dataclasses.replace(config, keep=6))))
    by_prompt: dict[str, list] = {}
    for d in everything["train"].demonstrations:
        by_prompt.setdefault(str(d.prompt), []).append(d)
    assert max(map(len, by_prompt.values())) > 2
    for group in by_prompt.values():
        assert len({d.response for d in group}) == len(group)
        scores = [d.columns["score"] for d in group]
        assert scores == sorted(scores, reverse=True)
        assert [d.columns["place"] for d in group] == list(range(1, len(group) + 1))
    threshold = float(np.median([d.columns["score"] for d in everything["train"].demonstrations]))
    config.keep, config.min_score = 6, threshold
    some = load_source(str(best_of.run(config, fresh=True)))
    expected = [d.response for d in everything["train"].demonstrations if d.columns["score"] >= threshold]
    assert [d.response for d in some["train"].demonstrations] == expected


def test_a_share_of_the_prompts_is_that_of_the_highest_rewards(config):
    whole = load_source(str(best_of.run(config))).train.demonstrations
    config.top_fraction = 0.25
    stage = best_of.run(config, fresh=True)
    part = load_source(str(stage))["train"].demonstrations
    assert len(part) == math.ceil(len(whole) / 4)
    ordered = sorted((d.columns["score"] for d in whole), reverse=True)
    assert sorted((d.columns["score"] for d in part), reverse=True) == ordered[: len(part)]
    assert StageRecord(stage).summary["kl_bound"] is None


def test_sft_trains_on_what_was_kept_without_further_options(config, policy, tmp_path):
    stage = best_of.run(config)
    written = {name: part.demonstrations for name, part in load_source(str(stage)).parts.items()}
    trained = sft.run(
        SftConfig(
            output_dir=str(tmp_path / "distil"),
            model_name_or_path=str(policy),
            dataset_name=str(stage),
            learning_rate=4e-3,
            num_train_epochs=20,
            train_batch_size=8,
            **SMALL,
        )
    )
    record = StageRecord(trained)
    assert record.summary["demonstrations"] == len(written["train"])
    losses = [row["dev/loss"] for row in record.metrics if "dev/loss" in row]
    assert losses
    after = dataclasses.replace(config, output_dir=str(tmp_path / "after"), model_name_or_path=str(trained))
    before, now = (StageRecord(path).summary["splits"]["train"] for path in (stage, best_of.run(after)))
    assert now["sampled"]["score_low"] > before["sampled"]["score"], "it has learned to write longer"


# -------------------------------------------------------------------------------------- what goes wrong


def test_without_a_response_that_ends_there_is_nothing_to_learn_from(config):
    running_on = [candidates([1, 2], finished=[False, False])] * 3
    with pytest.raises(DataError, match=r"all 6 responses to 3 prompts were cut off at response_length 16"):
        best_of.check_something_is_left(running_on, [], config)
    config.response_length = 1  # room for EOS and for nothing before it
    with pytest.raises(DataError, match="of 144 responses to 24 prompts none ended by itself with any text"):
        best_of.run(config)
    assert not (Path(config.output_dir) / "DONE").exists()


def test_a_threshold_that_nothing_reaches_names_the_best(config):
    config.min_score = 50.0
    with pytest.raises(DataError, match=r"min_score 50 or more; the best one .* has 0\.\d+: lower --min_sc"):
        best_of.run(config)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("[float('nan')] * len(completions)", "returned nan"),
        ("[None for _ in completions]", "returned None"),
        ("[1.0]", "returned 1 scores"),
    ],
)
@pytest.mark.parametrize("role", ["reward_model", "gold"])
def test_a_broken_reward_stops_the_stage(config, tmp_path, monkeypatch, role, body, words):
    name = f"broken_{role}_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def reward(prompts, completions, **columns): return {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    kind = DivergedError if "nan" in body else UsageError
    with pytest.raises(kind, match=words):
        best_of.run(dataclasses.replace(config, **{role: f"{name}:reward"}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_generations": 0}, "num_generations is 0"),
        ({"keep": 0}, "keep is 0"),
        ({"keep": 7}, "keep is 7.*num_generations of 6"),
        ({"top_fraction": 0.0}, "top_fraction is 0"),
        ({"top_fraction": 1.5}, "top_fraction is 1.5"),
        ({"top_fraction": math.nan}, "top_fraction is nan"),
        ({"min_score": math.inf}, "min_score is inf"),
        ({"max_prompts": 0}, "max_prompts is 0"),
        ({"dev_prompts": -1}, "dev_prompts is -1"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"reward_model": "absent"}, "'absent' is neither a directory"),
    ],
)
def test_options_that_cannot_work_are_refused(config, change, words):
    with pytest.raises(UsageError, match=words):
        best_of.run(dataclasses.replace(config, **change))


def test_a_prompt_in_several_splits_is_asked_once_and_never_for_training_if_it_is_reported(config, tmp_path):
    def row(prompt, split):
        return {"prompt": prompt, "split": split}

    asked = ["a", "b", "c", "d", "a"]
    rows = [row(p, "rl") for p in asked] + [
        row("b", "eval"),
        row("c", "dev"),
        row("e", "dev"),
        row("d", "train"),
    ]
    rows += [row("e", "eval")]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    prompts, notes = best_of.prompts_to_answer(load_source(str(path)), config)
    assert {split: sorted(prompt_key(p.prompt) for p in part) for split, part in prompts.items()} == {
        "train": ["a", "d"],
        "dev": ["c"],
    }
    assert "left out 2 of 4 prompts for train: they are in dev or eval too" in notes
    path.write_text("".join(json.dumps(r) + "\n" for r in [row("a", "rl"), row("a", "eval")]))
    with pytest.raises(DataError, match="one split"):
        best_of.prompts_to_answer(load_source(str(path)), config)
    path.write_text(json.dumps(row("a", "train")) + "\n")
    prompts, _ = best_of.prompts_to_answer(load_source(str(path)), config)
    assert [p.prompt for p in prompts["train"]] == ["a"]  # nothing is marked rl: what trains is asked


def test_without_dev_prompts_there_is_no_held_out_loss(config, policy, tmp_path):
    config.dev_prompts, config.max_prompts = 0, 4
    stage = best_of.run(config)
    assert StageRecord(stage).summary["splits"]["dev"]["kept"]["responses"] == 0
    trained = sft.run(
        SftConfig(
            output_dir=str(tmp_path / "d"), model_name_or_path=str(policy), dataset_name=str(stage), **SMALL
        )
    )
    assert "dev/loss" not in StageRecord(trained).summary


# ----------------------------------------------------------------------------------------- in a pipeline


def small(root, **changes) -> RunConfig:
    config = RunConfig(
        output_dir=str(root / "run"),
        stages=["sft", "collect", "reward", "best_of", "distil", "evaluate", "report"],
        num_threads=1,
        device="cpu",
        response_length=24,
        temperature=0.8,
        sft={
            "hidden_size": 32,
            "num_heads": 4,
            "vocab_size": 600,
            "num_train_epochs": 0.3,
            "check_samples": 4,
        },
        collect={"pairs": {"train": 64, "dev": 16, "rl": 0, "eval": 24}},
        reward={"num_evals": 1},
        best_of={"num_generations": 4, "max_prompts": 32, "dev_prompts": 8},
        distil={"num_train_epochs": 1.0, "check_samples": 8},
        evaluate={"max_eval_prompts": 24, "best_of_prompts": 8, "best_of": [2]},
    )
    return config.changed(changes)


def test_a_run_trains_the_sft_model_on_the_best_of_its_responses_and_evaluates_that(tmp_path):
    html = pipeline.run(small(tmp_path)).read_text(encoding="utf-8")
    run = tmp_path / "run"
    records = {name: StageRecord(run / name) for name in ("best_of", "distil", "evaluate")}
    train = records["best_of"].summary["splits"]["train"]
    assert train["kept"]["score"] > train["sampled"]["score"]
    assert train["gain"]["score_low"] > 0
    assert "gold" in train["kept"]
    assert records["best_of"].summary["forward_passes"] == {"policy": 160, "reward": 160}
    assert records["distil"].summary["demonstrations"] == train["kept"]["responses"]
    parents = {name: record.manifest["parents"] for name, record in records.items()}
    assert (
        parents["best_of"]["model_name_or_path"]["path"]
        == parents["distil"]["model_name_or_path"]["path"]
        == "../sft"
    )
    assert parents["best_of"]["reward_model"]["path"] == "../reward"
    assert parents["evaluate"]["model_name_or_path"]["path"] == "../distil"
    evaluated = {row["prompt"] for row in records["evaluate"].samples}
    trained = load_source(str(run / "best_of")).parts
    assert not evaluated & {prompt_text(d.prompt) for part in trained.values() for d in part.demonstrations}
    assert "distil" in html


def test_the_stages_find_each_other_and_own_options_win(tmp_path):
    stages = pipeline.resolve(small(tmp_path, dataset_name="people.jsonl", max_rows=7, seed=3))
    root = str(tmp_path / "run")
    best, distil = stages["best_of"], stages["distil"]
    assert best.model_name_or_path == distil.model_name_or_path == f"{root}/sft"
    assert (best.reward_model, best.gold) == (f"{root}/reward", None)  # the world is no truth of other data
    assert (best.dataset_name, best.max_rows) == ("people.jsonl", 7)
    assert (distil.dataset_name, distil.max_rows) == (f"{root}/best_of", None)
    assert (distil.learning_rate, distil.num_train_epochs) == (None, 1)
    assert distil.seed == best.seed == 3
    assert best.temperature == 0.8
    assert stages["evaluate"].model_name_or_path == f"{root}/distil"
    both = pipeline.resolve(small(tmp_path, stages=["sft", "reward", "best_of", "distil", "rl", "evaluate"]))
    assert both["evaluate"].model_name_or_path == f"{root}/rl"
    best = {"model_name_or_path": "p", "reward_model": "length", "gold": "concise"}
    stages = pipeline.resolve(
        small(tmp_path, dataset_name="world", best_of=best, distil={"model_name_or_path": "q"})
    )
    assert {name: getattr(stages["best_of"], name) for name in best} == best
    assert stages["distil"].model_name_or_path == "q"
    assert not {"best_of", "distil"} & set(RunConfig().stages)
    with pytest.raises(UsageError, match="model_name_or_path"):
        pipeline.resolve(RunConfig(stages=["best_of"]))


def test_a_sweep_over_n_samples_and_trains_again_and_nothing_before(tmp_path):
    base = small(tmp_path, output_dir=str(tmp_path / "sweep")).given
    config = SweepConfig(**base, sweep=SweepOptions(grid={"best_of.num_generations": [2, 4]}))
    points = points_of(config)
    runs = plan_all(tmp_path / "sweep", points, [0])
    where = {str(path.relative_to(tmp_path / "sweep")) for run in runs for path in run.where.values()}
    assert where == {f"base/seed-0/{name}" for name in ("sft", "collect", "reward")} | {
        f"best_of.num_generations={n}/seed-0/{name}"
        for n in (2, 4)
        for name in ("best_of", "distil", "evaluate")
    }
    moved = {stage.name: stage.placed(runs[0].places) for stage in runs[0].stages}
    assert moved["distil"].dataset_name == moved["best_of"].output_dir == str(runs[0].where["best_of"])
    assert moved["evaluate"].model_name_or_path == str(runs[0].where["distil"])
    metrics = metrics_of(config, runs)
    assert metrics["kept_reward"] == "best_of.splits.train.kept.score"
