"""The evaluate stage: log-probabilities by hand, and what stands in the summary of a small real run."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from preferl.data.records import PromptRecord
from preferl.models import load
from preferl.runs.errors import UsageError
from preferl.runs.record import StageRecord
from preferl.runs.stage import Stage
from preferl.sampling.policy import Policy
from preferl.sampling.samples import rows_of
from preferl.stages import evaluate
from preferl.stages.evaluate import EvaluateConfig, Responder
from preferl.statistics import wilson_interval

CPU = torch.device("cpu")


def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


def test_the_kl_of_a_policy_to_itself_is_zero_and_to_another_is_its_log_ratio(policy_directory, tmp_path):
    policy, other = (Policy.load(str(policy_directory), CPU) for _ in range(2))
    with torch.no_grad():
        other.model.model.embed_tokens.weight.mul_(1.3)
    config = EvaluateConfig(response_length=6, temperature=0.7, output_dir=str(tmp_path))
    prompts = [PromptRecord("What is red?"), PromptRecord("Tell me of the sea and of the sky.")]
    responder = Responder(config, {"score": length}, Stage("evaluate", config))
    made = responder.respond("policy", policy, prompts, 2)
    samples = made.made.samples
    assert made.logp_N == pytest.approx(evaluate.log_probability(policy, samples), abs=1e-4)
    for own in (policy, other):
        model, found = own.model, evaluate.log_probability(own, samples)
        for i in range(4):
            real = samples.attention_BS[i].bool()
            ids = samples.tokens_BS[i][real]
            count = int(samples.mask_BT[i].sum())
            with torch.no_grad():
                logits = model(ids[None]).logits[0].double() / 0.7
            logits[:, list(samples.sampling.suppressed)] = -torch.inf
            logp = logits.log_softmax(-1)
            by_hand = sum(logp[j - 1, ids[j]].item() for j in range(len(ids) - count, len(ids)))
            assert found[i] == pytest.approx(by_hand, abs=1e-4)
    summary = evaluate.kl_summary(np.array([1.0, 3.0, 4.0, 6.0]), made)
    assert summary["kl"] == 3.5
    assert summary["kl_se"] == pytest.approx(1.5)  # of the two prompts' means, 2 and 5
    tokens = sum(made.made.lengths)
    assert summary["kl_per_token"] == pytest.approx(14 / tokens)
    assert evaluate.perplexity(made, np.full(4, -1.0))["perplexity"] == pytest.approx(np.exp(4 / tokens))
    part = made.made.rows([2])
    assert part.completions == made.made.completions[2:3]
    assert torch.equal(part.samples.logp_BT, rows_of(samples, torch.tensor([2])).logp_BT)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"best_of": [0]}, "every number of it must be 1 or more"),
        ({"pool_size": 8}, "needs at least its largest N"),
        ({"num_generations": 0}, "num_generations is 0"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        evaluate.check_options(EvaluateConfig(**options))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, policy_directory):
    """A policy against itself, on the world's prompts, by two rewards and a gold reward."""
    path = tmp_path_factory.mktemp("evaluate") / "evaluate"
    config = EvaluateConfig(
        output_dir=str(path),
        dataset_name="world",
        model_name_or_path=str(policy_directory),
        ref_model=str(policy_directory),
        reward_model="tokens",
        held_out_reward="concise",
        gold="world",
        response_length=6,
        num_generations=3,
        max_eval_prompts=40,
        best_of=[2, 4],
        best_of_prompts=12,
        pool_size=8,
        device="cpu",
        num_threads=1,
    )
    return StageRecord(evaluate.run(config))


def test_every_measure_is_compared_with_the_sft_model_and_with_the_data(evaluated):
    s = evaluated.summary
    assert set(s["comparison"]) == {"score", "gold", "held_out"}
    for row in s["comparison"].values():
        assert row["n"] == 40 * 3 * 3
        assert row["win_rate_low"] <= 0.5 <= row["win_rate_high"]  # it is the same policy
        assert row["difference_low"] <= 0 <= row["difference_high"]
        assert sum(c["prompts"] for c in row["by_category"]) <= 40
        assert row["length_control_left_out"] or row["length_controlled_win_rate_low"] < 0.5
    # The reward of tokens cannot read the data set's responses: nobody sampled them.
    assert set(s["references"]) == {"prompts", "gold", "held_out"}
    assert s["references"]["gold"]["mean"] > s["policies"]["policy"]["gold"]
    known = [row["sign"] for row in s["signs"]]
    assert known == [*evaluate.comparison.SIGNS, "collapse", "unfinished"]
    unfinished = s["signs"][-1]
    for who in ("policy", "reference"):
        assert unfinished[who] == pytest.approx(1 - s["policies"][who]["eos_rate"])
        assert 0 < s["policies"][who]["common_sentence_share"] <= 1
    assert s["policies"]["policy"]["kl"] == pytest.approx(0, abs=1e-4)
    assert not s["policies"]["policy"]["drifted"]
    assert len(evaluated.samples) == 40


def test_the_pool_gives_best_of_n_the_optima_and_the_gap_of_judging(evaluated):
    s = evaluated.summary
    assert [row["n"] for row in s["best_of"]] == [2, 4]
    assert [row["n"] for row in s["frontier"]["best_of"]] == [1, 2, 4, 8]
    scores = [row["score"] for row in s["frontier"]["best_of"]]
    assert scores == sorted(scores)
    assert s["frontier"]["pool"] == 8
    # A smaller coefficient moves further, for more reward, from fewer effective samples.
    for key, sign in (("kl", 1), ("score", 1), ("effective_sample_size", -1)):
        values = [sign * row[key] for row in s["frontier"]["tilt"]]
        assert values == sorted(values)
    assert 0 <= s["verification"]["accuracy_likelihood"] <= 1
    assert "prediction" not in s  # nothing says that this policy was trained with a KL penalty
    example = s["examples"][0]
    assert example["log_ratio"] == pytest.approx(0, abs=1e-4)
    assert [row["score"] for row in s["examples"]] == sorted(row["score"] for row in s["examples"])


def test_every_kl_has_its_sign(tmp_path, policy_directory):
    """What a policy writes is likelier under it than under another one, and the other way round."""
    other, tokenizer = load.load_policy(str(policy_directory), CPU)
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(3)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    config = EvaluateConfig(
        output_dir=str(tmp_path / "evaluate"),
        model_name_or_path=str(policy_directory),
        dataset_name="world",
        ref_model=str(tmp_path / "other"),
        reward_model="concise",
        response_length=8,
        max_eval_prompts=30,
        best_of=[],
        device="cpu",
        num_threads=1,
    )
    record = StageRecord(evaluate.run(config))
    policy = record.summary["policies"]["policy"]
    assert policy["kl"] - 3 * policy["kl_se"] > 0
    assert np.mean([row["kl"] for row in record.samples]) == pytest.approx(policy["kl"])
    assert np.mean([row["log_ratio"] for row in record.summary["examples"]]) < 0
    assert policy["perplexity"] > record.summary["policies"]["reference"]["perplexity"]


def test_what_people_labelled_on_held_out_prompts_is_compared_with_the_reward(tmp_path, policy_directory):
    """Of 20 held-out pairs the shorter one was preferred in 15."""
    rows = [
        {
            "prompt": f"What is {i}?",
            "chosen": "a" if i % 4 else "a b c d",
            "rejected": "a b c",
            "split": "eval" if i < 20 else "train",
        }
        for i in range(30)
    ]
    data = tmp_path / "people.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = EvaluateConfig(
        output_dir=str(tmp_path / "evaluate"),
        model_name_or_path=str(policy_directory),
        ref_model=str(policy_directory),
        dataset_name=str(data),
        reward_model="concise",
        response_length=4,
        best_of=[],
        device="cpu",
        num_threads=1,
    )
    labels = StageRecord(evaluate.run(config)).summary["labels"]
    assert (labels["pairs"], labels["accuracy"]) == (20, 0.75)
    low, high = wilson_interval(15, 20)
    assert (labels["accuracy_low"], labels["accuracy_high"]) == pytest.approx((low, high))
    unread = dataclasses.replace(config, reward_model="tokens", output_dir=str(tmp_path / "tokens"))
    assert StageRecord(evaluate.run(unread)).summary["labels"] == {}


OWN_REWARDS = """
def right(completions, wanted, **_):
    return [float(a == b) for a, b in zip(completions, wanted)]

def of_tokens(completions, completion_ids, **_):
    return [float(len(ids)) for ids in completion_ids]

def refuses_what_people_wrote(completions, wanted, **_):
    if list(completions) == list(wanted):
        raise ValueError("I read what models write")
    return [0.5 for _ in completions]
"""


@pytest.fixture
def with_answers(tmp_path, policy_directory, monkeypatch):
    """Rows whose response stands in a column too, which rewards of a person's own read."""
    (tmp_path / "own_rewards.py").write_text(OWN_REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [
        {"prompt": f"What is {i}?", "completion": f"It is {i}.", "wanted": f"It is {i}.", "split": "test"}
        for i in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EvaluateConfig(
        output_dir=str(tmp_path / "evaluate"),
        dataset_name="rows.jsonl",
        model_name_or_path=str(policy_directory),
        ref_model=str(policy_directory),
        response_length=5,
        best_of=[],
    )


def test_the_datas_own_responses_are_scored_with_their_columns(with_answers):
    summary = StageRecord(
        evaluate.run(dataclasses.replace(with_answers, reward_model="own_rewards:right"))
    ).summary
    assert summary["references"]["score"]["mean"] == 1.0


def test_a_reward_that_reads_tokens_is_not_asked_about_the_datas_own_responses_which_is_said(
    with_answers, capsys
):
    config = dataclasses.replace(with_answers, reward_model="own_rewards:of_tokens", gold="own_rewards:right")
    summary = StageRecord(evaluate.run(config)).summary
    assert set(summary["references"]) == {"prompts", "gold"}
    said = capsys.readouterr().out
    assert "the data's own responses have no score: " in said
    assert "completion_ids, which is known only of responses that preferl sampled" in said


def test_a_reward_that_fails_on_the_datas_own_responses_ends_the_stage(with_answers):
    config = dataclasses.replace(with_answers, reward_model="own_rewards:refuses_what_people_wrote")
    with pytest.raises(UsageError, match="I read what models write"):
        evaluate.run(config)


def test_a_dialogue_keeps_its_turns_beside_the_last_question():
    dialogue = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is Paris?"},
        {"role": "assistant", "content": "In France."},
        {"role": "user", "content": "And Rome?"},
    ]
    prompts = ["And Oslo?", dialogue[1:2], dialogue]
    said = SimpleNamespace(
        first=["a"] * 3, first_finished=[True] * 3, value_PG={"score": np.zeros((3, 1))}, group_size=1
    )
    rows = evaluate.side_by_side(prompts, said, said, np.zeros(3))
    assert [row["prompt"] for row in rows] == ["And Oslo?", "Where is Paris?", "And Rome?"]
    assert [row.get("turns") for row in rows] == [None, None, dialogue]


def test_the_curves_of_a_training_elsewhere_are_kept_and_a_damaged_file_is_said(tmp_path, monkeypatch):
    logged, said = [], []
    stage = SimpleNamespace(log=lambda **row: logged.append(row), say=said.append)

    def found(**changes):
        names = {"model_name_or_path": str(tmp_path), "ref_model": "start"} | changes
        return evaluate.trained_elsewhere(EvaluateConfig(**names), stage)

    assert found() == {"file": None}
    file = tmp_path / "trainer_state.json"
    file.write_text('{"log_history": [{"step": 1, "reward": 2.0, "loss": NaN}]}')
    assert found() == {"file": "trainer_state.json", "left_out": 1}
    assert logged == [{"step": 1, "train/reward": 2.0}]
    assert found(ref_model=str(tmp_path)) == {}  # nothing was trained
    assert found(model_name_or_path="memory:model-1") == {}
    file.write_text("{")
    assert found() == {"file": None}
    assert "the curves of the training are left out: " in said[-1]
    # A name of the Hub is no folder, and what lies in this one is not its own.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text('{"log_history": [{"step": 1, "loss": 1}]}')
    assert found(model_name_or_path="gpt2") == {"file": None}
    (tmp_path / "manifest.json").write_text("{}")  # a stage of preferl
    assert found() == {}
    assert len(logged) == 1
