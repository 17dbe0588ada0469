"""What the Hub does not give is one sentence, at once."""

import http.server
import threading

import pytest
import torch
from huggingface_hub import constants

from preferl.data import sources
from preferl.models import hub, load
from preferl.models.reward import load_reward_model
from preferl.models.storage import stored_dtype
from preferl.pipeline import KINDS, stage_module
from preferl.runs.errors import UsageError
from small_models import make_language_model
from stub_hub import serving

CPU = torch.device("cpu")


class Hub(http.server.BaseHTTPRequestHandler):
    """Knows a gated model, and no other."""

    def do_HEAD(self):
        gated = "/org/gated/" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def lies_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub is at this address."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def endpoint(monkeypatch):
    """The Hub's address, at which nothing listens unless a test says so."""
    hub.check_hub.cache_clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    lies_at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    yield server
    server.server_close()
    hub.check_hub.cache_clear()


@pytest.mark.parametrize("read", [load.load_policy, load_reward_model])
def test_a_model_that_the_hub_does_not_give_is_one_sentence(endpoint, read):
    thread = threading.Thread(target=endpoint.serve_forever, daemon=True)
    thread.start()
    with pytest.raises(UsageError, match=r"gated model: ask for access at http.*/org/gated"):
        read("org/gated", CPU)
    with pytest.raises(UsageError, match="neither a directory here nor a model of the Hub"):
        read("org/none", CPU)
    endpoint.shutdown()
    thread.join()


@pytest.mark.parametrize("read", [load.load_policy, load_reward_model])
def test_without_a_network_a_name_of_the_hub_is_one_sentence(endpoint, read):
    endpoint.server_close()
    with pytest.raises(UsageError, match=r"cannot be reached \(ConnectError: .*hf download org/model"):
        read("org/model", CPU)


def test_what_is_here_is_not_asked_for(endpoint, policy_directory):
    endpoint.server_close()
    load.load_policy(str(policy_directory), CPU)


def test_the_stored_dtype_of_a_model_in_shards_is_known_on_the_first_run(tokenizer, tmp_path, monkeypatch):
    """Its shards are downloaded before their dtype is asked for, and not only their index."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    make_language_model("qwen3", tokenizer).to(torch.bfloat16).save_pretrained(
        tmp_path / "model", max_shard_size="20KB"
    )
    files = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    assert len([name for name in files if name.endswith(".safetensors")]) > 1
    with serving({"org/public": {"main": files}}) as url:
        lies_at(url, monkeypatch)
        assert stored_dtype("org/public") == torch.bfloat16


@pytest.mark.parametrize("stage", ["sft", "collect", "reward", "best_of", "dpo", "rl", "evaluate"])
def test_a_model_that_is_nowhere_is_refused_before_any_data_is_read(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "load_source", lambda *_, **__: pytest.fail("data was read"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    missing = str(tmp_path / "missing")
    config = KINDS[stage](
        output_dir=str(tmp_path / stage), dataset_name=str(rows), model_name_or_path=missing
    )
    with pytest.raises(UsageError, match="missing' is no directory here, and no name of a model"):
        stage_module(stage).run(config)


def test_a_path_that_is_gone_is_said_to_be_so_without_a_network_too(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="base/model' is no directory here, and no name of a model"):
        hub.check_hub("/gone/base/model")


def test_where_the_hub_must_not_be_asked_that_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub.check_hub.cache_clear()
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set; unset it, or give a directory"):
        hub.check_hub("org/absent")
    (tmp_path / "models--org--here").mkdir()
    hub.check_hub("org/here")
    hub.check_hub.cache_clear()
