"""The audit finds what was planted, accuses nobody without reason, and says what it cannot know."""

import json

import numpy as np
import pytest

from preferl.data.records import Pair, prompt_key
from preferl.evaluation.accuracy import (
    accuracy_by_category,
    accuracy_by_margin,
    accuracy_by_style,
    accuracy_with_interval,
)
from preferl.evaluation.audit import audit, disagreements, member_agreement, score_pairs
from preferl.evaluation.baselines import baselines, fit_bag_of_words
from preferl.evaluation.bias import bias_audit, position
from preferl.evaluation.calibration import calibration
from preferl.evaluation.features import feature_functions
from preferl.evaluation.pairs import ANALYSIS_PAIRS, DEMONSTRATION_PAIRS, UNSEEN_PAIRS
from preferl.evaluation.scored import ScoredPairs, quality_of
from preferl.statistics import wilson_interval
from preferl.statistics.intervals import Estimate

WORDS = ["river", "stone", "cloud", "paper", "window", "garden", "silver", "bread", "music", "table"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def scored_gaps(gaps, prompts=None, **columns):
    """Pairs with these score gaps; ``columns`` holds one list for each column."""
    prompts = [f"prompt {i}" for i in range(len(gaps))] if prompts is None else prompts
    pairs = [
        Pair(prompt, f"good {i}", f"bad {i}", None, {name: c[i] for name, c in columns.items()})
        for i, prompt in enumerate(prompts)
    ]
    return ScoredPairs(pairs, np.asarray(gaps, dtype=float), np.zeros(len(gaps)))


def simulated(rng, n, bias=0.0, legitimate=0.0, gold=False, noise=0.0, per_prompt=2):
    """Texts whose quality nobody sees, of 5 to 40 words; labels are Bradley-Terry on the utility.

    The utility rewards length by ``legitimate`` a standard deviation, the score by ``bias`` more.
    """
    words_N2 = rng.integers(5, 41, size=(n, 2))
    length_N2 = (words_N2 - 22.5) / 10.4
    utility_N2 = rng.normal(size=(n, 2)) + legitimate * length_N2
    score_N2 = utility_N2 + bias * length_N2 + noise * rng.normal(size=(n, 2))
    p_first_N = sigmoid(utility_N2[:, 0] - utility_N2[:, 1])
    won_N = (rng.random(n) > p_first_N).astype(int)
    pairs, scores = [], []
    for i in range(n):
        texts = [" ".join(rng.choice(WORDS, size=count)) + "." for count in words_N2[i]]
        w, r = won_N[i], 1 - won_N[i]
        columns = {"chosen_position": int(w)}
        if gold:
            columns |= {"gold_chosen": float(utility_N2[i, w]), "gold_rejected": float(utility_N2[i, r])}
        pairs.append(Pair(f"prompt {i // per_prompt}", texts[w], texts[r], None, columns))
        scores.append((score_N2[i, w], score_N2[i, r]))
    return ScoredPairs(pairs, *np.array(scores).T)


def feature(report, name):
    return next(row for row in report["features"] if row["feature"] == name)


# -- the pairs themselves


def test_scores_must_fit_the_pairs():
    pair = Pair("p", "a", "b")
    with pytest.raises(ValueError, match=r"score_rejected_N has shape \(2,\) for 1 pairs"):
        ScoredPairs([pair], np.zeros(1), np.zeros(2))
    with pytest.raises(ValueError, match=r"score_chosen_N\[1\] is not a finite"):
        ScoredPairs([pair, pair], np.array([0, np.nan]), np.zeros(2))
    with pytest.raises(ValueError, match="for 0 pairs"):
        ScoredPairs([], np.zeros(0), np.zeros(0))


# -- accuracy


def test_accuracy_of_independent_pairs_has_wilsons_interval():
    scored = scored_gaps([2.0, 1.0, 0.5, -1.0, 0.0])
    found = accuracy_with_interval(scored)
    assert (found["pairs"], found["prompts"], found["ties"]) == (5, 5, 1)
    low, high = wilson_interval(3.5, 5)
    assert found["accuracy"] == pytest.approx({"value": 0.7, "low": low, "high": high})
    assert found["accuracy_interval"] == "Wilson"
    losses = [np.log1p(np.exp(-gap)) for gap in (2, 1, 0.5, -1, 0)]
    assert found["log_loss"]["value"] == pytest.approx(np.mean(losses))
    assert found["log_loss"]["low"] < np.mean(losses) < found["log_loss"]["high"]


def test_several_pairs_of_a_prompt_are_one_observation():
    rng = np.random.default_rng(0)
    gaps = np.repeat(rng.normal(0.5, 1, size=50), 6)
    apart = accuracy_with_interval(scored_gaps(gaps))["accuracy"]
    prompts = [[{"role": "user", "content": str(i // 6)}] for i in range(300)]
    together = accuracy_with_interval(scored_gaps(gaps, prompts))
    assert (together["prompts"], together["accuracy_interval"]) == (50, "Wilson over prompts")
    ratio = (together["accuracy"]["high"] - together["accuracy"]["low"]) / (apart["high"] - apart["low"])
    assert ratio == pytest.approx(6**0.5, rel=0.15)
    one_prompt = accuracy_with_interval(scored_gaps([1.0, 2.0], ["p", "p"]))
    assert one_prompt["log_loss"]["low"] is None
    assert one_prompt["accuracy"]["low"] == pytest.approx(wilson_interval(1, 1)[0])


def test_an_accuracy_has_one_interval_whoever_says_it():
    """What `preferl reward` prints, what its audit says, and what the page shows of seen and unseen pairs."""
    gaps = np.repeat(np.random.default_rng(0).normal(0.5, 1, size=50), 6)
    prompts = [[{"role": "user", "content": str(i // 6)}] for i in range(300)]
    scored = scored_gaps(gaps, prompts)
    printed = Estimate.read(quality_of(scored.gap_N, scored.pairs, seed=0), "accuracy")
    audited = accuracy_with_interval(scored)
    assert Estimate.read(audited["accuracy"]) == printed
    assert Estimate.read(scored.accuracy()) == printed
    alone = wilson_interval(printed.value * 300, 300)
    assert printed.low < alone[0] < alone[1] < printed.high


# -- calibration


def test_a_perfect_model_is_calibrated_and_an_overconfident_one_is_not():
    rng = np.random.default_rng(1)
    utility = rng.normal(0, 1.5, size=6000)
    gaps = np.where(rng.random(6000) < sigmoid(utility), utility, -utility)
    perfect = calibration(scored_gaps(gaps))
    assert perfect["ece"] < 2 * perfect["ece_floor"] < 0.03
    assert perfect["slope"]["low"] < 1 < perfect["slope"]["high"]
    for row in perfect["reliability"]:
        assert row["observed_low"] - 0.03 < row["mean_probability"] < row["observed_high"] + 0.03
    assert sum(row["count"] for row in perfect["reliability"]) == 6000
    tripled = calibration(scored_gaps(3 * gaps))
    assert tripled["ece"] > 0.1
    assert tripled["slope"]["high"] < 0.5


def test_calibration_by_hand():
    pairs = scored_gaps([0.0] * 4).pairs
    unseen = ScoredPairs(pairs, np.array([1.0, 2, 3, 4]), np.array([0.0, 3, 1, 1]))
    seen = ScoredPairs(pairs[:2], np.array([5.0, 7]), np.array([1.0, 1]))
    found = calibration(unseen, seen)
    assert (found["unseen"]["mean_chosen"], found["unseen"]["mean_rejected"]) == (2.5, 1.25)
    assert found["unseen"]["mean_margin"]["value"] == 1.25
    assert found["unseen"]["accuracy"]["value"] == 0.75
    assert (found["seen"]["pairs"], found["seen"]["mean_chosen"], found["seen"]["mean_rejected"]) == (2, 6, 1)
    # One pair a bin, so every pair is off by 1 - P(its label) whichever way the coin turned it.
    gaps = np.array([0.5, 3.0])
    error = np.mean(1 - sigmoid(gaps))
    for seed in range(4):
        assert calibration(scored_gaps(gaps), seed=seed)["ece"] == pytest.approx(error)
    assert calibration(unseen)["seen"] is None


def test_a_model_that_is_always_right_has_no_slope():
    slope = calibration(scored_gaps(np.linspace(1, 2, 30)))["slope"]
    assert slope["value"] is None
    assert "without a rest" in slope["reason"]


def test_slope_takes_the_probability_of_a_label_where_it_is_known():
    rng = np.random.default_rng(18)
    gaps = rng.normal(size=50)
    p_N = sigmoid(gaps / 2 + rng.normal(size=50))
    slope = calibration(scored_gaps(gaps, p_chosen=p_N.tolist()))["slope"]["value"]
    # Where the likelihood is largest, its derivative is 0.
    assert gaps @ (p_N - sigmoid(slope * gaps)) == pytest.approx(0, abs=1e-5)
    exact = calibration(scored_gaps(gaps, p_chosen=sigmoid(gaps).tolist()))["slope"]
    assert (exact["value"], "without a rest" in exact["reason"]) == (None, True)


# -- accuracy by margin and category


def test_accuracy_by_margin_prefers_what_is_known_of_the_label():
    rng = np.random.default_rng(2)
    gold = np.abs(rng.normal(size=1000))
    gaps = gold + rng.normal(size=1000)
    zeros = np.zeros(1000)
    scored = scored_gaps(gaps, gold_chosen=gold.tolist(), gold_rejected=zeros.tolist(), p_chosen=[0.7] * 1000)
    found = accuracy_by_margin(scored, bins=4)
    assert found["basis"] == "gold reward gap"
    assert [row["pairs"] for row in found["rows"]] == [250] * 4
    cuts = np.sort(gold)
    assert [row["low"] for row in found["rows"]] == pytest.approx(cuts[[0, 250, 500, 750]])
    accuracy = [row["accuracy"]["value"] for row in found["rows"]]
    assert accuracy == sorted(accuracy)
    assert accuracy[0] == pytest.approx((gaps[gold <= cuts[249]] > 0).mean())
    assert accuracy[3] == pytest.approx((gaps[gold >= cuts[750]] > 0).mean())
    assert accuracy[3] > accuracy[0] + 0.2


def test_accuracy_by_margin_of_few_strengths_has_a_bin_for_each():
    pairs = [Pair(str(i), "a", "b", (1 / 3, 2 / 3, 1)[i % 3]) for i in range(9)]
    gaps = np.array([-1, 1, 1] * 3)
    found = accuracy_by_margin(ScoredPairs(pairs, gaps, np.zeros(9)))
    assert found["basis"] == "label margin"
    assert [(row["low"], row["pairs"], row["accuracy"]["value"]) for row in found["rows"]] == [
        (1 / 3, 3, 0.0),
        (2 / 3, 3, 1.0),
        (1.0, 3, 1.0),
    ]


def test_accuracy_by_margin_falls_back():
    # A constant says nothing; a missing or broken value in one row means that it is not known.
    scored = scored_gaps([1.0, -2.0, 3.0], p_chosen=[0.9, 0.6, float("nan")], gold_chosen=[1, 1, 1])
    found = accuracy_by_margin(scored)
    assert found["basis"] == "score gap"
    assert [row["high"] for row in found["rows"]] == [1, 2, 3]
    constant = accuracy_by_margin(scored_gaps([1.0, -2.0], p_chosen=[0.9, 0.9]))
    assert constant["basis"] == "score gap"
    by_label = accuracy_by_margin(scored_gaps([1.0, -2.0], p_chosen=[0.9, 0.2]))
    assert by_label["basis"] == "label probability"
    assert [row["low"] for row in by_label["rows"]] == pytest.approx([0.6, 0.8])


def test_accuracy_by_category_as_in_rewardbench():
    subset = ["chat"] * 6 + ["safety"] * 2
    found = accuracy_by_category(scored_gaps([1, 1, 1, 1, 1, -1, -1, -2], subset=subset))
    assert found is not None
    assert found["column"] == "subset"
    chat, safety = found["rows"]
    low, high = wilson_interval(5, 6)
    assert (chat["category"], chat["pairs"]) == ("chat", 6)
    assert chat["accuracy"] == pytest.approx({"value": 5 / 6, "low": low, "high": high})
    assert (safety["accuracy"]["value"], safety["mean_margin"]) == (0, -1.5)
    assert found["mean_of_categories"] == pytest.approx(5 / 12)


def test_category_columns():
    scored = scored_gaps([1, 1, 1], subset=["x"] * 3, family=["a", "b", "b"], kind=["u", None, "v"])
    by_family = accuracy_by_category(scored)
    assert by_family is not None
    assert by_family["column"] == "family"
    by_kind = accuracy_by_category(scored, "kind")
    assert by_kind is not None
    assert [row["category"] for row in by_kind["rows"]] == ["(none)", "u", "v"]
    assert accuracy_by_category(scored, "nowhere") is None
    assert accuracy_by_category(scored_gaps([1, 1])) is None


def test_rewardbench_sections_weigh_mathematics_as_much_as_all_code():
    subset = ["math-prm"] + ["hep-cpp"] * 3 + ["hep-go"] + ["donotanswer"] * 2
    found = audit(scored_gaps([1, -1, 1, -1, 1, 1, -1], subset=subset))["by_section"]
    assert [(row["section"], row["subsets"], row["pairs"]) for row in found] == [
        ("Safety", 1, 2),
        ("Reasoning", 3, 5),
    ]
    assert found[0]["accuracy"] == pytest.approx(1 / 2)
    assert found[1]["accuracy"] == pytest.approx((1 + (1 / 3 * 3 + 1) / 4) / 2)
    assert "by_section" not in audit(scored_gaps([1, 1], subset=["a", "b"]))


def test_a_plain_response_against_an_elaborate_one_is_the_hard_case():
    styles = {"style_chosen": [0, 2, 1, 0], "style_rejected": [2, 0, 1, 1]}
    found = accuracy_by_style(scored_gaps([-1, 1, 1, 1], **styles))
    assert found is not None
    assert {row["category"]: (row["pairs"], row["accuracy"]["value"]) for row in found} == {
        "easy": (1, 1.0),
        "hard": (2, 0.5),
        "normal": (1, 1.0),
    }
    assert accuracy_by_style(scored_gaps([1, 1], style_chosen=[0, 0])) is None


# -- biases


def test_features_by_hand():
    text = (
        "## Answer\n\n**Bold** and **two words**, 2 * 3 * 4.\n- one\n* two\n 3. three\n-not a list\n"
        "```python\nx = 1\n```\nIt depends! I’m sorry, but it might, mightily. Great question!"
    )
    counts = {name: count(text) for name, count in feature_functions().items()}
    assert counts.pop("characters") == len(text)
    assert counts.pop("words") == len(text.split())
    assert counts == {
        "list_lines": 3,
        "headings": 1,
        "bold": 2,
        "code_fences": 1,
        "exclamation_marks": 2,
        "repetition": 0,
        "hedging": 1,
        "flattery": 1,
        "refusal": 1,
        "keywords": 0,
    }
    more = feature_functions({"greeting": ["hello"], "hedging": ["mightily"], "refusal": []})
    assert (more["greeting"]("Hello, hello. Othello"), more["hedging"](text)) == (2, 1)
    assert "refusal" not in more


@pytest.mark.parametrize("gold", [True, False])
def test_a_planted_length_bias_is_found(gold):
    scored = simulated(np.random.default_rng(3), 1500, bias=0.7, gold=gold)
    report = bias_audit(scored)
    assert report["control"] == ("gold reward" if gold else "label")
    # Of few words, long texts repeat more of them.
    assert {"characters", "words"} <= set(report["over_rewarded"]) <= {"characters", "words", "repetition"}
    words = feature(report, "words")
    assert words["given_label"]["low"] > 0.3
    assert words["excess"]["low"] > 0.05
    assert words["excess"]["p_holm"] < 1e-6
    tested = [row["excess"] for row in report["features"] if "excess" in row]
    smallest = min(e["p_value"] for e in tested)
    assert min(e["p_holm"] for e in tested) == pytest.approx(len(tested) * smallest, abs=0)
    assert smallest > 0
    assert words["difference"]["low"] > 0.1
    assert words["labels_prefer_more"]["low"] < 0.5 < words["labels_prefer_more"]["high"]
    repetition = feature(report, "repetition")
    assert repetition["given_label"]["low"] > 0.05
    assert abs(repetition["given_label_and_length"]["value"]) < 0.1


def test_correlations_are_those_of_pairs_in_both_orders():
    scored = simulated(np.random.default_rng(4), 300, bias=0.4, legitimate=0.3, gold=True)
    words = feature(bias_audit(scored), "words")
    gap, gold, count = (
        np.array([x, -x]).ravel()
        for x in (
            scored.gap_N,
            np.array([p.columns["gold_chosen"] - p.columns["gold_rejected"] for p in scored.pairs]),
            np.array([len(p.chosen.split()) - len(p.rejected.split()) for p in scored.pairs]),
        )
    )
    assert words["correlation"]["value"] == pytest.approx(np.corrcoef(gap, count)[0, 1])
    rest_gap, rest_count = (x - gold * (x @ gold) / (gold @ gold) for x in (gap, count))
    assert words["given_label"]["value"] == pytest.approx(np.corrcoef(rest_gap, rest_count)[0, 1])
    more_N = np.sign(count[:300]) * scored.gap_N > 0
    assert words["model_prefers_more"]["value"] == pytest.approx(more_N[count[:300] != 0].mean())
    assert words["labels_prefer_more"]["value"] == pytest.approx((count[:300] > 0)[count[:300] != 0].mean())


def test_an_unbiased_model_is_not_accused_where_length_is_rightly_rewarded():
    """Over 40 audits the 5 % of false alarms, over all features together, are 2 (6 or more: 1.4 %)."""
    alarms = 0
    for seed in range(40):
        report = bias_audit(simulated(np.random.default_rng(seed), 300, legitimate=0.6), resamples=50)
        words = feature(report, "words")
        assert words["correlation"]["low"] > 0.2
        alarms += any(row["verdict"] not in ("none", None) for row in report["features"])
    assert alarms <= 5


def test_gold_reward_explains_what_is_no_bias():
    scored = simulated(np.random.default_rng(5), 2000, legitimate=0.6, gold=True, noise=0.5)
    words = feature(bias_audit(scored), "words")
    assert words["correlation"]["low"] > 0.3
    assert abs(words["given_label"]["value"]) < 0.08
    assert words["verdict"] != "over-rewarded"


def test_a_style_that_only_the_model_likes_is_found_by_its_name():
    rng = np.random.default_rng(6)
    scored = simulated(rng, 1200)
    pairs, boost = [], np.zeros((1200, 2))
    for i, pair in enumerate(scored.pairs):
        texts = [pair.chosen, pair.rejected]
        for side in (0, 1):
            if rng.random() < 0.3:
                texts[side], boost[i, side] = f"Great question! {texts[side]}", 1.5
        pairs.append(Pair(pair.prompt, texts[0], texts[1]))
    flattered = ScoredPairs(pairs, scored.score_chosen_N + boost[:, 0], scored.score_rejected_N + boost[:, 1])
    found = set(bias_audit(flattered)["over_rewarded"])
    assert (
        {"flattery", "exclamation_marks"} <= found <= {"flattery", "exclamation_marks", "characters", "words"}
    )
    disliked = ScoredPairs(pairs, scored.score_chosen_N - boost[:, 0], scored.score_rejected_N - boost[:, 1])
    assert feature(bias_audit(disliked), "flattery")["verdict"] == "under-rewarded"


def test_features_that_do_not_vary_give_a_reason_and_no_number():
    report = bias_audit(simulated(np.random.default_rng(7), 100))
    bold = feature(report, "bold")
    assert (bold["differing"], bold["verdict"]) == (0, None)
    assert bold["reason"] == "0 pairs differ in it; 10 are needed"
    same_scores = simulated(np.random.default_rng(7), 100)
    constant = ScoredPairs(same_scores.pairs, np.ones(100), np.ones(100))
    words = feature(bias_audit(constant), "words")
    assert words["correlation"] == {
        "value": None,
        "low": None,
        "high": None,
        "reason": "x is 0 in every pair",
    }
    assert words["verdict"] is None
    assert words["model_prefers_more"]["value"] == 0.5


def test_position_is_read_from_the_labels():
    scored = scored_gaps([1.0] * 6, chosen_position=[0, 0, 0, 1, None, True])
    found = position(scored)
    low, high = wilson_interval(3, 4)
    assert found["pairs"] == 4
    assert found["first_wins"] == pytest.approx({"value": 0.75, "low": low, "high": high})
    unknown = position(scored_gaps([1.0]))
    assert unknown["first_wins"]["value"] is None
    assert "chosen_position" in unknown["first_wins"]["reason"]


# -- baselines


def worded_pairs(rng, n, word, first=0):
    """Pairs of equally long texts of which the chosen holds ``word``, in 9 of 10."""
    pairs = []
    for i in range(first, first + n):
        texts = [" ".join([w, *rng.choice(WORDS, size=8)]) for w in (word, "q" * len(word))]
        chosen, rejected = texts if rng.random() < 0.9 else texts[::-1]
        pairs.append(Pair(f"prompt {i}", chosen, rejected))
    return pairs


def test_bag_of_words_learns_a_planted_word_and_length_does_not():
    rng = np.random.default_rng(8)
    train, held_out = worded_pairs(rng, 200, "zebra"), worded_pairs(rng, 200, "zebra", first=200)
    right = np.array(["zebra" in p.chosen for p in held_out])
    # A model that is right in half of the pairs.
    scored = ScoredPairs(held_out, np.arange(200) % 2 - 0.5, np.zeros(200))
    found = baselines(train, scored)
    assert (found["train_pairs"], found["shared_prompts"]) == (200, 0)
    length, words = found["rows"]
    assert words["accuracy"]["value"] == pytest.approx(right.mean(), abs=0.02)
    assert words["accuracy"]["low"] > 0.75
    assert words["model_minus_baseline"]["high"] < -0.25
    assert words["model_minus_baseline"]["value"] == pytest.approx(0.5 - words["accuracy"]["value"])
    assert 0.35 < length["accuracy"]["value"] < 0.65
    shared = baselines(train[:5] + held_out[:3], scored)
    assert shared["shared_prompts"] == 3


def test_bag_of_words_chooses_its_penalty_by_what_it_can_learn():
    rng = np.random.default_rng(10)
    clear = [p for p in worded_pairs(rng, 150, "zebra") if "zebra" in p.chosen]
    assert fit_bag_of_words(clear, clear)[1]["inverse_penalty"] == 30
    texts = [[" ".join(rng.choice(WORDS, size=8)) for _ in range(2)] for _ in range(150)]
    noise = [Pair(f"prompt {i}", a, b) for i, (a, b) in enumerate(texts)]
    assert fit_bag_of_words(noise, noise)[1]["inverse_penalty"] == 0.3


@pytest.mark.parametrize(("longer_wins", "prefers"), [(True, "longer"), (False, "shorter")])
def test_length_baseline_takes_its_sign_from_training(longer_wins, prefers):
    def pairs(*lengths):
        return [Pair(str(i), "x" * a, "x" * b) for i, (a, b) in enumerate(lengths)]

    train = pairs((9, 2), (9, 1), (1, 8)) if longer_wins else pairs((2, 9), (1, 9), (8, 1))
    held_out = ScoredPairs(pairs((5, 1), (5, 2), (1, 5), (3, 3)), np.ones(4), np.zeros(4))
    row = baselines(train, held_out)["rows"][0]
    assert row["prefers"] == prefers
    assert row["accuracy"]["value"] == (2.5 / 4 if longer_wins else 1.5 / 4)
    assert row["model_minus_baseline"]["value"] == pytest.approx(1 - row["accuracy"]["value"])


def test_bag_of_words_without_words_says_so():
    pairs = [Pair(str(i), "!" * (i + 1), "?") for i in range(3)]
    scored = ScoredPairs(pairs, np.ones(3), np.zeros(3))
    for train in (pairs, worded_pairs(np.random.default_rng(0), 1, "zebra")):
        row = baselines(train, scored)["rows"][1]
        assert row["accuracy"]["value"] is None
        assert "two training pairs" in row["accuracy"]["reason"]


# -- disagreements and members


def test_disagreements_are_the_clearest_first_and_only_real_ones():
    scored = scored_gaps([1.0, -3.0, -0.5, 0.0, -2.0], p_chosen=[0.9, 0.8, 0.7, 0.6, 0.2])
    rows = disagreements(scored)
    assert [row["index"] for row in rows] == [1, 4, 2]
    assert rows[0] == {
        "index": 1,
        "prompt": "prompt 1",
        "chosen": "good 1",
        "rejected": "bad 1",
        "score_chosen": -3.0,
        "score_rejected": 0.0,
        "p_chosen": 0.8,
    }
    assert len(disagreements(scored, 2)) == 2


def test_member_agreement_by_hand():
    scored = scored_gaps([1.0, 1.0, -1.0, 1.0])
    chosen_MN = np.array([[1, 1, -1, 1], [2, -1, -1, 1], [3, 1, -1, 0]])
    found = member_agreement(scored, chosen_MN, np.zeros((3, 4)))
    assert found["members"] == 3
    assert found["member_accuracy"] == [0.75, 0.5, 0.625]
    # A tie agrees half: members 0 and 2 differ by half a pair of four.
    np.testing.assert_allclose(found["agreement"], [[1, 0.75, 0.875], [0.75, 1, 0.625], [0.875, 0.625, 1]])
    assert found["mean_agreement"] == pytest.approx((0.75 + 0.875 + 0.625) / 3)
    assert (found["unanimous"]["pairs"], found["unanimous"]["share"]) == (2, 0.5)
    assert found["unanimous"]["accuracy"]["value"] == 0.5
    assert (found["divided"]["pairs"], found["divided"]["accuracy"]["value"]) == (2, 1.0)
    deviations = [np.std(column, ddof=1) for column in chosen_MN.T]
    assert found["mean_gap_sd"] == pytest.approx(np.mean(deviations))
    assert found["mean_score_sd"] == pytest.approx(np.mean(deviations) / 2)
    alike = member_agreement(scored, chosen_MN[[0, 0]], np.zeros((2, 4)))
    assert alike["mean_agreement"] == 1
    assert alike["divided"]["accuracy"]["reason"] == "no pair is divided"
    opposed = member_agreement(scored, np.array([[-1] * 4, [1] * 4]), np.zeros((2, 4)))
    assert (opposed["mean_agreement"], opposed["unanimous"]["pairs"]) == (0, 0)
    with pytest.raises(ValueError, match="two members or more"):
        member_agreement(scored, chosen_MN[:1], np.zeros((1, 4)))


# -- all together


def test_audit_holds_what_there_is_data_for_and_no_nan():
    rng = np.random.default_rng(9)
    train, held_out = simulated(rng, 80), simulated(rng, 120, gold=True)
    members = held_out.gap_N + rng.normal(size=(3, 120))
    report = audit(held_out, train.pairs, train, members, np.zeros((3, 120)), resamples=100)
    assert set(report) == {
        "accuracy",
        "calibration",
        "by_margin",
        "bias",
        "disagreements",
        "baselines",
        "members",
        "left_out",
    }
    assert set(report["left_out"]) == {"by_category"}
    assert report["calibration"]["seen"]["pairs"] == 80
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report == audit(held_out, train.pairs, train, members, np.zeros((3, 120)), resamples=100)


@pytest.mark.parametrize("gaps", [[1.0], [0.0, 0.0], [-1.0, 2.0, 1e4], [5.0] * 20, [0.0] * 20])
@pytest.mark.parametrize("one_prompt", [True, False])
def test_audit_of_almost_nothing(gaps, one_prompt):
    scored = scored_gaps(gaps, ["p"] * len(gaps) if one_prompt else None)
    report = audit(scored, scored.pairs[:1], resamples=20)
    json.dumps(report, allow_nan=False)
    assert report["accuracy"]["pairs"] == len(gaps)
    assert set(report["left_out"]) == {"by_category", "members"}


# -- demonstration pairs


def test_demonstration_pairs_are_what_they_say():
    assert (len(DEMONSTRATION_PAIRS), len(UNSEEN_PAIRS), len(ANALYSIS_PAIRS)) == (6, 4, 10)
    every = DEMONSTRATION_PAIRS + UNSEEN_PAIRS + ANALYSIS_PAIRS
    assert len({prompt_key(p.prompt) for p in every}) == 20
    assert all(p.columns["seen"] for p in DEMONSTRATION_PAIRS + ANALYSIS_PAIRS)
    assert not any(p.columns["seen"] for p in UNSEEN_PAIRS)
    assert {p.columns["category"] for p in ANALYSIS_PAIRS} == {"helpfulness", "safety", "accuracy"}
    assert {p.columns["category"] for p in DEMONSTRATION_PAIRS + UNSEEN_PAIRS} == {"wordy", "vague", "wrong"}
    # Shortness must not be all there is to learn from the ten.
    shorter = sum(len(p.chosen) < len(p.rejected) for p in ANALYSIS_PAIRS)
    assert 3 <= shorter <= 7


def test_score_pairs_summarises_seen_and_unseen():
    found = score_pairs(lambda prompts, completions: [-len(text) / 10 for text in completions])
    for name, pairs in (("seen", DEMONSTRATION_PAIRS), ("unseen", UNSEEN_PAIRS)):
        chosen, rejected = (
            -np.mean([len(getattr(p, side)) for p in pairs]) / 10 for side in ("chosen", "rejected")
        )
        assert found[name]["pairs"] == len(pairs)
        assert found[name]["mean_chosen"] == pytest.approx(chosen)
        assert found[name]["mean_rejected"] == pytest.approx(rejected)
        assert found[name]["mean_margin"]["value"] == pytest.approx(chosen - rejected)
        assert found[name]["accuracy"]["value"] == 1
    assert [row["category"] for row in found["by_category"]["rows"]] == ["vague", "wordy", "wrong"]
    assert found["rows"][0]["prompt"] == "What is the capital of Australia?"
    assert found["rows"][0]["score_chosen"] == -len("Canberra.") / 10
    json.dumps(found, allow_nan=False)


def test_score_pairs_of_one_kind_and_of_a_scorer_that_takes_columns():
    asked = {}

    def scorer(prompts, completions, **columns):
        asked.update(columns, n=len(prompts))
        return [1.0] * len(completions)

    found = score_pairs(scorer, ANALYSIS_PAIRS)
    assert asked == {"finished": [True] * 20, "n": 20}
    assert found["unseen"] is None
    assert found["seen"]["accuracy"]["value"] == 0.5
    assert score_pairs(scorer, UNSEEN_PAIRS)["seen"] is None
