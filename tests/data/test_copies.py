"""Rows and prompts that stand twice: what is found, what is counted once, what is said."""

import itertools
import json
import random

import pytest
from example_rows import write

from preferl.data import copies, formats
from preferl.data.copies import across_splits, shingles
from preferl.data.sources import load_source
from preferl.data.splits import normalised
from preferl.statistics.intervals import wilson_interval


def pair(i, prompt=None, **columns):
    return {
        "prompt": prompt or f"Name fruit {i}.",
        "chosen": f"apple {i}",
        "rejected": f"stone {i}",
    } | columns


def words(rng, count):
    return " ".join(rng.choices([f"w{i}" for i in range(3000)], k=count))


# ------------------------------------------------------------------------------------------- repeated rows


def test_a_file_that_repeats_all_others_is_counted_once(tmp_path):
    """RM-Bench's folder."""
    write(tmp_path / "chat.jsonl", *(pair(i) for i in range(20)))
    write(tmp_path / "code.jsonl", *(pair(i) for i in range(20, 30)))
    write(tmp_path / "total.jsonl", *(pair(i, domain="x") for i in range(30)))
    loaded = formats.load(str(tmp_path))
    assert len(loaded.records) == len(loaded.rows) == loaded.report.kept == 30
    said = f"left out the 30 rows of {tmp_path}/total.jsonl: other files have all of them"
    assert loaded.report.notes[-1] == said
    assert said in load_source(str(tmp_path)).notes


def test_a_file_with_a_row_of_its_own_stays_and_its_parts_go(tmp_path):
    write(tmp_path / "chat.jsonl", *(pair(i) for i in range(5)))
    write(tmp_path / "total.jsonl", *(pair(i) for i in range(6)))
    loaded = formats.load(str(tmp_path))
    assert {row.file for row in loaded.rows} == {f"{tmp_path}/total.jsonl"}
    assert len(loaded.records) == 6


def test_a_split_that_repeats_another_is_a_leak_and_stays(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.jsonl", *(pair(i) for i in range(12)))
    write(tmp_path / "all.jsonl", *(pair(i) for i in range(12)))
    source = load_source(str(tmp_path))
    assert (len(source["eval"].pairs), "all.jsonl" in " ".join(source.notes)) == (12, True)
    assert "the split test is the same as the split train: all of its 12 prompts are in both" in source.notes


def test_a_split_that_is_part_of_another_is_named(tmp_path):
    write(tmp_path / "train_prefs.jsonl", *(pair(i, split="train_prefs") for i in range(30)))
    write(tmp_path / "test_prefs.jsonl", *(pair(i, split="test_prefs") for i in range(5)))
    sentence = "the split test_prefs is part of the split train_prefs: all of its 5 prompts are in both"
    assert sentence in load_source(str(tmp_path)).notes
    assert copies.contained(["a", "b"], ["train", "test"]) == []


def test_repeated_rows_are_counted_and_stay(tmp_path):
    name = write(tmp_path / "a.jsonl", *(pair(i) for i in range(12)), pair(3, note="again"), pair(4))
    loaded = formats.load(name)
    assert len(loaded.records) == 14
    example = f"(for example {name}:13 repeats {name}:4)"
    repeats = f"2 of 14 rows repeat an earlier one and count like any other {example}"
    assert loaded.report.notes[-1] == repeats
    prompts = write(tmp_path / "p.jsonl", {"prompt": "p", "answer": 1}, {"prompt": "p", "answer": 2})
    assert not [note for note in formats.load(prompts).report.notes if "repeat" in note]


def test_rows_without_a_rejected_response_are_left_out_and_counted(tmp_path):
    """train_gen of ultrafeedback_binarized."""
    write(tmp_path / "train_prefs.jsonl", *(pair(i) for i in range(20)))
    write(
        tmp_path / "train_gen.jsonl",
        *(pair(i) | {"rejected": None} for i in range(9)),
        pair(9) | {"rejected": []},
    )
    report = formats.load(str(tmp_path)).report
    assert (report.kept, report.left_out) == (20, {"no_rejected": 10})
    assert "train_gen.jsonl:1: there is a chosen response and no rejected one" in report.summary()


# ------------------------------------------------------------------------------------ prompts in two splits


def test_prompts_are_equal_but_for_case_space_and_final_punctuation():
    same = ["What is  2 + 2?", "what is 2 + 2", "WHAT IS 2 + 2 ?!", "What is ２ + 2？"]
    assert len({normalised(text) for text in same}) == 1
    assert normalised("C#") != normalised("C")
    assert normalised("1 + 1 =") != normalised("1 + 1")
    assert normalised("?!") == "?!"


@pytest.mark.parametrize("seed", range(3))
def test_exactly_the_near_copies_are_found(seed):
    """Against the Jaccard index of every pair."""
    rng = random.Random(seed)
    train = [words(rng, rng.randint(6, 40)) for _ in range(60)]
    held = []
    for text in train:
        changed = text.split()
        for _ in range(rng.randint(0, 3)):
            changed[rng.randrange(len(changed))] = "other"
        held.append(" ".join(changed + ["more"] * rng.randint(0, 2)))
    near = equal = 0
    for text in dict.fromkeys(held):
        if text in train:
            equal += 1
        elif len(text.split()) >= 8:
            own = shingles(text)
            both = [shingles(other) for other in train if len(other.split()) >= 8]
            near += any(len(own & s) / len(own | s) >= 0.8 for s in both)
    (found,) = across_splits(train + held, ["train"] * 60 + ["eval"] * 60).shared
    assert near > 3
    assert (found.of, found.other, found.prompts) == ("eval", "train", len(set(held)))
    assert (found.equal, found.near) == (equal, near)


def test_near_copies_at_the_threshold_are_rarely_missed():
    """An index of just over .8 is a candidate with probability .998."""
    rng = random.Random(0)
    hits = 0
    for _ in range(100):
        text = words(rng, 43)  # 39 shingles; a changed last word changes one, a new first two another two
        near = f"a b {text.rsplit(' ', 1)[0]} {words(rng, 5)}"
        index = len(shingles(text) & shingles(near)) / len(shingles(text) | shingles(near))
        assert 0.8 <= index < 0.9
        hits += bool(across_splits([text, near], ["train", "dev"]).shared)
    assert wilson_interval(hits, 100)[1] >= 0.99


def test_which_splits_must_not_share_prompts():
    text = "one prompt of more than eight words that stands in every split there is"
    splits = ["train", "rl", "dev", "eval", "harmless"]
    found = across_splits([text] * 5, splits).shared
    assert [(s.other, s.of) for s in found] == list(copies.APART)
    assert across_splits([text] * 2, ["train", "rl"]).sentences() == []


def test_short_prompts_have_no_near_copies():
    assert across_splits(["a b c d e f g", "a b c d e f g h"], ["train", "eval"]).sentences() == []


def test_above_the_limit_near_copies_are_looked_for_on_request(monkeypatch):
    monkeypatch.setattr(copies, "MOST_PROMPTS", 1)
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    prompts, splits = [text, f"{text} fifteen"], ["train", "eval"]
    said = "near-copies were not looked for among 2 prompts; --near_copies always does"
    assert across_splits(prompts, splits).sentences() == [said]
    assert across_splits(prompts, splits, "never").sentences() == []
    assert across_splits(prompts, splits, "always").shared[0].near == 1


def test_a_template_that_all_prompts_share_does_not_take_forever():
    text = "solve this problem step by step and give only the final number: what is {} plus {}"
    prompts = [text.format(*both) for both in itertools.product(range(40), range(25))]
    found = across_splits(prompts, ["train"] * 500 + ["eval"] * 500)
    assert len(found.unsure) <= 1


def test_the_notes_of_a_data_set_name_what_its_splits_share(tmp_path):
    rng = random.Random(1)
    texts = [words(rng, 20) for _ in range(30)]
    rows = [pair(i, text, split="train") for i, text in enumerate(texts)]
    rows += [pair(40, texts[0].upper() + "!", split="test"), pair(41, texts[1] + " end", split="test")]
    rows += [pair(42, words(rng, 20), split="test"), pair(43, words(rng, 20), split="validation")]
    name = write(tmp_path / "a.jsonl", *map(json.dumps, rows))
    notes = load_source(name).notes
    assert any("of 3 of eval 1 are in train too and 1 are nearly in train (for example" in n for n in notes)
    assert not any("two splits" in n for n in load_source(write(tmp_path / "b.jsonl", *rows[:30])).notes)
