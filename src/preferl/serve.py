"""``preferl serve``: one model behind OpenAI's API, by ``transformers serve``, which this process becomes.

It listens to this machine alone, answers by this model alone and runs no code that a model brings; where the
model is a folder, nothing is asked of the Hub. There is no server of preferl's own: how an answer is sampled
is up to the request and to the model's ``generation_config.json``.
"""

import importlib.util
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from preferl.data.templates import KWARGS
from preferl.options.chat import ServeConfig
from preferl.runs.errors import UsageError
from preferl.runs.policies import FoundPolicy, kinds_in
from preferl.runs.progress import say

HOST = "127.0.0.1"
NEEDED = ("fastapi", "openai", "pydantic", "uvicorn")  # by ``transformers serve``


def run(found: FoundPolicy, config: ServeConfig) -> NoReturn:
    """Becomes the server.

    Raises:
        UsageError: it cannot serve this model, or not here.
    """
    refuse_missing_packages()
    refuse_taken(config.port)
    command, environment = command_of(found, config), environment_of(found)
    if found.why:
        say(f"{found.given}: {found.why} ({found.path})")
    say(
        f"`transformers serve` answers at http://{HOST}:{config.port}/v1/chat/completions, and at "
        f"/v1/completions for a model without a chat template; Ctrl+C ends it"
    )
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def command_of(found: FoundPolicy, config: ServeConfig) -> list[str]:
    """The program and its arguments.

    Raises:
        UsageError: ``transformers serve`` loads no such model.
    """
    model = str(found.folder or found.path)
    kwargs = None
    if found.folder is not None:
        refuse_unservable(found.given, found.folder)
        kwargs = template_kwargs(found.folder)
    # -P: nothing in the current folder stands in for a module.
    command = [sys.executable, "-P", "-m", "transformers.cli.transformers", "serve", model]
    command += ["--host", HOST, "--port", str(config.port), "--no-trust-remote-code"]
    command += ["--device", config.device, "--dtype", config.dtype]
    return command if kwargs is None else [*command, "--chat-template-kwargs", json.dumps(kwargs)]


def environment_of(found: FoundPolicy) -> dict[str, str]:
    """The variables of the server's process."""
    quiet = {"HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    return {**os.environ, **quiet, **({"HF_HUB_OFFLINE": "1"} if found.folder is not None else {})}


def template_kwargs(folder: Path) -> Mapping[str, object] | None:
    """What the model's chat template is given besides messages, where that is kept with it."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings.get(KWARGS) if isinstance(settings, dict) else None


def refuse_missing_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"serving needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            f"installed: pip install 'preferl[serve]'"
        )


def refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UsageError(
                f"port {port} of {HOST} cannot be had ({error.strerror}); give another --port"
            ) from error


def refuse_unservable(name: str, folder: Path) -> None:
    """Refuses what ``transformers serve`` does not load, where it would fail in words of its own."""
    if not (folder / "config.json").exists():
        kind = "adapter weights (LoRA)" if (folder / "adapter_config.json").exists() else "a GGUF file"
        raise UsageError(
            f"'{name}' holds {kind}, which `transformers serve` does not load from a folder; serve the "
            f"whole model, as preferl writes it into model/"
        )
    if not kinds_in(folder):
        raise UsageError(
            f"{folder / 'config.json'} names no class of the model (architectures), by which `transformers "
            f"serve` loads it; write it there, or save the model anew with save_pretrained"
        )
    if "@" in str(folder):
        raise UsageError(
            f"`transformers serve` reads what follows the @ in '{folder}' as a revision; give the folder "
            f"another name"
        )
