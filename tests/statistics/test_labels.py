"""The probability of a label, against labels that are drawn as the annotator's options say."""

import numpy as np
import pytest

from preferl.judging.annotators import Annotator
from preferl.statistics import bayes_accuracy
from preferl.statistics.labels import label_probability, preference_probability

GAPS = np.array([-2.5, -0.4, -0.05, 0.0, 0.05, 0.4, 1.3])
DRAWS = 20_000
CASES = [
    {},
    {"error_rate": 0.4},
    {"position_bias": 1.5},
    {"error_rate": 0.2, "position_bias": -0.7, "scale": 2.0},
    {"deterministic": True},
    {"deterministic": True, "error_rate": 0.1, "position_bias": 0.5},
    {"coin_width": 0.5},
    {"deterministic": True, "coin_width": 0.1, "error_rate": 0.3},
    {"position_bias": 1.0, "coin_width": 0.5, "error_rate": 0.1},
]


def drawn_labels(gap, rng, scale=1.0, deterministic=False, coin_width=0.0, error_rate=0.0, position_bias=0.0):
    """Whether the first text wins, one label after the other, in float64: a coin says which of the two is
    shown first, the annotator compares what it feels, and errs."""
    won = []
    for _ in range(DRAWS):
        own_place_is_first = rng.random() < 0.5
        felt = scale * (gap + (position_bias if own_place_is_first else -position_bias))
        if coin_width and abs(gap) <= coin_width:
            wins = rng.random() < 0.5
        elif deterministic:
            wins = felt > 0 if felt else rng.random() < 0.5
        else:
            wins = rng.random() < 1 / (1 + np.exp(-felt))
        won.append(wins != (rng.random() < error_rate))
    return np.array(won)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_probability_of_a_label_is_the_share_of_labels_that_are_drawn(options):
    rng = np.random.default_rng(0)
    for gap, p in zip(GAPS, label_probability(GAPS, **options), strict=True):
        share = drawn_labels(gap, rng, **options).mean()
        assert share == pytest.approx(p, abs=4 * np.sqrt(0.25 / DRAWS))


@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_annotator_labels_so(options):
    """The annotator itself, its two texts shown in either order."""
    options = dict(options)
    coin_width = options.pop("coin_width", 0.0)
    mode = "deterministic" if options.pop("deterministic", False) else "stochastic"
    utility = dict(zip("abcdefg", GAPS, strict=True)) | {"0": 0.0}

    def value(prompts, completions, finished):
        return [utility[text] for text in completions]

    annotator = Annotator("mine", value, mode, tie_policy="coin", tie_width=coin_width, **options)
    rng = np.random.default_rng(1)
    for text in "abcdefg":
        first = annotator(["p"] * DRAWS, [text] * DRAWS, ["0"] * DRAWS, rng).first_wins_N.mean()
        second = 1 - annotator(["p"] * DRAWS, ["0"] * DRAWS, [text] * DRAWS, rng).first_wins_N.mean()
        p = annotator.label_probability(np.array(utility[text]), np.array(0.0))
        assert (first + second) / 2 == pytest.approx(float(p), abs=4 * np.sqrt(0.25 / DRAWS / 2))


@pytest.mark.parametrize(
    ("options", "worst"),
    [
        ({}, 0.014),
        ({"error_rate": 0.3}, 0.014),
        ({"position_bias": 2.0, "error_rate": 0.1}, 0.014),
        ({"mode": "deterministic", "error_rate": 0.2}, 0.014),
        ({"tie_policy": "tie", "tie_width": 0.3}, 0.02),
    ],
)
def test_the_best_possible_accuracy_of_rankings_is_that_of_the_true_utility(options, worst):
    """All pairs of rankings of four: how often the response of larger utility stands before the other."""
    rng = np.random.default_rng(2)
    annotator = Annotator("mine", lambda *a, **b: [], **options)
    right, best = [], []
    for _ in range(8000):
        utility_K = rng.normal(0, 1, 4)
        rank_K = annotator.rank(utility_K, rng)
        for i in range(4):
            for j in range(i):
                if rank_K[i] != rank_K[j]:
                    gap = utility_K[i] - utility_K[j]
                    right.append((rank_K[i] < rank_K[j]) == (gap > 0))
                    how = {"error_rate": annotator.error_rate, "position_bias": annotator.position_bias}
                    deterministic = annotator.mode == "deterministic"
                    best.append(label_probability(gap, deterministic=deterministic, shown=4, **how))
    assert np.mean(right) == pytest.approx(bayes_accuracy(best), abs=worst)


def test_errors_halve_and_more_what_can_be_reached():
    """Error rate e leaves (1 - 2e) of what is above one half: 82.3 % becomes 56.5 % at 0.4."""
    gap_N = np.full(10, np.log(0.823 / 0.177))
    assert bayes_accuracy(label_probability(gap_N)) == pytest.approx(0.823)
    assert bayes_accuracy(label_probability(gap_N, error_rate=0.4)) == pytest.approx(0.5646)
    assert bayes_accuracy(label_probability(gap_N, error_rate=0.5)) == pytest.approx(0.5)


def test_without_errors_a_label_is_bradley_terry_to_the_last_bit():
    plain_N = np.exp(-np.logaddexp(0, -GAPS))
    assert preference_probability(GAPS).tolist() == label_probability(GAPS).tolist() == plain_N.tolist()
