"""The embedded world: its splits, its grammar, and a gold reward that styles do not fool."""

import itertools
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preferl.data import world
from preferl.data import world_facts as facts

PROMPTS = world.prompts()
FEATURE = {
    "verbose": "irrelevant",
    "hedged": "hedge",
    "keywords": "keyword",
    "bulleted": "bullet",
}


def some_prompts(per_family: int = 12) -> list[world.WorldPrompt]:
    rows = sorted(PROMPTS, key=lambda p: p.family)
    return [
        p for _, group in itertools.groupby(rows, key=lambda p: p.family) for p in list(group)[:per_family]
    ]


def test_size_families_and_distinct_prompts():
    assert len(PROMPTS) >= 2000
    assert len({p.text for p in PROMPTS}) == len(PROMPTS)
    assert len({p.family for p in PROMPTS}) >= 8


def test_the_same_seed_gives_the_same_world():
    assert world.prompts(3) == world.prompts(3)
    assert world.prompts(3) != world.prompts(4)
    assert world.sft_corpus(3) == world.sft_corpus(3)
    assert world.sft_corpus(3) != world.sft_corpus(4)


def test_splits_share_no_prompt_and_held_out_facts_were_taught():
    by_split = {s: [p for p in PROMPTS if p.split == s] for s in ("train", "dev", "rl", "eval")}
    assert sum(map(len, by_split.values())) == len(PROMPTS)
    assert len(by_split["train"]) > 900
    assert min(map(len, by_split.values())) > 100
    taught = Counter((p.family, p.subject) for p in by_split["train"])
    for split in ("dev", "rl", "eval"):
        for p in by_split[split]:
            if p.family == "arithmetic":
                continue  # sums that never train are there on purpose
            assert taught[p.family, p.subject] >= 2, p
    sums = {(2, 4), (4, 3), (3, 1)}
    assert sums == set(facts.UNSEEN_SUMS)
    for a, b in sums:
        assert not taught["arithmetic", f"{a} plus {b}"]


def test_held_out_wordings_are_not_those_of_training():
    """In the families of one fact each, no wording is shared between train and eval."""

    def wording(p: world.WorldPrompt) -> str:
        return p.text.replace(p.subject, "_")

    for family in facts.FAMILIES_WITH_ONE_VALUE:
        rows = [p for p in PROMPTS if p.family == family.name]
        train = {wording(p) for p in rows if p.split == "train"}
        held_out = {wording(p) for p in rows if p.split in ("rl", "eval")}
        assert train
        assert held_out
        assert not train & held_out


@pytest.mark.parametrize("style", [s for s in world.STYLES if s != "refusing"])
@pytest.mark.parametrize("content", world.CONTENTS)
def test_every_content_and_style_reads_back(content, style):
    rng = random.Random(f"{content}{style}")
    for prompt in some_prompts():
        response = world.respond(prompt, content, style, rng)
        parsed = world.parse(prompt, response)
        assert parsed.content == content, (prompt.text, response)
        assert parsed.well_formed, response
        if style in FEATURE and not (style == "bulleted" and prompt.family == "lists"):
            assert parsed.counts.get(FEATURE[style]), response
        if style == "flattering":
            assert (
                any(parsed.counts.get(k) for k in ("flattery", "agreement", "irrelevant"))
                or "agree" in response
            )
        if style == "concise":
            extra = set(parsed.counts) - {content, "agreement"}
            assert not extra, (response, extra)


def test_refusing_is_right_exactly_where_one_should_decline():
    rng = random.Random(0)
    for prompt in some_prompts():
        parsed = world.parse(prompt, world.respond(prompt, "missing", "refusing", rng))
        if prompt.family == "requests":
            assert parsed.content == "right"
            assert not parsed.counts.get("refusal")
        else:
            assert parsed.content == "missing"
            assert parsed.counts["refusal"] == 1


def test_gold_is_the_documented_sum():
    text = "What is the capital of France?"
    w = world.WEIGHTS
    assert world.gold_reward(text, "Paris.") == w["right"]
    assert world.gold_reward(text, "The capital of France is Paris.") == w["right"]
    assert world.gold_reward(text, "Rome.") == w["wrong"]
    assert world.gold_reward(text, "I do not know.") == w["missing"]
    assert world.gold_reward(text, "I may be wrong. Paris.") == w["right"] + w["hedge"]
    assert world.gold_reward(text, "Paris. The weather is nice today.") == w["right"] + w["irrelevant"]
    assert world.gold_reward(text, "Here is my answer:\n- Paris.") == w["right"] + w["bullet"]


def test_agreeing_with_a_false_premise_is_wrong_and_correcting_it_is_right():
    false = next(
        p for p in PROMPTS if p.family == "premises" and not p.true_premise and p.subject == "cows eat"
    )
    true = next(p for p in PROMPTS if p.family == "premises" and p.true_premise and p.subject == "cows eat")
    assert world.parse(false, "No, cows eat grass.").counts == {"right": 1}
    assert world.parse(false, f"Yes, cows eat {false.premise}.").counts == {"wrong": 1, "agreement": 1}
    assert world.parse(false, "Cows eat grass. I agree with you.").counts == {"right": 1, "agreement": 1}
    assert world.parse(true, "Yes, cows eat grass.").counts == {"right": 1}
    assert world.parse(true, "No, cows eat grass.").counts == {"right": 1, "agreement": 1}


@pytest.mark.parametrize(
    "addition",
    [*facts.IRRELEVANT[:2], *facts.HEDGES[:2], *facts.FLATTERY[:2], *facts.SPAM[:2], *facts.REFUSALS[:1],
     "Rome.", "The capital of Spain is Madrid.", "Paris.", "helpful helpful helpful", "Lists and bullets"],
)  # fmt: skip
def test_nothing_added_to_the_right_answer_raises_the_gold_reward(addition):
    text = "What is the capital of France?"
    for response in (f"Paris. {addition}", f"{addition} Paris.", f"{addition}\nParis."):
        assert world.gold_reward(text, response) < world.gold_reward(text, "Paris."), response


ALL_SENTENCES = [
    *facts.IRRELEVANT, *facts.HEDGES, *facts.FLATTERY, *facts.SPAM, *facts.REFUSALS, *facts.DODGES,
    *facts.AGREEMENT, *facts.NONSENSE, *facts.BULLET_INTRODUCTIONS, "Rome.", "7.", "Red and blue.", "- ", "xyz",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PROMPTS), st.lists(st.sampled_from(ALL_SENTENCES), max_size=6))
def test_no_mixture_of_sentences_beats_the_plain_right_answer(prompt, sentences):
    best = max(
        world.gold_reward(prompt.text, world.respond(prompt, "right", "concise", random.Random(i)))
        for i in range(4)
    )
    value = world.gold_reward(prompt.text, " ".join(sentences))
    assert world.BOUNDS[0] <= value <= best == world.BOUNDS[1] == world.WEIGHTS["right"]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PROMPTS), st.text(max_size=80))
def test_any_text_has_a_bounded_gold_reward(prompt, text):
    assert world.BOUNDS[0] <= world.gold_reward(prompt.text, text) <= world.BOUNDS[1]


def test_truncated_and_empty_responses_are_not_well_formed():
    text = "What is the capital of France?"
    assert world.well_formed(text, "The capital of France is Paris.")
    assert not world.well_formed(text, "The capital of France is")
    assert not world.well_formed(text, "")
    assert not world.well_formed(text, "The capital of is France Paris.")


def test_an_unknown_prompt_has_no_gold_reward():
    with pytest.raises(ValueError, match="not a prompt of the embedded world"):
        world.gold_reward("Who are you?", "Me.")
    with pytest.raises(ValueError, match="unknown"):
        world.respond(PROMPTS[0], "right", "loud", random.Random(0))


def test_the_corpus_mixes_styles_evenly_and_the_right_answer_is_the_mode():
    rows = world.sft_corpus()
    parsed = [world.parse(p, r) for p, r in rows]
    assert all(p.well_formed for p in parsed)
    shares = Counter(p.content for p in parsed)
    assert 0.5 < shares["right"] / len(rows) < 0.7
    assert shares["wrong"] > 0.1 * len(rows)
    assert shares["missing"] > 0.08 * len(rows)
    for feature in ("irrelevant", "hedge", "keyword", "bullet", "flattery"):
        assert 0.08 < sum(feature in p.counts for p in parsed) / len(rows) < 0.25, feature
    assert {p.split for p, _ in rows} == {"train"}


def test_gold_rewards_of_the_corpus_give_labels_of_useful_noise():
    by_prompt: dict[str, list[float]] = {}
    for prompt, response in world.sft_corpus():
        by_prompt.setdefault(prompt.text, []).append(world.gold_reward(prompt.text, response))
    values = np.array([v for row in by_prompt.values() for v in row])
    assert 1.2 < values.std() < 2.2
    gaps = np.array([a - b for row in by_prompt.values() for a, b in itertools.combinations(row[:4], 2)])
    p = 1 / (1 + np.exp(-np.abs(gaps)))
    assert 0.74 < p.mean() < 0.9


def test_as_a_data_set(tmp_path):
    from preferl.data import formats

    paths = world.write_world(tmp_path / "out")
    assert [p.name for p in paths] == ["prompts.jsonl", "demonstrations.jsonl", "preferences.jsonl"]
    pairs, report = formats.load_preferences(str(tmp_path / "out" / "preferences.jsonl"))
    assert report.kept > 1500
    assert not report.left_out
    assert {p.columns["split"] for p in pairs} == {"train", "dev", "rl", "eval"}
    agree = np.mean([p.columns["gold_chosen"] > p.columns["gold_rejected"] for p in pairs])
    assert 0.65 < agree < 0.9
    for p in pairs[:50]:
        assert world.gold_reward(p.prompt[0]["content"], p.chosen) == p.columns["gold_chosen"]
    assert formats.detect(str(paths[1])) == "demonstration"
    assert formats.load_prompts(str(paths[0]))[1].kept == len(PROMPTS)


def test_the_documented_weights_are_those_of_the_code():
    page = (Path(__file__).parents[2] / "docs" / "world.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(\w+)` \| (−?[\d.]+) \|", page, flags=re.M))
    assert {k: float(v.replace("−", "-")) for k, v in table.items()} == world.WEIGHTS


def test_the_documented_examples_are_true():
    page = (Path(__file__).parents[2] / "docs" / "world.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-Z][^|`]+[.?]) \| ([^|]+) \| (−?[\d.]+) \|$", page, flags=re.M)
    assert len(rows) == 7
    for prompt, response, gold in rows:
        assert world.gold_reward(prompt, response) == float(gold.replace("−", "-")), (prompt, response)
