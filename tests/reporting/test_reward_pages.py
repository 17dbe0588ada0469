"""What a page says of a reward model, from stages that were trained here."""

import dataclasses
import json
import shutil

import pytest

from preferl.reporting import rewards
from preferl.reporting.sections import sections
from preferl.runs.record import StageRecord
from preferl.stages import reward

WORDS = ("apple", "river", "house", "stone", "cloud", "table")


@pytest.fixture(scope="module")
def config(tmp_path_factory, policy_directory):
    """Friendly answers are preferred, twice in three the longer ones too; a big learning rate overfits."""
    root = tmp_path_factory.mktemp("reward_pages")
    rows = []
    for i in range(120):
        good, bad = f"Thanks, the {WORDS[i % 6]} is nice{' and fine' * (i % 3 > 0)}.", "Shut up! That is bad."
        split = "train" if i < 80 else "dev" if i < 100 else "eval"
        rows.append({"prompt": f"Tell me of number {i}.", "chosen": good, "rejected": bad, "split": split})
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return reward.RewardConfig(
        output_dir=str(root / "reward"),
        model_name_or_path=str(policy_directory),
        dataset_name=str(root / "pairs.jsonl"),
        num_train_epochs=4,
        num_evals=5,
        max_length=64,
        num_threads=1,
        device="cpu",
    )


@pytest.fixture(scope="module")
def record(config):
    return StageRecord(reward.run(config))


def test_the_page_has_loss_curves_and_mean_scores(record):
    runs = {"run": {"reward": record}}
    r, measured = record.summary, [row for row in record.metrics if "dev/loss" in row]
    loss = rewards.reward_loss_plot(runs)
    assert f"lowest, {r['dev/loss']:.3f}, at update {r['best_update']}" in loss.reading
    assert f"ended at {r['dev/final_loss']:.3f}" in loss.reading
    assert f"{100 * r['dev/final_accuracy']:.1f}\u00a0% with the last" in loss.reading
    assert ">training batches<" in loss.svg
    assert ">held-out pairs<" in loss.svg
    scores = rewards.reward_scores_plot(runs)
    last = measured[-1]
    assert f"score {last['dev/score_chosen']:.2f}".replace("-", "−") in scores.reading
    assert f"ones {last['dev/score_rejected']:.2f}".replace("-", "−") in scores.reading
    (section,) = [s for s in sections(runs) if s.title == "The reward model"]
    assert {plot.title for plot in section.plots} >= {loss.title, scores.title}


def test_words_and_length_alone_stand_beside_the_accuracy(record):
    table = dict(rewards.reward_table({"run": {"reward": record}}).rows)
    r = record.summary
    for name, key in (("length alone", "length_baseline"), ("a bag of words", "bag_of_words_baseline")):
        value, low, high = (f"{100 * r[f'eval/{key}_accuracy{end}']:.1f}" for end in ("", "_low", "_high"))
        assert table[name] == f"{value}\u00a0% [{low}\u00a0%,\u00a0{high}\u00a0%]"
    reading = rewards.reward_plot({"run": {"reward": record}}).reading
    assert "a bag of words 100.0\u00a0%" in reading
    assert "nothing could expect more" not in reading  # people's labels


def test_the_ten_pairs_are_in_the_page_one_by_one(record):
    table = rewards.analysis_table({"run": {"reward": record}})
    assert [row[0] for row in table.rows[:10]] == ["helpfulness"] * 4 + ["safety"] * 3 + ["accuracy"] * 3
    assert len(table.rows) == 14
    first = record.audit["analysis"]["rows"][0]
    assert first["chosen"] in table.rows[0][2]
    assert f"({first['score_chosen']:.2f})".replace("-", "−") in table.rows[0][2]
    assert "Of these pairs none was trained on" in table.note


def test_an_ensemble_shows_its_members(config, tmp_path):
    several = dataclasses.replace(
        config, num_members=2, num_train_epochs=1, output_dir=str(tmp_path / "ensemble")
    )
    runs = {"run": {"reward": StageRecord(reward.run(several))}}
    for plot in (
        rewards.reward_plot(runs),
        rewards.reward_loss_plot(runs),
        rewards.reward_scores_plot(runs),
    ):
        assert "ember 0" in plot.svg + plot.reading
        assert "ember 1" in plot.svg + plot.reading


def test_a_stage_from_before_mean_scores_were_logged_has_a_page(record, tmp_path):
    old = tmp_path / "reward"
    shutil.copytree(record.path, old)
    rows = [{k: v for k, v in row.items() if "score" not in k} for row in record.metrics]
    (old / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {k: v for k, v in record.summary.items() if "bag_of_words" not in k and "final_acc" not in k}
    summary = {k: v for k, v in summary.items() if not k.startswith("eval/length_baseline_accuracy_")}
    (old / "summary.json").write_text(json.dumps(summary))
    runs = {"run": {"reward": StageRecord(old)}}
    assert rewards.reward_scores_plot(runs) is None
    assert rewards.reward_loss_plot(runs) is not None
    table = dict(rewards.reward_table(runs).rows)
    assert "a bag of words" not in table
    assert "length alone" in table
