"""benchmarks/real_model.py on a model that takes seconds: every stage, the table, and going on."""

import gzip
import json
import re
from pathlib import Path

import pytest
import yaml

import real_model
from preferl.judging.instructions import KINDS, Task
from preferl.judging.utilities import named_utility
from preferl.runs.shipped import configurations

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "collect": {"pairs": {"train": 16, "dev": 4, "rl": 0, "eval": 4}},
    "reward": {"num_evals": 1, "lora_r": 2, "normalise_samples": 32, "max_length": 96},
    "rl": {"num_iterations": 1, "batch_size": 8, "lora_r": 2, "eval_prompts": 2},
    "evaluate": {"max_eval_prompts": 6, "best_of_prompts": 4},
}


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["real_model.py", *map(str, arguments)])
    real_model.main()


@pytest.fixture
def small_config(tmp_path, policy_directory):
    """The shipped configuration with few and short responses, of a small model on prompts of our own."""
    given = yaml.safe_load(configurations()["smollm2"].read_text(encoding="utf-8"))
    for stage, options in SMALL.items():
        given[stage] |= options
    prompts = [
        {
            "prompt": Task(f"How are {i} potatoes stored?", kind, KINDS[kind].arguments[0]).prompt,
            "split": split,
        }
        for i, (split, kind) in enumerate(
            (split, kind) for split in ("train", "dev", "eval") for kind in ("words", "use", "avoid")
        )
    ]
    data, config = tmp_path / "prompts.jsonl", tmp_path / "small.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    given |= {"dataset_name": str(data), "response_length": 8, "num_threads": 1, "near_copies": "never"}
    config.write_text(yaml.safe_dump(given | {"model_name_or_path": str(policy_directory)}), encoding="utf-8")
    return config


@pytest.mark.slow
def test_the_table_of_one_seed_grows_by_arms(tmp_path, small_config, capsys, monkeypatch):
    out = tmp_path / "out"
    arguments = ("--seeds", 1, "--config", small_config, "--out", out)
    run(monkeypatch, *arguments, "--arms", "RLOO")
    first = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in first.splitlines() if line.startswith("| ")] == [
        *("reward model", "seed 0"),
        *("", "start", "best of 4", "RLOO"),
    ]
    row = next(line for line in first.splitlines() if line.startswith("| RLOO"))
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert len(cells) == len(real_model.NUMBERS) + len(real_model.COSTS)
    assert "–" not in cells
    # Of 8 answers: sampled, scored, read by the reference, and an update, whose backward pass counts twice.
    assert cells[-2:] == ["48", "1"]
    best = next(line for line in first.splitlines() if line.startswith("| best of 4"))
    assert best.split("|")[-2].strip() == "8"  # four answers and their rewards
    assert "RLOO costs as much as best of 4 after 7 answers" in first  # 48 / (8 - 1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("DONE")}
    assert len(before) == 4
    run(monkeypatch, *arguments, "--arms", "DPO", "RLOO")
    second = capsys.readouterr().out
    assert row in second.splitlines()
    assert any(line.startswith("| DPO") for line in second.splitlines())
    after = {path: path.stat().st_mtime_ns for path in out.rglob("DONE")}
    assert len(after) == 6
    assert before.items() <= after.items()  # nothing is made again


@pytest.mark.slow
def test_a_reward_model_of_people_is_measured_on_the_benchmark_that_is_there(
    tmp_path, policy_directory, capsys, monkeypatch
):
    pairs = [
        {"prompt": f"Name {i} colours.", "chosen": "Red and blue.", "rejected": f"I may be wrong {i}."}
        for i in range(60)
    ]
    judged = [
        {"input": f"Say {i}.", "output_1": f"{i} is it.", "output_2": "A dog.", "label": 1} for i in range(8)
    ]
    data, config = tmp_path / "pairs.jsonl", tmp_path / "human.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    (tmp_path / "bench").mkdir()
    with gzip.open(tmp_path / "bench" / "llmbar.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in judged)
    given = yaml.safe_load(configurations()["smollm2_hh"].read_text(encoding="utf-8"))
    given["reward"] |= {"max_length": 96, "num_evals": 1, "normalise_samples": 32}
    given |= {"dataset_name": str(data), "model_name_or_path": str(policy_directory), "num_threads": 1}
    config.write_text(yaml.safe_dump(given), encoding="utf-8")
    monkeypatch.setenv("PREFERL_DATA", str(tmp_path))
    run(monkeypatch, "--human", "--config", config, "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert re.search(r"^\| hh-rlhf helpful \| \d+\.\d \[\d+\.\d, \d+\.\d\] \|", said, re.MULTILINE)
    assert re.search(r"^LLMBar: \d+\.\d \[\d+\.\d, \d+\.\d\] % of 8 pairs$", said, re.MULTILINE)


def test_cells_have_the_interval_that_there_is():
    one = real_model.Row({"gold": 0.5, "wins": 0.75, "minutes": 3.0}, {"gold": (0.25, 0.75)})
    other = real_model.Row({"gold": 1.5, "wins": 0.25, "minutes": 5.0}, {})
    assert real_model.cell([one], "gold") == "0.50 [0.25, 0.75]"
    assert real_model.cell([one], "wins") == "75"
    assert real_model.cell([one], "KL") == "–"
    assert real_model.cell([one, other], "minutes") == "4.0"
    # Student's with one degree of freedom: 12.706 · sd / √2.
    assert real_model.cell([one, other], "gold") == "1.00 [-5.35, 7.35]"


def test_the_gold_of_the_configuration_is_the_truth_that_its_labels_are_drawn_from():
    given = yaml.safe_load(configurations()["smollm2"].read_text(encoding="utf-8"))
    assert given["collect"]["annotator"] == given["rl"]["gold"] == given["evaluate"]["gold"] == "instructions"
    assert named_utility(given["evaluate"]["held_out_reward"]) is not None
    assert real_model.arms_of(real_model.with_arms(given)) == ["DPO", "PPO", "RLOO"]


def test_an_arm_that_is_none_is_refused(small_config, monkeypatch):
    with pytest.raises(SystemExit, match="the arms are DPO, PPO, RLOO"):
        run(monkeypatch, "--config", small_config, "--arms", "GRPO")
