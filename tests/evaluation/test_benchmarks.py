"""Published scores of benchmarks: against the rules as their papers tell them, worked by hand."""

import json

import numpy as np
import pytest

from preferl.data import formats
from preferl.data.records import Pair
from preferl.evaluation.audit import audit
from preferl.evaluation.benchmarks import benchmark_score
from preferl.evaluation.scored import ScoredPairs
from preferl.stages.audit import benchmark_lines


def scored_rows(tmp_path, rows):
    """Rows with their responses' scores written into them as ``text=score``, through the reader."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [pair for c in formats.load(str(tmp_path / "rows.jsonl")).records for pair in c.pairs()]
    scores_N2 = np.array([[float(text.split("=")[1]) for text in (p.chosen, p.rejected)] for p in pairs])
    return ScoredPairs(pairs, scores_N2[:, 0], scores_N2[:, 1])


def row(identity, subset, right, wrong):
    """A row of RewardBench 2 whose responses have these scores."""
    return {
        "id": identity,
        "prompt": f"Prompt {identity} of {subset}?",
        "chosen": [f"right {i}={score}" for i, score in enumerate(right)],
        "rejected": [f"wrong {i}={score}" for i, score in enumerate(wrong)],
        "num_correct": len(right),
        "num_incorrect": len(wrong),
        "total_completions": len(right) + len(wrong),
        "subset": subset,
    }


ORDINARY = [
    row("0", "Factuality", [1], [0, 0, 0]),
    row("1", "Factuality", [1], [0, 0, 2]),  # one wrong response of three is better: no point
    row("2", "Factuality", [1], [1, 1, 0]),  # three share the first place: a third
    row("3", "Precise IF", [1], [0, 0, 0]),
    row("4", "Math", [0], [0, 0, 0]),  # four share it
    row("5", "Safety", [-1], [-2, -3, -4]),
    row("6", "Focus", [1], [2, 2, 2]),
]
TIES = [
    row("tied:1", "Ties", [5, 6, 7], [1, 2]),  # margin 3, spread 2
    row("ref:1", "Ties", [5], [1, 2]),  # margin 3
    row("tied:2", "Ties", [5, 8], [3, 4]),  # margin 1, spread 3
    row("ref:2", "Ties", [5], [6, 2]),  # margin -1
    row("tied:3", "Ties", [5, 7], [0, 1]),  # margin 4, spread 2
    row("ref:3", "Ties", [5], [4]),  # margin 1
]


def test_reward_bench_2_by_its_published_rule(tmp_path):
    found = benchmark_score(scored_rows(tmp_path, ORDINARY + TIES))
    score_of = {row["category"]: row["score"] for row in found["rows"]}
    closeness = (np.tanh(3 / 2 - 1) + np.tanh(-1 / 3 - 1) + np.tanh(1 / 2 - 1)) / 3
    ties = 0.3 * 1 + 0.3 * 2 / 3 + 0.2 * 2 / 3 + 0.2 * 1 / 3 + 0.01 * closeness
    expected = {"Factuality": 4 / 9, "Precise IF": 1, "Math": 1 / 4, "Safety": 1, "Focus": 0, "Ties": ties}
    assert score_of == pytest.approx(expected)
    assert found["score"] == pytest.approx(np.mean(list(expected.values())))
    assert found["prompts_right"]["score"] == pytest.approx((1 + 0 + 1 / 3 + 1 + 1 / 4 + 1 + 0) / 7)
    by_name = {row["category"]: row for row in found["rows"]}
    assert by_name["Factuality"]["low"] < 4 / 9 < by_name["Factuality"]["high"]
    assert by_name["Ties"]["prompts"] == 6


def test_ties_whose_right_responses_all_score_the_same(tmp_path):
    rows = [row("tied:1", "Ties", [5, 5], [1]), row("ref:1", "Ties", [1], [1])]
    (found,) = benchmark_score(scored_rows(tmp_path, rows))["rows"]
    # Of margin 4 and 0 the smaller is 0: 0 / 0 - 1 is no number and counts 0.
    assert found["score"] == pytest.approx(0.3 * 1 + 0.3 * 0 + 0.2 * 1 + 0.2 * 0)


def test_a_part_of_the_benchmark_has_no_score_of_the_benchmarks(tmp_path):
    found = audit(scored_rows(tmp_path, ORDINARY))
    assert found["benchmark"]["score"] is None
    assert found["benchmark"]["missing"] == ["Ties"]
    text = "\n".join(benchmark_lines(found))
    assert "no score of RewardBench 2's: Ties is missing" in text
    assert "not the benchmark's number" in text
    lonely = benchmark_score(scored_rows(tmp_path, [TIES[0]]))
    assert lonely["rows"][0]["score"] is None
    assert lonely["rows"][0]["accuracy_tied"] == 1


def test_rm_bench_by_domain_and_style(tmp_path):
    rows = []
    for domain, right, wrong in (
        ("chat", (3, 2, 1), (2, 2, 2)),
        ("code", (1, 1, 1), (0, 0, 0)),
        ("math", (0, 0, 0), (1, 1, 1)),
        ("safety-refuse", (1, 1, 1), (0, 0, 0)),
        ("safety-response", (0, 0, 0), (0, 0, 0)),
    ):
        texts = [
            [f"{side}{i}={score}" for i, score in enumerate(s)] for side, s in (("r", right), ("w", wrong))
        ]
        rows.append(
            {"id": domain, "prompt": domain, "chosen": texts[0], "rejected": texts[1], "domain": domain}
        )
    found = benchmark_score(scored_rows(tmp_path, rows))
    by_domain = {row["category"]: (row["hard"], row["normal"], row["easy"]) for row in found["rows"]}
    # chat: 3 beats 2 in all styles, 2 and 1 never; the concise right response is in two hard cells and one
    # normal one.
    assert by_domain == {
        "chat": pytest.approx((2 / 3, 1 / 3, 0)),
        "code": (1, 1, 1),
        "math": (0, 0, 0),
        "safety": (0.5, 0.5, 0.5),
    }
    assert found["score"] == pytest.approx((1 / 3 + 1 + 0 + 0.5) / 4)
    assert found["hard"] == pytest.approx((2 / 3 + 1 + 0 + 0.5) / 4)


def test_judge_bench_counts_ties_as_wrong():
    columns = [{"response_model": "m", "pair_id": str(i), "source": s} for i, s in enumerate("aab")]
    pairs = [Pair(f"p{i}", "good", "bad", None, c) for i, c in enumerate(columns)]
    found = benchmark_score(ScoredPairs(pairs, np.array([1.0, 0.0, 1.0]), np.zeros(3)))
    assert found["score"] == pytest.approx(2 / 3)
    assert [(row["category"], row["score"]) for row in found["rows"]] == [("a", 0.5), ("b", 1.0)]


def test_pairs_of_no_benchmark_have_no_score_of_one():
    assert benchmark_score(ScoredPairs([Pair("p", "good", "bad")], np.ones(1), np.zeros(1))) is None
