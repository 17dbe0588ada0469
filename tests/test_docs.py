"""Documentation that names a command, an option or a file tells the truth."""

import re
import subprocess
import sys
from dataclasses import fields
from fnmatch import fnmatch
from pathlib import Path

import pytest

from preferl import cli
from preferl.design.designer import DesignConfig
from preferl.label import live
from preferl.label.commands import ExportConfig, ServeConfig, UserConfig
from preferl.options import chat
from preferl.options.collect import PairCounts
from preferl.pipeline import KINDS, NAMES, RunOptions
from preferl.runs.shipped import FOLDER
from preferl.share.options import PushOptions
from preferl.sweep.plan import SweepOptions

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist(page):
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", page.read_text(encoding="utf-8"), flags=re.S))
    for command in re.findall(r"(?<![\w-])(?<!from )preferl ([a-z][\w-]*)", code):
        assert command in cli.COMMANDS or command == "help", f"{page.name}: preferl {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_options_exist(page):
    known = {
        "config",
        "fresh",
        "keep_stale",
        "output",
        "debug",
        "help",
        "print_config",
        "print-config",
        "version",
    }
    known |= {"logdir", "project"}  # tensorboard's, trackio's
    # torchrun's, pip's; flags of `preferl label user`, `doctor`, `report` and `chat`.
    known |= {"nproc_per_node", "no-deps", "index-url", "password", "stage", "format", "compare"}
    for config in (
        RunOptions,
        PairCounts,
        *KINDS.values(),
        chat.ChatConfig,
        chat.ServeConfig,
        ServeConfig,
        UserConfig,
        ExportConfig,
        *(config for config, _ in live.COMMANDS.values()),
        DesignConfig,
    ):
        known |= {f.name for f in fields(config)}
    known |= {f.name for f in (*fields(SweepOptions), *fields(PushOptions))}
    known |= NAMES.keys() | {"sweep", "push_to_hub"}
    for program in (*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests").glob("*.py")):
        known |= set(re.findall(r'add_argument\(\s*"--([\w-]+)"', program.read_text(encoding="utf-8")))
    text = page.read_text(encoding="utf-8")
    known |= set(re.findall(r"^    (\w+): \w+ = ", text, flags=re.M))  # of an algorithm written on the page
    for option in re.findall(r"--([a-z][\w-]*)", text):
        assert option.split(".")[-1] in known, f"{page.name}: --{option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_paths_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name}: {target}"
    for path in re.findall(r"`((?:docs|benchmarks|tests)/[\w/.-]+\w)`", text):
        assert (ROOT / path).exists(), f"{page.name}: {path}"


def tables_of(page: str) -> list[tuple[str, list[list[str]]]]:
    """The tables of a page for people from elsewhere: the stage in the second column's title (none for all of
    them), and the cells of each row."""
    found: list[tuple[str, list[list[str]]]] = []
    for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| ") else []
        if title := len(cells) == 3 and re.fullmatch(r"preferl(?: `(\w+).*`)?", cells[1]):
            found.append((title[1] or "", []))
        elif len(cells) == 3:
            found[-1][1].append(cells)
    return found


@pytest.mark.parametrize("page", ["from-trl.md", "from-openrlhf.md"])
def test_pages_for_people_from_elsewhere_name_real_options(page):
    every = {f.name for kind in KINDS.values() for f in fields(kind)}
    tables = tables_of(page)
    assert len(tables) >= 4
    for stage, rows in tables:
        known = {f.name for f in fields(KINDS[stage])} if stage else every
        for theirs, ours, _ in rows:
            named = set(re.findall(r"`(\w+)`", ours))
            assert named or ours in ("–", "the same"), theirs
            assert named <= known, theirs
            if ours == "the same":
                assert set(re.findall(r"`(\w+)`", theirs)) <= known, theirs


@pytest.mark.parametrize("name", ["RewardConfig", "GRPOConfig"])
def test_every_option_that_trl_s_trainers_have_of_their_own_is_on_the_page(name):
    trl = pytest.importorskip("trl")
    from transformers import TrainingArguments

    config = getattr(trl, name)
    classes = config.__mro__[: config.__mro__.index(TrainingArguments)]
    text = (ROOT / "docs" / "from-trl.md").read_text(encoding="utf-8")
    rows = text.split(f"| TRL {trl.__version__.rpartition('.')[0]} `{name}` |")[1].split("\n\n")[0]
    named = re.findall(r"`([\w*]+)`", "\n".join(line.split(" | ")[0] for line in rows.splitlines()))
    for field in {field for kind in classes for field in kind.__annotations__ if not field.startswith("_")}:
        assert any(fnmatch(field, pattern) for pattern in named), field


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.yaml")))
def test_shipped_configurations_parse(name):
    command = [sys.executable, "-m", "preferl", "run", "--config", name, "--print-config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
