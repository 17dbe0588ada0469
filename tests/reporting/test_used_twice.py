"""What the page says of data sets and labels that several stages of a run used."""

import json

import pytest
import yaml

from preferl.reporting.used_twice import used_twice
from preferl.runs.mark import claim
from preferl.runs.record import StageRecord
from preferl.stages.report import notes

SPLITS = {"split_shares": [0.8, 0.1, 0.1], "split_by": "prompt"}


@pytest.fixture
def stage(tmp_path):
    """Makes a stage's record: its kind, the content of the data sets that it read, its options."""

    def make(kind, content=None, said=(), **config):
        path = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        path.mkdir()
        claim(path, "stage", kind)
        parents = {role: {"name": config[role], "hash": value} for role, value in (content or {}).items()}
        (path / "manifest.json").write_text(json.dumps({"stage": kind, "parents": parents}))
        (path / "config.yaml").write_text(yaml.safe_dump(SPLITS | config))
        (path / "summary.json").write_text(json.dumps({"notes": list(said)}))
        return StageRecord(path)

    return make


def test_a_data_set_that_several_stages_used_is_named_once_by_its_content(stage):
    """A copy under another name is the same data set."""
    stages = {
        "sft": stage("sft", {"dataset_name": "h1"}, dataset_name="pairs.jsonl"),
        "reward": stage("reward", {"dataset_name": "h1"}, dataset_name="copy.jsonl"),
        "rl": stage("rl", {"dataset_name": "h2"}, dataset_name="prompts.jsonl"),
    }
    assert used_twice(stages) == [
        "used more than once: pairs.jsonl and copy.jsonl, by sft (demonstrations) and reward "
        "(labels to learn)"
    ]
    assert notes(stages) == used_twice(stages)


def test_splits_that_keep_rows_apart_are_no_reason_for_more(stage):
    stages = {
        "reward": stage("reward", {"dataset_name": "h"}, dataset_name="a.jsonl"),
        "evaluate": stage("evaluate", {"dataset_name": "h"}, dataset_name="a.jsonl"),
    }
    (sentence,) = used_twice(stages)
    assert sentence.endswith("by reward (labels to learn) and evaluate (prompts to measure on)")


@pytest.mark.parametrize(
    ("trained", "measured", "said"),
    [
        (
            {"split": "all"},
            {},
            "measured on rows of a.jsonl that trained reward (split 'eval', trained on 'all')",
        ),
        ({}, {"split": "all"}, "(split 'all', trained on 'train')"),
        ({"split": "test"}, {"split": "test"}, "(split 'test', trained on 'test')"),
        ({}, {"split_by": "row"}, "divided a.jsonl in other ways (split_by)"),
    ],
)
def test_rows_that_trained_and_are_measured_on_are_named(stage, trained, measured, said):
    stages = {
        "reward": stage("reward", {"dataset_name": "h"}, dataset_name="a.jsonl", **trained),
        "audit": stage("audit", {"dataset_name": "h"}, dataset_name="a.jsonl", **measured),
    }
    _, sentence = used_twice(stages)
    assert said in sentence


def test_few_rows_that_train_and_are_measured_on(stage):
    few = "split: 6 train (6 prompts are too few to divide); dev and eval measured on rows that train"
    stages = {
        "sft": stage("sft", {"dataset_name": "h"}, dataset_name="a.jsonl"),
        "evaluate": stage("evaluate", {"dataset_name": "h"}, [few], dataset_name="a.jsonl"),
    }
    assert used_twice(stages)[1] == (
        "evaluate measured on rows of a.jsonl that trained sft: it has too few others"
    )


def test_labels_beside_and_names_without_content_count_too(stage):
    stages = {
        "dpo": stage("dpo", dataset_name="org/pairs"),
        "reward": stage("reward", {"dataset_name": "h"}, dataset_name="b.jsonl", also_train_on="org/pairs"),
    }
    (sentence,) = used_twice(stages)
    assert sentence == "used more than once: org/pairs, by dpo (labels to learn) and reward (labels to learn)"


def test_the_world_divides_itself(stage):
    assert used_twice({kind: stage(kind, dataset_name="world") for kind in ("sft", "rl", "evaluate")}) == []
    own = {kind: stage(kind, dataset_name="world:analysis") for kind in ("sft", "reward")}
    assert used_twice(own) == []
