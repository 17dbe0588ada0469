"""Scores that are no numbers end with the name of what gave them, wherever they are used."""

import math

import numpy as np
import pytest
import torch

from preferl.data.records import Pair
from preferl.evaluation.scored import scores_of
from preferl.judging.annotators import Annotator
from preferl.judging.reward_functions import RewardFunction
from preferl.judging.scorers import Ensemble, Mixture, ShardedScorer, scored
from preferl.label.judgements import Item
from preferl.label.live import judge_pairs, rank
from preferl.models.load import load_policy
from preferl.models.reward import RewardModel, load_reward_model
from preferl.runs.errors import DivergedError, UsageError
from preferl.sampling.policy import Policy

CPU = torch.device("cpu")


def given(value, name="mine:it"):
    """A scorer of a person's own that returns this for the second response."""

    def function(completions, **columns):
        return [0.5 if i != 1 else value for i in range(len(completions))]

    return RewardFunction(function, name)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "put_together",
    [
        lambda bad: bad,
        ShardedScorer,
        lambda bad: Ensemble({"good": given(1.0), "mine:it": bad}),
        lambda bad: Mixture({"good": (1.0, given(1.0)), "mine:it": (0.5, bad)}),
        lambda bad: ShardedScorer(Mixture({"mine:it": (0.5, bad), "good": (1.0, given(1.0))})),
    ],
)
def test_the_part_that_gave_it_is_named(value, put_together):
    scorer = put_together(given(value))
    with pytest.raises(
        DivergedError, match=r"^the reward 'mine:it' returned (nan|-?inf) for row 1, the response 'b'"
    ):
        scored(scorer, ["p"] * 3, ["a", "b", "c"])
    with pytest.raises(DivergedError, match="'mine:it'"):
        scores_of(scorer, [Pair("p", "a", "b")])


def test_a_function_reads_the_columns_of_a_pairs_row():
    def right(completions, answer, finished):
        return [float(text == a) + 10 * f for text, a, f in zip(completions, answer, finished, strict=True)]

    # The same responses to the same prompt, of which another one is right in the second row.
    pairs = [
        Pair(
            "2 + 2?", "4.", "5.", None, {"answer": "4.", "finished_chosen": True, "finished_rejected": False}
        ),
        Pair(
            "2 + 2?", "4.", "5.", None, {"answer": "5.", "finished_chosen": True, "finished_rejected": True}
        ),
    ]
    chosen_N, rejected_N = scores_of(RewardFunction(right), pairs)
    assert (chosen_N.tolist(), rejected_N.tolist()) == ([11.0, 10.0], [0.0, 11.0])
    with pytest.raises(UsageError, match="column 'lengths', which reward functions are given by preferl"):
        scores_of(RewardFunction(right), [Pair("p", "a", "b", None, {"answer": "a", "lengths": 3})])


def test_none_is_no_score_and_is_said():
    with pytest.raises(UsageError, match="None"):
        scored(given(None), ["p"] * 2, ["a", "b"])
    assert scored(given(2), ["p"] * 2, ["a", "b"]).tolist() == [0.5, 2.0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_annotator_labels_nothing_by_what_is_no_number(value):
    annotator = Annotator("mine:it", given(value))
    rng = np.random.default_rng(0)
    with pytest.raises(DivergedError, match="the annotator 'mine:it': the reward 'mine:it' returned"):
        annotator(["p"] * 2, ["a", "b"], ["c", "d"], rng)
    items = [Item(i, "p", ["a", "b"], {}, None) for i in range(2)]
    with pytest.raises(DivergedError, match="'mine:it'"):
        judge_pairs(annotator, items, rng)
    with pytest.raises(DivergedError, match="'mine:it'"):
        rank(annotator, Item(1, "p", ["a", "b", "c"], {}, None), rng)


def test_a_reward_model_is_named_by_its_directory(policy_directory):
    model, tokenizer = load_reward_model(str(policy_directory), CPU, new_head_allowed=True)
    with torch.no_grad():
        model.score.weight.fill_(math.nan)  # as an update may leave it
    with pytest.raises(DivergedError, match=f"the reward '{policy_directory}' returned nan"):
        scored(RewardModel(model, tokenizer), ["p"], ["a"])


def test_a_policy_whose_activations_overflow_samples_nothing(policy_directory):
    policy = Policy(*load_policy(str(policy_directory), CPU))
    sampled = policy.respond(["p"], seed=0, response_length=4)
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(3e38)
    with pytest.raises(DivergedError, match=f"the policy '{policy_directory}' gives tokens probabilities"):
        policy.respond(["p"], seed=0, response_length=4)
    with pytest.raises(DivergedError, match="not finite numbers"):
        policy.logprobs(sampled.samples)
