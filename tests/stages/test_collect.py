"""The collect stage: which pairs are made, how they are labelled, and files of responses."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from preferl.data.records import Candidates, DataError, known_probability
from preferl.data.sources import load_source
from preferl.evaluation import selection
from preferl.judging.annotators import Annotator
from preferl.models import load
from preferl.options.collect import CollectConfig, PairCounts
from preferl.runs.errors import UsageError
from preferl.stages import collect


def test_every_two_different_responses_make_a_pair_and_the_rest_is_counted():
    rows = [
        Candidates("p", ["a", "b", "a", "c"], [True, False, True, True]),
        Candidates("q", ["a", " \n"], [True, True]),
        Candidates("r", ["x", "y"], [True, True]),
    ]
    pairs, left_out = collect.pairs_of(rows)
    assert [(p.prompt, p.responses) for p in pairs] == [
        ("p", ["a", "b"]),
        ("p", ["a", "c"]),
        ("p", ["b", "a"]),
        ("p", ["b", "c"]),
        ("p", ["a", "c"]),
        ("r", ["x", "y"]),
    ]
    assert pairs[0].finished == [True, False]
    assert left_out == {"identical": 1, "empty": 1}


def test_stochastic_labels_follow_bradley_terry_and_deterministic_ones_the_larger_utility():
    pairs = [Candidates("p", ["one", "three"], [True, True])] * 4000

    def length(prompts, completions, **columns):
        return [float(len(text)) / 2 for text in completions]

    def labelled(mode, scale):
        annotator = Annotator("mine", length, mode, scale)
        return collect.label(pairs, annotator, np.random.default_rng(0), "train", CollectConfig())

    records = labelled("stochastic", 2.0)
    p = 1 / (1 + np.exp(-2.0 * (5 - 3) / 2))
    share = np.mean([record.chosen == "three" for record in records])
    assert share == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / len(pairs)))
    for record in records[:50]:
        columns = record.columns
        assert columns["p_chosen"] == pytest.approx(p if record.chosen == "three" else 1 - p)
        assert columns["chosen_position"] == (1 if record.chosen == "three" else 0)
        assert (columns["gold_chosen"], columns["gold_rejected"]) in ((2.5, 1.5), (1.5, 2.5))
    for certain in (labelled("deterministic", 1.0), labelled("stochastic", 1e4)):
        assert {record.chosen for record in certain} == {"three"}


def test_rankings_hold_every_different_response_once_with_what_is_known_of_it():
    rows = [
        Candidates("p", ["long long", "short", "short", " ", "mid one"], [True, False, True, True, True]),
        Candidates("q", ["same", "same"], [True, True]),
    ]

    def length(prompts, completions, **columns):
        return [float(len(text)) for text in completions]

    annotator = Annotator("mine", length, "deterministic")
    rankings, left_out = collect.rank(rows, annotator, np.random.default_rng(0), "train", CollectConfig())
    assert [(r.responses, r.ranks) for r in rankings] == [(["long long", "short", "mid one"], [1, 3, 2])]
    assert rankings[0].columns["finished"] == [True, False, True]
    assert rankings[0].columns["gold"] == [9, 5, 7]
    assert left_out == {"identical": 2, "empty": 1}
    best, *_ = rankings[0].pairs()
    assert (best.columns["gold_chosen"], best.columns["gold_rejected"]) == (9, 5)
    assert best.columns["finished_rejected"] is False


def test_the_probability_of_a_ranked_pair_is_that_of_its_utilities():
    rows = [Candidates(f"p{i}", ["abc", "a"], [True, True]) for i in range(3)]

    def length(prompts, completions, **columns):
        return [float(len(text)) for text in completions]

    annotator = Annotator("mine", length, "stochastic", 0.4)
    rankings, _ = collect.rank(rows, annotator, np.random.default_rng(0), "train", CollectConfig())
    for ranking in rankings:
        (pair,) = ranking.pairs()
        gap = len(pair.chosen) - len(pair.rejected)
        assert known_probability(pair) == pytest.approx(1 / (1 + np.exp(-0.4 * gap)))


@pytest.mark.parametrize("layout", ["pairs", "rankings"])
@pytest.mark.parametrize("mode", ["stochastic", "deterministic"])
def test_the_best_possible_accuracy_counts_errors_and_the_bias_for_a_place(layout, mode):
    """What the annotator's own utility reaches on its labels is what is said to be reachable."""
    rng = np.random.default_rng(0)
    options = {"error_rate": 0.2, "position_bias": 1.0}
    annotator = Annotator(
        "mine", lambda p, completions, **c: [len(t) / 9 for t in completions], mode, **options
    )
    rows = []
    for number in range(3000):
        texts = ["x" * int(n) for n in rng.choice(np.arange(1, 25), 2 if layout == "pairs" else 3, False)]
        rows.append(Candidates(f"p{number}", texts, [True] * len(texts)))
    config = CollectConfig(label_mode=mode, layout=layout, **options)
    if layout == "pairs":
        records = collect.label(rows, annotator, rng, "train", config)
    else:
        rankings, _ = collect.rank(rows, annotator, rng, "train", config)
        records = [pair for ranking in rankings for pair in ranking.pairs()]
    best = collect.describe(records, rows)["bayes_accuracy"]
    right = np.mean([len(record.chosen) > len(record.rejected) for record in records])
    assert right == pytest.approx(best, abs=0.03)
    plain = Annotator("mine", annotator.utility, mode).label_probability(
        *np.array([[record.columns[f"gold_{side}"] for record in records] for side in ("chosen", "rejected")])
    )
    assert best < np.maximum(plain, 1 - plain).mean() - 0.08  # what errors take away is not small


def test_rankings_from_a_file_are_collected_and_read_back(tmp_path):
    rows = [{"prompt": f"Number {i}", "responses": ["short", "rather long", "longer"]} for i in range(40)]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = collect.run(
        CollectConfig(
            output_dir=str(tmp_path / "collect"),
            responses_file=str(tmp_path / "responses.jsonl"),
            annotator="length",
            label_mode="deterministic",
            layout="rankings",
            tie_policy="tie",
            tie_width=0.015,
            pairs=PairCounts(train=10, dev=2, rl=2, eval=2),
            device="cpu",
            num_threads=1,
        )
    )
    source = load_source(str(stage))
    assert len(source["train"].comparisons) == 10
    assert all(r.ranks == [2, 1, 2] for part in source.parts.values() for r in part.comparisons)


def test_prompts_are_visited_in_rounds():
    order = collect.rounds(["a", "b", "c"], 0, "train")
    first, second = ([next(order) for _ in range(3)] for _ in range(2))
    assert sorted(first) == sorted(second) == ["a", "b", "c"]


def test_responses_from_a_file_are_labelled_and_read_back(tmp_path):
    rows = [{"prompt": f"Number {i}", "responses": ["short", "rather long", "long"]} for i in range(40)]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = collect.run(
        CollectConfig(
            output_dir=str(tmp_path / "collect"),
            model_name_or_path=None,
            responses_file=str(tmp_path / "responses.jsonl"),
            annotator="length",
            label_mode="deterministic",
            pairs=PairCounts(train=60, dev=3, rl=3, eval=3),
            device="cpu",
            num_threads=1,
        )
    )
    source = load_source(str(stage))
    assert len(source["train"].pairs) == 60
    assert all(len(p.chosen) > len(p.rejected) for split in source.parts for p in source[split].pairs)
    prompts = [{p.prompt for p in source[split].pairs} for split in source.parts]
    assert sum(map(len, prompts)) == len(set.union(*prompts))


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "p"}',
        '{"prompt": "p", "responses": ["a"]}',
        '{"prompt": "", "responses": ["a", "b"]}',
        "[]",
        "{",
    ],
)
def test_rows_that_are_no_candidates_are_named(tmp_path, line):
    path = tmp_path / "responses.jsonl"
    path.write_text('{"prompt": "p", "responses": ["a", "b"]}\n' + line + "\n")
    with pytest.raises(DataError, match=r"responses\.jsonl:2"):
        collect.read_candidates(path, CollectConfig())


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(UsageError, match="between 2 and 9"):
        collect.run(CollectConfig(output_dir=str(tmp_path / "a"), num_generations=1))
    with pytest.raises(DataError, match="--layout groups is neither"):
        collect.run(CollectConfig(output_dir=str(tmp_path / "a"), layout="groups"))
    with pytest.raises(UsageError, match="needs --layout rankings"):
        collect.run(CollectConfig(output_dir=str(tmp_path / "a"), tie_policy="tie"))
    with pytest.raises(UsageError, match="for --layout pairs"):
        collect.run(CollectConfig(output_dir=str(tmp_path / "a"), layout="rankings", tie_policy="skip"))
    with pytest.raises(UsageError, match="responses_file"):
        collect.run(CollectConfig(output_dir=str(tmp_path / "b"), model_name_or_path=None))


def test_a_language_model_labels_pairs_and_knows_no_truth(tmp_path, policy_directory):
    rows = [{"prompt": f"Number {i}", "responses": ["short", "rather long"]} for i in range(24)]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, tokenizer = load.load_policy(str(policy_directory), torch.device("cpu"))
    model.config.max_position_embeddings = 2048
    load.save(model, tokenizer, tmp_path / "judge")
    config = CollectConfig(
        output_dir=str(tmp_path / "collect"),
        responses_file=str(tmp_path / "responses.jsonl"),
        annotator=f"judge:{tmp_path}/judge?mode=logprob&criteria=it is short",
        pairs=PairCounts(train=6, dev=1, rl=1, eval=1),
        device="cpu",
        num_threads=1,
    )
    with pytest.raises(UsageError, match="a judge errs by itself"):
        collect.run(dataclasses.replace(config, error_rate=0.1))
    stage = collect.run(config)
    summary = json.loads((stage / "summary.json").read_text())
    assert summary["judge"]["judged"] == sum(part["pairs"] for part in summary["splits"].values())
    assert summary["splits"]["train"]["bayes_accuracy"] is None
    for pair in load_source(str(stage))["train"].pairs:
        assert 0 < pair.columns["judged_probability"] < 1
        assert known_probability(pair) is None
        assert "gold_chosen" not in pair.columns


# ------------------------------------------------------------------------------ chosen pairs, added to others


def test_only_responses_of_one_length_and_form_match():
    assert selection.matched("It is red and big.", "It is red, and so.")
    assert not selection.matched("It is red.", "It is red and big.")
    assert not selection.matched("- one\n- two", "one and two")
    assert selection.matched("- one\n- two", "- six\n- ten")
    assert not selection.matched("It is **red** now", "It is red, or so.")
    edge = "x" * 90
    assert selection.matched(edge, "y" * 100)
    assert not selection.matched(edge[1:], "y" * 100)


def test_matched_pairs_are_the_only_ones_and_the_rest_is_counted():
    rows = [Candidates("p", ["short", "a much longer one", "shirt", "a much larger one"], [True] * 4)]
    pairs, left_out = collect.pairs_of(rows, only_matched=True)
    assert [p.responses for p in pairs] == [["short", "shirt"], ["a much longer one", "a much larger one"]]
    assert left_out == {"identical": 0, "empty": 0, "unmatched": 4}


def test_the_most_contradictory_pair_is_the_overrated_one_beside_the_underrated_one():
    rows = [
        Candidates("p", ["good", "praised", "plain", "ignored"], [True] * 4),
        Candidates("q", ["plain", "good"], [True] * 2),
    ]
    worth = {"good": 2.0, "praised": -2.0, "plain": 0.0, "ignored": 2.0}
    liked = {"good": 2.0, "praised": 3.0, "plain": 0.0, "ignored": -1.0}

    def by(table):
        return lambda prompts, completions, **columns: [table[text] for text in completions]

    excess = collect.excess_of(rows, by(liked), Annotator("mine", by(worth), "deterministic"))
    assert [len(part) for part in excess] == [4, 2]
    pairs, _ = collect.pairs_of(rows, excess=excess)
    assert [p.responses for p in pairs] == [["praised", "ignored"], ["plain", "good"]]


def test_adversarial_pairs_are_added_to_older_ones_and_say_what_they_are(tmp_path, policy_directory):
    """A reward for length against an annotator for brevity: its mistakes are the longest responses."""
    older = tmp_path / "older.jsonl"
    old = [{"prompt": f"Old {i}", "chosen": "a", "rejected": "b", "split": "train"} for i in range(7)]
    older.write_text("".join(json.dumps(row) + "\n" for row in old))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {i}"}) + "\n" for i in range(60)))
    config = CollectConfig(
        output_dir=str(tmp_path / "collect"),
        model_name_or_path=str(policy_directory),
        dataset_name=str(prompts),
        annotator="concise",
        label_mode="deterministic",
        adversarial="length",
        add_to=str(older),
        num_generations=4,
        response_length=16,
        pairs=PairCounts(train=12, dev=2, rl=0, eval=2),
        device="cpu",
        num_threads=1,
    )
    stage = collect.run(config)
    source = load_source(str(stage))
    found = {split: source[split].pairs for split in source.parts}
    assert [p.prompt for p in found["train"][:7]] == [row["prompt"] for row in old]
    new = found["train"][7:]
    assert len(new) == 12
    assert {p.columns["selection"] for p in new} == {"adversarial"}
    assert all(len(p.chosen.split()) <= len(p.rejected.split()) for p in new)
    assert json.loads((stage / "summary.json").read_text())["added_to"]["train"] == 7
    random = collect.run(
        dataclasses.replace(config, adversarial=None, add_to=None, output_dir=str(tmp_path / "random"))
    )
    everything = load_source(str(random))["train"].pairs
    gap = np.mean([len(p.rejected) - len(p.chosen) for p in new])
    assert gap > 1.2 * np.mean([len(p.rejected) - len(p.chosen) for p in everything])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"matched": True, "layout": "rankings"}, "choose pairs"),
        ({"adversarial": "length", "annotator": "judge:somewhere"}, "needs an annotator with a utility"),
    ],
)
def test_choices_that_cannot_be_made_are_refused(tmp_path, change, words):
    config = CollectConfig(output_dir=str(tmp_path / "c"), model_name_or_path="nowhere", **change)
    with pytest.raises(UsageError, match=words):
        collect.run(config)
    assert not (tmp_path / "c").exists()


def test_prompts_are_visited_again_until_there_are_enough_comparisons():
    def rows(*texts):
        return [Candidates("p", list(pair), [True, True]) for pair in texts]

    half = rows(*[("same", "same"), ("one", "two")] * 5)
    config = CollectConfig()
    assert collect.visits_missing(half, 5, config, 1) == 0
    assert collect.visits_missing(half, 8, config, 1) == 6, "every second visit gives a pair"
    assert collect.visits_missing(half, 8, dataclasses.replace(config, layout="rankings"), 1) == 6
    none = rows(*[("same", "same")] * 10)
    assert collect.visits_missing(none, 2, config, 1) == 20
    assert collect.visits_missing(none * 4, 2, config, 1) == 0, "there is an end to it"
    assert collect.visits_missing(half, 8, dataclasses.replace(config, adversarial="length"), 1) == 6
    long = rows(*[("one", "one and a half"), ("one", "two")] * 5)
    assert collect.visits_missing(long, 8, dataclasses.replace(config, matched=True), 1) == 6
    assert collect.visits_missing([], 0, config, 1) == 0
