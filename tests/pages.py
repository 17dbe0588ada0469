"""Pages of the documentation whose commands and Python can be run: what is on them, and whether it is what
comes out.

Pages hold ```python blocks, each followed by the ```text that it prints, and ```console blocks: commands
after "$ ", then their output, shortened by "…". The quickstarts hold ```bash blocks, commands alone, and the
```text that the last of them prints; Python that begins with ``# name.py`` is a file.
"""

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from preferl import cli
from preferl.design.designer import DesignConfig
from preferl.label import commands as label
from preferl.label import live
from preferl.runs.config import parser_for

ROOT = Path(__file__).parents[1]
RUN = [sys.executable, "-m", "preferl"]
# Programs beside preferl that the pages call.
OTHERS = ("ls", "grep", "head", "printf")
ONE_THREAD = "--num_threads 1 --device cpu"
TINY = (
    f"{ONE_THREAD} --response_length 24 --sft.hidden_size 32 --sft.num_heads 4 --sft.vocab_size 600 "
    "--sft.num_evals 1 --sft.num_train_epochs 0.3 --sft.check_samples 16 --collect.pairs.train 96 "
    "--collect.pairs.dev 24 --collect.pairs.rl 8 --collect.pairs.eval 48 --reward.num_evals 2 "
    "--reward.normalise_samples 64 --rl.num_iterations 2 --rl.batch_size 8 --rl.eval_prompts 4 "
    "--evaluate.max_eval_prompts 16 --evaluate.best_of_prompts 4"
)


@dataclass(frozen=True)
class Console:
    """A command of a page and the lines that it is said to print."""

    where: str
    command: str
    output: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Python:
    """A python block of a page and the text that it is said to print."""

    where: str
    code: str
    output: str = ""


def parts(page: Path) -> list[Console | Python]:
    """Everything on a page that runs, in its order."""
    found: list[Console | Python] = []
    text = page.read_text(encoding="utf-8")
    before_end, before = 0, ""
    for block in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.M | re.S):
        where = f"{page.name}:{text[: block.start()].count(chr(10)) + 1}"
        kind, body = block[1], block[2]
        if kind == "console":
            found += consoles(where, body)
        elif kind == "bash":
            found += consoles(where, re.sub(r"(?<!\\\n)^", "$ ", body.rstrip("\n"), flags=re.M))
        elif kind == "python":
            found.append(Python(where, body))
        elif kind == "text" and before == "bash":
            found[-1].output.extend(body.splitlines())
        elif kind == "text" and before == "python" and not text[before_end : block.start()].strip():
            found[-1] = Python(found[-1].where, found[-1].code, body)
        before_end, before = block.end(), kind
    return found


def file_of(part: Python) -> str | None:
    """The name of the file that a python block is, where it is one."""
    name = re.match(r"# (\w+\.py)\n", part.code)
    return name[1] if name else None


def consoles(where: str, body: str) -> list[Console]:
    found: list[Console] = []
    going_on = False
    for line in body.splitlines():
        if going_on or line.startswith("$ "):
            text = line.removeprefix("$ ") if not going_on else line.strip()
            if going_on:
                found[-1] = Console(where, f"{found[-1].command} {text.removesuffix(chr(92)).strip()}")
            else:
                found.append(Console(where, text.removesuffix("\\").strip()))
            going_on = line.endswith("\\")
        else:
            assert found, f"{where}: output before any command"
            found[-1].output.append(line)
    return found


def commands_of(page: Path) -> list[Console]:
    return [part for part in parts(page) if isinstance(part, Console)]


# ----------------------------------------------------------------------------------------- options are known


def check_page(page: Path, capsys: pytest.CaptureFixture[str], to_runs: Sequence[str] = ()) -> None:
    """Every command of a page can be given, in the repository's folder.

    Args:
        page: the page.
        capsys: what is printed.
        to_runs: is added to every `preferl run`: stages, where its data are not there to say which.
    """
    files = [file_of(part) for part in parts(page) if isinstance(part, Python)]
    for part in commands_of(page):
        program, *arguments = shlex.split(part.command)
        try:
            if program == "preferl":
                check_preferl([*arguments, *to_runs] if arguments[0] == "run" else arguments)
            elif program == "python" and arguments[0].startswith("benchmarks/"):
                check_benchmark(arguments)
            elif program == "python":
                assert arguments[0] in files, f"{page.name} has no {arguments[0]}"
            else:
                assert program in OTHERS, f"{program} is not known here"
        except SystemExit as error:
            pytest.fail(f"{part.where}: {part.command}: exit code {error.code}; {capsys.readouterr().err}")
        capsys.readouterr()


def check_preferl(arguments: list[str]) -> None:
    """The parser of the command takes its options."""
    name, *rest = arguments
    rest = [a for a in rest if a != "--fresh"]
    assert name in cli.COMMANDS, name
    if name == "label":
        check_label(rest)
    elif name == "design-reward":
        parser_for(DesignConfig, "preferl design-reward", "").parse_args(rest[1:])
    elif name == "data":
        known = {("describe", 2), ("validate", 2), ("convert", 3), ("convert", 4)}
        assert (rest[0], len(rest)) in known, rest
    elif name == "report":
        assert all(not a.startswith("-") or a == "--output" for a in rest), rest
    elif name != "doctor":
        try:
            code = cli.main([name, *rest, "--print_config"])
        except SystemExit as error:
            code = error.code
        if code:
            raise SystemExit(code)


def check_label(arguments: list[str]) -> None:
    configs = {"user": label.UserConfig, "export": label.ExportConfig}
    configs |= {name: config for name, (config, _) in live.COMMANDS.items()}
    command = arguments[0] if arguments[0] in configs else ""
    skipped = {"user": 2, "export": 2, "": 0}.get(command, 1)
    label.parse_options(configs.get(command, label.ServeConfig), command, arguments[skipped:])


def check_benchmark(arguments: list[str]) -> None:
    text = (ROOT / arguments[0]).read_text(encoding="utf-8")
    known = re.findall(r'add_argument\("--([\w-]+)"', text)
    for option in (a for a in arguments[1:] if a.startswith("--")):
        assert option.removeprefix("--") in known, f"{arguments[0]} has no {option}"


# --------------------------------------------------------------------------------------- what they print

VERDICTS = (
    "(?:Better|Worse|Over-optimised|Reward hacked|No clear gain|Higher reward)"
    r"(?: by the training signal only|, gamed\?)?"
)
PIECE = re.compile(
    rf"(?P<verdict>{VERDICTS})|(?P<link>/link/\S+)|(?P<number>[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)"
    r"|(?P<quoted>\"[^\"]*\"|(?<![\w'])'.*?'(?!\w))"
    r"|(?P<space>\s+)|(?P<more>…)"
)
FORMS = {
    "number": r"[-+−]?[\d,.]+(?:e[-+]?\d+)?",
    "quoted": r"[\"'].*[\"']",
    "space": r"\s+",
    "more": ".*",
    "link": r"/link/\S+",
    "verdict": VERDICTS,
}


def form_of(line: str) -> re.Pattern[str]:
    """A line of a page as a pattern: any number for a number, any quoted text for one."""
    out, at = "", 0
    for piece in PIECE.finditer(line.strip()):
        out += re.escape(line.strip()[at : piece.start()]) + FORMS[str(piece.lastgroup)]
        at = piece.end()
    return re.compile(out + re.escape(line.strip()[at:]))


def comes_and_goes(line: str) -> bool:
    """Whether a line depends on the time that a step takes, or on what was learnt."""
    return "  ETA " in line or line.startswith(("rl: ALARM at iteration ", "reward: warning: "))


def unlike(shown: list[str], printed: list[str]) -> list[str]:
    """The lines of a page that no printed line looks like."""
    there = [line.strip() for line in printed]
    return [
        line
        for line in shown
        if line.strip() not in ("", "…")
        and not comes_and_goes(line)
        and not any(form_of(line).fullmatch(other) for other in there)
    ]


def run_here(command: str) -> list[str]:
    """Runs a command of preferl in this process; returns what it printed, errors too."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            cli.main(shlex.split(command)[1:])
        except SystemExit as error:
            print(f"exit code {error.code}")
    return out.getvalue().splitlines()


def run_shell(command: str) -> list[str]:
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60, env=environment()
    )
    return (done.stdout + done.stderr).splitlines()


def run_until(command: str, last: str) -> list[str]:
    """Runs a command that serves until it has printed a line with ``last``."""
    arguments = [*RUN, *shlex.split(command)[1:]]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )
    timer = threading.Timer(60, process.kill)
    timer.start()
    lines: list[str] = []
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            lines.append(line.rstrip("\n"))
            if last in line:
                break
        process.send_signal(signal.SIGINT)
    process.wait(30)
    timer.cancel()
    return lines


def environment() -> dict[str, str]:
    """This interpreter's programs first; one thread."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def lay_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``folder`` the current one, in which the pages' relative paths lead to the repository's files,
    and runs/ to new ones."""
    for name in ("benchmarks", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "runs").mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(ROOT))


def lay_out_files(page: Path) -> None:
    """Writes the files of a page into the current folder, and runs those that make data."""
    for part in parts(page):
        if isinstance(part, Python) and (name := file_of(part)):
            Path(name).write_text(part.code, encoding="utf-8")
            if name.startswith("make_"):
                subprocess.run([sys.executable, name], check=True)


def added_to(command: str, small: Mapping[str, str | None]) -> str | None:
    """What ``small`` adds to a command, by the longest beginning that fits; None where it is not run."""
    fitting = [start for start in small if command.startswith(start)]
    return small[max(fitting, key=len)] if fitting else None


def printed_by(part: Console, small: Mapping[str, str | None]) -> list[str] | None:
    """What a command prints when it is run small; None where it is only parsed."""
    program = shlex.split(part.command)[0]
    if program not in ("preferl", "python"):
        return run_shell(part.command)
    more = added_to(part.command, small)
    if more is None or not part.output:
        return None
    command = f"{part.command} {more}".strip()
    if program == "python":
        return run_shell(command)
    if command.startswith("preferl label --"):
        return run_until(command, "Ctrl+C stops")
    return run_here(command)


def differences(page: Path, small: Mapping[str, str | None]) -> list[str]:
    """Runs a page from its top; what it shows and nothing prints, block by block.

    Args:
        page: the page.
        small: how a command begins -> what is added to it, so that it takes a few seconds; the longest
            beginning counts. A command that fits none or None, or that is shown without output, is not run.
    """
    wrong: list[str] = []
    names: dict[str, object] = {}
    of_a_run = False
    for part in parts(page):
        if isinstance(part, Python) and file_of(part):
            continue
        if isinstance(part, Python):
            of_a_run = of_a_run or "runs/" in part.code
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(part.code, part.where, "exec"), names)
            printed = out.getvalue().splitlines()
            if of_a_run:
                missing = unlike(part.output.splitlines(), printed)
            else:
                missing = [part.output] if out.getvalue() != part.output else []
        else:
            found = printed_by(part, small)
            if found is None:
                continue
            printed, missing = found, unlike(part.output, found)
        if missing:
            wrong.append("\n".join([part.where, *missing, "-- printed --", *printed]))
    return wrong
