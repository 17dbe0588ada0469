"""docs/quickstarts: every command can be given as it stands; those on data of one's own are followed, cut
down, from the file that makes the data to the report."""

import pytest

from pages import ONE_THREAD, ROOT, check_page, differences, lay_out_files

PAGES = sorted((ROOT / "docs" / "quickstarts").glob("*.md"))
TINY = (
    f"{ONE_THREAD} --response_length 16 --reward.num_evals 1 --reward.normalise_samples 16 "
    "--rl.num_iterations 1 --rl.batch_size 8 --rl.eval_prompts 4 --evaluate.best_of_prompts 4"
)
# How a command begins -> what is added to it, so that it takes seconds. The model stays as it is: with
# options of sft the run would give another reason for its stages.
SMALL: dict[str, str | None] = {
    "preferl data describe": "",
    "preferl run --dataset_name pairs.jsonl": TINY,
    "preferl run --dataset_name questions.jsonl": TINY,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_can_be_given(page, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_page(page, capsys, to_runs=["--stages", "[sft, collect, reward, rl, evaluate, report]"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own-pairs", "reward-function"])
def test_what_is_shown_is_printed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "quickstarts" / f"{name}.md"
    lay_out_files(page)
    wrong = differences(page, SMALL)
    assert not wrong, "\n\n".join(wrong)
    assert list(tmp_path.glob("runs/*/report.html"))
