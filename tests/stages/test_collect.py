"""The collect stage: which pairs are made, how they are labelled, and files of responses."""

import json

import numpy as np
import pytest

from preferl.data.records import DataError
from preferl.data.sources import load_source
from preferl.judging.annotators import Annotator
from preferl.runs.errors import UsageError
from preferl.stages import collect
from preferl.stages.collect import Candidates, CollectConfig, Pair, PairCounts


def test_every_two_different_responses_make_a_pair_and_the_rest_is_counted():
    rows = [
        Candidates("p", ["a", "b", "a", "c"], [True, False, True, True]),
        Candidates("q", ["a", " \n"], [True, True]),
        Candidates("r", ["x", "y"], [True, True]),
    ]
    pairs, left_out = collect.pairs_of(rows, 100)
    assert [(p.prompt, p.responses) for p in pairs] == [
        ("p", ("a", "b")),
        ("p", ("a", "c")),
        ("p", ("b", "a")),
        ("p", ("b", "c")),
        ("p", ("a", "c")),
        ("r", ("x", "y")),
    ]
    assert pairs[0].finished == (True, False)
    assert left_out == {"identical": 1, "empty": 1}
    assert collect.pairs_of(rows, 2)[0] == pairs[:2]


def test_stochastic_labels_follow_bradley_terry_and_deterministic_ones_the_larger_utility():
    pairs = [Pair("p", ("one", "three"), (True, True))] * 4000

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
    assert len(source.preferences["train"]) == 60
    assert all(len(p.chosen) > len(p.rejected) for part in source.preferences.values() for p in part)
    prompts = [{p.prompt for p in part} for part in source.preferences.values()]
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
        collect.read_candidates(path)


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(UsageError, match="needs 2 or more"):
        collect.run(CollectConfig(output_dir=str(tmp_path / "a"), num_generations=1))
    with pytest.raises(UsageError, match="responses_file"):
        collect.run(CollectConfig(output_dir=str(tmp_path / "b"), model_name_or_path=None))
