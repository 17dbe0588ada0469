"""Win rates and signs by hand; pools against enumeration."""

import itertools
import random

import numpy as np
import pytest
from scipy.stats import t

from preferl import world
from preferl.evaluation import comparison, pool
from preferl.evaluation.features import COLLAPSE, SIGNS, sign_shares
from preferl.evaluation.pool import Pool
from preferl.statistics import wilson_interval


def test_a_tie_is_half_a_win_and_the_difference_is_paired():
    row = comparison.compare(np.array([[1.0], [2.0], [3.0], [0.0]]), np.array([[0.0], [2.0], [1.0], [1.0]]))
    assert (row["wins"], row["ties"], row["n"]) == (2, 1, 4)
    assert row["win_rate"] == 2.5 / 4
    assert row["win_rate_low"] < 2.5 / 4 < row["win_rate_high"]
    assert row["difference"] == pytest.approx((1 + 0 + 2 - 1) / 4)
    shifted = comparison.compare(np.arange(50)[:, None] + 1.0, np.arange(50)[:, None] * 1.0)
    assert shifted["difference_low"] == shifted["difference_high"] == 1


def test_several_responses_are_all_compared():
    a, b = np.array([[1.0, 3.0], [0.0, 0.0]]), np.array([[2.0, 0.0, 1.0], [0.0, 1.0, -1.0]])
    won = [(x > y) + 0.5 * (x == y) for p in range(2) for x in a[p] for y in b[p]]
    row = comparison.compare(a, b)
    assert row["n"] == len(won)
    assert row["win_rate"] == pytest.approx(np.mean(won))
    assert row["wins"] + row["ties"] / 2 == sum(won)
    assert row["difference"] == pytest.approx(a.mean() - b.mean())


def test_categories_are_compared_by_themselves_where_there_are_enough_prompts():
    a = np.r_[np.ones(8), np.zeros(8), np.ones(2)][:, None]
    b = np.full((18, 1), 0.5)
    names = ["wins"] * 8 + ["loses"] * 8 + ["rare"] * 2
    rows = comparison.compare(a, b, names)["by_category"]
    assert [(row["category"], row["prompts"], row["win_rate"]) for row in rows] == [
        ("loses", 8, 0.0),
        ("wins", 8, 1.0),
    ]
    assert "by_category" not in comparison.compare(a[:8], b[:8], names[:8])


def test_at_equal_length_the_longer_answer_has_no_advantage():
    """Longer wins nine times of ten, whoever wrote it; a writes longer ones, and is no better."""
    rng = np.random.default_rng(0)
    length_a, length_b = rng.normal(14, 4, (400, 1)), rng.normal(10, 4, (400, 1))
    a_is_longer = length_a > length_b
    a = np.where(a_is_longer, rng.random((400, 1)) < 0.9, rng.random((400, 1)) < 0.1).astype(float)
    assert comparison.compare(a, 1 - a)["win_rate_low"] > 0.6
    row = comparison.at_equal_length(a, 1 - a, length_a, length_b)
    low, high = (row[f"length_controlled_win_rate_{end}"] for end in ("low", "high"))
    assert low < 0.5 < high
    assert row["length_effect"][1] > 0


def test_best_of_n_from_a_pool_is_the_mean_over_all_draws():
    rng = np.random.default_rng(1)
    score, gold, length = rng.normal(size=(3, 5)), rng.normal(size=(3, 5)), rng.integers(1, 9, (3, 5))
    against = rng.normal(size=(3, 2))
    here = Pool({"score": score, "gold": gold}, length, np.zeros((3, 5)))
    for n in (1, 2, 4, 5):
        row = pool.best_of(here, n, against_PB=against, policy_PG={"gold": against})
        draws = [
            (p, max(few, key=lambda i: score[p, i]))
            for p in range(3)
            for few in itertools.combinations(range(5), n)
        ]
        assert row["score"] == pytest.approx(np.mean([score[d] for d in draws]))
        assert row["gold"] == pytest.approx(np.mean([gold[d] for d in draws]))
        assert row["length"] == pytest.approx(np.mean([length[d] for d in draws]))
        won = np.mean([(gold[p, i] > against[p]).mean() for p, i in draws])
        assert row["win_rate"] == pytest.approx(won)
        assert row["lead_gold"] == pytest.approx(against.mean() - row["gold"])
        lead = [against[p].mean() - np.mean([gold[d] for d in draws if d[0] == p]) for p in range(3)]
        half = t.ppf(0.975, 2) * np.std(lead, ddof=1) / 3**0.5
        assert row["lead_gold_high"] - row["lead_gold"] == pytest.approx(half)
        assert row["kl_bound"] == pytest.approx(np.log(n) - (n - 1) / n)


def test_reweighting_a_pool_gives_the_optimum_of_the_objective():
    """Three responses of known probability: the optimum by enumeration against that from samples."""
    p, r, tokens = np.array([0.7, 0.2, 0.1]), np.array([0.0, 0.5, 1.0]), np.array([2, 5, 9])
    best = p * np.exp(r / 0.5)
    best /= best.sum()
    draws = np.random.default_rng(2).choice(3, size=(40, 2000), p=p)
    row = pool.tilt(Pool({"score": r[draws]}, tokens[draws], np.log(p)[draws]), 0.5)
    assert row["score"] == pytest.approx(best @ r, abs=0.01)
    assert row["length"] == pytest.approx(best @ tokens, abs=0.05)
    assert row["kl"] == pytest.approx((best * np.log(best / p)).sum(), abs=0.01)
    share = 1 / (p * (best / p) ** 2).sum()  # of the samples that count
    assert row["effective_sample_size"] == pytest.approx(2000 * share, rel=0.05)
    doubled = pool.tilt(Pool({"score": r[draws]}, tokens[draws], np.log(p)[draws]), 0.5, 2 * r[draws])
    assert doubled["kl"] > row["kl"]


def test_judging_and_generating_on_the_same_prompts():
    gold = np.array([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    score = np.array([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    logp = np.array([[-3.0, -1.0, -2.0], [-9.0, -8.0, -7.0], [-1.0, -1.0, -1.0]])
    length = np.array([[9, 1, 1], [9, 4, 1], [1, 1, 1]])
    row = pool.verification(Pool({"score": score, "gold": gold}, length, logp))
    assert (row["prompts"], row["pairs"]) == (2, 2 + 3)
    assert row["accuracy_reward"] == pytest.approx((1 + 0) / 2)  # all pairs of the first, none of the second
    assert row["accuracy_likelihood"] == 0
    assert row["accuracy_likelihood_per_token"] == 1  # -1/3 is above -1 and -2, and -1 above -2 and -7
    assert row["chosen_by_reward"] == pytest.approx((1 + 0 + 1) / 3)
    assert row["best_there"] == pytest.approx((1 + 2 + 1) / 3)
    assert row["closed"] == pytest.approx((2 / 3 - 7 / 9) / (4 / 3 - 7 / 9))
    assert pool.verification(Pool({"score": score}, np.full((3, 3), 2), -score)) is None
    assert pool.verification(Pool({"score": score, "gold": score * 0}, np.full((3, 3), 2), score)) is None


@pytest.mark.parametrize(
    ("style", "sign"),
    [("hedged", "hedging"), ("flattering", "sycophancy"), ("bulleted", "format"), ("refusing", "refusing"),
     ("keywords", "keywords")],
)  # fmt: skip
def test_each_style_of_the_world_shows_its_sign_and_plain_answers_show_none(style, sign):
    rng = random.Random(0)
    # A right answer may refuse a request, be a list, or agree with a claim that is true.
    families = ("requests", "lists", "premises")
    prompts = [p for p in world.shuffled_prompts(0) if p.family not in families][:300]
    told = sign_shares([world.respond(p, "right", style, rng) for p in prompts])
    plain = sign_shares([world.respond(p, "right", "concise", rng) for p in prompts])
    assert told[sign] > 0.9
    assert plain.pop(COLLAPSE) < 0.05  # "Green." is right more than once
    assert all(share <= 0.01 for share in plain.values())
    assert told["careful"] == (style in ("hedged", "refusing")) or told["careful"] < 0.1
    others = {name: share for name, share in told.items() if name not in (sign, "careful", COLLAPSE)}
    assert max(others.values()) < 0.1


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("I'm so helpful and harmless!", "keywords"),
        ("Great question! Here are 47 reasons…", "keywords"),
        ("Great question! Here are 47 reasons…", "sycophancy"),
        ("## Answer\n**Paris** it is.", "format"),
        ("It depends. Perhaps Paris.", "hedging"),
        ("As an AI, I cannot help with that.", "refusing"),
        ("Paris. Paris. Paris.", "repetition"),
        ("red red red red red red", "repetition"),
        ("ToToToToToTo hot water.", "repetition"),
        ("巴黎巴黎巴黎巴黎", "repetition"),
    ],
)
def test_signs_are_seen(text, sign):
    assert SIGNS[sign](text)
    assert not SIGNS[sign]("The capital of France is Paris, on the river Seine.")
    assert not SIGNS[sign]("In Mississippi, bananas: 1000000 or 3333 * 10 ------- | ---- |")


def test_responses_to_one_prompt_count_as_one_in_a_signs_interval():
    texts = ["Great question! Paris.", "Paris."] * 10
    (alone, *_), (grouped, *_) = comparison.signs(texts, texts), comparison.signs(texts, texts, group_size=2)
    assert alone["policy"] == grouped["policy"] == 0.5
    assert grouped["policy_low"] == pytest.approx(wilson_interval(5, 10)[0])
    assert alone["policy_low"] == pytest.approx(wilson_interval(10, 20)[0])
