"""Documentation that names a command, an option or a file tells the truth."""

import re
import subprocess
import sys
from dataclasses import fields
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
from preferl.stages.dpo import DpoConfig
from preferl.stages.rl import RlConfig
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


def test_the_page_for_people_from_trl_names_real_options():
    text = (ROOT / "docs" / "from-trl.md").read_text(encoding="utf-8")
    known = {f.name for f in (*fields(RlConfig), *fields(DpoConfig))}
    for row in re.findall(r"^\| `.*\| (.*) \|.*\|$", text, flags=re.M):
        for name in re.findall(r"`(\w+)`", row):
            assert name in known or name == "module", name


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.yaml")))
def test_shipped_configurations_parse(name):
    command = [sys.executable, "-m", "preferl", "run", "--config", name, "--print-config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
