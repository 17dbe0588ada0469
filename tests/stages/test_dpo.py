"""The dpo stage on small real models: its log-probabilities, its gradient, its optimum, what it says."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from preferl import cli, pipeline
from preferl.data.records import DataError, Pair, PromptRecord
from preferl.data.sources import load_source
from preferl.models import load, tiny
from preferl.models.storage import Weights
from preferl.runs.devices import generator
from preferl.runs.errors import DivergedError, UsageError
from preferl.runs.stage import Stage
from preferl.sampling.policy import Policy
from preferl.stages import dpo
from preferl.sweep.plan import SweepConfig, SweepOptions
from preferl.sweep.run import run as run_sweep
from small_models import TEXTS, make_language_model

CPU = torch.device("cpu")
NOUNS = ("apple", "river", "house", "stone", "cloud", "table")


def pair(number: int, split: str) -> dict:
    """The friendly answer is chosen; prompts are of very different lengths."""
    noun = NOUNS[number % len(NOUNS)]
    return {
        "prompt": f"Tell me of {noun} {number}." + " Take your time." * (number % 5),
        "chosen": f"Thanks, the {noun} is nice.",
        "rejected": f"Shut up! The {noun} is bad." + " Go away." * (number % 3),
        "split": split,
    }


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    rows = [pair(i, "train" if i < 64 else "dev" if i < 84 else "eval") for i in range(85)]
    return write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.fixture
def config(tmp_path, policy_directory, pairs_file):
    return dpo.DpoConfig(
        output_dir=str(tmp_path / "dpo"),
        model_name_or_path=str(policy_directory),
        dataset_name=pairs_file,
        train_batch_size=16,
        micro_batch_size=6,
        response_length=10,
        check_samples=6,
        num_evals=2,
        num_threads=1,
        device="cpu",
    )


def metrics(stage: Path) -> list[dict]:
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]


def summary_of(stage: Path) -> dict:
    return json.loads((stage / "summary.json").read_text())


PAIRS = (
    dpo.EncodedPair([9, 8, 30, 31, 32, 33, 34, 35, 36, 37], [20, 21, 1], [22, 23, 24, 25, 26, 27, 1], False),
    dpo.EncodedPair([9], [40, 41, 42, 43], [44, 1], False),
    dpo.EncodedPair([9, 10, 11], [50], [51, 52, 53, 54, 55], False),
    dpo.EncodedPair([12, 13], [60, 61, 62, 63, 64, 1], [65, 66], False),
    dpo.EncodedPair([14, 15, 16, 17, 18], [70, 71], [72, 73, 74], False),
)


def log_probability(model, prompt, response, temperature, pad):
    """log pi(response | prompt) by its definition: one row, no padding, token by token."""
    logits_SV = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double() / temperature
    logits_SV[:, pad] = -math.inf
    total = torch.zeros((), dtype=torch.float64)
    for t, token in enumerate(response):
        total = total + logits_SV[len(prompt) - 1 + t].log_softmax(-1)[token]
    return total


# ------------------------------------------------------------------------------------ log-probabilities


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_sums_over_the_response_at_the_sampling_temperature(
    language_model, tokenizer, temperature
):
    """Prompts of 1 to 10 tokens in one batch, left-padded, against one unpadded row at a time."""
    pad, config = tokenizer.pad_token_id, dpo.DpoConfig(temperature=temperature)
    policy = Policy(language_model, tokenizer)
    logp_B2 = dpo.pair_logprobs(policy, PAIRS, config)
    with torch.no_grad():
        torch.testing.assert_close(logp_B2, dpo.trained_logprobs(policy, PAIRS, config))
        for b, one in enumerate(PAIRS):
            for column, response in enumerate((one.chosen, one.rejected)):
                exact = float(log_probability(language_model, one.prompt, response, temperature, pad))
                assert float(logp_B2[b, column]) == pytest.approx(exact, rel=1e-5), (b, column)
    # A mean over tokens would be of another size.
    assert float(logp_B2[0, 1]) < 2 * float(logp_B2[0, 1]) / len(PAIRS[0].rejected)


def test_a_pair_has_the_same_logprobs_in_every_batch(language_model, tokenizer):
    policy = Policy(language_model, tokenizer)
    whole_N2 = dpo.pair_logprobs(policy, PAIRS, dpo.DpoConfig())
    for micro in (1, 2, 3):
        parts_N2 = dpo.pair_logprobs(policy, PAIRS, dpo.DpoConfig(micro_batch_size=micro))
        torch.testing.assert_close(parts_N2, whole_N2, atol=2e-5, rtol=1e-6)
    back_N2 = dpo.pair_logprobs(policy, PAIRS[::-1], dpo.DpoConfig())
    torch.testing.assert_close(back_N2.flip(0), whole_N2, atol=2e-5, rtol=1e-6)


def test_samples_are_laid_out_as_an_engine_would(language_model, tokenizer):
    sampling = Policy(language_model, tokenizer).sampling(dpo.DpoConfig())
    samples = dpo.samples_of(PAIRS[:2], tokenizer.pad_token_id, sampling)
    assert samples.tokens_BS.shape == (4, 10 + 7)
    assert samples.response_BT[0, :3].tolist() == PAIRS[0].chosen
    assert samples.response_BT[2].tolist() == PAIRS[0].rejected
    assert samples.tokens_BS[3, 9] == PAIRS[1].prompt[0]
    assert samples.mask_BT.sum(-1).tolist() == [3, 4, 7, 2]
    assert samples.prompt_mask_BP.sum(-1).tolist() == [10, 1, 10, 1]
    ends = [row[-1] == tokenizer.eos_token_id for row in (PAIRS[0].chosen, PAIRS[1].chosen)]
    assert samples.finished_B[:2].tolist() == ends


# ------------------------------------------------------------------------------------------------- loss


def start(config):
    """The policy, and its log-probabilities of ``PAIRS`` as those of the reference."""
    policy = Policy.load(config.model_name_or_path, CPU, torch.float32, None, Weights.TRAINED)
    return policy, dpo.pair_logprobs(policy, PAIRS, config)


def gradient(config, policy, pairs, reference_B2, micro_batch_size=5):
    """Of the mean loss over the pairs."""
    policy.model.zero_grad()
    for start in range(0, len(pairs), micro_batch_size):
        rows = slice(start, start + micro_batch_size)
        logp_B2 = dpo.trained_logprobs(policy, pairs[rows], config)
        loss, _ = dpo.batch_loss(config, logp_B2, reference_B2[rows])
        (loss / len(pairs)).backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({}, math.log(2)),
        ({"label_smoothing": 0.3}, math.log(2)),
        ({"loss_type": "ipo"}, 1 / (4 * 0.1**2)),
        ({"loss_type": "ipo", "beta": 0.5}, 1.0),
    ],
)
def test_a_policy_that_is_its_reference_has_the_known_first_loss(config, changes, value):
    config = dataclasses.replace(config, **changes)
    logp_N2 = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) - 60
    found = dpo.describe(config, logp_N2, logp_N2)
    assert found["loss"] == pytest.approx(value, rel=1e-7)
    assert (found["accuracy"], found["margin"]) == (0.5, 0)
    rows = metrics(dpo.run(dataclasses.replace(config, num_train_epochs=0.25)))
    assert rows[0]["dev/loss"] == pytest.approx(value, rel=1e-5)
    assert rows[1]["train/loss"] == pytest.approx(value, rel=1e-5)
    assert rows[1]["train/chosen_log_ratio"] == pytest.approx(0, abs=1e-4)


def test_the_metrics_are_means_over_pairs(config):
    """Log-ratios (2, -1), (1, 1) and (0, 4): a right pair, a tie and a wrong one."""
    reference_N2 = torch.tensor([[-5.0, -6.0], [-7.0, -8.0], [-9.0, -1.0]])
    logp_N2 = reference_N2 + torch.tensor([[2.0, -1.0], [1.0, 1.0], [0.0, 4.0]])
    found = dpo.describe(dataclasses.replace(config, beta=0.5), logp_N2, reference_N2)
    losses = [math.log1p(math.exp(-0.5 * gap)) for gap in (3, 0, -4)]
    expected = {
        "loss": sum(losses) / 3,
        "accuracy": 0.5,
        "margin": 0.5 * (3 + 0 - 4) / 3,
        "chosen_log_ratio": 1.0,
        "rejected_log_ratio": 4 / 3,
    }
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss_type", sorted(dpo.LOSSES))
def test_the_gradient_is_that_of_the_formula(config, tokenizer, loss_type):
    """Mean over the pairs of -log sigma(beta h), or (h - 1 / (2 beta))^2, with h from one row at a time."""
    config = dataclasses.replace(config, loss_type=loss_type, temperature=0.7)
    policy, _ = start(config)
    reference_B2 = torch.randn(len(PAIRS), 2, generator=torch.Generator().manual_seed(1)) * 3 - 20
    ours = gradient(config, policy, PAIRS, reference_B2).clone()
    policy.model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for one, (ref_chosen, ref_rejected) in zip(PAIRS, reference_B2.tolist(), strict=True):
        chosen, rejected = (
            log_probability(policy.model, one.prompt, response, 0.7, tokenizer.pad_token_id)
            for response in (one.chosen, one.rejected)
        )
        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        total = total + (torch.log1p(torch.exp(-0.1 * h)) if loss_type == "sigmoid" else (h - 5) ** 2)
    (total / len(PAIRS)).backward()
    exact = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
    torch.testing.assert_close(ours, exact, atol=1e-5 * float(ours.abs().max()), rtol=1e-3)


def test_accumulated_gradients_are_those_of_the_whole_batch(config):
    policy, reference_N2 = start(config)
    whole = gradient(config, policy, PAIRS, reference_N2 - 1.0).clone()
    for micro in (3, 2, 1):
        parts = gradient(config, policy, PAIRS, reference_N2 - 1.0, micro)
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)


def test_swapped_labels_turn_the_first_gradient_round(config):
    policy, reference_N2 = start(config)
    right = gradient(config, policy, PAIRS, reference_N2).clone()
    swapped = [dataclasses.replace(one, chosen=one.rejected, rejected=one.chosen) for one in PAIRS]
    turned = gradient(config, policy, swapped, reference_N2.flip(-1))
    torch.testing.assert_close(turned, -right, atol=1e-6, rtol=1e-3)
    # And it is the direction in which the chosen responses win.
    with torch.no_grad():
        moved = [p for p in policy.model.parameters() if p.grad is not None]
        flat = torch.cat([p.flatten() for p in moved])
        torch.nn.utils.vector_to_parameters(flat - 1e-3 * right / right.norm(), moved)
    found = dpo.describe(config, dpo.pair_logprobs(policy, PAIRS, config), reference_N2)
    assert found["margin"] > 0
    assert found["loss"] < math.log(2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, math.log(3)),
        ({"beta": 0.5}, math.log(3) / 0.5),
        ({"loss_type": "ipo"}, 0.5 / 2),
        ({"label_smoothing": 0.25, "wins": 4}, math.log(3)),
    ],
)
def test_the_optimum_is_the_one_of_the_papers(config, tmp_path, policy_directory, changes, expected):
    """One response wins 3 of 4 times: its log-ratio ends log(3) / beta above the other's (DPO), or
    (p - (1 - p)) / (2 beta) (IPO); always the winner with labels wrong in a quarter, log(3) / beta too."""
    wins = changes.pop("wins", 3)
    sides = [("Red and blue.", "The sun."), ("The sun.", "Red and blue.")]
    rows = [
        {"prompt": "Name two colours.", "chosen": a, "rejected": b, "split": "train"}
        for a, b in [sides[0]] * wins + [sides[1]] * (4 - wins)
    ]
    options = {"beta": 1.0, "num_train_epochs": 150.0, "learning_rate": 1e-3, "lr_end_factor": 0.0} | changes
    stage = dpo.run(
        dataclasses.replace(
            config,
            dataset_name=write(tmp_path / "one.jsonl", rows),
            train_batch_size=4,
            micro_batch_size=4,
            **options,
        )
    )
    policy, reference = (Policy.load(str(path), CPU, torch.float32) for path in (stage, policy_directory))
    pairs = [dpo.encode(policy.tokenizer, Pair("Name two colours.", *sides[0]), 64)]
    log_ratio_N2 = dpo.pair_logprobs(policy, pairs, config) - dpo.pair_logprobs(reference, pairs, config)
    chosen, rejected = log_ratio_N2[0].tolist()
    assert chosen - rejected == pytest.approx(expected, abs=0.02)
    # One prompt cannot be divided: that dev is measured on what trained is said.
    assert any("measured on rows that train" in note for note in summary_of(stage)["notes"])


# ------------------------------------------------------------------------------------------------ pairs


def test_eos_ends_finished_responses_only(tokenizer):
    eos = tokenizer.eos_token_id
    done = dpo.encode(tokenizer, Pair("Name two.", "Red.", "Blue."), 64)
    assert done.chosen[-1] == done.rejected[-1] == eos
    ends = {"finished_chosen": False, "finished_rejected": True}
    cut = dpo.encode(tokenizer, Pair("Name two.", "Red.", "Blue.", None, ends), 64)
    assert cut.chosen == done.chosen[:-1]
    assert cut.rejected == done.rejected
    stopped = dpo.encode(tokenizer, Pair("Name two.", "Red.", "Blue."), 64, ["ed."])
    assert (stopped.chosen, stopped.rejected) == (cut.chosen, done.rejected)


def test_a_response_that_a_stop_text_ended_has_no_eos(config, tokenizer, policy_directory):
    policy = Policy.load(str(policy_directory), CPU, weights=Weights.TRAINED)
    config = dataclasses.replace(config, stop_sequences=["nice."])
    pairs = dpo.read_pairs(config, load_source(config.dataset_name), policy, policy)
    eos = tokenizer.eos_token_id
    assert not any(one.chosen[-1] == eos for one in pairs.train + pairs.dev)
    assert all(one.rejected[-1] == eos for one in pairs.train + pairs.dev)


def test_what_is_too_long_is_cut_alike_on_both_sides(tokenizer):
    prompt, long = "Once upon a time there was a dog. " * 4, "The sun is happy. " * 6
    whole = dpo.encode(tokenizer, Pair(prompt, long, "The dog."), 10_000)
    assert not whole.cut
    for length in (len(whole) - 1, 40, 9, 2):
        one = dpo.encode(tokenizer, Pair(prompt, long, "A dog."), length)
        assert one.cut
        assert len(one) <= length
        assert one.prompt == whole.prompt[-len(one.prompt) :]
        assert one.chosen == whole.chosen[: len(one.chosen)]
        turned = dpo.encode(tokenizer, Pair(prompt, "A dog.", long), length)
        assert turned == dataclasses.replace(one, chosen=one.rejected, rejected=one.chosen)
    # Cut to the same beginning, or without a token, a pair teaches nothing.
    assert dpo.encode(tokenizer, Pair(prompt, long + "Yes.", long + "No."), 20) is None
    empty = Pair(prompt, "", "No.", None, {"finished_chosen": False})
    assert dpo.encode(tokenizer, empty, 64) is None


def test_pairs_are_cut_to_the_positions_that_the_model_has(config, tokenizer, tmp_path):
    """GPT-2 has 128 learnt positions: one more and it fails."""
    load.save(make_language_model("gpt2", tokenizer), tokenizer, tmp_path / "gpt2")
    rows = [pair(i, "train") | {"prompt": f"Tell me {i}. " * 60 * (i % 2) + "Now."} for i in range(8)]
    config = dataclasses.replace(
        config, model_name_or_path=str(tmp_path / "gpt2"), dataset_name=write(tmp_path / "long.jsonl", rows)
    )
    summary = summary_of(dpo.run(config))
    assert (summary["pairs"], summary["cut"]) == (8, 4)
    assert any(note.startswith("cut 4 pairs") for note in summary["notes"])


def test_rankings_become_pairs_and_ties_are_counted(config, tmp_path, capsys):
    rows = [
        {
            "prompt": f"Name thing {i}.",
            "responses": ["Red.", "Blue.", "The sun.", "A dog."],
            "ranks": [1, 2, 2, 4],
            "split": "train",
        }
        for i in range(3)
    ]
    rows.append({"prompt": "And?", "responses": ["No.", "Yes."], "ranks": [1, 2], "split": "dev"})
    source = write(tmp_path / "rankings.jsonl", rows)
    summary = summary_of(dpo.run(dataclasses.replace(config, dataset_name=source)))
    assert (summary["pairs"], summary["ties_left_out"], summary["dev/pairs"]) == (15, 3, 1)
    assert "left out 3 pairs of tied responses" in capsys.readouterr().out
    assert any("tied" in note for note in summary["notes"])


def test_data_without_a_pair_is_refused(config, tmp_path):
    row = {"prompt": "Name two.", "chosen": "The sun is up.", "rejected": "The sun is low.", "split": "train"}
    source = write(tmp_path / "same.jsonl", [row])
    with pytest.raises(DataError, match="differ in their first tokens"):
        dpo.run(dataclasses.replace(config, dataset_name=source, max_length=2))
    with pytest.raises(DataError, match="world"):
        dpo.run(dataclasses.replace(config, dataset_name="world"))
    assert not Path(config.output_dir).exists()


# ------------------------------------------------------------------------------------------------- runs

NAMES = {
    "step",
    "train/loss",
    "train/accuracy",
    "train/margin",
    "train/chosen_log_ratio",
    "train/rejected_log_ratio",
    "grad_norm",
    "learning_rate",
}


def test_a_run_writes_model_metrics_and_samples(config, policy_directory):
    stage = dpo.run(config)
    rows = metrics(stage)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(row.keys() >= NAMES for row in rows[1:])
    assert [row["step"] for row in rows if "dev/loss" in row] == [0, 2, 4]
    assert rows[-1]["learning_rate"] == pytest.approx(config.lr_end_factor * config.learning_rate)
    summary = summary_of(stage)
    assert (summary["pairs"], summary["updates"], summary["dev/pairs"]) == (64, 4, 20)
    assert summary["forward_passes"] == {"policy_update": 3 * 2 * 64, "reference": 2 * 64}
    assert summary["dev/loss"] == rows[-1]["dev/loss"]
    assert summary["dev/accuracy_low"] <= summary["dev/accuracy"] <= summary["dev/accuracy_high"]
    base, _ = load.load_policy(str(policy_directory), CPU)
    assert summary["frozen_hashes"] == {"reference": load.weights_hash(base)}
    assert len(summary["checks"]) == 2
    assert summary["peak_memory_mib"] > 0
    samples = [json.loads(line) for line in (stage / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == summary["dev/samples"] == 6
    assert sum(row["kl"] for row in samples) / 6 == pytest.approx(summary["dev/kl"])
    trained, _ = load.load_policy(str(stage), CPU)
    assert load.weights_hash(trained) != load.weights_hash(base)
    manifest = json.loads((stage / "manifest.json").read_text())
    assert manifest["parents"].keys() == {"model_name_or_path", "dataset_name"}
    assert (stage / "DONE").exists()


def test_the_same_command_gives_the_same_numbers_and_is_done_once(config, tmp_path):
    first = dpo.run(config)
    assert summary_of(first)["dev/pairs"] == 20
    finished = (first / "DONE").stat().st_mtime_ns
    dpo.run(config)
    assert (first / "DONE").stat().st_mtime_ns == finished
    with pytest.raises(UsageError, match=r"beta: 0.1 -> 0.2.*--fresh"):
        dpo.run(dataclasses.replace(config, beta=0.2))
    second = dpo.run(dataclasses.replace(config, output_dir=str(tmp_path / "again")))
    assert metrics(first) == metrics(second)
    assert (first / "samples.jsonl").read_text() == (second / "samples.jsonl").read_text()
    models = [load.load_policy(str(path), CPU)[0] for path in (first, second)]
    assert load.weights_hash(models[0]) == load.weights_hash(models[1])
    other = dpo.run(dataclasses.replace(config, seed=1, output_dir=str(tmp_path / "other")))
    assert metrics(first) != metrics(other)
    dpo.run(dataclasses.replace(config, beta=0.2, eval_pairs=7), fresh=True)
    assert summary_of(first)["dev/pairs"] == 7
    assert metrics(first) != metrics(second)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_every_family_learns_a_separable_data_set(config, kind, tokenizer, tmp_path):
    load.save(make_language_model(kind, tokenizer), tokenizer, tmp_path / kind)
    more = dataclasses.replace(
        config, model_name_or_path=str(tmp_path / kind), num_train_epochs=4.0, learning_rate=1e-3
    )
    rows = [row for row in metrics(dpo.run(more)) if "dev/loss" in row]
    assert rows[0]["dev/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[-1]["dev/loss"] < 0.6
    assert rows[-1]["dev/accuracy"] == 1
    assert rows[-1]["dev/chosen_log_ratio"] > rows[-1]["dev/rejected_log_ratio"] + 1


def test_a_reference_of_its_own_is_used(config, policy_directory, tokenizer, tmp_path):
    torch.manual_seed(5)
    other = make_language_model("llama", tokenizer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    load.save(other, tokenizer, tmp_path / "other")
    rows = metrics(dpo.run(dataclasses.replace(config, ref_model=str(tmp_path / "other"), temperature=0.7)))
    config = dataclasses.replace(config, temperature=0.7)
    preferences = load_source(config.dataset_name)["dev"].pairs
    pairs = [dpo.encode(tokenizer, row, 128) for row in preferences]
    policy, reference = (
        Policy.load(str(policy_directory), CPU, weights=Weights.TRAINED),
        Policy(other, tokenizer),
    )
    ratio_N2 = dpo.pair_logprobs(policy, pairs, config) - dpo.pair_logprobs(reference, pairs, config)
    assert rows[0]["dev/chosen_log_ratio"] == pytest.approx(float(ratio_N2[:, 0].mean()), abs=1e-4)
    assert abs(rows[0]["dev/chosen_log_ratio"]) > 0.1


def test_the_kl_is_that_of_the_sampled_tokens(config, policy_directory, tokenizer, tmp_path):
    """log pi - log pi_ref of what was drawn, at the temperature at which it was drawn."""
    config = dataclasses.replace(config, temperature=0.8, micro_batch_size=1)
    policy = Policy.load(str(policy_directory), CPU, weights=Weights.TRAINED)
    reference = Policy(make_language_model("llama", tokenizer), tokenizer)
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter.mul_(0.9)
    stage = Stage("dpo", config)
    stage.path.mkdir()
    prompts = ["Name two.", "Once upon a time there was", "What?"]
    ids = policy.prompt_tokens(prompts, config.response_length)
    assert len({len(row) for row in ids}) == 3
    found = dpo.sample_check(config, stage, policy, reference, [PromptRecord(p) for p in prompts])
    drawn = policy.respond(prompts, 1, generator(config.seed, "dpo", "check"), config).samples
    exact = []
    with torch.no_grad():
        for row, prompt in enumerate(ids):
            response = drawn.response_BT[row][drawn.mask_BT[row] == 1].tolist()
            ours, theirs = (
                float(log_probability(model, prompt, response, 0.8, tokenizer.pad_token_id))
                for model in (policy.model, reference.model)
            )
            exact.append(ours - theirs)
    rows = [json.loads(line) for line in (stage.path / "samples.jsonl").read_text().splitlines()]
    assert [row["kl"] for row in rows] == pytest.approx(exact, abs=1e-4)
    assert found["dev/kl"] == pytest.approx(sum(exact) / 3, abs=1e-4)
    assert min(map(abs, exact)) > 0.01


def test_a_reference_with_another_vocabulary_is_refused(config, tokenizer, tmp_path):
    smaller = tiny.train_tokenizer(TEXTS, 280)
    load.save(make_language_model("llama", smaller), smaller, tmp_path / "other")
    with pytest.raises(UsageError, match="another vocabulary"):
        dpo.run(dataclasses.replace(config, ref_model=str(tmp_path / "other")))


def test_a_reference_that_moved_is_found(config, monkeypatch):
    def moved(config, stage, policy, reference, *rest):
        next(reference.model.parameters()).data.add_(1e-3)
        return {}

    monkeypatch.setattr(dpo, "sample_check", moved)
    with pytest.raises(DivergedError, match="frozen reference have changed"):
        dpo.run(config)
    assert not (Path(config.output_dir) / "DONE").exists()


def test_dropout_would_be_found_before_the_first_update(config, tokenizer, tmp_path, monkeypatch):
    load.save(make_language_model("gpt2", tokenizer), tokenizer, tmp_path / "gpt2")
    config = dataclasses.replace(config, model_name_or_path=str(tmp_path / "gpt2"))
    load_policy = load.load_policy

    def in_training_mode(*arguments):
        model, own = load_policy(*arguments)
        return model.train(), own

    monkeypatch.setattr(load, "load_policy", in_training_mode)
    with pytest.raises(DivergedError, match="before the first update"):
        dpo.run(config)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("loss_type", "hinge"),
        ("beta", 0.0),
        ("beta", -1.0),
        ("beta", math.nan),
        ("label_smoothing", 0.6),
        ("temperature", 0.0),
        ("num_train_epochs", 0.0),
        ("max_length", 1),
        ("train_batch_size", 0),
        ("micro_batch_size", 0),
        ("num_evals", 0),
        ("response_length", 0),
        ("response_length", 128),
        ("lr_scheduler_type", "magic"),
    ],
)
def test_options_that_cannot_work_are_refused(config, option, value):
    with pytest.raises(UsageError, match=f"{option}.*{value}"):
        dpo.run(dataclasses.replace(config, **{option: value}))


# --------------------------------------------------------------------- the stage among the other stages


def test_the_command_line_runs_it(config, capsys, tmp_path):
    options = {name: getattr(config, name) for name in ("model_name_or_path", "dataset_name", "device")}
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    out = str(tmp_path / "by-hand")
    more = ["--train_batch_size", "32", "--check_samples", "0", "--num_threads", "1", "--output_dir", out]
    assert cli.main(["dpo", *flags, *more]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == out
    assert cli.main(["dpo", "--output_dir", str(tmp_path / "x"), "--loss_type", "hinge"]) == 2
    assert "use sigmoid, ipo, kto" in capsys.readouterr().err


def test_the_pipeline_fills_in_what_it_starts_from(tmp_path):
    root = str(tmp_path)
    stages = ["sft", "collect", "dpo", "evaluate"]
    whole = pipeline.resolve(pipeline.RunConfig(output_dir=root, temperature=0.7, seed=3, stages=stages))
    assert whole["dpo"].model_name_or_path == f"{root}/sft"
    assert whole["dpo"].dataset_name == f"{root}/collect"
    assert (whole["dpo"].temperature, whole["dpo"].seed, whole["dpo"].ref_model) == (0.7, 3, None)
    assert whole["evaluate"].model_name_or_path == f"{root}/dpo"
    assert whole["evaluate"].reward_model == whole["evaluate"].gold == "world"
    both = ["sft", "collect", "reward", "dpo", "evaluate"]
    whole = pipeline.resolve(pipeline.RunConfig(output_dir=root, stages=both))
    assert whole["evaluate"].reward_model == f"{root}/reward"
    people = pipeline.resolve(
        pipeline.RunConfig(
            output_dir=root,
            stages=["dpo", "rl", "evaluate"],
            model_name_or_path="m",
            dataset_name="people.jsonl",
            max_rows=9,
            rl={"reward_model": "length"},
        )
    )
    options = people["dpo"]
    assert (options.model_name_or_path, options.dataset_name, options.max_rows) == ("m", "people.jsonl", 9)
    assert people["evaluate"].model_name_or_path == f"{root}/rl"
    with pytest.raises(UsageError, match="model_name_or_path"):
        pipeline.resolve(pipeline.RunConfig(output_dir=root, stages=["dpo"]))
    assert "dpo" not in pipeline.RunConfig().stages


def run_config(config, kind=pipeline.RunConfig, **changes):
    """A run of the dpo stage alone."""
    return kind(
        stages=["dpo", "report"],
        model_name_or_path=config.model_name_or_path,
        dataset_name=config.dataset_name,
        response_length=10,
        num_threads=1,
        device="cpu",
        dpo={"train_batch_size": 16, "num_evals": 2, "check_samples": 4},
        **changes,
    )


def test_a_run_has_its_part_in_the_report(config, tmp_path):
    text = pipeline.run(run_config(config, output_dir=str(tmp_path / "run"))).read_text(encoding="utf-8")
    for words in ("DPO: pairs ordered as labelled", "64 pairs, 4 updates", "weights of reference unchanged"):
        assert words in text


def test_a_sweep_over_its_options_has_a_table(config, tmp_path):
    options = SweepOptions(grid={"dpo.beta": [0.1, 0.5], "dpo.loss_type": ["sigmoid"]})
    made = run_sweep(run_config(config, SweepConfig, output_dir=str(tmp_path / "sweep"), sweep=options))
    assert not made.errors
    page = made.report.read_text(encoding="utf-8")
    assert "dpo accuracy" in page
    assert len(list((tmp_path / "sweep").glob("*/seed-0/dpo/DONE"))) == 2
