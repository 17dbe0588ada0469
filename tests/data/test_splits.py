"""Which rows train, which choose, which are reported: the data set's own splits, and those of a hash."""

import hashlib
import json
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preferl.data import splits
from preferl.data.records import DataError
from preferl.data.sources import load_source
from preferl.data.splits import divide, meaning, normalised, place_of, split_of_file
from preferl.runs.errors import UsageError
from preferl.stages import best_of, reward, rl, sft

PROMPTS = [f"prompt {i}" for i in range(1000)]


def write(path, rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(i, **columns) -> dict:
    return {"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} | columns


def sizes(source) -> dict[str, int]:
    return {name: len(part.comparisons) for name, part in source.parts.items()}


# ------------------------------------------------------------------------------------------------ the hash


def test_splits_never_move():
    """Pinned: a change here would put prompts that trained something into the reported numbers."""
    texts = ["Once upon a time", "What is 2 + 2?", "Grüße, 世界 🌍", "Name two.", "Why?"]
    assert [round(place_of(normalised(text)), 4) for text in texts] == PINNED_PLACES


PINNED_PLACES = [0.2027, 0.9636, 0.7473, 0.3038, 0.4329]


def test_the_place_is_that_of_a_blake2_hash():
    """The definition, written once more: 64 bits of BLAKE2b as a number in [0, 1), cut by the shares."""
    found = divide(PROMPTS, [None] * len(PROMPTS))
    for prompt, name in zip(PROMPTS, found.names, strict=True):
        place = int(hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest(), 16) / 2**64
        assert place_of(prompt) == place
        assert name == ("train" if place < 0.8 else "dev" if place < 0.9 else "eval")


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.1), (0.5, 0.2, 0.3), (0.9, 0.1, 0.0), (1.0, 0.0, 0.0)])
def test_splits_have_their_shares(shares):
    keys = [f"prompt {i}" for i in range(20_000)]
    number = Counter(divide(keys, [None] * len(keys), shares).names)
    for name, share in zip(("train", "dev", "eval"), shares, strict=True):
        assert abs(number[name] / 20_000 - share) <= 4 * math.sqrt(share * (1 - share) / 20_000)


@pytest.mark.parametrize(
    "shares", [(0.5, 0.5, 0.5), (0.8, 0.1), (1.2, -0.1, -0.1), (math.nan, 0.1, 0.1), (0.0, 0.5, 0.5)]
)
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(DataError, match="sum to 1"):
        splits.check_shares(shares)


@given(st.text(max_size=30))
def test_what_makes_no_other_prompt_makes_no_other_split(text):
    assert normalised(f"  {text}\t\n ") == normalised(text)
    assert normalised([{"role": "user", "content": text}]) == normalised(text)


@given(st.text(st.characters(max_codepoint=127), max_size=30))  # beyond, some letters have no other case
def test_case_and_code_of_a_letter_make_no_other_prompt(text):
    assert normalised(text.upper()) == normalised(text) == normalised(text.lower())
    assert normalised("STRASSE") == normalised("Straße")
    assert normalised("o\u0308 \ufb01") == normalised("ö fi")


def test_another_turn_makes_another_prompt():
    turn = [{"role": "user", "content": "Hi"}]
    longer = [*turn, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Hi"}]
    assert normalised(longer) != normalised(turn)
    assert normalised([{"role": "system", "content": "Be brief."}, *turn]) != normalised(turn)
    assert place_of("half a character: \ud800") < 1


def test_the_largest_hashes_fill_what_would_be_empty():
    """Of every set of ten or more, dev and eval get one each, of those with the largest hashes."""
    for start in range(60):
        keys = [f"case {start}, prompt {i}" for i in range(10)]
        found = divide(keys, [None] * 10)
        number = Counter(found.names)
        assert number["dev"] >= 1
        assert number["eval"] >= 1
        assert number["train"] >= 1
        held_out = {key for key, name in zip(keys, found.names, strict=True) if name != "train"}
        largest = sorted(keys, key=place_of)[-len(held_out) :]
        assert held_out == set(largest)


def test_fewer_than_ten_prompts_all_train_and_it_is_said(tmp_path):
    source = load_source(write(tmp_path / "few.jsonl", [pair(i % 9) | {"n": i} for i in range(18)]))
    assert sizes(source) == {"train": 18, "dev": 18, "rl": 0, "eval": 18}
    assert len(source.prompts) == 9
    said = source.notes[-1]
    assert "9 prompts are too few to divide: all of them train" in said
    assert "dev and eval measured on rows that train" in said
    ten = load_source(write(tmp_path / "ten.jsonl", map(pair, range(10))))
    assert len(ten.own("dev").comparisons) >= 1
    assert source.own("dev").comparisons == []


def test_a_prompt_has_one_split_in_every_file(tmp_path):
    first = load_source(write(tmp_path / "a.jsonl", [pair(i) for i in range(200)]))
    rows = [{"prompt": [{"role": "user", "content": f"Question  {i}"}]} for i in range(100, 300)]
    second = load_source(write(tmp_path / "b.jsonl", rows))
    of = {normalised(r.prompt): name for name, part in first.parts.items() for r in part.prompts}
    shared = 0
    for name, part in second.parts.items():
        for record in part.prompts:
            key = normalised(record.prompt)
            shared += key in of
            assert of.get(key, name) == name
    assert shared == 100


def test_rows_can_be_divided_instead_of_prompts(tmp_path):
    """One system prompt for everything: by prompt nothing could be held out."""
    rows = [{"prompt": "Tell a joke.", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(200)]
    name = write(tmp_path / "a.jsonl", rows)
    assert sizes(load_source(name)) == {"train": 200, "dev": 200, "rl": 0, "eval": 200}
    divided = sizes(load_source(name, split_by="row"))
    assert sum(divided.values()) == 200
    assert 10 <= divided["dev"] <= 35
    shares = sizes(load_source(name, split_by="row", split_shares=[0.5, 0.0, 0.5]))
    assert shares["dev"] == 0
    assert 80 < shares["eval"] < 120
    with pytest.raises(DataError, match="split_by 'answer' is unknown; use prompt, row"):
        load_source(name, split_by="answer")


# ---------------------------------------------------------------------------------------- a data set's own


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("train_prefs", "train"),
        ("train-00000-of-00002", "train"),
        ("validation", "dev"),
        ("val", "dev"),
        ("dev", "dev"),
        ("test", "eval"),
        ("test_sft", "eval"),
        ("eval", "eval"),
        ("rl", "rl"),
        ("trainer", None),
        ("harmless", None),
        ("latest", None),
        ("", None),
        (None, None),
    ],
)
def test_what_splits_are_called(name, split):
    assert meaning(name) == split


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("hh_helpful_base.test.jsonl.gz", "test"),
        ("train-00000-of-00002.parquet", "train"),
        ("my_validation_set.json", "validation"),
        ("pairs.jsonl", None),
        ("train_and_test.jsonl", None),
        ("trained.jsonl", None),
    ],
)
def test_what_files_are_called(name, split):
    assert split_of_file(name) == split


def test_a_column_names_the_split_under_the_data_sets_own_names(tmp_path):
    names = ["train"] * 60 + ["test"] * 20 + ["validation"] * 15 + ["rl"] * 5
    source = load_source(write(tmp_path / "a.jsonl", [pair(i, split=s) for i, s in enumerate(names)]))
    assert sizes(source) == {"train": 60, "dev": 15, "rl": 5, "eval": 20}
    assert source.measured_on("test").eval == source.eval
    assert len(source.training_on("validation").train.comparisons) == 15
    assert [r.prompt for r in source.prompts] == [f"question {i}" for i in range(95, 100)]
    assert source.notes[-1] == "split: 60 train, 15 dev, 5 rl, 20 eval (its own)"


def test_files_of_a_folder_name_the_split(tmp_path):
    folder = tmp_path / "mine"
    write(folder / "pairs.train.jsonl", [pair(i) for i in range(40)])
    write(folder / "pairs.test.jsonl", [pair(i) for i in range(40, 50)])
    source = load_source(str(folder))
    found = sizes(source)
    assert found["eval"] == 10
    assert found["train"] + found["dev"] == 40
    assert found["dev"] >= 1
    # Those of train whose hash lies in dev's tenth: where they would be without splits, too.
    expected = {f"question {i}" for i in range(40) if 0.8 <= place_of(f"question {i}") < 0.9}
    assert {c.prompt for c in source.dev.comparisons} == expected
    assert "its own, dev out of its train prompts by a hash" in source.notes[-1]
    # One file alone has one split: it counts as one without.
    alone = sizes(load_source(str(folder / "pairs.train.jsonl")))
    assert sum(alone.values()) == 40
    assert min(alone["dev"], alone["eval"]) >= 1


def test_train_alone_gives_a_tenth_to_each_of_the_others():
    own = ["train"] * 900 + ["ood"] * 100
    found = divide(PROMPTS, own)
    number = Counter(found.names)
    assert number["ood"] == 100
    assert abs(number["dev"] - 90) < 30
    assert abs(number["eval"] - 90) < 30


def test_little_that_trains_gives_nothing_away(tmp_path):
    rows = [pair(i, split="train" if i < 6 else "test") for i in range(10)]
    source = load_source(write(tmp_path / "a.jsonl", rows))
    assert sizes(source)["train"] == 6
    assert source.dev is source.train
    assert "6 prompts are too few to take dev out of" in source.notes[-1]


def test_a_data_set_of_one_split_is_divided_and_can_still_be_named(tmp_path):
    source = load_source(write(tmp_path / "a.jsonl", [pair(i, split="test") for i in range(100)]))
    assert sizes(source)["train"] > 70
    assert "by a hash of the prompt" in source.notes[-1]
    assert len(source.measured_on("test").eval.comparisons) == 100


def test_a_column_called_split_that_names_none_is_a_column(tmp_path):
    rows = [pair(i, split=("animals", "plants")[i % 2]) for i in range(50)]
    source = load_source(write(tmp_path / "a.jsonl", rows))
    assert sum(sizes(source).values()) == 50
    # It can be asked for all the same.
    assert len(source.training_on("plants").train.comparisons) == 25


def test_other_splits_of_its_own_train_nothing_unless_they_are_named(tmp_path):
    rows = [pair(i, split=("train", "test", "hard")[i % 3]) for i in range(90)]
    source = load_source(write(tmp_path / "a.jsonl", rows))
    assert sum(sizes(source).values()) == 60
    assert "the rows of hard are used where --split names them" in source.notes[-1]
    assert len(source.training_on("hard").train.comparisons) == 30
    assert len(source.measured_on("hard").eval.comparisons) == 30
    assert len(source.training_on("all").train.comparisons) == 90
    assert "on rows that trained" in source.training_on("all").notes[-1]
    assert len(source.training_on("all").prompts) == 90
    with pytest.raises(DataError, match=r"no split 'easy'; it has train, dev, eval, test, hard, all"):
        source.training_on("easy")


def test_what_a_stage_has_written_is_complete(tmp_path):
    write(tmp_path / "stage" / "data" / "train.jsonl", [pair(i, split="train") for i in range(30)])
    (tmp_path / "stage" / "manifest.json").write_text("{}")
    assert sizes(load_source(str(tmp_path / "stage"))) == {"train": 30, "dev": 0, "rl": 0, "eval": 0}


# ---------------------------------------------------------------------------------------------- in stages


@pytest.fixture
def options(tmp_path, policy_directory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return {
        "model_name_or_path": str(policy_directory),
        "output_dir": str(tmp_path / "stage"),
        "num_threads": 1,
        "device": "cpu",
        "response_length": 4,
    }


def summary(path) -> dict:
    return json.loads((path / "summary.json").read_text())


def test_rl_on_eight_prompts_is_on_eight_prompts(tmp_path, options, capsys):
    name = write(tmp_path / "prompts.jsonl", [{"prompt": f"What is {i}?"} for i in range(8)])
    config = rl.RlConfig(
        **options, dataset_name=name, reward_model="length", num_iterations=1, batch_size=8, eval_prompts=2
    )
    notes = summary(rl.run(config))["notes"]
    assert "rl: ppo on 8 prompts" in capsys.readouterr().out.replace("  ", " ")
    assert any("too few to divide" in note for note in notes)


def test_a_reward_model_trains_on_four_fifths_of_a_file(tmp_path, options, capsys):
    name = write(tmp_path / "pairs.jsonl", [pair(i) for i in range(100)])
    config = reward.RewardConfig(**options, dataset_name=name, audit=False, num_evals=1)
    found = summary(reward.run(config))
    assert found["comparisons"] == sizes(load_source(name))["train"] > 70
    assert found["eval/pairs"] == sizes(load_source(name))["eval"]
    assert "split: 82 train" in capsys.readouterr().out or "train," in " ".join(found["notes"])


def test_a_stage_works_on_the_split_that_is_named(tmp_path, options):
    rows = [
        {"prompt": f"q{i}", "completion": f"a{i}", "split": ("train", "test", "hard")[i % 3]}
        for i in range(60)
    ]
    name = write(tmp_path / "shown.jsonl", rows)
    config = sft.SftConfig(**options, dataset_name=name, split="hard", check_samples=2, num_train_epochs=0.5)
    found = summary(sft.run(config))
    assert found["demonstrations"] == 20
    assert any("trains on the rows of 'hard'" in note for note in found["notes"])


def test_best_of_few_prompts_answers_them(tmp_path, options):
    name = write(tmp_path / "prompts.jsonl", [{"prompt": f"What is {i}?"} for i in range(6)])
    config = best_of.BestOfConfig(**options, dataset_name=name, reward_model="length")
    prompts, _ = best_of.prompts_to_answer(load_source(name), config)
    assert len(prompts["train"]) == 6


def test_a_split_that_is_not_there_is_refused_before_a_model_is_loaded(tmp_path, options):
    name = write(tmp_path / "pairs.jsonl", [pair(i) for i in range(20)])
    (tmp_path / "empty").mkdir()  # a directory that holds no model
    model = {"model_name_or_path": str(tmp_path / "empty")}
    config = reward.RewardConfig(**options | model, dataset_name=name, split="x")
    with pytest.raises((DataError, UsageError), match="no split 'x'"):
        reward.run(config)
