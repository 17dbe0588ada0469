"""A run to share, and a Hub to push it to."""

import socket
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

import stub_uploads
from run_to_share import MACHINE, USER, Run, polite_run


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home directory of a person with a name, on a machine with a name, with keys in the environment."""
    home = tmp_path / "home" / USER
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", USER)
    monkeypatch.setenv("JUDGE_API_KEY", "judges-own-secret-value")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: MACHINE)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no-token"))
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def run(home, policy_directory) -> Run:
    """sft, reward, rl, evaluate, from a model of the Hub and labels in a file."""
    return polite_run(home, policy_directory)


@pytest.fixture
def hub(monkeypatch):
    """A Hub on localhost, to which huggingface_hub of this process speaks, without Xet."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub = stub_uploads.Hub()
    with stub_uploads.serving(hub) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", stub_uploads.TOKEN)
        yield hub


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(token=stub_uploads.TOKEN)
