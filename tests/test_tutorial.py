"""The tutorial's commands can be given, run, and print lines of the form that its pages show (``pages.py``).

Every command's options are parsed. The chain of commands in ``SMALL`` is run, chapter by chapter in one
folder, with sizes cut down; numbers and quoted texts then differ from those on the page, all else has to be
the same. Python is compared exactly where it reads no run.
"""

import pytest
import yaml

from pages import ONE_THREAD, ROOT, TINY, Console, check_page, consoles, differences, form_of, lay_out, unlike
from preferl.runs.shipped import configurations
from preferl.sweep.numbers import metrics_of
from preferl.sweep.plan import SweepConfig, plan_all, points_of

PAGES = sorted((ROOT / "docs" / "tutorial").glob("*.md"))
CHAPTERS = [page for page in PAGES if page.name[0].isdigit()]

TINY_SWEEP = (
    f"{TINY} --stages '[collect, reward, rl, evaluate]' --model_name_or_path runs/demo/sft --rl.eval_every 2 "
    "--evaluate.pool_size 16"
)
FEW_PAIRS = f"{ONE_THREAD} --pairs.train 24 --pairs.dev 4 --pairs.rl 2 --pairs.eval 8"
FEW_LABELS = (
    f"{ONE_THREAD} --collect.pairs.train 24 --collect.pairs.dev 4 --collect.pairs.eval 8 "
    "--reward.num_evals 1 --reward.normalise_samples 32 "
    "--sweep.grid '{collect.label_mode: [stochastic, deterministic], reward.num_train_epochs: [1]}'"
)
# The chain that is run: how a command begins -> what is added to it, so that it takes a few seconds; the
# longest beginning counts. A command that fits none or None, or that is shown without output, is only parsed.
SMALL: dict[str, str | None] = {
    "preferl demo": TINY,
    "preferl demo --stages '[rl": None,
    "preferl demo --stages '[dpo": None,
    "preferl demo --stages '[best_of": f"{TINY} --best_of.max_prompts 8 --best_of.dev_prompts 4",
    "preferl collect": FEW_PAIRS,
    "preferl collect --model_name_or_path runs/demo/sft --temperature 0.8 --layout rankings": (
        f"{ONE_THREAD} --pairs.train 6"
    ),
    "preferl reward": f"{ONE_THREAD} --num_train_epochs 1 --normalise_samples 32",
    "preferl audit": ONE_THREAD,
    "preferl rl": ONE_THREAD,
    "preferl data": "",
    "preferl design-reward": "",
    "preferl label --": "--port 0",
    "preferl label user": "",
    "preferl label simulate": ONE_THREAD,
    "preferl label export": "",
    "preferl run --config tutorial": FEW_LABELS,
    "preferl sweep --config kl_three": TINY_SWEEP,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_can_be_given(page, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_page(page, capsys)


@pytest.mark.slow
def test_the_laboratory_can_be_planned():
    """tests/test_sweep.py does this for the shipped sweeps."""
    given = yaml.safe_load(configurations()["hacking"].read_text(encoding="utf-8"))
    config = SweepConfig(**given)
    runs = plan_all(config.root, points_of(config), config.options.seeds)
    assert len(runs) == 10
    assert set(metrics_of(config, runs)) >= {"proxy", "gold", "kl", "length"}


def test_forms():
    assert form_of("sft 7/50  ETA 1:02  loss -1.5e-05").fullmatch("sft 12/100 ETA 0:00  loss 0.2")
    assert form_of("row 'a b' -> 3").fullmatch('row "x" -> 12,000')
    assert not form_of("12 pairs").fullmatch("12 prompts")
    assert unlike(["a 1", "…", "b 2"], ["a 3"]) == ["b 2"]
    page = [Console("", "x --a 1 --b 2", ["out", "…"]), Console("", "y")]
    assert consoles("", "$ x --a 1 \\\n    --b 2\nout\n…\n$ y\n") == page


@pytest.mark.slow
def test_what_the_pages_show_is_printed(tmp_path, monkeypatch):
    lay_out(tmp_path, monkeypatch)
    wrong = [text for page in CHAPTERS for text in differences(page, SMALL)]
    assert not wrong, "\n\n".join(wrong)
