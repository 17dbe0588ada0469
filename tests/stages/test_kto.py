"""``preferl dpo --loss_type kto``: single responses that are called good or bad train a policy."""

import dataclasses
import json
import math

import pytest
import torch
from test_dpo import CPU, NOUNS, log_probability, metrics, summary_of, write

from preferl import pipeline
from preferl.data.records import Comparison, DataError, Rated
from preferl.data.sources import Part, load_source
from preferl.learning import unpaired
from preferl.learning.unpaired import EncodedResponse, KtoTask, ResponseSplits, mismatched
from preferl.models.storage import Weights
from preferl.runs.errors import UsageError
from preferl.sampling.policy import Policy
from preferl.stages import dpo
from seeds import SEEDS, require_at_least

GOOD, BAD = "Thanks, the {} is nice.", "Shut up! The {} is bad."


def feedback(number: int, split: str) -> dict:
    """Friendly responses are good; two of three are bad, to prompts of their own."""
    noun, good = NOUNS[number % len(NOUNS)], number % 3 == 0
    return {
        "prompt": f"Tell me of {noun} {number}." + " Take your time." * (number % 5),
        "completion": (GOOD if good else BAD).format(noun),
        "label": good,
        "split": split,
    }


def split_of(number: int) -> str:
    """66 train, 30 are dev; one of eval, so that none is taken out of the others."""
    return "train" if number < 66 else "dev" if number < 96 else "eval"


@pytest.fixture(scope="module")
def feedback_file(tmp_path_factory):
    rows = [feedback(i, split_of(i)) for i in range(97)]
    return write(tmp_path_factory.mktemp("feedback") / "feedback.jsonl", rows)


@pytest.fixture
def config(tmp_path, policy_directory, feedback_file):
    return dpo.DpoConfig(
        output_dir=str(tmp_path / "kto"),
        model_name_or_path=str(policy_directory),
        dataset_name=feedback_file,
        loss_type="kto",
        train_batch_size=16,
        micro_batch_size=6,
        response_length=10,
        check_samples=4,
        num_evals=2,
        num_threads=1,
        device="cpu",
    )


# -------------------------------------------------------------------------------------- the reference point


def test_a_prompt_gets_the_next_response_to_another_one():
    assert mismatched(["a", "b", "c"]) == [1, 2, 0]
    assert mismatched(["a", "a", "b", "b"]) == [2, 2, 0, 0]
    assert mismatched(["a", "a"]) == [1, 0]
    assert mismatched(["a"]) == [0]


ROWS = (
    EncodedResponse([9, 8, 30, 31, 32, 33, 34, 35], [20, 21, 1], True, False),
    EncodedResponse([9, 8, 30, 31, 32, 33, 34, 35], [22, 23, 24, 25, 1], False, False),
    EncodedResponse([9], [40, 41, 42, 43], False, False),
    EncodedResponse([9, 10, 11], [50], True, False),
    EncodedResponse([12, 13], [60, 61, 62, 1], False, False),
)
PARTNERS = (2, 2, 3, 4, 0)


def task_of(policy, reference, config, rows=ROWS, max_length=64):
    counts = {"good": sum(row.good for row in rows), "bad": sum(not row.good for row in rows)}
    task = KtoTask(policy, reference, ResponseSplits(list(rows), list(rows), counts, []), config, max_length)
    task.read_reference(range(len(rows)))
    return task


def moved(policy, tokenizer):
    """A reference some way from the policy."""
    from small_models import make_language_model

    other = make_language_model("llama", tokenizer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    return Policy(other, tokenizer)


def exact_log_ratio(policy, reference, prompt, response):
    pad = policy.tokenizer.pad_token_id
    ours, theirs = (log_probability(p.model, prompt, response, 0.7, pad) for p in (policy, reference))
    return ours - theirs.detach()


@pytest.mark.parametrize("turned", [False, True])
def test_loss_and_gradient_are_the_formulas_and_micro_batches_change_nothing(
    config, policy_directory, tokenizer, turned
):
    """z0 from one row at a time, over all rows; then each row's loss with it and their gradient. The mean is
    negative and z0 is 0; with the models exchanged it is not."""
    config = dataclasses.replace(config, temperature=0.7, beta=0.5, desirable_weight=2.0)
    policy = Policy.load(str(policy_directory), CPU, torch.float32, weights=Weights.TRAINED)
    reference = moved(policy, tokenizer)
    if turned:
        policy, reference = reference, policy
    task = task_of(policy, reference, config)
    desirable, undesirable = task.weights
    assert task.weights == pytest.approx((2.0, 1.0))  # 2 good, 3 bad: 4/3 as they are

    mean = sum(
        float(exact_log_ratio(policy, reference, row.prompt, ROWS[partner].response).detach())
        for row, partner in zip(ROWS, PARTNERS, strict=True)
    ) / len(ROWS)
    assert (mean > 0) == turned
    reference_point = max(0.0, mean)
    policy.model.zero_grad()
    exact = torch.zeros((), dtype=torch.float64)
    for row in ROWS:
        ratio = exact_log_ratio(policy, reference, row.prompt, row.response)
        above = config.beta * (ratio - reference_point)
        value = desirable * torch.sigmoid(above) if row.good else undesirable * torch.sigmoid(-above)
        exact = exact + (desirable if row.good else undesirable) - value
    (exact / len(ROWS)).backward()
    expected = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])

    for micro in (5, 2, 1):
        policy.model.zero_grad()
        task.prepare(range(len(ROWS)))
        assert float(task.reference_point) == pytest.approx(reference_point, abs=1e-4)
        total = 0.0
        for start in range(0, len(ROWS), micro):
            loss, _, _ = task.step(list(range(len(ROWS)))[start : start + micro])
            (loss / len(ROWS)).backward()
            total += float(loss.detach())
        assert total == pytest.approx(float(exact.detach()), rel=1e-4)
        ours = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
        torch.testing.assert_close(ours, expected, atol=2e-4 * float(expected.abs().max()), rtol=1e-3)


def test_a_batch_of_one_row_borrows_a_response_of_another_prompt(config, policy_directory):
    policy = Policy.load(str(policy_directory), CPU, torch.float32)
    task = task_of(policy, policy, config)
    (pair,) = task.with_other_prompts([ROWS[2]], ROWS)
    assert (pair.prompt, pair.response) == (ROWS[2].prompt, ROWS[3].response)
    (pair,) = task.with_other_prompts([ROWS[4]], ROWS)
    assert pair.response == ROWS[0].response


def test_a_mismatched_pair_is_cut_to_the_room_there_is(config, policy_directory):
    policy = Policy.load(str(policy_directory), CPU, torch.float32)
    rows = [EncodedResponse([5] * 9, [6], True, False), EncodedResponse([7], [8] * 9, False, False)]
    task = task_of(policy, policy, config, rows, max_length=10)
    first, second = task.with_other_prompts(rows, rows)
    assert (first.prompt, first.response) == ([5] * 5, [8] * 5)
    assert (second.prompt, second.response) == ([7], [6])


def test_the_metrics_are_means_over_the_labels_of_the_whole_batch(config, policy_directory):
    policy = Policy.load(str(policy_directory), CPU, torch.float32)
    task = task_of(policy, policy, dataclasses.replace(config, beta=0.5))
    task.reference_point, task.batch_counts = torch.tensor(1.0), (2, 3)
    ratios, good = torch.tensor([3.0, 1.0, 2.0, 0.5, -4.0]), torch.tensor([1, 1, 0, 0, 0]) == 1
    whole: dict[str, list[float]] = {}
    for part in (slice(0, 2), slice(2, 5)):
        for name, (total, count) in task.sums(ratios[part], good[part]).items():
            sums = whole.setdefault(name, [0.0, 0.0])
            sums[0] += total
            sums[1] += count
    found = {name: total / count for name, (total, count) in whole.items()}
    assert found == pytest.approx(
        {
            "train/accuracy": (1 + 0.5 + 0 + 1 + 1) / 5,
            "train/reference_point": 1.0,
            "train/chosen_log_ratio": 2.0,
            "train/rejected_log_ratio": -0.5,
            "train/margin": 0.5 * (2.0 + 0.5),
        }
    )


# ------------------------------------------------------------------------------------------------- reading


def test_rankings_give_their_best_and_worst_responses():
    rated = [Rated("p", "yes", {}, True), Rated("p", "no", {}, False), Rated("q", "?", {"helpful": 1.0})]
    rows, notes = unpaired.labelled(Part(rated=rated))
    assert rows == rated[:2]
    assert any("left out 1 rated responses without a label" in note for note in notes)
    comparisons = [
        Comparison("p", ["a", "b"], [1, 2], columns={"finished": [False, True]}, each=("finished",)),
        Comparison("q", ["c", "d", "e", "f"], [2, 1, 1, 3]),
        Comparison("r", ["g", "h"], [1, 1]),
    ]
    rows, notes = unpaired.labelled(Part(comparisons=comparisons))
    assert [(row.response, row.good) for row in rows] == [
        ("a", True),
        ("b", False),
        ("d", True),
        ("e", True),
        ("f", False),
    ]
    assert rows[0].columns["finished"] is False
    assert len(notes) == 3
    assert "read 2 comparisons as good and bad" in notes[0]
    assert "left out 1 responses between" in notes[1]
    assert "left out 1 comparisons: all responses tie" in notes[2]


def test_labels_of_one_prompt_are_pairs_too(config, tmp_path, capsys):
    """The losses of pairs use what has both labels, kto all, sft the good ones."""
    rows = [feedback(i, "train") for i in range(12)]
    rows += [feedback(90, "dev"), feedback(91, "eval")]
    rows += [rows[0] | {"completion": "Go away.", "label": False}]
    rows += [rows[1] | {"completion": "Yes, gladly.", "label": True}, rows[2] | {"label": True}]
    name = write(tmp_path / "both.jsonl", rows)
    source = load_source(name)
    assert [(pair.chosen, pair.rejected) for pair in source.train.pairs] == [
        (rows[0]["completion"], "Go away."),
        ("Yes, gladly.", rows[1]["completion"]),
    ]
    assert "2 prompts have good and bad responses: 2 pairs" in source.notes
    assert len(source.train.demonstrations) == 4 + 2
    pairs = summary_of(dpo.run(dataclasses.replace(config, dataset_name=name, loss_type="sigmoid")))
    assert pairs["pairs"] == 2
    every = summary_of(dpo.run(dataclasses.replace(config, dataset_name=name), fresh=True))
    assert (every["responses"], every["good"], every["bad"]) == (15, 6, 9)
    assert "6 good and 9 bad responses train" in capsys.readouterr().out


def test_pairs_become_one_good_and_one_bad_response_each(config, tmp_path):
    rows = [
        {"prompt": f"Tell {i}.", "chosen": "It is nice.", "rejected": "No.", "split": split}
        for i, split in enumerate(["train"] * 4 + ["dev", "eval"])
    ]
    name = write(tmp_path / "pairs.jsonl", rows)
    summary = summary_of(dpo.run(dataclasses.replace(config, dataset_name=name)))
    assert (summary["responses"], summary["good"], summary["bad"]) == (8, 4, 4)
    assert any("read 4 comparisons as good and bad responses" in note for note in summary["notes"])


def test_what_kto_cannot_learn_from_is_refused(config, tmp_path):
    ratings = [{"prompt": "p", "completion": "c", "ratings": {"helpful": 1, "brief": 2}, "split": "train"}]
    name = write(tmp_path / "ratings.jsonl", ratings)
    with pytest.raises(DataError, match=r"ratings \(brief, helpful\) and no label"):
        dpo.run(dataclasses.replace(config, dataset_name=name))
    with pytest.raises(DataError, match=r"no pairs.*--loss_type kto"):
        dpo.run(dataclasses.replace(config, loss_type="sigmoid"))
    for change, words in (
        ({"train_batch_size": 1}, "train_batch_size is 1.*two rows"),
        ({"label_smoothing": 0.1}, "label_smoothing.*kto has none"),
        ({"loss_type": "ipo", "desirable_weight": 2.0}, "desirable_weight is of loss_type kto"),
        ({"undesirable_weight": 0.0}, "undesirable_weight is 0.0"),
    ):
        with pytest.raises(UsageError, match=words):
            dpo.run(dataclasses.replace(config, **change))


def test_one_label_alone_trains_and_is_said(config, tmp_path):
    splits = ["train"] * 20 + ["dev"] * 3 + ["eval"]
    rows = [feedback(3 * i, split) for i, split in enumerate(splits)]
    name = write(tmp_path / "good.jsonl", rows)
    summary = summary_of(dpo.run(dataclasses.replace(config, dataset_name=name)))
    assert (summary["good"], summary["bad"]) == (20, 0)
    assert any("all responses are good" in note for note in summary["notes"])
    assert "dev/margin" not in summary
    assert summary["dev/chosen_log_ratio"] > 0


# ---------------------------------------------------------------------------------------------------- runs


def test_a_run_writes_what_the_other_losses_write(config, policy_directory):
    stage = dpo.run(config)
    rows, summary = metrics(stage), summary_of(stage)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    # At the start every response lies on the reference point: half of its weight, 22 good and 44 bad.
    assert rows[0]["dev/loss"] == pytest.approx((10 * 2.0 + 20 * 1.0) / 30 / 2, abs=1e-5)
    assert rows[0]["dev/reference_point"] == pytest.approx(0, abs=1e-4)
    names = ("accuracy", "margin", "chosen_log_ratio", "rejected_log_ratio", "reference_point")
    # A batch of one label alone has no margin.
    assert all(f"train/{name}" in set().union(*rows) for name in names)
    assert all("train/accuracy" in row and "train/reference_point" in row for row in rows[1:])
    assert all(f"dev/{name}" in summary for name in names)
    assert summary["dev/accuracy_low"] < summary["dev/accuracy"] < summary["dev/accuracy_high"] + 1e-9
    assert (summary["responses"], summary["good"], summary["bad"], summary["dev/responses"]) == (
        66,
        22,
        44,
        30,
    )
    assert summary["forward_passes"] == {"policy_update": 3 * 66, "reference_point": 66, "reference": 132}
    manifest = json.loads((stage / "manifest.json").read_text())
    assert manifest["parents"].keys() == {"model_name_or_path", "dataset_name"}
    assert len(summary["checks"]) == 2


def test_micro_batches_change_only_the_rounding_of_a_run(config, tmp_path):
    whole = dataclasses.replace(config, micro_batch_size=16, max_steps=3)
    parts = dataclasses.replace(whole, micro_batch_size=1, output_dir=str(tmp_path / "parts"))
    first, second = (metrics(dpo.run(one)) for one in (whole, parts))
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_training_separates_good_from_bad_responses(config, tmp_path):
    """The margin of implicit rewards on held-out prompts, and the share on their side of z0, of eight seeds;
    with the labels turned round the policy learns the opposite."""
    steps = {"num_train_epochs": 4.0, "learning_rate": 1e-3, "check_samples": 0}
    margins, accuracies = [], []
    for seed in SEEDS:
        place = str(tmp_path / f"seed-{seed}")
        summary = summary_of(dpo.run(dataclasses.replace(config, seed=seed, output_dir=place, **steps)))
        margins.append(summary["dev/margin"])
        accuracies.append(summary["dev/accuracy"])
    require_at_least(0.5, 0.3, margins)
    require_at_least(0.9, 0.8, accuracies)
    rows = [feedback(i, split_of(i)) for i in range(97)]
    turned = [row | {"label": not row["label"]} if row["split"] == "train" else row for row in rows]
    name = write(tmp_path / "turned.jsonl", turned)
    opposite = summary_of(dpo.run(dataclasses.replace(config, dataset_name=name, **steps)))
    assert opposite["dev/margin"] < -0.3
    assert math.isfinite(opposite["dev/loss"])


def test_a_run_has_its_part_in_the_report(config, tmp_path):
    options = {"train_batch_size": 16, "num_evals": 2, "check_samples": 4, "loss_type": "kto"}
    run = pipeline.RunConfig(
        output_dir=str(tmp_path / "run"),
        stages=["dpo", "report"],
        model_name_or_path=config.model_name_or_path,
        dataset_name=config.dataset_name,
        response_length=10,
        num_threads=1,
        device="cpu",
        dpo=options,
    )
    text = pipeline.run(run).read_text(encoding="utf-8")
    for words in ("KTO: responses on their label", "66 labelled responses, 5 updates", "reference point"):
        assert words in text
