"""``preferl serve``: the real ``transformers serve`` on a small model, and what it is not given."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from environment import missing
from loopback import assert_heard_here_alone
from preferl import cli, serve
from preferl.options.chat import ServeConfig
from preferl.runs.errors import UsageError
from preferl.runs.policies import find_policy


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port, path, body=None):
    """The status and the JSON of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_completion_over_http_by_this_model_alone(policy_directory):
    for package in serve.NEEDED:
        try:
            __import__(package)
        except ImportError:
            missing(package)
    port = free_port()
    command = [sys.executable, "-m", "preferl", "serve", str(policy_directory), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                assert ask(port, "/health") == (200, {"status": "ok"})
                break
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < end
            time.sleep(0.3)
        status, answer = ask(port, "/v1/completions", {"prompt": "Name two colours.", "max_tokens": 5})
        assert status == 200
        assert answer["usage"]["completion_tokens"] <= 5
        assert isinstance(answer["choices"][0]["text"], str)
        status, answer = ask(port, "/v1/completions", {"prompt": "x", "model": "another"})
        assert status == 400
        assert "pinned" in answer["detail"]
        assert_heard_here_alone(port)
    finally:
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0].decode()
    assert f"http://127.0.0.1:{port}/v1/chat/completions" in said
    assert process.returncode is not None
    with pytest.raises(ProcessLookupError):  # nobody of its session is left
        os.killpg(process.pid, 0)


def test_a_folder_is_served_offline_and_its_code_never_run(policy_directory, tmp_path, monkeypatch):
    stage = tmp_path / "rl"
    shutil.copytree(policy_directory, stage / "model")
    (stage / "manifest.json").write_text('{"stage": "rl"}')
    settings = json.loads((stage / "model" / "tokenizer_config.json").read_text())
    settings["chat_template_kwargs"] = {"enable_thinking": False}
    (stage / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found = find_policy(str(stage))
    command = serve.command_of(found, ServeConfig(port=8123, dtype="float32"))
    assert command[4:] == [
        *("serve", str(stage / "model"), "--host", "127.0.0.1", "--port", "8123", "--no-trust-remote-code"),
        *("--device", "auto", "--dtype", "float32", "--chat-template-kwargs", '{"enable_thinking": false}'),
    ]
    assert serve.environment_of(found)["HF_HUB_OFFLINE"] == "1"
    hub = find_policy("owner/name")
    assert serve.command_of(hub, ServeConfig())[5] == "owner/name"
    assert "HF_HUB_OFFLINE" not in serve.environment_of(hub)


def test_what_it_cannot_serve_is_refused_in_a_sentence(policy_directory, tmp_path, capsys, monkeypatch):
    reward = tmp_path / "reward"
    reward.mkdir()
    (reward / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM"}')
    (tmp_path / "small.gguf").write_text("x")
    (tmp_path / "unnamed").mkdir()
    (tmp_path / "unnamed" / "config.json").write_text("{}")
    shutil.copytree(policy_directory, tmp_path / "a@b")
    started = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for arguments, words in [
            ([reward], "it scores texts and writes none"),
            ([adapter], "adapter weights (LoRA), which `transformers serve` does not load"),
            ([tmp_path / "small.gguf"], "a GGUF file, which `transformers serve` does not load"),
            ([tmp_path / "unnamed"], "names no class of the model"),
            ([tmp_path / "a@b"], "as a revision; give the folder another name"),
            ([tmp_path / "absent"], "there is no folder"),
            ([policy_directory, "--port", taken.getsockname()[1]], "cannot be had"),
            ([], "serve takes one model"),
        ]:
            assert cli.main(["serve", *map(str, arguments)]) == 2, arguments
            assert words in capsys.readouterr().err, arguments
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UsageError, match=r"needs openai, .* pip install 'preferl\[serve\]'"):
        serve.run(find_policy(str(policy_directory)), ServeConfig(port=free_port()))
    assert not started
