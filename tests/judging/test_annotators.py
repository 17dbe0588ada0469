"""Simulated annotators and scorers: labels of the stated distribution, names that resolve, useful errors."""

import collections
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from preferl import world
from preferl.judging.annotators import Annotator
from preferl.judging.scorers import load_scorer
from preferl.runs.errors import UsageError

CPU = torch.device("cpu")


def test_stochastic_labels_follow_bradley_terry():
    """Chi-square of the wins in bins of the utility gap."""
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 2, size=20_000)
    annotator = Annotator("test", lambda prompts, completions, **c: [float(t) for t in completions])
    judged = annotator(["p"] * len(gaps), [str(g) for g in gaps], ["0"] * len(gaps), np.random.default_rng(1))
    np.testing.assert_allclose(judged.probability_N, 1 / (1 + np.exp(-gaps)))
    bins = np.digitize(gaps, [-3, -2, -1, 0, 1, 2, 3])
    wins = np.bincount(bins, weights=judged.first_wins_N)
    expected = np.bincount(bins, weights=judged.probability_N)
    variance = np.bincount(bins, weights=judged.probability_N * (1 - judged.probability_N))
    chi = ((wins - expected) ** 2 / variance).sum()
    assert stats.chi2.sf(chi, len(wins)) > 1e-3


def test_deterministic_labels_follow_the_larger_utility_and_ties_a_coin():
    annotator = Annotator("length", load_scorer("length", CPU), "deterministic")
    judged = annotator(
        ["p"] * 3, ["long text", "a", "bb"], ["short", "long text", "aa"], np.random.default_rng(0)
    )
    assert judged.first_wins_N[:2].tolist() == [True, False]
    assert judged.probability_N.tolist() == [1.0, 0.0, 0.5]
    ties = annotator(["p"] * 1000, ["a"] * 1000, ["b"] * 1000, np.random.default_rng(0))
    assert 430 < ties.first_wins_N.sum() < 570


def test_the_scale_multiplies_the_gap():
    annotator = Annotator("length", load_scorer("length", CPU), scale=50.0)
    judged = annotator(["p"], ["ab"], ["a"], np.random.default_rng(0))
    assert judged.probability_N[0] == pytest.approx(1 / (1 + np.exp(-0.5)))


def test_utilities_by_name():
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert load_scorer("world", CPU)([question], ["Paris."]) == [1.0]
    assert load_scorer("length", CPU)(["p"], ["x" * 250]) == [2.5]
    assert load_scorer("keyword:please,thanks", CPU)(["p"] * 2, ["Thanks, please!", "unpleased"]) == [
        1.0,
        0.0,
    ]
    good, bad = load_scorer("sentiment", CPU)(["p"] * 2, ["I love this happy day.", "I hate this sad day."])
    assert good > 1 > -1 > bad


@pytest.mark.parametrize("name", ["keyword:", "magic", "absent_module:f", "math:pi"])
def test_names_that_are_nothing_are_refused(name):
    with pytest.raises(UsageError):
        load_scorer(name, CPU)
    with pytest.raises(UsageError, match="stochastic or deterministic"):
        Annotator("x", load_scorer("length", CPU), "random")


def test_functions_get_the_columns_that_they_take(tmp_path, monkeypatch):
    (tmp_path / "rewards_here.py").write_text(
        "def plain(prompts, completions):\n    return [1.0 for _ in completions]\n"
        "def wide(completions, finished, **columns):\n    return [float(f) for f in finished]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_scorer("rewards_here:plain", CPU)(["p"], ["c"], finished=[True]) == [1.0]
    assert load_scorer("rewards_here:wide", CPU)(prompts=["p"], completions=["c"], finished=[False]) == [0.0]


def utility_of(values):
    def utility(prompts, completions, **columns):
        return [values[text] for text in completions]

    return utility


def first_wins(count=20_000, seed=0, **options) -> float:
    annotator = Annotator("mine", utility_of({"a": 1.0, "b": 0.3}), **options)
    return annotator(
        ["p"] * count, ["a"] * count, ["b"] * count, np.random.default_rng(seed)
    ).first_wins_N.mean()


def test_errors_turn_labels_round_and_position_bias_shifts_the_utility():
    p = 1 / (1 + math.exp(-0.7))
    assert first_wins() == pytest.approx(p, abs=0.015)
    assert first_wins(error_rate=0.2) == pytest.approx(0.8 * p + 0.2 * (1 - p), abs=0.015)
    assert first_wins(position_bias=1.0) == pytest.approx(1 / (1 + math.exp(-1.7)), abs=0.015)
    assert first_wins(mode="deterministic", error_rate=0.1) == pytest.approx(0.9, abs=0.015)
    assert first_wins(mode="deterministic", position_bias=-1.0) == 0
    annotator = Annotator("mine", utility_of({"a": 1.0, "b": 0.3}), error_rate=0.3, position_bias=2.0)
    judged = annotator(["p"], ["a"], ["b"], np.random.default_rng(0))
    assert judged.probability_N == pytest.approx([p])


def test_ties_lie_within_the_width_unless_a_coin_decides():
    a, b = np.array([1.0, 1.0, 1.0]), np.array([1.0, 0.8, 0.5])
    for policy in ("tie", "skip"):
        annotator = Annotator("mine", utility_of({}), tie_policy=policy, tie_width=0.25)
        assert annotator.tied(a, b).tolist() == [True, True, False]
    assert not Annotator("mine", utility_of({}), tie_width=0.25).tied(a, b).any()


@pytest.mark.parametrize("mode", ["stochastic", "deterministic"])
def test_a_coin_decides_what_lies_within_the_width(mode):
    """Of pairs and of rankings alike; what lies beyond is decided as ever."""
    near, far = {"mode": mode, "tie_width": 0.8}, {"mode": mode, "tie_width": 0.6}
    assert first_wins(**near) == pytest.approx(0.5, abs=0.015)
    assert first_wins(**near, position_bias=3.0) == pytest.approx(0.5, abs=0.015)
    assert first_wins(**far) == pytest.approx(first_wins(mode=mode), abs=0.015)
    rng, utility = np.random.default_rng(0), np.array([1.0, 0.3, -9.0])
    orders = [tuple(Annotator("mine", utility_of({}), **near).rank(utility, rng)) for _ in range(4000)]
    share = np.mean([ranks[0] < ranks[1] for ranks in orders])
    assert share == pytest.approx(0.5, abs=0.04)
    assert {tuple(sorted(ranks)) for ranks in orders} == {(1, 2, 3)}


def test_stochastic_rankings_are_plackett_luce():
    """Every order of three against the product of softmaxes, 40,000 draws: chi-squared with 5 degrees."""
    utility, draws = np.array([0.9, 0.0, -0.4]), 40_000
    annotator, rng = Annotator("mine", utility_of({}), scale=1.5), np.random.default_rng(1)
    seen = collections.Counter(tuple(annotator.rank(utility, rng)) for _ in range(draws))
    chi2 = 0.0
    for order in itertools.permutations(range(3)):
        weights, p = np.exp(1.5 * utility), 1.0
        for place in range(3):
            p *= weights[order[place]] / weights[list(order[place:])].sum()
        ranks = tuple(order.index(i) + 1 for i in range(3))
        chi2 += (seen[ranks] - draws * p) ** 2 / (draws * p)
    assert sum(seen.values()) == draws
    assert chi2 < 20.5  # 99.9 %


def test_deterministic_rankings_follow_the_utility_and_ties_share_a_place():
    rng = np.random.default_rng(0)
    strict = Annotator("mine", utility_of({}), "deterministic", tie_policy="tie", tie_width=0.1)
    assert strict.rank(np.array([0.0, 2.0, 1.95, -1.0]), rng) == [3, 1, 1, 4]
    coin = Annotator("mine", utility_of({}), "deterministic")
    drawn = {tuple(coin.rank(np.array([1.0, 1.0, 0.0]), rng)) for _ in range(50)}
    assert drawn == {(1, 2, 3), (2, 1, 3)}
    biased = Annotator("mine", utility_of({}), "deterministic", position_bias=5.0)
    assert biased.rank(np.array([0.0, 1.0, 2.0]), rng) == [1, 3, 2]


def test_an_error_draws_the_whole_order():
    rng, utility = np.random.default_rng(0), np.array([2.0, 1.0])
    wrong = Annotator("mine", utility_of({}), "deterministic", error_rate=0.2)
    share = np.mean([wrong.rank(utility, rng) == [2, 1] for _ in range(10_000)])
    assert share == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tie_policy": "guess"}, "coin or tie or skip"),
        ({"error_rate": 0.6}, "between 0 and 0.5"),
        ({"tie_width": -1.0}, "0 or more"),
        ({"tie_width": float("nan")}, "0 or more"),
    ],
)
def test_annotators_that_cannot_be_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Annotator("mine", utility_of({}), **options)


def test_aspects_of_the_world_add_up_to_the_whole():
    question = "What is the capital of France?"
    response = "What a great question! Paris. I may be wrong. A walk in the park is fun."
    parts = {a: load_scorer(f"world:{a}", CPU)([question], [response])[0] for a in world.ASPECTS}
    assert parts == {"helpful": 1.0, "honest": -5.5, "concise": -2.0}
    assert sum(parts.values()) == load_scorer("world", CPU)([question], [response])[0]
    assert sorted(n for names in world.ASPECTS.values() for n in names) == sorted(world.WEIGHTS)
    with pytest.raises(UsageError, match="aspects are helpful"):
        load_scorer("world:polite", CPU)
