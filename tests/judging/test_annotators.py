"""Simulated annotators and scorers: labels of the stated distribution, names that resolve, useful errors."""

import numpy as np
import pytest
import torch
from scipy import stats

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
