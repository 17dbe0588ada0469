"""Models that mean harm, or are none: nothing of theirs runs, and what they are is said."""

import ast
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import preferl
from preferl.data.records import DataError
from preferl.data.tokens import prompt_ids
from preferl.models.load import load_policy, load_tokenizer
from preferl.models.reward import load_reward_model
from preferl.runs.errors import DivergedError, UsageError

CPU = torch.device("cpu")
AUTO = ("from_pretrained", "from_config")


@pytest.fixture
def model(policy_directory, tmp_path):
    """A copy of a saved policy, to be damaged."""
    return Path(shutil.copytree(policy_directory, tmp_path / "model"))


def change(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ----------------------------------------------------------------------------------------- code of their own


def test_every_call_that_loads_says_that_it_trusts_nothing():
    """Left out, transformers asks on the terminal. peft's own loaders know no such option, and run none."""
    calls, careless = 0, []
    for path in Path(preferl.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = ast.unparse(node.func.value)
            if node.func.attr not in AUTO or owner.startswith("Peft"):
                continue
            calls += 1
            trusted = {k.arg: ast.unparse(k.value) for k in node.keywords}.get("trust_remote_code")
            if trusted != "False":
                careless.append(f"{path.name}:{node.lineno}")
    assert calls >= 4
    assert not careless


def with_own_code(model: Path, part: str) -> Path:
    """A model that brings a program, by its configuration or its tokenizer's; returns what that makes."""
    ran = model.parent / "ran"
    (model / "evil.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    if part == "model":
        auto_map = {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.B", "AutoModel": "evil.B"}
        change(model / "config.json", model_type="evil", auto_map=auto_map)
    else:
        own = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.A", "evil.A"]}}
        change(model / "tokenizer_config.json", **own)
        (model / "tokenizer.json").unlink()
    return ran


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal to answer on")
@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_code_that_a_model_brings_does_not_run_though_somebody_says_yes(model, part):
    """The command on a terminal of its own, on which somebody types y as long as it runs."""
    import pty

    ran = with_own_code(model, part)
    process, terminal = pty.fork()
    if process == 0:
        command = ["-m", "preferl", "collect", "--dataset_name", "world", "--model_name_or_path", str(model)]
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.execv(sys.executable, [sys.executable, *command, "--output_dir", str(model.parent / "out")])
    said = b""
    os.set_blocking(terminal, False)
    limit = time.monotonic() + 120
    status = None
    while status is None:
        assert time.monotonic() < limit or os.kill(process, signal.SIGKILL)
        try:
            said += os.read(terminal, 10_000)
            os.write(terminal, b"y\n")
        except OSError:
            time.sleep(0.1)
        done, code = os.waitpid(process, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if done else None
    with open(terminal, "rb", buffering=0) as rest, contextlib.suppress(OSError):
        said += rest.read() or b""
    assert status == 2, said.decode()
    assert str(model) in said.decode()
    assert "brings code of its own" in said.decode()
    assert not ran.exists()


# ---------------------------------------------------------------------------------------------- sizes, files


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 10**6}, "GiB for its weights alone"),
        ({"vocab_size": 10**12}, "GiB for its weights alone"),
        ({"num_hidden_layers": 10**7}, "names 10,000,000 layers"),
        ({"intermediate_size": 96}, "other sizes than its configuration"),
        ({"num_attention_heads": -1}, "negative dimension"),
        ({"hidden_act": "nix"}, "KeyError: 'nix'"),
        ({"model_type": "nix"}, "nix"),
    ],
)
def test_configurations_that_cannot_be_are_refused_at_once(model, changes, says):
    change(model / "config.json", **changes)
    started = time.monotonic()
    with pytest.raises(UsageError, match=says) as error:
        load_policy(str(model), CPU)
    assert str(model) in str(error.value)
    assert time.monotonic() - started < 20


def test_a_pickle_is_no_model(model):
    ran = model.parent / "ran"
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {ran}'\ntR.".encode())
    with pytest.raises(UsageError, match="safetensors"):
        load_policy(str(model), CPU)
    assert not ran.exists()


# ------------------------------------------------------------------------------------- weights that are none


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_weight_that_is_no_number_is_found(model, value, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(model / "model.safetensors").items()}
    name = sorted(tensors)[3]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        DivergedError, match=r"has weights that are not finite numbers \(.* has (NaN|infinity)\)"
    ) as error:
        load_policy(str(model), CPU)
    assert str(model) in str(error.value)
    assert name in str(error.value)
    with pytest.raises(DivergedError, match="not finite"):
        load_reward_model(str(model), CPU, new_head_allowed=True)


# ------------------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{% for i in range(10**12) %}a{% endfor %}", "MAX_RANGE"),
        ("{{ raise_exception('no roles') }}", "no roles"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages[7]['content'] }}", "UndefinedError"),
    ],
)
def test_a_template_that_fails_is_named(model, template, says):
    (model / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(str(model))
    with pytest.raises(DataError, match="chat template of") as error:
        prompt_ids(tokenizer, [{"role": "user", "content": "2 + 2?"}])
    assert says in str(error.value)
    assert str(model) in str(error.value)


def test_a_template_that_loses_a_text_with_special_tokens_is_named(model):
    (model / "chat_template.jinja").write_text("{{ messages[0]['content'][:5] }}")
    tokenizer = load_tokenizer(str(model))
    with pytest.raises(DataError, match="cuts through the text of a message"):
        prompt_ids(tokenizer, [{"role": "user", "content": "say <|user|>"}])
