"""Several judges as one, and both questions wherever a judge is used; by real servers."""

import json
import math
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from judge_server import CPU, QUICK, Body, more_good, parts_of, reply, serving
from preferl.data.records import DataError, Pair
from preferl.evaluation.scored import scores_of
from preferl.judging.annotators import load_annotator
from preferl.judging.juries import (
    PairwiseJury,
    PointwiseJury,
    load_pairwise_judge,
    load_pointwise_judge,
    what_judges_said,
)
from preferl.judging.scorers import Ensemble, judges_in, load_scorer, score_responses, scored, unread_rows
from preferl.options.judging import AnnotatorOptions, JudgeConfig, jury_of, names_judge
from preferl.sampling.policy import Responses
from preferl.sampling.samples import Samples, Sampling
from preferl.stages import audit
from preferl.statistics.agreement import krippendorff_alpha


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def always(text: str) -> Any:
    return lambda body, n: reply(text)


def longer(body: Body, n: int) -> Any:
    """Prefers the longer response."""
    parts = parts_of(body["messages"][0]["content"])
    a, b = len(parts["RESPONSE A"]), len(parts["RESPONSE B"])
    return reply(f"VERDICT: {'TIE' if a == b else 'A' if a > b else 'B'}")


def scoring(body: Body, n: int) -> Any:
    """The number in a response is its score; about a response without one nothing can be read."""
    return reply(f"SCORE: {parts_of(body['messages'][0]['content'])['RESPONSE'].split()[-1]}")


def shorter_scores(body: Body, n: int) -> Any:
    return reply(f"SCORE: {max(1, 10 - len(parts_of(body['messages'][0]['content'])['RESPONSE']))}")


def jury(how: str, *behaviours: Any, pairwise: bool = True, options: str = "") -> Any:
    """A jury of judges behind servers of their own, with what closes them."""
    stack = ExitStack()
    urls = [stack.enter_context(serving(behaviour)).url for behaviour in behaviours]
    text = f"{how}({', '.join(f'judge:{url}#m{options}' for url in urls)})"
    load = load_pairwise_judge if pairwise else load_pointwise_judge
    return stack, load(text, CPU, QUICK)


def test_a_jurys_text_is_split_at_its_judges():
    text = "majority(judge:http://h/v1#a?criteria=it is short, clear, judge:runs/b, judge:http://h/v1#c)"
    assert jury_of(text) == (
        "majority",
        ["judge:http://h/v1#a?criteria=it is short, clear", "judge:runs/b", "judge:http://h/v1#c"],
    )
    assert names_judge(text)
    assert not names_judge("mean(judge:http://h/v1#a, runs/reward)")  # an ensemble
    assert not names_judge("0.5*judge:runs/a + 0.5*length")


def test_the_majority_of_verdicts_decides_and_agreement_is_alpha():
    first, second = ["good good", "good", "x", "good"], ["bad but long", "bad words", "y", "bad"]
    stack, judges = jury("majority", more_good, longer, more_good)
    with stack:
        judged = judges(["p1", "p2", "p3", "p4"], first, second, np.random.default_rng(0))
    assert isinstance(judges, PairwiseJury)
    assert judged.probability_N.tolist() == [1.0, 1.0, 0.5, 1.0]
    report = judges.report()
    assert (report["judged"], report["asked"], report["dropped"]) == (4, 24, 0)
    verdicts = [[1, 1, 0, 1], [-1, -1, 0, 1], [1, 1, 0, 1]]
    expected = krippendorff_alpha(np.array(verdicts, dtype=float), "nominal")
    assert report["agreement"]["krippendorff_alpha"] == pytest.approx(expected)
    assert len(report["by_judge"]) == 3
    assert any("Krippendorff's alpha" in line for line in what_judges_said(report, 0))


def test_the_mean_of_a_jury_and_judges_without_a_say():
    stack, judges = jury("mean", more_good, longer, always("no idea"), options="?max_unusable=1")
    with stack:
        judged = judges(["p", "q"], ["good", "good"], ["bad but long", "bad"], np.random.default_rng(0))
        assert judged.probability_N.tolist() == [0.5, 1.0]
        assert judged.kept_N.all()
        assert judges.counts.unparsable == 4
    stack, judges = jury("mean", always("no idea"), always(""))
    with stack, pytest.raises(DataError, match=r"1 of 1 got no readable verdict.*no idea.*empty"):
        judges(["p"], ["a"], ["b"], np.random.default_rng(0))


def test_a_jury_scores_single_responses():
    for how, expected in (("mean", (9 + 1 + 8) / 3), ("majority", 8)):
        stack, judges = jury(how, always("SCORE: 9"), always("SCORE: 1"), always("SCORE: 8"), pairwise=False)
        with stack:
            assert judges(["p"], ["a"]) == pytest.approx([(expected - 1) / 9])
        assert isinstance(judges, PointwiseJury)
    stack, judges = jury(
        "mean", scoring, shorter_scores, pairwise=False, options="?unparsable=skip&max_unusable=1"
    )
    with stack:
        scores = judges(["p"] * 3, ["is 4", "none", "is 9"])
        assert scores == pytest.approx([(4 + 6 - 2) / 18, 5 / 9, (9 + 6 - 2) / 18])
        assert judges.report()["agreement"]["judges"] == 2
    with serving(scoring) as server:
        text = f"mean(judge:{server.url}#a, judge:{server.url}#b)"
        assert isinstance(load_scorer(text, CPU), PointwiseJury)
        assert len(judges_in(load_scorer(f"0.5*{text} + 0.5*length", CPU))) == 1
        assert isinstance(load_scorer(f"mean(judge:{server.url}#a, length)", CPU), Ensemble)


def test_a_jury_goes_on_from_its_state():
    behaviours = [more_good, longer]
    stack, whole = jury("majority", *behaviours)
    arguments = (["p", "q"], ["good", "good x"], ["bad", "bad and long"])
    with stack:
        whole(*arguments, np.random.default_rng(0))
        state = json.loads(json.dumps(whole.state()))
        first = whole.report()
    other = load_pairwise_judge(whole.name, CPU, QUICK)
    other.restore(state)
    assert other.report() == first


# Pairwise and pointwise in every place


def test_an_annotator_may_score_both_responses_of_a_pair():
    with serving(scoring) as server:
        options = AnnotatorOptions(annotator=f"judge:{server.url}#m?ask=pointwise&backoff=0.01")
        annotator = load_annotator(options, 0, CPU)
        judged = annotator(
            ["p"] * 4,
            ["is 9", "is 2", "is 5", "none"],
            ["is 3", "is 8", "is 5", "is 1"],
            np.random.default_rng(0),
        )
    assert judged.probability_N[:3].tolist() == [1.0, 0.0, 0.5]
    assert judged.kept_N.tolist() == [True, True, True, False]
    assert all("RESPONSE B" not in body["messages"][0]["content"] for body in server.bodies)
    assert judged.counts.dropped == judged.counts.unparsable == 1


def test_an_audit_may_compare_the_two_responses_of_a_pair():
    with serving(more_good) as server:
        config = audit.AuditConfig(reward_model=f"judge:{server.url}#m?ask=pairwise&unparsable=skip", seed=3)
        judge = audit.load_audited(config, CPU)
        pairs = [Pair(f"p{i}", "good", "bad") for i in range(20)] + [Pair("q", "bad", "good")]
        chosen_N, rejected_N = scores_of(judge, pairs)
        shown = [parts_of(body["messages"][0]["content"])["RESPONSE A"] for body in server.bodies]
    assert chosen_N.tolist() == [1.0] * 20 + [0.0]
    assert (chosen_N + rejected_N == 1).all()
    assert 0 < shown[:20].count("good") < 21

    # A judge that favours the first place gains nothing by it, also where one order cannot be read.
    def half_read(body: Body, n: int) -> Any:
        return reply("VERDICT: A" if n % 2 else "hm")

    with serving(half_read) as server:
        judge = load_pairwise_judge(
            f"judge:{server.url}#m?unparsable=skip&parallel=1&max_unusable=1", CPU, JudgeConfig(seed=0)
        )
        chosen_N, _ = scores_of(judge, [Pair(f"p{i}", f"x {i}", f"y {i}") for i in range(100)])
    assert 0.3 < np.nanmean(chosen_N) < 0.7


# Nothing readable, with unparsable=skip


def written(texts: list[str]) -> Responses:
    """Texts as a policy's responses of one token each."""
    one_B1 = torch.ones(len(texts), 1, dtype=torch.long)
    tokens_B2 = one_B1.expand(-1, 2)
    samples = Samples(
        tokens_B2, one_B1, one_B1, -one_B1.float(), one_B1[:, 0] > 0, Sampling(1.0, 1, (), ()), 0
    )
    return Responses(["p"] * len(texts), texts, [True] * len(texts), [1] * len(texts), samples)


def test_skipped_scores_are_missing_and_no_others_may_be():
    with serving(scoring) as server:
        mixture = load_scorer(f"0.5*judge:{server.url}#m?unparsable=skip + 0.5*length", CPU)
        score_B = scored(mixture, ["p"] * 3, ["is 4", "none", "is 9"])
        assert np.isnan(score_B).tolist() == [False, True, False]
        assert set(unread_rows(mixture)) == {1}
        responses = written(["is 4", "none", "is 10"])
        judge = load_scorer(f"judge:{server.url}#m?unparsable=skip", CPU)
        # Where a response cannot be left out of its batch, it gets the others' mean.
        assert score_responses(judge, responses) == pytest.approx([3 / 9, 6 / 9, 1.0])
        assert judge.counts.dropped == 1
        with pytest.raises(DataError, match="none of 2 responses has a score"):
            score_responses(judge, written(["none", "nil"]))
        assert math.isnan(judge(["p"], ["none"])[0])
