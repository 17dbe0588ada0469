"""A person's own 1, 3, 6 or 10 rows, through the commands: everything trains and is measured, with intervals
as wide as so few rows deserve, and pages without numbers that are none.

Below 10 prompts all rows train and are measured on; of these 10 a hash leaves three to dev and two to eval.
"""

import json
import re

import pytest

from preferl import cli

NOUNS = ("apple", "river", "house", "stone", "cloud", "table", "dog", "sun", "hill", "boat")
QUICK = ["--device", "cpu", "--num_threads", "1"]
SHORT = ["--response_length", "8"]


@pytest.fixture(scope="module")
def start(tmp_path_factory, policy_directory):
    """Runs a command and returns its stage's summary; ``{name}`` in it is a file of so many rows."""
    root = tmp_path_factory.mktemp("small")

    def run(rows: int, *words: str) -> dict:
        folder = root / str(rows)
        folder.mkdir(exist_ok=True)
        pairs, prompts = folder / "pairs.jsonl", folder / "prompts.jsonl"
        written = [
            {
                "prompt": f"Tell me of the {noun}.",
                "chosen": f"Thanks, the {noun} is nice.",
                "rejected": f"Shut up! The {noun} is bad.",
            }
            for noun in NOUNS[:rows]
        ]
        pairs.write_text("".join(json.dumps(row) + "\n" for row in written))
        prompts.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in written))
        places = {"pairs": pairs, "prompts": prompts, "lm": policy_directory, "out": folder}
        command = [word.format(**places) for word in words]
        assert cli.main([*command, *([] if words[0] == "report" else QUICK)]) == 0
        if words[0] in ("run", "report"):
            return {}
        where = command[command.index("--output_dir") + 1]
        with open(f"{where}/summary.json", encoding="utf-8") as file:
            return json.load(file)

    return run


def is_wide(summary: dict, key: str, least: float) -> bool:
    """Whether an interval is at least so wide, or open."""
    low, high = summary[f"{key}_low"], summary[f"{key}_high"]
    return isinstance(low, str) or high - low >= least


@pytest.mark.parametrize("rows", [1, 3, 6, 10])
def test_a_reward_model_learns_from_a_few_pairs(rows, start):
    lm = ["--model_name_or_path", "{lm}", "--dataset_name", "{pairs}"]
    found = start(rows, "reward", *lm, "--num_train_epochs", "30", "--output_dir", "{out}/reward")
    assert found["train_pairs"] == (rows if rows < 10 else 5)
    assert found["eval/pairs"] == (rows if rows < 10 else 2)
    # All right of n has Wilson's interval: of 1 from 21 %, of 2 from 34 %, of 6 from 61 % on.
    n = found["eval/pairs"]
    assert found["eval/share_trained_on"] == found["dev/share_trained_on"] == (rows < 10)
    assert found["eval/accuracy"] == 1
    assert found["eval/accuracy_low"] == pytest.approx(n / (n + 1.96**2), abs=1e-3)
    several = [*lm, "--num_members", "2", "--member_share", "0.5", "--loss", "plackett_luce"]
    assert start(rows, "reward", *several, "--output_dir", "{out}/several")["members"] == 2
    audit = ["--train_dataset_name", "{pairs}", "--dataset_name", "{pairs}", "--output_dir", "{out}/audit"]
    assert start(rows, "audit", "--reward_model", "{out}/reward", *audit)["all/accuracy"] == 1
    found = start(rows, "dpo", *lm, *SHORT, "--check_samples", "4", "--output_dir", "{out}/dpo")
    assert is_wide(found, "dev/kl", 0.0)


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_a_policy_is_trained_and_evaluated_on_a_few_prompts(rows, start):
    lm = ["--model_name_or_path", "{lm}", "--dataset_name", "{prompts}", *SHORT]
    found = start(
        rows, "collect", *lm, "--annotator", "length", "--pairs.train", "6", "--pairs.dev", "2", "--pairs.rl",
        "0", "--pairs.eval", "4", "--output_dir", "{out}/collect",
    )  # fmt: skip
    assert found["splits"]["train"]["pairs"] == 6
    reward = ["--model_name_or_path", "{lm}", "--dataset_name", "{out}/collect", *SHORT]
    normalised = ["--reference_policy", "{lm}", "--output_dir", "{out}/normalised"]
    assert start(rows, "reward", *reward, *normalised)["reference_sd"] > 0
    small = ["--num_iterations", "2", "--batch_size", "4", "--eval_prompts", "2"]
    start(rows, "rl", *lm, *small, "--reward_model", "{out}/normalised", "--output_dir", "{out}/rl")
    found = start(
        rows, "evaluate", "--model_name_or_path", "{out}/rl", "--ref_model", "{lm}", "--reward_model",
        "{out}/normalised", "--gold", "length", "--dataset_name", "{prompts}", *SHORT, "--output_dir",
        "{out}/evaluate",
    )  # fmt: skip
    one = rows == 1
    assert (found["prompts"], found["trained_on"]) == ({1: 1, 3: 3, 10: 2}[rows], rows < 10)
    compared = found["comparison"]["score"]
    assert compared["difference_low"] == "-inf" if one else is_wide(compared, "difference", 0.0)
    assert is_wide(compared, "win_rate", 0.56)  # all of 3 won: [44 %, 100 %]
    assert found["policies"]["policy"]["kl_se"] == "inf" if one else found["policies"]["policy"]["kl_se"] >= 0
    assert len(found["best_of"]) == 2
    start(rows, "report", "{out}")


@pytest.mark.parametrize(
    ("rows", "stages"), [(1, "[sft,reward,rl,evaluate,report]"), (6, "[reward,rl,evaluate,report]")]
)
def test_a_run_on_a_few_pairs_has_a_page_without_numbers_that_are_none(rows, stages, start, tmp_path):
    start(
        rows, "run", "--model_name_or_path", "{lm}", "--dataset_name", "{pairs}", "--stages",
        stages, *SHORT, "--rl.num_iterations", "2", "--rl.batch_size", "4", "--output_dir", f"{tmp_path}/run",
    )  # fmt: skip
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    shown = re.sub(r"<[^>]*>", " ", re.sub(r"<(style|script|pre)\b.*?</\1>", " ", page, flags=re.S))
    assert "Reward model: loss" in shown
    assert "agreement with its training labels" in shown
    assert "held-out labels" not in shown
    assert f"On {rows} training prompts" in shown
    assert not re.search(r"\b(nan|NaN|inf|None)\b", shown)
    if rows == 1:
        assert "[…,\u00a0…]" in shown


def test_responses_of_a_person_to_one_prompt_are_labelled(tmp_path):
    file = tmp_path / "responses.jsonl"
    file.write_text(json.dumps({"prompt": "Why?", "responses": ["Because.", "Because it is so."]}) + "\n")
    words = ["--responses_file", str(file), "--annotator", "length", "--output_dir", str(tmp_path / "c")]
    assert cli.main(["collect", *words, *QUICK]) == 0
    summary = json.loads((tmp_path / "c" / "summary.json").read_text())
    assert summary["splits"]["eval"]["pairs"] == 1


def test_responses_of_which_none_trains_are_refused_by_their_column(tmp_path, capsys):
    file = tmp_path / "responses.jsonl"
    row = {"prompt": "Why?", "responses": ["Because.", "Because it is so."]}
    rows = [row | {"prompt": f"Why {i}?", "split": "rl" if i else "test"} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--responses_file", str(file), "--annotator", "length", "--output_dir", str(tmp_path / "c")]
    assert cli.main(["collect", *words, *QUICK]) == 3
    assert "3 rl, 1 eval (its own)). Mark some as train in a column `split`" in capsys.readouterr().err


def test_a_split_that_is_missing_is_named_with_what_makes_one(tmp_path, policy_directory, capsys):
    rows = [{"prompt": f"p{i}", "chosen": "good one", "rejected": "bad one"} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model_name_or_path", str(policy_directory), "--dataset_name", str(tmp_path / "pairs.jsonl")]
    shares = ["--split_shares", "[0.9, 0.1, 0.0]", "--output_dir", str(tmp_path / "reward")]
    assert cli.main(["reward", *words, *shares, *QUICK]) == 3
    said = capsys.readouterr().err
    for word in ("'eval'", "column `split`", "--split_shares", "--split_by", "--split"):
        assert word in said
    assert not (tmp_path / "reward" / "manifest.json").exists()


def test_of_16_prompts_a_policy_trains_on_the_train_split_or_on_all(policy_directory, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Tell me of thing {i}."}) + "\n" for i in range(16)))
    lm = ["--model_name_or_path", str(policy_directory), "--reward_model", "length", *SHORT, *QUICK]
    small = ["--dataset_name", str(prompts), "--num_iterations", "1", "--batch_size", "8"]
    assert cli.main(["rl", *lm, *small, "--output_dir", str(tmp_path / "part")]) == 0
    said = capsys.readouterr().out
    train = int(re.search(r"rl: split: (\d+) train, \d+ dev, \d+ eval", said)[1])
    assert 10 <= train < 16
    assert f"rl: ppo on {train} prompts" in said
    assert cli.main(["rl", *lm, *small, "--split", "all", "--output_dir", str(tmp_path / "all")]) == 0
    assert "rl: ppo on 16 prompts" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2, 20])
def test_a_policy_is_evaluated_on_1_to_20_prompts_with_intervals_as_wide_as_that(
    count, policy_directory, tmp_path
):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(count)))
    policy = str(policy_directory)
    command = ["evaluate", "--model_name_or_path", policy, "--ref_model", policy, "--reward_model", "length"]
    where = ["--dataset_name", str(prompts), "--split", "all", "--output_dir", str(tmp_path / "found")]
    assert cli.main([*command, *where, *SHORT, *QUICK]) == 0
    found = json.loads((tmp_path / "found" / "summary.json").read_text())
    assert found["prompts"] == count
    assert is_wide(found["comparison"]["score"], "win_rate", {1: 0.6, 2: 0.5, 20: 0.3}[count])
