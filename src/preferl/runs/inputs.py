"""What a stage is made of: its options, and the content of everything that they name.

A stage is finished only if the same options and the same content would be read today. So names are told by
content: local files and directories by SHA-256, Hub names by the revision in the cache, what was handed over
from Python by its name, which is made of its content. Where things lie does not matter: a run that was moved
stays finished.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import sysconfig
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from preferl.runs.errors import UsageError
from preferl.runs.files import sha256_of, write_atomically
from preferl.runs.mark import read_mark, was_stage

# Options that name data, models and rewards.
DATA = (
    *("dataset_name", "also_train_on", "train_dataset_name", "responses_file", "add_to"),
    "mixture_dataset_name",
)
NAMING = (
    *DATA,
    *("layout", "model_name_or_path", "ref_model", "reference_policy"),
    *("reward_model", "gold", "held_out_reward", "adversarial", "annotator", "judge", "algorithm"),
)
# Options that change where and how fast a stage runs and whom it tells, and nothing that it makes.
NOT_COMPARED = (
    *("output_dir", "device", "num_threads", "save_every", "judge_replies", "offload", "report_to"),
)
# What the stages after one read of it.
MADE = ("model", "value_model", "adapter", "data")
# What stands between the names of a mixture, an ensemble or a judge: 0.7*runs/a + 0.3*min(runs/b, runs/c),
# and between a reward model and the weights of its attributes: runs/d#0.6*helpfulness+0.4*correctness.
BETWEEN = re.compile(r"\s+\+\s+|\s*[,*?()]\s*|judge:|#(?=[+-]?[\d.])")
MOST_SHOWN = 4  # changes, in a message
LARGE = 16 << 20  # bytes; of larger files the hash is remembered
SETTLED_S = 2.0  # a file that was written just now may be written again within one tick of its time


@dataclass(frozen=True)
class Input:
    """Something that an option names.

    Args:
        name: as it stands in the option.
        path: where it lies; None for what is on the Hub.
        content: SHA-256 of what a stage reads of it, or the Hub's revision.
    """

    name: str
    path: Path | None
    content: str

    def seen_from(self, stage: Path) -> str | None:
        """Its path from a stage's directory."""
        return None if self.path is None else _relative(self.path, stage)


@dataclass(frozen=True)
class Identity:
    """What decides what a stage makes.

    Args:
        given: its options as they were given.
        options: those that decide; names of local inputs are ``@`` in them.
        inputs: by the option that names them (``reward_model``, ``reward_model-2``).
    """

    given: dict[str, Any]
    options: dict[str, Any]
    inputs: dict[str, Input]

    @property
    def hash(self) -> str:
        return hash_of(self.options, {role: found.content for role, found in self.inputs.items()})

    def recorded(self, stage: Path) -> dict[str, Any]:
        """As it stands in a stage's manifest, paths as seen from the stage's directory."""
        parents: dict[str, dict[str, str]] = {}
        for role, found in self.inputs.items():
            parents[role] = {"name": found.name, "hash": found.content}
            path = found.seen_from(stage)
            if path is not None:
                parents[role]["path"] = path
        return {"options": self.options, "parents": parents}


def hash_of(options: Mapping[str, Any], content: Mapping[str, str]) -> str:
    """SHA-256 of options and of the content of inputs by role."""
    text = json.dumps([options, content], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Changes:
    """How a stage that was made before differs from what would be made today: option -> sentence. With other
    ``options`` something else was asked for; with other ``inputs`` the same is made of something else."""

    options: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.options or self.inputs)

    def __str__(self) -> str:
        shown = [*self.options.values(), *self.inputs.values()]
        more = len(shown) - MOST_SHOWN
        return ", ".join(shown[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def identify(given: Mapping[str, Any]) -> Identity:
    """The identity of a stage with these options (plain values, by name).

    Raises:
        UsageError: an option names a stage that is not finished.
    """
    options = {name: value for name, value in given.items() if name not in NOT_COMPARED}
    inputs: dict[str, Input] = {}
    for option in NAMING:
        text = options.get(option)
        if not isinstance(text, str) or (option in DATA and text == "world"):
            continue  # not a folder that is called like the embedded world
        if option == "layout" and not Path(text).is_file():
            continue  # the name of one that is known
        if option == "algorithm" and ":" not in text:
            continue  # one of ours, and not a folder that is called like it
        revision = options.get("revision") if option == "dataset_name" else None
        for number, found in enumerate(inputs_in(text, revision), 1):
            inputs[option if number == 1 else f"{option}-{number}"] = found
            if found.path is not None:
                options[option] = options[option].replace(found.name, "@")
    return Identity(dict(given), options, inputs)


def changes(stage: Path, manifest: Mapping[str, Any], stored: Mapping[str, Any], now: Identity) -> Changes:
    """What has changed since a stage was made.

    Args:
        stage: its directory.
        manifest: of the stage.
        stored: the options as they were given then.
        now: the identity that it would have today.
    """
    found = Changes()
    before = manifest["options"]
    for key in sorted(before.keys() | now.options.keys()):
        if before.get(key) == now.options.get(key):
            continue
        if key in NAMING and stored.get(key) == now.given.get(key):
            found.inputs[key] = f"{key}: {stored[key]} is not what it was, or not there any more"
        else:
            found.options[key] = f"{key}: {stored.get(key)!r} -> {now.given.get(key)!r}"
    for role, new in now.inputs.items():
        old = manifest["parents"].get(role)
        if old is None or old["hash"] == new.content:
            continue
        if new.name == old["name"] or new.seen_from(stage) == old.get("path"):
            found.inputs[role] = f"{role}: {new.name} is not what it was"
        else:
            found.options[role] = f"{role}: {old['name']!r} -> {new.name!r}"
    return found


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """The options that differ and decide what a stage makes."""
    both = [key for key in sorted(before.keys() | now.keys()) if key not in NOT_COMPARED]
    return Changes(
        {
            key: f"{key}: {before.get(key)!r} -> {now.get(key)!r}"
            for key in both
            if before.get(key) != now.get(key)
        }
    )


# -------------------------------------------------------------------------------------------- what is named


def seen_from(stage: Path, text: str) -> str:
    """An option's text with local paths as they are seen from a stage's directory: what a stage writes about
    where something comes from stays true where the run is moved, and is the same in every run.

    Example:
        >>> seen_from(Path("runs/demo/collect"), "0.5*runs/demo/reward + 0.5*concise")  # doctest: +SKIP
        '0.5*../reward + 0.5*concise'
    """
    for name in names_in(text):
        if Path(name).expanduser().exists():
            text = text.replace(name, _relative(Path(name), stage))
    return text


def inputs_in(text: str, revision: str | None = None) -> Iterator[Input]:
    """What a text names: a file, a directory, a Hub name (of a revision), a person's own module, or several
    in a mixture."""
    for name in names_in(text):
        found = input_of(name, revision)
        if found is not None:
            yield found


def names_in(text: str) -> list[str]:
    """What may be names in a text, each once."""
    names = [text] if Path(text).expanduser().exists() else BETWEEN.split(text)
    return [name for name in dict.fromkeys(names) if name]


def _relative(path: Path, stage: Path) -> str:
    return os.path.relpath(path.expanduser().resolve(), stage.resolve())


def input_of(name: str, revision: str | None = None) -> Input | None:
    """What a name stands for (of a revision, where it is the Hub's); None where it is no file and not in the
    cache, such as a utility's name."""
    path = Path(name).expanduser()
    if path.is_file():
        return Input(name, path, file_hash(path))
    if path.is_dir():
        refuse_unfinished(path)
        return Input(name, path, hash_directory(path))
    module = own_module(name)
    if module is not None:
        return Input(name, None, file_hash(module))
    commit = hub_revision(name, revision)
    return Input(name, None, commit) if commit else None


def refuse_unfinished(path: Path) -> None:
    """A stage without ``DONE`` is no input, nor is what lies in it.

    Raises:
        UsageError: it is one.
    """
    for directory in (path, path.resolve().parent):
        mark = read_mark(directory)
        if not (mark.kind == "stage" if mark else was_stage(directory)):
            continue
        if (directory / "DONE").exists():
            return
        raise UsageError(
            f"unfinished: {path} is of a stage that was interrupted or still runs; the command that made it "
            f"goes on with it"
        )


def own_module(name: str) -> Path | None:
    """The file of ``module:object``, unless it is installed: then its version stands for it."""
    module, _, inside = name.partition(":")
    if not inside or not all(part.isidentifier() for part in module.split(".")):
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None  # whoever loads it says what is wrong
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    installed = [Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "purelib", "platlib")]
    file = Path(spec.origin).resolve()
    return None if any(map(file.is_relative_to, installed)) else file


def hub_revision(name: str, asked: str | None = None) -> str | None:
    """The commit of a Hub name that the local cache would give; None where it has none.

    Args:
        name: may name a revision itself.
        asked: the revision that an option names.
    """
    repository = re.split(r"[:\[@]", name)[0]
    at = re.search(r"@([^:@\[]+)", name)
    revision = at[1] if at else asked or "main"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository):
        return None
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    for kind in ("model", "dataset"):
        folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type=kind)
        if (folder / "snapshots" / revision).is_dir():  # a commit
            return revision
        with contextlib.suppress(OSError):
            return (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    return None


# --------------------------------------------------------------------------------------------------- hashes


def hash_directory(path: Path) -> str:
    """SHA-256 of a directory: of a stage what others read of it, members of an ensemble included; of anything
    else every file that is not hidden."""
    digest = hashlib.sha256()
    for file in sorted(_files_in(path)):
        digest.update(f"{file.relative_to(path).as_posix()}\0{file_hash(file)}\0".encode())
    return digest.hexdigest()


def _files_in(path: Path) -> Iterator[Path]:
    if read_mark(path) is None and not was_stage(path):
        yield from _visible(path)
        return
    for name in MADE:
        yield from _visible(path / name)
    for inside in path.iterdir():
        if inside.is_dir() and read_mark(inside) is not None:
            yield from _files_in(inside)


def _visible(path: Path) -> Iterator[Path]:
    for directory, below, files in os.walk(path):
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (Path(directory) / name for name in files if not name.startswith("."))


def file_hash(path: Path) -> str:
    """SHA-256 of a file. That of a large file is remembered until its size, time or inode changes."""
    path = path.resolve()
    stat = path.stat()
    if stat.st_size < LARGE or time.time() - stat.st_mtime < SETTLED_S:
        return sha256_of(path)
    key = [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    remembered = platformdirs.user_cache_path("preferl") / "hashes" / name
    try:
        found = remembered.read_text(encoding="utf-8")
        if len(found) == hashlib.sha256().digest_size * 2:
            return found
    except OSError:
        pass
    found = sha256_of(path)
    with contextlib.suppress(OSError):  # nowhere to remember it: it is read again the next time
        write_atomically(remembered, found)
    return found
