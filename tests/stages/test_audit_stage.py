"""The audit stage: a file of a benchmark scored by an existing model, from the command line to the report."""

import json
import math

import numpy as np
import pytest
import torch

from preferl.cli import main
from preferl.judging.scorers import load_scorer
from preferl.runs.stage import Stage
from preferl.stages import audit
from preferl.stages.audit import AuditConfig
from preferl.stages.reward import RewardConfig

SHORTER = [("Say it.", "Yes.", "Yes, that is so.", "chat"), ("And that?", "No.", "No, not at all.", "chat")]
LONGER = [("How far?", "A hundred miles.", "Far.", "facts"), ("Who?", "It was Ann.", "Ann.", "facts")]


@pytest.fixture
def benchmark(tmp_path):
    path = tmp_path / "benchmark.jsonl"
    rows = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected, "subset": subset, "chosen_model": "x"}
        for prompt, chosen, rejected, subset in SHORTER + LONGER
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_rewardbench_file_is_scored_by_category(benchmark, tmp_path, capsys):
    out = tmp_path / "run" / "audit"
    arguments = ["audit", "--reward_model", "concise", "--dataset_name", str(benchmark), "--output_dir"]
    assert main([*arguments, str(out)]) == 0
    printed = capsys.readouterr().out
    assert "accuracy 50.0%" in printed
    assert "chat " in printed
    assert "100.0% [34.2%, 100.0%]" in printed
    found = json.loads((out / "audit.json").read_text())
    by_category = {row["category"]: row["accuracy"]["value"] for row in found["by_category"]["rows"]}
    assert by_category == {"chat": 1.0, "facts": 0.0}
    assert len((out / "samples.jsonl").read_text().splitlines()) == 4
    assert main(["report", str(out.parent)]) == 0
    page = (out.parent / "report.html").read_text()
    assert "50.0% [15.0%, 85.0%] of 4 pairs are scored as labelled by concise." in page
    assert "held-out, chat" in page
    assert "held-out, facts" in page


def test_a_model_on_disk_reads_the_benchmark_as_dialogue(benchmark, tmp_path, encoder_directory):
    config = AuditConfig(
        reward_model=str(encoder_directory),
        dataset_name=str(benchmark),
        output_dir=str(tmp_path / "audit"),
        as_dialogue=True,
    )
    rows = [json.loads(line) for line in (audit.run(config) / "samples.jsonl").read_text().splitlines()]
    scorer = load_scorer(str(encoder_directory), torch.device("cpu"))
    for row in rows:
        dialogue = [{"role": "user", "content": row["prompt"]}]
        expected = scorer([dialogue, dialogue], [row["chosen"], row["rejected"]], finished=[True, True])
        assert [row["score_chosen"], row["score_rejected"]] == pytest.approx(expected, abs=1e-6)


def test_scores_of_a_reward_stage_become_log_odds_by_its_own_scale(benchmark, tmp_path, encoder_directory):
    with Stage("reward", RewardConfig(output_dir=str(tmp_path / "reward"))) as stage:
        stage.begin({})
        stage.model.symlink_to(encoder_directory)
        stage.finish(reference_sd=2.5)
    plain, scaled = (
        audit.run(
            AuditConfig(
                reward_model=str(model), dataset_name=str(benchmark), output_dir=str(tmp_path / f"a{i}")
            )
        )
        for i, model in enumerate((encoder_directory, stage.path))
    )
    margins = [
        json.loads((path / "audit.json").read_text())["calibration"]["unseen"]["mean_margin"]["value"]
        for path in (plain, scaled)
    ]
    assert margins[1] == pytest.approx(2.5 * margins[0], rel=1e-6)


def test_baselines_learn_from_the_pairs_that_are_named(benchmark, tmp_path):
    train = tmp_path / "train.jsonl"
    rng = np.random.default_rng(0)
    rows = [
        {"prompt": f"p{i}", "chosen": "word " * int(rng.integers(4, 9)), "rejected": "word", "split": "train"}
        for i in range(20)
    ]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = audit.run(
        AuditConfig(
            reward_model="length",
            dataset_name=str(benchmark),
            train_dataset_name=str(train),
            output_dir=str(tmp_path / "audit"),
        )
    )
    found = json.loads((out / "audit.json").read_text())
    length = next(row for row in found["baselines"]["rows"] if row["baseline"] == "length")
    assert length["accuracy"]["value"] == 0.5
    assert length["model_minus_baseline"]["value"] == 0
    assert math.isfinite(found["calibration"]["seen"]["mean_margin"]["value"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--category", "subsets"], "no column 'subsets'; it has chosen_model, subset"),
        (["--split", "test"], "no split 'test'; it has train"),
        (["--reward_model", "runs/demo/none"], "neither a directory nor"),
    ],
)
def test_what_cannot_be_audited_is_refused_with_a_reason(benchmark, tmp_path, capsys, options, words):
    arguments = ["audit", "--reward_model", "concise", "--dataset_name", str(benchmark)]
    assert main([*arguments, "--output_dir", str(tmp_path / "a"), *options]) in (2, 3)
    assert words in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_llmbar_from_the_shared_data(real_data, tmp_path):
    path = real_data / "bench" / "llmbar.jsonl.gz"
    out = audit.run(
        AuditConfig(reward_model="length", dataset_name=str(path), output_dir=str(tmp_path / "audit"))
    )
    rows = json.loads((out / "audit.json").read_text())["by_category"]["rows"]
    assert {row["category"] for row in rows} >= {"Natural", "Adversarial/Neighbor"}
    assert sum(row["pairs"] for row in rows) > 400
