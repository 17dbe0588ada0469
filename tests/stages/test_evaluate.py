"""The evaluate stage: win rates, differences and best-of-N by hand, and the KL of a policy to itself."""

import numpy as np
import pytest
import torch

from preferl.models import load
from preferl.sampling.texts import Generated
from preferl.stages import evaluate
from preferl.stages.evaluate import EvaluateConfig, Judge, Responses

CPU = torch.device("cpu")


def scored(score, gold=None) -> Responses:
    made = Generated.__new__(Generated)  # the texts play no part here
    return Responses(
        made, np.array(score, dtype=float), None if gold is None else np.array(gold, dtype=float)
    )


def test_a_tie_is_half_a_win_and_the_difference_is_paired():
    row = evaluate.compare(np.array([1.0, 2.0, 3.0, 0.0]), np.array([0.0, 2.0, 1.0, 1.0]))
    assert (row["wins"], row["ties"], row["n"]) == (2, 1, 4)
    assert row["win_rate"] == 2.5 / 4
    assert row["win_rate_low"] < 2.5 / 4 < row["win_rate_high"]
    assert row["difference"] == pytest.approx((1 + 0 + 2 - 1) / 4)
    shifted = evaluate.compare(np.arange(50) + 1.0, np.arange(50) * 1.0)
    assert shifted["difference_low"] == shifted["difference_high"] == 1


def test_best_of_n_picks_by_score_and_uses_the_whole_pool():
    config = EvaluateConfig(best_of=[4, 1, 2])
    pool = scored(
        [[1, 4, 3, 2], [0, -1, 5, 6]],
        gold=[[10, 0, 7, 9], [1, 2, 3, 8]],
    )
    pool = Responses(pool.made, pool.score.ravel(), pool.gold.ravel())
    one, two, four = evaluate.best_of_ways(config, pool, scored([0, 0], gold=[0, 3]))
    assert [row["n"] for row in (one, two, four)] == [1, 2, 4]
    assert one["score"] == pytest.approx((1 + 4 + 3 + 2 + 0 - 1 + 5 + 6) / 8)
    assert two["score"] == pytest.approx(((4 + 3) / 2 + (0 + 6) / 2) / 2)
    assert four["score"] == pytest.approx((4 + 6) / 2)
    assert two["gold"] == pytest.approx(((0 + 7) / 2 + (1 + 8) / 2) / 2)
    assert four["gold"] == pytest.approx((0 + 8) / 2)
    assert four["win_rate"] == pytest.approx((0.5 + 1) / 2)
    assert [row["forward_passes_per_response"]["policy"] for row in (one, two, four)] == [1, 2, 4]
    assert four["kl_bound"] == pytest.approx(np.log(4) - 3 / 4)


def test_the_kl_of_a_policy_to_itself_is_zero_and_to_another_is_its_log_ratio(policy_directory):
    policy, tokenizer = load.load_policy(str(policy_directory), CPU)
    other, _ = load.load_policy(str(policy_directory), CPU)
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(1.3)
    config = EvaluateConfig(response_length=6, temperature=0.7)

    def length(prompts, completions, **columns):
        return [float(len(text)) for text in completions]

    judge = Judge(config, tokenizer, length, None, CPU, torch.float32)
    made = judge.respond("policy", policy, ["What is red?", "Tell me of the sea and of the sky."]).made
    assert judge.kl(made.samples, policy, policy) == pytest.approx([0, 0], abs=1e-6)
    kl = judge.kl(made.samples, policy, other)
    samples = made.samples
    for i in range(2):
        real = samples.attention_BS[i].bool()
        ids = samples.tokens_BS[i][real]
        count = int(samples.mask_BT[i].sum())
        by_hand = 0.0
        for model, sign in ((policy, 1), (other, -1)):
            with torch.no_grad():
                logits = model(ids[None]).logits[0].double() / 0.7
            logits[:, list(samples.sampling.suppressed)] = -torch.inf
            logp = logits.log_softmax(-1)
            by_hand += sign * sum(logp[j - 1, ids[j]].item() for j in range(len(ids) - count, len(ids)))
        assert kl[i] == pytest.approx(by_hand, abs=1e-4)
