"""docs/exercises.md: every exercise can be given as it stands, runs when it is cut down, and prints what the
page shows, in the form that it shows."""

import pytest

from pages import ONE_THREAD, ROOT, TINY, check_page, commands_of, differences, lay_out

PAGE = ROOT / "docs" / "exercises.md"
FEW = (
    "--sft.num_train_epochs 0.05 --rl.num_iterations 1 --rl.eval_every 1 --evaluate.max_eval_prompts 8 "
    "--evaluate.best_of_prompts 2 --evaluate.pool_size 16 --reward.audit false"
)
FROM_DEMO = (
    f"{TINY} {FEW} --model_name_or_path runs/demo/sft --stages '[collect, reward, rl, evaluate, report]'"
)
# How a command begins -> what cuts it down.
SMALL: dict[str, str | None] = {
    "preferl demo": f"{TINY} --rl.num_iterations 1",
    "preferl demo --collect.annotator sentiment": FROM_DEMO,
    "preferl sweep --stages '[reward]'": f"{ONE_THREAD} --reward.num_train_epochs 4",
    "preferl reward": f"{ONE_THREAD} --num_train_epochs 4",
    "preferl sweep --config reward_data_size": (
        f"{FROM_DEMO} --sweep.grid '{{reward.max_train_comparisons: [12, 48]}}'"
    ),
    "preferl sweep --config reward_model_size": (
        f"{FROM_DEMO} --stages '[collect, backbone, reward, rl, evaluate]' --backbone.vocab_size 600 "
        "--backbone.num_train_epochs 0.05 --backbone.check_samples 16 "
        "--sweep.grid '{backbone.hidden_size: [16]}'"
    ),
    "preferl sweep --config algorithms": (
        f"{TINY} {FEW} --stages '[sft, collect, reward, rl, evaluate]' --sweep.seeds '[0, 1]' "
        "--sft.seed 0 --collect.seed 0 --reward.seed 0 --evaluate.best_of '[]' --evaluate.pool_size null"
    ),
    "preferl evaluate": (
        f"{ONE_THREAD} --response_length 24 --max_eval_prompts 16 --best_of_prompts 4 --best_of '[2, 4, 8]'"
    ),
    "preferl sweep --config length": (
        f"{TINY} {FEW} --model_name_or_path runs/demo/sft --stages '[rl, evaluate]'"
    ),
    "preferl sweep --config kl_": (
        f"{TINY} {FEW} --model_name_or_path runs/demo/sft --stages '[rl, evaluate]' "
        "--rl.reward_model runs/demo/reward --evaluate.reward_model runs/demo/reward --rl.gold world "
        "--evaluate.gold world"
    ),
    "preferl report": "",
    "preferl design-reward": "",
}


def test_every_command_can_be_given(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_page(PAGE, capsys)


def test_nothing_is_only_shown():
    """Every command is run, with what it prints beside it."""
    for part in commands_of(PAGE):
        assert any(part.command.startswith(start) for start in SMALL), part.command
        assert [line for line in part.output if line != "…"], f"{part.where}: {part.command}"


@pytest.mark.slow
def test_what_the_page_shows_is_printed(tmp_path, monkeypatch):
    lay_out(tmp_path, monkeypatch)
    wrong = differences(PAGE, SMALL)
    assert not wrong, "\n\n".join(wrong)
