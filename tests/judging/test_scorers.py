"""What scorers are made of: ensembles, mixtures, names."""

import pytest
import torch

from preferl.judging.scorers import Ensemble, Mixture, load_scorer, parts_of, reward_models
from preferl.models import load
from preferl.models.reward import load_reward_model
from preferl.runs.errors import UsageError

CPU = torch.device("cpu")
TEXTS = ["one two", "a much longer text with many words in it"]


@pytest.fixture(scope="module")
def two_models(policy_directory, tmp_path_factory):
    """Two reward models with heads of their own."""
    root = tmp_path_factory.mktemp("models")
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        model, tokenizer = load_reward_model(str(policy_directory), CPU, new_head_allowed=True)
        load.save(model, tokenizer, root / name / "model")
    return root


def test_a_mixture_is_the_weighted_sum_and_keeps_its_parts():
    mixture = load_scorer("0.7*length + -0.3*concise", CPU)
    length, concise = load_scorer("length", CPU), load_scorer("concise", CPU)
    prompts = ["p"] * 2
    expected = [
        0.7 * x - 0.3 * y for x, y in zip(length(prompts, TEXTS), concise(prompts, TEXTS), strict=True)
    ]
    assert mixture(prompts, TEXTS) == pytest.approx(expected)
    assert mixture.last_parts == {"length": length(prompts, TEXTS), "concise": concise(prompts, TEXTS)}
    assert list(dict(parts_of(mixture))) == ["length", "concise"]


def test_members_are_put_together_by_mean_minimum_or_mean_minus_spread(two_models):
    a, b = (load_scorer(str(two_models / name), CPU) for name in ("a", "b"))
    prompts = ["p"] * 2
    for x, y, mean, low, careful in zip(
        a(prompts, TEXTS),
        b(prompts, TEXTS),
        load_scorer(f"mean({two_models}/a, {two_models}/b)", CPU)(prompts, TEXTS),
        load_scorer(f"min({two_models}/a, {two_models}/b)", CPU)(prompts, TEXTS),
        load_scorer(f"mean-1.5sd({two_models}/a,{two_models}/b)", CPU)(prompts, TEXTS),
        strict=True,
    ):
        assert mean == pytest.approx((x + y) / 2, abs=1e-6)
        assert low == pytest.approx(min(x, y), abs=1e-6)
        assert careful == pytest.approx((x + y) / 2 - 1.5 * abs(x - y) / 2, abs=1e-6)


def test_reward_models_are_found_inside(two_models):
    scorer = load_scorer(f"0.5*min({two_models}/a, {two_models}/b) + 0.5*length", CPU)
    assert len(reward_models(scorer)) == 2
    assert reward_models(load_scorer("length", CPU)) == {}
    assert list(reward_models(load_scorer(str(two_models / "a"), CPU))) == ["reward"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("0.7*length + concise", "no weight"),
        ("0.7*length + 0.3*length", "twice"),
        ("0.7*nowhere", "neither a directory"),
        ("min(length, nowhere)", "neither a directory"),
    ],
)
def test_what_cannot_be_put_together_is_named(spec, message):
    with pytest.raises(UsageError, match=message):
        load_scorer(spec, CPU)
    with pytest.raises(UsageError, match="mean, min"):
        Ensemble({}, "median")


def test_weights_are_read_as_numbers():
    mixture = load_scorer("1*length + .5*concise + 2e-1*sentiment", CPU)
    assert isinstance(mixture, Mixture)
    assert [weight for weight, _ in mixture.parts.values()] == [1, 0.5, 0.2]
