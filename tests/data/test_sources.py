"""Data sets by name: splits that share no prompt, texts cut at sentences, options that are refused."""

import json

import pytest
from example_rows import write

from preferl.data.files import Table
from preferl.data.records import DataError, Demonstration, prompt_key
from preferl.data.sources import load_beside, load_source
from preferl.data.texts import opening, passages
from preferl.stages.reward import RewardConfig
from preferl.world import FAMILIES


def test_a_text_is_cut_into_opening_and_whole_sentences():
    text = Demonstration("", 'One two three. Four five "six!" Seven eight nine ten.', {})
    cut = opening(text, 2, 5)
    assert (cut.prompt, cut.response) == ("One two", ' three. Four five "six!"')
    assert opening(text, 2, None).response == ' three. Four five "six!" Seven eight nine ten.'
    assert opening(text, 10, 5) is None
    assert opening(text, 3, 2) is None  # no sentence ends within two words
    assert text.response.startswith(cut.prompt + cut.response)


def test_a_long_text_gives_passages_in_one_split_and_one_prompt(tmp_path):
    story = " ".join(f"Word {i} is here now." for i in range(40))
    pieces = passages(Demonstration("", story, {}), 5, 20)
    assert len(pieces) == 8
    assert [p.columns["passage"] for p in pieces] == list(range(8))
    assert " ".join(p.prompt + p.response for p in pieces) == story
    (tmp_path / "t.txt").write_text("\n\n".join(f"Tale {i}. {story}" for i in range(40)))
    source = load_source(str(tmp_path / "t.txt"), opening_words=5, max_response_words=20)
    assert sum(len(part.prompts) for part in source.parts.values()) == 40
    assert sum(len(part.demonstrations) for part in source.parts.values()) > 300
    for part in source.parts.values():
        assert {p.prompt for p in part.prompts} <= {d.prompt for d in part.demonstrations}


def test_splits_share_no_prompt_and_lose_none(tmp_path):
    rows = [
        {"prompt": f"question {i % 90}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(180)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = load_source(str(path))
    prompts = [p.prompt for part in source.parts.values() for p in part.prompts]
    assert len(prompts) == len(set(prompts)) == 90
    assert sum(len(source[split].pairs) for split in source.parts) == 180
    for split in source.parts:
        pairs = source[split].pairs
        assert {p.prompt for p in pairs} == {p.prompt for p in source[split].prompts}
        assert [d.response for d in source[split].demonstrations] == [p.chosen for p in pairs]
    short = load_source(str(path), max_rows=10)
    assert sum(len(part.pairs) for part in short.parts.values()) == 10
    none = load_source(str(path), max_prompt_words=1)
    with pytest.raises(DataError, match=r"has no prompts: it has no rows .*left out 180"):
        none.need("prompts", "train")


def test_the_world_is_a_source():
    source = load_source("world")
    assert {len(part.prompts) > 100 for part in source.parts.values()} == {True}
    assert source["train"].demonstrations
    # Those of the eval prompts are there to be compared with, not to learn from.
    references = source.references("eval")
    prompts = [record.prompt for record in source["eval"].prompts]
    assert all(prompt_key(prompt) in references for prompt in prompts)
    assert {source.category(prompt) for prompt in prompts} == set(FAMILIES)


def test_prompts_have_the_category_that_a_column_names(tmp_path):
    rows = [{"prompt": f"q{i}", "response": f"a{i}", "task": "x", "subset": "ab"[i % 2]} for i in range(8)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = load_source(str(tmp_path / "x.jsonl"))
    prompts = [p.prompt for part in source.parts.values() for p in part.prompts]
    assert {source.category(p) for p in prompts} == {"a", "b"}
    assert source.category("q1") == "b"
    del rows[0]["subset"]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not load_source(str(tmp_path / "x.jsonl")).categories


def test_a_reward_function_sees_the_answer_by_the_name_that_the_file_gives_it():
    rows = [{"question": f"Number {i}?", "answer": str(i), "level": 2} for i in range(3)]
    (asked, *_) = load_source(Table(rows)).prompts
    assert asked.columns == {"completion": "0", "answer": "0", "level": 2}


def test_unknown_options_are_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "q"}\n')
    with pytest.raises(DataError, match="dataset_format"):
        load_source(str(tmp_path / "x.jsonl"), dataset_format="csv")
    with pytest.raises(DataError, match="bad_rows"):
        load_source(str(tmp_path / "x.jsonl"), bad_rows="ignore")


def test_real_stories_become_openings(real_data):
    source = load_source("roneneldan/TinyStories", opening_words=12, max_response_words=32)
    assert len(source["train"].demonstrations) > 6000
    for d in source["train"].demonstrations[:200]:
        assert len(d.prompt.split()) == 12
        assert len(d.response.split()) <= 33
        assert d.response.rstrip()[-1] in ".!?\"')"


@pytest.mark.parametrize(("name", "trained"), [("world:demonstration", 6), ("world:analysis", 10)])
def test_preferls_own_pairs_are_a_data_set(name, trained):
    """One set trains, the four unseen pairs are measured; no prompt is in both."""
    source = load_source(name)
    assert [len(source[split].pairs) for split in ("train", "dev", "eval")] == [trained, 4, 4]
    assert source.own("eval").pairs == source.own("dev").pairs == source.eval.pairs
    keys = [{prompt_key(pair.prompt) for pair in source[split].pairs} for split in ("train", "eval")]
    assert not keys[0] & keys[1]
    assert source.category(source.train.pairs[0].prompt) == source.train.pairs[0].columns["category"]
    with pytest.raises(DataError, match="world:demonstration, world:analysis"):
        load_source("world:nothing")


def test_a_second_data_set_adds_its_training_comparisons_alone():
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(4)]
    few = load_source(Table(rows))
    both = few.also_training_on(load_source("world:analysis"))
    assert len(both.train.comparisons) == 14
    # Few rows are all trained and measured on; that is still so, and still said.
    assert not both.own("eval").comparisons
    assert both.train.prompts == few.train.prompts
    split = [row | {"split": name} for row, name in zip(rows, ("train", "train", "dev", "eval"), strict=True)]
    both = load_source(Table(split)).also_training_on(load_source("world:demonstration"))
    assert [len(both[name].comparisons) for name in ("train", "dev", "eval")] == [8, 1, 1]


def test_a_split_without_rows_is_an_error_that_says_what_to_do():
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(40)]
    source = load_source(Table(rows), split_shares=[0.9, 0.1, 0.0])
    with pytest.raises(DataError) as caught:
        source.need("pairs", "eval")
    for words in ("no pairs in the split 'eval', only in train and dev", "column `split`", "--split_shares"):
        assert words in str(caught.value)
    assert "--split_by" in str(caught.value)
    assert str(caught.value).endswith("--split")
    with pytest.raises(DataError, match="has no pairs: it has prompts and demonstrations") as caught:
        load_source(Table([{"prompt": f"p{i}", "completion": "a"} for i in range(40)])).need("pairs", "train")
    assert "--split_shares" not in str(caught.value)


def test_what_was_said_of_one_data_set_is_not_said_of_another_beside_it(tmp_path):
    """A column of the same name may mean the opposite there."""
    good, bad = "An apple.", "A stone."
    first = [{"q": f"Q{i}", "a": good, "b": bad, "w": 1} for i in range(12)]
    config = RewardConfig(
        dataset_name=write(tmp_path / "first.jsonl", *first),
        columns="prompt=q,response_a=a,response_b=b",
        winner="w:flag(1=a)",
        dataset_format="ranking",
    )
    other = write(
        tmp_path / "b.jsonl", *({"prompt": f"P{i}", "chosen": good, "rejected": bad} for i in range(12))
    )
    beside = load_beside("also_train_on", **config.source_of(other))
    assert {pair.chosen for pair in beside.train.pairs} == {good}
    unclear = write(tmp_path / "c.jsonl", *first)
    with pytest.raises(DataError, match=r"also_train_on: .*preferl data convert .*c\.jsonl OUT\.jsonl"):
        load_beside("also_train_on", **config.source_of(unclear))


def test_a_text_that_writes_a_dialogue_down_is_no_opening_and_its_rest(tmp_path):
    lines = [
        f"<|im_start|>user\nName {i}.<|im_end|>\n<|im_start|>assistant\nA fruit.<|im_end|>\n"
        for i in range(12)
    ]
    source = load_source(write(tmp_path / "a.jsonl", *({"text": line} for line in lines)))
    assert {d.response for d in source.train.demonstrations} == {"A fruit."}
    assert all(d.prompt[0]["content"].startswith("Name ") for d in source.train.demonstrations)
