"""The command line as a person meets it: help without torch, errors in one line, exit codes."""

import json
import subprocess
import sys
import time
from dataclasses import fields

import pytest
import torch

from preferl import cli
from preferl.options.chat import ChatConfig, ServeConfig
from preferl.options.help import GROUPS
from preferl.pipeline import KINDS, RunOptions

OPTIONS = KINDS | {"run": RunOptions, "chat": ChatConfig, "serve": ServeConfig}
RUN = [sys.executable, "-m", "preferl"]


def call(capsys, *arguments):
    """Exit code, standard output and standard error of a command in this process."""
    try:
        code = cli.main(list(arguments))
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", ["rl", "collect", "evaluate", "audit", "run", "sweep", "chat", "serve"])
def test_help_of_a_command_loads_no_torch(command):
    check = (
        "import sys, preferl.cli as c\n"
        f"try: c.main(['{command}', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--config" in done.stdout


def test_help_shows_what_people_change_in_groups_and_with_all_the_rest(capsys):
    for kind, groups in GROUPS.items():
        shown = [name for names in groups.values() for name in names]
        known = {field.name for field in fields(OPTIONS[kind])}
        assert set(shown) <= known, kind
        assert len(shown) == len(set(shown)) <= 25, kind
    code, short, _ = call(capsys, "rl", "--help")
    assert code == 0
    assert "--kl_coef" in short
    assert "if initialised by preferl 0.1; if pretrained 0.05" in " ".join(short.split())
    assert "--adam_beta2" not in short
    assert "more options with --help all" in short
    code, whole, _ = call(capsys, "rl", "--help", "all")
    assert code == 0
    assert all(f"--{field.name}" in whole for field in fields(KINDS["rl"]))


def test_help_is_quick_and_loads_no_torch():
    check = "import sys, preferl.cli as c; c.main(['--help']); sys.exit('torch' in sys.modules)"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert time.monotonic() - started < 5  # the aim is one second; a loaded machine may take longer
    for command in cli.COMMANDS:
        assert f"preferl {command}" in done.stdout


def test_version_and_module():
    done = subprocess.run([*RUN, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("preferl 0.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rewrad"], ["unknown command 'rewrad'", "did you mean 'reward'"]),
        (["sft", "--learning_rat", "1"], ["learning_rat", "did you mean 'learning_rate'"]),
        (["sft", "--learning_rate", "fast"], ["learning_rate"]),
        (["run", "--config", "absent.yaml"], ["absent.yaml"]),
        (["run", "--rl.kl_coeff", "1"], ["rl.kl_coeff", "rl.kl_coef"]),
        (["sft", "--device", "abacus"], ["abacus", "cpu or cuda"]),
        (["collect"], ["--model_name_or_path"]),
        (["report", "absent"], ["absent", "not a directory"]),
        (["push", "absent", "a/b", "--dry_run"], ["absent", "not a directory"]),
        (["push", "runs/demo", "a/b", "--publik"], ["no option --publik", "push --help"]),
        (["sweep", "--sweep.gird", "{}"], ["sweep.gird", "did you mean 'sweep.grid'"]),
        (["sweep"], ["nothing varies", "sweep.grid"]),
        (["run", "--seeds", "none"], ["--seeds is none", "at least 1"]),
        (["run", "--seeds"], ["--seeds needs a value"]),
        (["report", "a", "b", "--output"], ["--output needs a value"]),
        (["rl", "--model_name_or_path", "absent/model/x", "--reward_model", "absent"], ["absent"]),
    ],
)
def test_usage_errors_are_one_line_with_the_fix(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *arguments)
    assert code == 2, err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 3, err
    for word in words:
        assert word in err


def test_data_errors_have_their_own_code(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "sft", "--dataset_name", "absent.jsonl")
    assert code == 3
    assert "absent.jsonl" in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, err = call(capsys, "sft", "--dataset_name", "absent.jsonl", "--debug")
    assert "Traceback" in err


def test_an_interrupt_is_resumable(capsys, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "demo", interrupted)
    code, _, err = call(capsys, "demo")
    assert code == 75
    assert "same command" in err


@pytest.mark.parametrize(
    "command", ["sft", "collect", "reward", "best_of", "dpo", "rl", "evaluate", "run", "demo", "sweep"]
)
def test_every_command_has_help_and_prints_its_configuration(capsys, command):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert "--output_dir" in out
    code, out, _ = call(capsys, command, "--print-config")
    assert code == 0
    assert "output_dir:" in out


def test_flags_win_over_files_and_later_files_over_earlier(capsys, tmp_path):
    (tmp_path / "a.yaml").write_text("learning_rate: 0.1\ntrain_batch_size: 2\nseed: 5\n")
    (tmp_path / "b.yaml").write_text("train_batch_size: 3\n")
    _, out, _ = call(
        capsys,
        "sft",
        "--config",
        str(tmp_path / "a.yaml"),
        "--config",
        str(tmp_path / "b.yaml"),
        "--seed",
        "7",
        "--print-config",
    )
    assert "learning_rate: 0.1" in out
    assert "train_batch_size: 3" in out
    assert "seed: 7" in out


def test_validate_and_convert(capsys, tmp_path):
    rows = [{"prompt": "q", "chosen": "a", "rejected": b} for b in ("b", "c", "")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    code, out, _ = call(capsys, "data", "validate", str(tmp_path / "in.jsonl"))
    assert code == 3
    assert "empty_response: 1" in out
    assert "in.jsonl:3" in out
    code, _, _ = call(
        capsys, "data", "convert", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "hh"
    )
    assert code == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    code, out, _ = call(capsys, "data", "convert", "world", str(tmp_path / "world"))
    assert code == 0
    assert len(out.splitlines()) == 3
    assert call(capsys, "data")[0] == 2


def test_convert_overwrites_nothing(capsys, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n")
    (tmp_path / "preferences.jsonl").write_text("mine")
    for command in ((source, tmp_path / "preferences.jsonl"), ("world", tmp_path)):
        arguments = ["data", "convert", *map(str, command)]
        code, _, err = call(capsys, *arguments)
        assert code == 2
        assert "preferences.jsonl is there already" in err
        assert (tmp_path / "preferences.jsonl").read_text() == "mine"
        assert call(capsys, *arguments, "--fresh")[0] == 0
        assert (tmp_path / "preferences.jsonl").read_text() != "mine"
        (tmp_path / "preferences.jsonl").write_text("mine")


def test_a_page_overwrites_nothing_of_somebody_else(capsys, tmp_path):
    """A file that is named, or that lies where a comparison's page does; a page of ours is replaced there."""
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q {i}", "chosen": "Yes.", "rejected": "No, never."} for i in range(12)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = [str(tmp_path / "runs" / name) for name in ("long", "short")]
    for place, reward in zip(places, ("length", "concise"), strict=True):
        command = ["audit", "--reward_model", reward, "--dataset_name", str(pairs), "--output_dir", place]
        assert call(capsys, *command)[0] == 0
    mine = tmp_path / "page.html"
    mine.write_text("mine")
    assert call(capsys, "report", places[0], "--output", str(mine))[0] == 2
    usual = tmp_path / "runs" / "comparison.html"
    usual.write_text("mine")
    code, _, err = call(capsys, "report", *places)
    assert code == 2
    assert f"{usual} is there already; name another file, or overwrite it with --fresh" in err
    assert [path.read_text() for path in (mine, usual)] == ["mine", "mine"]
    assert call(capsys, "report", *places, "--fresh")[0] == 0
    assert call(capsys, "report", *places)[0] == 0
    assert call(capsys, "report", places[0], "--output", str(mine), "--fresh")[0] == 0
    assert "preferl" in mine.read_text()


def test_doctor(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("PREFERL_DATA", raising=False)
    code, out, _ = call(capsys, "doctor")
    assert code == 0
    assert "torch" in out
    assert "disk" in out
    monkeypatch.setenv("PREFERL_DATA", str(tmp_path / "absent"))
    code, out, _ = call(capsys, "doctor")
    assert code == 1
    assert "no folder" in out


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError("cannot allocate"), 2, "out of memory; lower micro_batch_size"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), 2, "out of memory; lower"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "out of memory; lower"),
        (RuntimeError("an index"), 1, "a defect of preferl; --debug shows where"),
    ],
)
def test_a_full_machine_is_no_defect(error, code, words, monkeypatch, capsys):
    def fail(arguments):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "sft", fail)
    assert cli.main(["sft"]) == code
    assert words in capsys.readouterr().err
