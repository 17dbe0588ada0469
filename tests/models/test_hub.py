"""What the Hub does not give is one sentence, at once."""

import hashlib
import http.server
import json
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from preferl.models import hub, load
from preferl.models.reward import load_reward_model
from preferl.models.storage import stored_dtype
from preferl.runs.errors import UsageError
from small_models import make_language_model

CPU = torch.device("cpu")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """Knows a gated model and one whose files lie in ``public``, and no other."""

    public: Path

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        content, error = b"", "GatedRepo" if "/org/gated/" in self.path else "RepoNotFound"
        if self.path.startswith("/api/models/org/public/tree/"):
            files = [(file.name, file.stat().st_size) for file in self.public.iterdir()]
            tree = [{"type": "file", "path": name, "size": size, "oid": COMMIT} for name, size in files]
            content = json.dumps(tree).encode()
        elif self.path.startswith("/api/models/org/public"):
            names = [{"rfilename": file.name} for file in self.public.iterdir()]
            content = json.dumps({"id": "org/public", "sha": COMMIT, "siblings": names}).encode()
        elif self.path.startswith("/org/public/resolve/"):
            file, error = self.public / Path(self.path).name, "EntryNotFound"
            content = file.read_bytes() if file.exists() else b""
        self.send_response(200 if content else 403 if error == "GatedRepo" else 404)
        if not content:
            self.send_header("X-Error-Code", error)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    """The Hub's address, at which nothing listens unless a test says so."""
    hub.check_hub.cache_clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setenv("no_proxy", "*")
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


def test_the_stored_dtype_of_a_model_in_shards_is_known_on_the_first_run(
    endpoint, tokenizer, tmp_path, monkeypatch
):
    """Its shards are downloaded before their dtype is asked for, and not only their index."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    model = make_language_model("qwen3", tokenizer).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "public", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "public")
    assert len(list((tmp_path / "public").glob("*.safetensors"))) > 1
    monkeypatch.setattr(Hub, "public", tmp_path / "public", raising=False)
    thread = threading.Thread(target=endpoint.serve_forever, daemon=True)
    thread.start()
    assert stored_dtype("org/public") == torch.bfloat16
    endpoint.shutdown()
    thread.join()
