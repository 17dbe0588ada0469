"""``preferl completion bash|zsh|fish``: the script that completes commands and options in a shell.

The scripts are shtab's. They hold every name and text, so that nothing is started while one types.
"""

import argparse
import typing
from collections.abc import Mapping

import shtab

from preferl.options.chat import ChatConfig, ServeConfig
from preferl.options.shared import DataCommandOptions
from preferl.pipeline import KINDS, NAMES, RunOptions
from preferl.runs.config import parser_for
from preferl.runs.errors import UsageError
from preferl.runs.ranges import without_ranges
from preferl.runs.shipped import configurations
from preferl.sweep.plan import SweepOptions

SHELLS = ("bash", "zsh", "fish")
USAGE = """\
usage: preferl completion bash|zsh|fish   print the script that completes commands and options
  bash   eval "$(preferl completion bash)"                  in ~/.bashrc
  zsh    preferl completion zsh > "${fpath[1]}/_preferl"    a folder of fpath, before compinit
  fish   preferl completion fish > ~/.config/fish/completions/preferl.fish
"""
Classes = Mapping[str, type]
"""Prefix of options -> the dataclass that has them."""
RUN: Classes = {"": RunOptions} | {f"{name}.": KINDS[kind] for name, kind in NAMES.items()}
STAGES_AND_RUNS: dict[str, Classes] = {
    **{kind: {"": options} for kind, options in KINDS.items()},
    **{"run": RUN, "demo": RUN, "sweep": RUN | {"sweep.": SweepOptions}},
}
OPTIONS: dict[str, Classes] = {
    **STAGES_AND_RUNS,
    "data": {"": DataCommandOptions},
    "chat": {"": ChatConfig},
    "serve": {"": ServeConfig},
}
FLAGS = {
    "--print_config": "print every option instead",
    "--fresh": "do it anew",
    "--keep_stale": "take as it is what was made of other inputs",
}
WORDS = {"data": ("validate", "describe", "convert", "layouts"), "completion": SHELLS}


def script(shell: str, commands: Mapping[str, str]) -> str:
    """The script of a shell.

    Args:
        shell: of ``SHELLS``.
        commands: every command, and what it does.

    Raises:
        UsageError: there is no script for such a shell.
    """
    if shell not in SHELLS:
        raise UsageError(f"there is no completion for {shell}; there is for {', '.join(SHELLS)}")
    whole = argparse.ArgumentParser("preferl", add_help=False)
    whole.add_argument("--help", action="store_true", help="what there is")
    whole.add_argument("--version", action="store_true", help="the version")
    below = whole.add_subparsers()
    for name, about in commands.items():
        command = below.add_parser(name, help=about, description=about, add_help=False)
        command.add_argument("--help", nargs="?", choices=["all"], help="what it takes")
        words = command.add_argument("words", nargs="*", choices=WORDS.get(name))
        if name not in WORDS:
            completed_by_files(words)
        for prefix, options in OPTIONS.get(name, {}).items():
            add_options(command, prefix, options)
        if name in STAGES_AND_RUNS:
            command.add_argument("--config", choices=list(configurations()), help="a file, or one of these")
            for flag, text in FLAGS.items():
                command.add_argument(flag, action="store_true", help=text)
    return str(shtab.complete(whole, shell))


def add_options(command: argparse.ArgumentParser, prefix: str, options: type) -> None:
    """The fields of a dataclass as options, each with the first sentence of its text."""
    types = typing.get_type_hints(options)
    texts = {action.dest: action.help or "" for action in parser_for(options, "", "", ["--help"])._actions}
    for name, hint in types.items():
        text = texts.get(name, "").partition(". ")[0].replace("``", "").replace("%", "%%")
        option = command.add_argument(f"--{prefix}{name}", help=text)
        if hint is bool:
            option.choices = ["true", "false"]
        elif "str" in without_ranges(hint):
            completed_by_files(option)


def completed_by_files(argument: argparse.Action) -> None:
    """Names of files complete it: most texts may name one, and shells show nothing where none fits."""
    argument.complete = shtab.FILE  # type: ignore[attr-defined]
