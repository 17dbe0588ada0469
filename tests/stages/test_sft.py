"""The sft stage: the loss counts the response and nothing else, and a run learns, repeats and reloads."""

import dataclasses
import json

import pytest
import torch

from preferl.data.records import Demonstration
from preferl.models import load, output_head
from preferl.runs.errors import UsageError
from preferl.stages import sft

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def texts_file(tmp_path_factory):
    rows = [
        {
            "prompt": f"What is {i} plus {j}?",
            "completion": f"It is {i + j}.",
            "split": "dev" if j == 7 else "train",
        }
        for i in range(12)
        for j in range(8)
    ]
    path = tmp_path_factory.mktemp("texts") / "demonstrations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(tmp_path, texts_file):
    return sft.SftConfig(
        output_dir=str(tmp_path / "sft"),
        dataset_name=str(texts_file),
        hidden_size=32,
        num_heads=4,
        vocab_size=300,
        num_train_epochs=6,
        train_batch_size=8,
        num_evals=3,
        check_samples=4,
        response_length=8,
        num_threads=1,
        device="cpu",
    )


def test_the_loss_is_the_cross_entropy_of_the_response_with_its_end(language_model, tokenizer):
    rows = [([5, 6, 7, 8, 9], 3), ([10, 11, 12], 1), ([13, 14, 15, 16, 17, 18], 5)]
    loss, count = sft.response_loss(language_model, *sft.tensors(rows, tokenizer.pad_token_id, CPU))
    by_hand = 0.0
    for ids, prompt_length in rows:
        with torch.no_grad():
            logp = language_model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        by_hand -= sum(logp[i - 1, ids[i]].item() for i in range(prompt_length, len(ids)))
    assert count == 2 + 2 + 1
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_what_is_too_long_loses_the_oldest_prompt_first_and_keeps_its_end(tokenizer):
    long_prompt = Demonstration("What is red? " * 30, "A colour.")
    ids, prompt_length = sft.encode(tokenizer, [long_prompt], 60).rows[0]
    whole, whole_prompt = sft.encode(tokenizer, [long_prompt], 10_000).rows[0]
    assert len(ids) == 60
    assert ids == whole[-60:]
    assert whole[whole_prompt:] == ids[prompt_length:]
    assert ids[-1] == tokenizer.eos_token_id

    long_response = Demonstration("What is red?", "A colour. " * 30)
    ids, prompt_length = sft.encode(tokenizer, [long_response], 60).rows[0]
    assert len(ids) == 60
    assert tokenizer.eos_token_id not in ids[prompt_length:]


def test_it_learns_and_the_same_command_gives_the_same_weights(config, tmp_path):
    first = sft.run(config)
    losses = [
        row["dev/loss"]
        for row in map(json.loads, (first / "metrics.jsonl").read_text().splitlines())
        if "dev/loss" in row
    ]
    assert len(losses) == 3
    assert losses[-1] < 0.7 * losses[0]
    summary = json.loads((first / "summary.json").read_text())
    assert summary["dev/loss"] == pytest.approx(losses[-1])
    config.output_dir = str(tmp_path / "again")
    second = sft.run(config)
    hashes = {load.weights_hash(load.load_policy(str(path), CPU)[0]) for path in (first, second)}
    assert len(hashes) == 1


def test_it_goes_on_from_a_given_model(config, policy_directory):
    config.model_name_or_path, config.num_train_epochs, config.learning_rate = str(policy_directory), 1, 1e-3
    stage = sft.run(config)
    before, tokenizer = load.load_policy(str(policy_directory), CPU)
    after, same = load.load_policy(str(stage), CPU)
    assert same.get_vocab() == tokenizer.get_vocab()
    assert load.weights_hash(before) != load.weights_hash(after)
    moved = max(
        (a - b).abs().max().item() for a, b in zip(before.parameters(), after.parameters(), strict=True)
    )
    assert moved < 0.1


def test_sizes_that_do_not_fit_are_refused(config):
    config.num_heads = 5
    with pytest.raises(UsageError, match="no multiple of num_heads"):
        sft.run(config)


def test_the_loss_is_the_same_without_the_logits_of_all_tokens(language_model, tokenizer, monkeypatch):
    """In value and gradient; those of prompts are never made."""
    rows = [([5, 6, 7, 8, 9], 3), ([10, 11, 12], 1), ([13, 14, 15, 16, 17, 18], 5)]
    batch = sft.tensors(rows, tokenizer.pad_token_id, CPU)

    def value_and_gradient():
        language_model.zero_grad()
        loss, count = sft.response_loss(language_model, *batch)
        loss.backward()
        return loss.item(), int(count), language_model.get_input_embeddings().weight.grad.clone()

    value, count, gradient = value_and_gradient()
    monkeypatch.setattr(output_head, "LOGITS_BYTES", 2 * 4 * len(tokenizer))
    read = []
    language_model.lm_head.register_forward_hook(lambda *args: read.append(args[2].shape[1]))
    found, found_count, found_gradient = value_and_gradient()
    assert (found, found_count) == (pytest.approx(value, rel=1e-6), count)
    torch.testing.assert_close(found_gradient, gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()))
    assert read[-1] == 1


@pytest.mark.parametrize("epochs", [2, 40])
def test_rows_that_are_learnt_by_heart_are_said_to_be(config, tmp_path, capsys, epochs):
    """Answers that nothing leads to can be learnt by heart, and what is held out gets worse by it."""
    words = ["red", "blue", "green", "tall", "small", "round", "old", "new"]
    rows = [
        {
            "prompt": f"Word {i}?",
            "completion": f"{words[i * i % 7]} {words[i * 3 % 8]} {words[i % 5]}.",
            "split": "dev" if i % 4 == 0 else "train",
        }
        for i in range(48)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft.run(
        dataclasses.replace(
            config, dataset_name=str(tmp_path / "rows.jsonl"), num_train_epochs=epochs, num_evals=10
        )
    )
    said = "learns its rows by heart; take fewer num_train_epochs (now 40)" in capsys.readouterr().out
    assert said == (epochs == 40)
