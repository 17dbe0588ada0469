"""Completion of commands and options, in the shells that are there."""

import shutil
import subprocess

import pytest

from preferl import cli
from preferl.completion import SHELLS, script

# What bash does on Tab, without a terminal.
TAB = """\
source {script}
complete_words() {{
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _shtab_preferl preferl "${{@: -1}}" "${{@: -2:1}}"
  echo "${{COMPREPLY[@]}}"
}}
complete_words {words}
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Shell -> the file of its script."""
    folder, found = tmp_path_factory.mktemp("completion"), {}
    for shell in SHELLS:
        found[shell] = folder / shell
        text = script(shell, {name: cli.about(name) for name in cli.COMMANDS})
        found[shell].write_text(text, encoding="utf-8")
    return found


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("preferl rew", "reward"),
        ("preferl rl --kl_c", "--kl_coef --kl_controller"),
        ("preferl run --rl.kl_coe", "--rl.kl_coef"),
        ("preferl sweep --sweep.se", "--sweep.seeds"),
        ("preferl run --config smol", "smollm2 smollm2_hh"),
        ("preferl reward --audit ''", "true false"),
        ("preferl data d", "describe"),
        ("preferl completion z", "zsh"),
    ],
)
def test_bash_completes_commands_options_and_values(scripts, words, expected):
    text = TAB.format(script=scripts["bash"], words=words)
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected.split(), done.stderr


def test_every_shell_knows_every_command_and_its_options(scripts):
    for shell, file in scripts.items():
        text = file.read_text(encoding="utf-8")
        assert all(command in text for command in cli.COMMANDS), shell
        assert "kl_coef" in text
        if shutil.which(shell):
            subprocess.run([shell, "-n", file], check=True)


def test_other_shells_are_refused_with_those_that_there_are(capsys):
    assert cli.main(["completion", "tcsh"]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err


def test_help_says_something_of_every_command():
    assert [name for name in cli.COMMANDS if cli.about(name) == name] == []
