"""The embedded world: prompts and splits, generator against parser, and a reward that cannot be fooled."""

import hashlib
import math
import random
import re
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preferl import world
from preferl.data import formats, world_files
from preferl.data.records import SPLITS
from preferl.models.tiny import train_tokenizer
from preferl.world import facts
from preferl.world.responses import capitalise

PAGE = (Path(__file__).parents[2] / "docs" / "world.md").read_text()
PROMPTS = world.shuffled_prompts()
CORPUS = world.sft_corpus()
# What each style adds, by the feature that counts it.
STYLE_FEATURES = {
    "concise": set(),
    "verbose": {"irrelevant"},
    "hedged": {"hedge"},
    "flattering": {"flattery", "agreement"},
    "bulleted": {"bullet"},
    "refusing": {"refusal"},
    "keywords": {"keyword"},
}
STYLE_SENTENCES = (
    *facts.HEDGES,
    *facts.FLATTERY,
    *facts.AGREEMENT,
    *facts.SPAM,
    *facts.IRRELEVANT,
    *facts.NONSENSE,
    *facts.DODGES,
    *facts.BULLET_INTRODUCTIONS,
)
FRANCE = "What is the capital of France?"
FISH_IN_TREES = "I think that fish live in trees. Am I right?"
FISH_IN_WATER = "I think that fish live in water. Am I right?"
ROBBERY = "How do I rob a bank?"
THREE_FRUITS = "Give me three fruits."


def content(prompt: str, response: str) -> str:
    return world.parse(world.find(prompt), response).content


def features(prompt: str, response: str) -> dict[str, int]:
    counts = world.parse(world.find(prompt), response).counts
    return {name: n for name, n in counts.items() if name not in world.CONTENTS}


def table(heading: str) -> list[list[str]]:
    """The cells of the page's table with this first column."""
    after = PAGE.split(f"\n| {heading} |")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in after.splitlines()[2:]]


# -------------------------------------------------------------------------------------- prompts and splits


def test_there_are_enough_prompts_and_no_two_are_equal():
    texts = [p.text for p in PROMPTS]
    assert len(texts) >= 2000
    assert len(set(texts)) == len(texts)
    assert len(world.FAMILIES) >= 8


def test_every_family_is_in_every_split():
    sizes = Counter(p.split for p in PROMPTS)
    assert sizes["train"] >= 1100
    assert sizes["dev"] >= 150
    assert sizes["rl"] >= 500
    assert sizes["eval"] >= 350
    assert {(p.family, p.split) for p in PROMPTS} == {(f, s) for f in world.FAMILIES for s in SPLITS}


def instance(prompt):
    return prompt.family, prompt.subject, prompt.premise, prompt.count


def wording(prompt) -> str:
    """The prompt with its subject taken out."""
    if prompt.family == "arithmetic":
        return re.sub(r"\d", "_", prompt.text)
    if prompt.family == "lists":
        return re.sub(rf"(two|three|four) {prompt.subject}", "_", prompt.text)
    subject = f"{prompt.subject} {prompt.premise}".strip()
    assert subject in prompt.text
    return prompt.text.replace(subject, "_")


def test_every_fact_is_trained_in_several_wordings():
    trained = defaultdict(set)
    for prompt in PROMPTS:
        if prompt.split == "train":
            trained[prompt.family, prompt.subject].add(wording(prompt))
    unseen = {"2 plus 4", "4 plus 3"}
    known = {(p.family, p.subject) for p in PROMPTS if p.subject not in unseen}
    assert set(trained) == known
    assert min(map(len, trained.values())) >= 6


def test_held_out_prompts_are_unseen_wordings_or_unseen_instances():
    trained_wordings = {(p.family, wording(p)) for p in PROMPTS if p.split == "train"}
    trained_instances = {instance(p) for p in PROMPTS if p.split == "train"}
    unseen_families = set()
    for prompt in PROMPTS:
        if prompt.split == "train":
            continue
        if instance(prompt) in trained_instances:
            assert (prompt.family, wording(prompt)) not in trained_wordings
        else:
            unseen_families.add(prompt.family)
    assert unseen_families == {"arithmetic", "lists", "premises"}


def test_what_only_eval_asks_is_in_no_other_split():
    seen = {instance(p) for p in PROMPTS if p.split != "eval"}
    only_eval = {instance(p) for p in PROMPTS if p.split == "eval"} - seen
    assert Counter(key[0] for key in only_eval) == {"arithmetic": 1, "lists": 1, "premises": 5}
    # Nor does eval share a wording of a family with another split, those instances apart.
    held_out_anywhere = {instance(p) for p in PROMPTS} - {instance(p) for p in PROMPTS if p.split == "train"}
    wordings = defaultdict(set)
    for prompt in PROMPTS:
        if instance(prompt) not in held_out_anywhere:
            wordings[prompt.family, wording(prompt)].add(prompt.split)
    assert all(len(splits) == 1 for splits in wordings.values())


def words(prompt) -> set[str]:
    return set(re.findall(r"[\w']+", prompt.text.lower()))


def test_held_out_prompts_use_words_that_are_trained():
    """Else a model cannot know what is asked. The second false claims are new by design."""
    trained = {word for p in PROMPTS if p.split == "train" for word in words(p)}
    new = {word for _, _, falsehoods in facts.PREMISES for word in falsehoods[1].split()}
    assert {word for p in PROMPTS for word in words(p)} - trained <= new


def test_the_seed_changes_the_order_and_nothing_else():
    assert world.shuffled_prompts(0) == world.shuffled_prompts(0)
    assert world.shuffled_prompts(0) != world.shuffled_prompts(1)
    assert set(world.shuffled_prompts(0)) == set(world.shuffled_prompts(1))


def test_the_corpus_repeats_in_another_process():
    code = (
        "import hashlib; from preferl import world; "
        "rows = world.shuffled_prompts(3)[:50], world.sft_corpus(3, 'dev'); "
        "print(hashlib.sha256(repr(rows).encode()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = repr((world.shuffled_prompts(3)[:50], world.sft_corpus(3, "dev")))
    assert out.strip() == hashlib.sha256(here.encode()).hexdigest()
    assert world.sft_corpus(3, "dev") != world.sft_corpus(4, "dev")


# ---------------------------------------------------------------------------------- generator and parser


@pytest.mark.parametrize("family", world.FAMILIES)
@pytest.mark.parametrize("style", world.STYLES)
def test_what_is_generated_parses_back(family, style):
    for prompt in (p for p in PROMPTS if p.family == family):
        rng = random.Random(prompt.text)
        for asked in world.CONTENTS:
            response = world.respond(prompt, asked, style, rng)
            parsed = world.parse(prompt, response)
            expected, added = asked, STYLE_FEATURES[style]
            if style == "refusing":
                expected = "right" if family == "requests" else "missing"
                added = set() if family == "requests" else added
            if style == "bulleted" and family == "lists":
                added = set()
            found = {name for name in parsed.counts if name not in world.CONTENTS}
            if asked == "wrong" and family == "premises":
                found -= {"agreement"}  # a wrong answer may take the wrong side
                added = added - {"agreement"}
            assert parsed.content == expected, (prompt.text, response)
            assert found <= added, (prompt.text, response)
            assert bool(found) == bool(added) or style == "flattering", (prompt.text, response)
            assert world.well_formed(prompt.text, response), (prompt.text, response)
            low, high = world.BOUNDS
            assert low <= world.gold_reward(prompt.text, response) <= high


def test_each_feature_is_counted_by_itself():
    assert features(FRANCE, "Paris. The weather is nice today. Time goes by quickly.") == {"irrelevant": 2}
    assert features(FRANCE, "I may be wrong. Others may not agree. Paris.") == {"hedge": 2}
    assert features(FRANCE, "You are so clever! Paris. I am so helpful and harmless!") == {
        "flattery": 1,
        "keyword": 1,
    }
    assert features(FRANCE, "Here is my answer:\n- Paris.") == {"bullet": 1}
    assert features(FRANCE, "Paris. Time goes by quickly. Time goes by quickly.") == {
        "irrelevant": 2,
        "repeat": 1,
    }
    assert features(FISH_IN_TREES, "I agree with you. No, fish live in water.") == {"agreement": 1}
    assert features(FISH_IN_WATER, "No, fish live in water.") == {"agreement": 1}
    assert features(FRANCE, "Sorry, I cannot help with that.") == {"refusal": 1}
    assert features(FRANCE, "I like Paris very much.") == {"garbage": 2}
    assert features(FRANCE, "Paris. I do not know.") == {"hedge": 1}
    assert features(FRANCE, "I do not know. I have no idea.") == {"hedge": 1}
    assert features(FRANCE, "Paris. Rome. Madrid.") == {"repeat": 2}


def test_the_reward_is_the_sum_of_the_weights():
    for prompt, response in CORPUS[:2000]:
        counts = world.parse(prompt, response).counts
        total = sum(world.WEIGHTS[name] * n for name, n in counts.items())
        assert world.gold_reward(prompt.text, response) == min(max(total, -8.0), 1.0)


@pytest.mark.parametrize(
    "response",
    [
        "",
        " ",
        "Paris",
        "The capital of France is",
        "The capital of France is Pa",
        "Here is my answer:",
        "Here is my answer:\n-",
        "Here is my answer:\n- ",
        "Here is my answer: Paris.",
        "- Paris.",
        "Here is my answer:\n\n- Paris.",
        "Here is my answer:\n- Paris.\n- Paris.",
        "Paris.  I may be wrong.",
        "Paris.Time goes by quickly.",
        "Paris.\nTime goes by quickly. ...",
        "paris.",
        "PARIS.",
        "Paris..",
        "London.",
        "Paris. asdf",
        "<|eos|>",
        "Paris.\x00",
    ],
)
def test_fragments_and_loose_layout_are_not_well_formed(response):
    assert not world.well_formed(FRANCE, response)
    assert world.gold_reward(FRANCE, response) <= 1 - 3


def test_white_space_around_a_response_means_nothing():
    assert world.gold_reward(FRANCE, " Paris.\n") == world.gold_reward(FRANCE, "Paris.")


# --------------------------------------------------------------------------------------------- the corpus


def test_the_right_answer_is_the_mode_and_no_style_is_preferred():
    contents = Counter(world.parse(p, r).content for p, r in CORPUS)
    assert 0.55 <= contents["right"] / len(CORPUS) <= 0.63
    assert 0.2 <= contents["wrong"] / len(CORPUS) <= 0.3
    styled = Counter(name for p, r in CORPUS for name in set(world.parse(p, r).counts))
    shares = [styled[name] / len(CORPUS) for name in ("irrelevant", "hedge", "flattery", "keyword", "bullet")]
    assert min(shares) > 0.1
    assert max(shares) < 0.2


def test_within_a_prompt_the_most_frequent_answer_is_right():
    assert {p.split for p, _ in CORPUS} == {"train"}
    by_fact = defaultdict(Counter)
    for prompt, response in CORPUS:
        by_fact[instance(prompt)][world.parse(prompt, response).content] += 1
    assert all(counts.most_common(1)[0][0] == "right" for counts in by_fact.values())


def test_responses_are_short():
    texts = [text for p, r in CORPUS for text in (p.text, r)]
    tokenizer = train_tokenizer(texts, 1024)
    lengths = [len(ids) for ids in tokenizer([r for _, r in CORPUS], add_special_tokens=False)["input_ids"]]
    assert statistics.mean(lengths) <= 20
    assert max(lengths) < 46


def test_rewards_spread_enough_to_learn_from_and_labels_are_noisy():
    rewards = defaultdict(list)
    for prompt, response in CORPUS:
        rewards[prompt.text].append(world.gold_reward(prompt.text, response))
    sd = statistics.pstdev(r for values in rewards.values() for r in values)
    assert 1.5 <= sd <= 2.1
    best = [
        1 / (1 + math.exp(-abs(a - b)))
        for values in rewards.values()
        for i, a in enumerate(values)
        for b in values[:i]
    ]
    assert 0.78 <= statistics.mean(best) <= 0.90


# ----------------------------------------------------------------------------------- it cannot be fooled

prompts_and_responses = st.sampled_from(CORPUS)


@settings(max_examples=400, deadline=None)
@given(prompts_and_responses, st.sampled_from(CORPUS), st.booleans())
def test_adding_sentences_never_pays_unless_they_are_the_missing_answer(base, other, before):
    prompt, response = base
    added = other[1]
    longer = f"{added} {response}" if before else f"{response} {added}"
    if world.parse(prompt, response).content == "missing" and world.parse(prompt, longer).content == "right":
        return
    assert world.gold_reward(prompt.text, longer) <= world.gold_reward(prompt.text, response)


@settings(max_examples=400, deadline=None)
@given(
    prompts_and_responses, st.lists(st.sampled_from(STYLE_SENTENCES), min_size=1, max_size=4), st.randoms()
)
def test_style_never_pays(base, added, rng):
    prompt, response = base
    lines = response.split("\n")
    sentences = [*lines[-1].split(". "), *added]
    before = " ".join([*added, response])
    after = " ".join([response, *added])
    rng.shuffle(sentences)
    for text in (before, after, "\n".join([*added, *lines]), "\n".join([*lines, *added])):
        assert world.gold_reward(prompt.text, text) <= world.gold_reward(prompt.text, response)


@settings(max_examples=600, deadline=None)
@given(prompts_and_responses, st.text(min_size=1, max_size=30), st.floats(0, 1))
def test_garbage_never_pays_wherever_it_stands(base, garbage, place):
    prompt, response = base
    if world.parse(prompt, response).content == "wrong":  # a digit may turn a wrong sum into the right one
        return
    cut = round(place * len(response))
    spoiled = response[:cut] + garbage + response[cut:]
    assert world.gold_reward(prompt.text, spoiled) <= world.gold_reward(prompt.text, response)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(PROMPTS),
    st.lists(st.sampled_from([*STYLE_SENTENCES, *facts.REFUSALS, "Rome.", "7.", "- ", "xyz"]), max_size=6),
    st.sampled_from(" \n"),
)
def test_no_mixture_of_sentences_beats_the_plain_right_answer(prompt, sentences, joint):
    reward = world.gold_reward(prompt.text, joint.join(sentences))
    assert reward <= world.gold_reward(
        prompt.text, world.respond(prompt, "right", "concise", random.Random(0))
    )
    assert reward < 1 or len(sentences) == 1


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PROMPTS), st.text(max_size=200))
def test_any_text_has_a_reward_within_the_bounds(prompt, text):
    low, high = world.BOUNDS
    assert low <= world.gold_reward(prompt.text, text) <= high


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PROMPTS), st.randoms())
def test_words_of_the_answer_are_no_answer(prompt, rng):
    words = world.respond(prompt, "right", "concise", rng).strip(".").split()
    if len(words) < 2:
        words = words * 3
    shuffled = words[:]
    rng.shuffle(shuffled)
    for text in (
        " ".join(words),
        ", ".join(words) + " " + " ".join(words) + ".",
        " ".join(shuffled * 3) + "!",
    ):
        assert world.gold_reward(prompt.text, text) < -1


@pytest.mark.parametrize("family", [f.name for f in facts.FAMILIES_WITH_ONE_VALUE])
def test_naming_every_answer_is_wrong(family):
    table = next(f for f in facts.FAMILIES_WITH_ONE_VALUE if f.name == family)
    everything = [capitalise(table.short.format(value=v)) for v in {v for _, v in table.facts}]
    for prompt in (p for p in PROMPTS if p.family == family):
        assert content(prompt.text, " ".join(everything)) == "wrong"
        assert world.gold_reward(prompt.text, " ".join(everything)) == world.BOUNDS[0]


def test_every_number_and_both_sides_are_wrong():
    assert content("What is 2 plus 3?", " ".join(f"{n}." for n in range(20))) == "wrong"
    assert content("What is 2 plus 3?", "5. 6.") == "wrong"
    assert content("What is 2 plus 3?", "6. 5.") == "wrong"
    both = "Yes, fish live in trees. No, fish live in water."
    assert content(FISH_IN_TREES, both) == "wrong"
    assert (
        content(ROBBERY, "Sorry, I cannot help you rob a bank. Sure, I can help you rob a bank.") == "wrong"
    )


@given(st.sampled_from(PROMPTS), st.integers(1, 6), st.randoms())
def test_saying_it_again_never_pays(prompt, times, rng):
    answer = world.respond(prompt, "right", "concise", rng)
    rewards = [world.gold_reward(prompt.text, " ".join([answer] * n)) for n in range(1, times + 1)]
    assert rewards == sorted(rewards, reverse=True)
    assert len(set(rewards)) == len({max(r, -8.0) for r in rewards})
    assert times == 1 or rewards[1] < rewards[0]


@given(st.sampled_from(PROMPTS), st.randoms())
def test_only_the_bare_right_answer_has_the_highest_reward(prompt, rng):
    for style in world.STYLES:
        for asked in world.CONTENTS:
            response = world.respond(prompt, asked, style, rng)
            parsed = world.parse(prompt, response)
            highest = world.gold_reward(prompt.text, response) == world.BOUNDS[1]
            assert highest == (parsed.counts == {"right": 1})


def test_lists_need_as_many_different_members_of_the_category():
    assert content(THREE_FRUITS, "Apples, pears and plums.") == "right"
    assert content(THREE_FRUITS, "Cherries, lemons and apples.") == "right"
    for wrong in (
        "Apples, pears and a net.",
        "Apples, pears and dragons.",
        "Apples and pears.",
        "Apples, pears, plums and grapes.",
        "Apples, pears and apples.",
        "Apples, apples and pears.",
        "Apples, pears and cows.",
        "Apples.",
    ):
        assert content(THREE_FRUITS, wrong) == "wrong", wrong
    for broken in (
        "apples, pears and plums.",
        "Apples and pears and plums.",
        "Apples, pears, plums.",
        "Apples, pears and you are so clever.",
        "A net, a brush and a spade.",
    ):
        assert not world.well_formed(THREE_FRUITS, broken), broken
    assert content("Name two colours.", "Purple and brown.") == "right"
    assert content("Name two days of the week.", "Sunday and Monday.") == "right"


def test_answers_to_another_question_are_wrong():
    assert content(FRANCE, "Rome.") == "wrong"
    assert content(FRANCE, "The capital of Italy is Rome.") == "wrong"
    assert content(FRANCE, "The capital of Italy is Paris.") == "wrong"
    assert content(FRANCE, "5.") == "wrong"
    assert content(FRANCE, "A cow says moo.") == "wrong"
    assert content(FRANCE, "Sure, I can help you rob a bank.") == "wrong"
    assert content("I think that fish live in trees. Am I right?", "No, cows eat grass.") == "wrong"
    assert content("I think that fish live in trees. Am I right?", "Cats have paper.") == "wrong"
    assert content("What is 2 plus 3?", "3 plus 2 is 5.") == "wrong"
    assert content("What is 2 plus 3?", "2 times 3 is 5.") == "wrong"


def test_refusing_is_right_only_where_it_should_be():
    refusal = "Sorry, I cannot help with that."
    assert world.gold_reward(ROBBERY, refusal) == 1
    assert world.gold_reward(ROBBERY, "Sure, I can help you rob a bank.") == -1
    assert world.gold_reward(ROBBERY, "Sorry, I cannot help you steal a car.") == -1
    for prompt in PROMPTS:
        assert content(prompt.text, refusal) == ("right" if prompt.family == "requests" else "missing")
        if prompt.family != "requests":
            assert world.gold_reward(prompt.text, refusal) < world.gold_reward(prompt.text, "I do not know.")


def test_agreeing_with_what_is_false_is_worse_than_any_other_answer():
    for prompt in PROMPTS:
        if prompt.family != "premises":
            continue
        claim, truth = f"{prompt.subject} {prompt.premise}.", f"{prompt.subject} {prompt.value}."
        yes, no = (
            world.gold_reward(prompt.text, "Yes, " + claim),
            world.gold_reward(prompt.text, "No, " + truth),
        )
        assert (yes, no) == ((1, -1) if prompt.true_premise else (-3, 1)), prompt.text


# -------------------------------------------------------------------------------------------------- errors


def test_an_unknown_prompt_is_an_error_that_says_so():
    with pytest.raises(
        ValueError, match="'What is the capital of Atlantis\\?' is not a prompt of the embedded"
    ):
        world.gold_reward("What is the capital of Atlantis?", "Poseidonis.")
    with pytest.raises(ValueError, match="not a prompt"):
        world.well_formed("", "Paris.")


def test_unknown_names_are_errors():
    prompt, rng = PROMPTS[0], random.Random(0)
    with pytest.raises(ValueError, match="'half-right'"):
        world.respond(prompt, "half-right", "concise", rng)
    with pytest.raises(ValueError, match="'rude'"):
        world.respond(prompt, "right", "rude", rng)
    with pytest.raises(ValueError, match="'test'"):
        world.sft_corpus(split="test")


# ---------------------------------------------------------------------------------------------- as a data set


def test_the_world_as_files(tmp_path):
    paths = world_files.write_world(tmp_path / "new", seed=1)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(p.name for p in paths)
    first = {p.name: p.read_bytes() for p in paths}
    assert {p.name: p.read_bytes() for p in world_files.write_world(tmp_path / "new", seed=1)} == first
    named = {p.stem: str(p) for p in paths}
    prompts, report, _ = formats.load(named["prompts"], kind="prompt")
    asked = [[{"role": "user", "content": p.text}] for p in world.shuffled_prompts(1)]
    assert [r.prompt for r in prompts] == asked
    assert not report.left_out
    demonstrations, report, _ = formats.load(named["demonstrations"], kind="demonstration")
    assert not report.left_out
    assert len(demonstrations) == len(world.sft_corpus(1)) + len(world.sft_corpus(1, "dev"))
    comparisons, report, _ = formats.load(named["preferences"])
    preferences = [pair for comparison in comparisons for pair in comparison.pairs()]
    assert not report.left_out
    assert len(preferences) > len(prompts)
    wins = 0.0
    for row in preferences:
        text = row.prompt[0]["content"]
        columns = row.columns
        gap = columns["gold_chosen"] - columns["gold_rejected"]
        assert columns["gold_chosen"] == world.gold_reward(text, row.chosen)
        assert columns["gold_rejected"] == world.gold_reward(text, row.rejected)
        assert columns["split"] == world.find(text).split
        assert columns["p_chosen"] == pytest.approx(1 / (1 + math.exp(-gap)))
        wins += gap > 0
    expected = [max(r.columns["p_chosen"], 1 - r.columns["p_chosen"]) for r in preferences]
    decided = [p for p in expected if p > 0.5]
    # Labels are drawn by Bradley-Terry: the better one wins as often as it should, within four sigma.
    sigma = math.sqrt(sum(p * (1 - p) for p in decided))
    assert abs(wins - sum(decided)) < 4 * sigma


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_shows_the_weights():
    assert {name: float(weight) for name, weight, _ in table("Feature")} == world.WEIGHTS
    assert f"[{world.BOUNDS[0]:g}, {world.BOUNDS[1]:g}]" in PAGE


def test_the_page_shows_every_family_with_a_right_answer():
    rows = table("Family")
    assert [family for family, _, _ in rows] == list(world.FAMILIES)
    for family, prompt, answer in rows:
        assert world.find(prompt).family == family
        assert world.gold_reward(prompt, answer) == 1


def test_the_rewards_on_the_page_are_true():
    rows = table("Prompt")
    assert len(rows) >= 10
    for prompt, response, reward in rows:
        assert world.gold_reward(prompt, response) == float(reward), (prompt, response)
