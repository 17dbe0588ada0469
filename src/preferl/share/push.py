"""Uploads a model of a run to the Hugging Face Hub, with its card as README.md and its report beside it.

What goes is a list of files that is shown first: weights as safetensors, configuration and tokenizer of the
one folder that was asked for, and two pages that are made for it. Everything else of a run stays: logs,
samples, ``env.json``, configurations with paths. Repositories are private unless ``--public`` is given, and
nothing in one that is there is deleted. The Hub is spoken to by huggingface_hub alone.
"""

import contextlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from safetensors import SafetensorError, safe_open

from preferl.reporting.gather import Gathered
from preferl.runs.errors import UsageError
from preferl.runs.progress import say
from preferl.share import data
from preferl.share.card import model_card
from preferl.share.options import PushOptions
from preferl.share.private import Private, is_absolute, texts_in
from preferl.share.subject import Subject, read
from preferl.stages import report

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
TEXTS = (".json", ".jinja", ".txt")
OTHERS = (".model", ".tiktoken")  # vocabularies of tokenizers
# Files in which every word of a language may stand.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
PATH_KEYS = ("_path", "_file", "_dir")  # ends of keys of JSON that name places
CARD, PAGE = "README.md", "report.html"
NOT_ASKED = "nothing was uploaded; look at the list, then give the command again with --yes"


@dataclass(frozen=True)
class File:
    """A file to upload: its path in the repository, and its content or where that lies."""

    path: str
    content: Path | bytes

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub: its full name, its kind (``model`` or ``dataset``), whether everybody sees it,
    and the files that are in it already; None where there is no such repository yet."""

    name: str
    kind: str
    public: bool
    there: frozenset[str] | None = None


def check(name: str) -> None:
    """Refuses a name to which a private model cannot be pushed, before anything is made.

    Raises:
        UsageError: as of ``repository``.
    """
    check_name(name)
    repository(hub(), name, "model", public=False)


def push(run: Path, name: str, options: PushOptions, api: Any = None) -> str | None:
    """Uploads a model.

    Args:
        run: a directory of a run or of a stage.
        name: of the repository, ``owner/name`` or a name of one's own.
        options: which model, and who may see it.
        api: of huggingface_hub; by default that of this machine's token.

    Returns:
        The repository's address; None where nothing was uploaded.

    Raises:
        UsageError: there is no such model, something in it must not leave, nobody agreed, or the Hub refuses.
    """
    check_name(name)
    subject = read(run, options.stage, options.part)
    with tempfile.TemporaryDirectory() as temporary:
        if api is None and not options.dry_run:
            api = hub()
        target = destination(api, name, "model", options)
        files, notes = files_of(subject, target.name, options.license)
        uploads = [(target, files)]
        if options.with_data:
            target = destination(api, f"{name}-data", "dataset", options)
            uploads.append((target, data_files(subject, target.name, Path(temporary))))
        for target, files in uploads:
            show(target, files, known=not options.dry_run)
        for note in notes:
            say(f"push: {note}")
        if options.dry_run:
            say("push: --dry_run: nothing was uploaded")
            return None
        if not options.yes:
            ask()
        addresses = [upload(api, target, files, subject) for target, files in uploads]
    for address in addresses:
        say(f"push: {address}")
    return addresses[0]


def destination(api: Any, name: str, kind: str, options: PushOptions) -> Repository:
    """Where files go: as the Hub says, or for a dry run as it was asked for."""
    if options.dry_run:
        return Repository(name, kind, options.public)
    return repository(api, name, kind, options.public)


def show(target: Repository, files: Sequence[File], known: bool) -> None:
    """Says where files go, who will see them, and which they are."""
    seen = "public" if target.public else "private"
    if known:
        seen += ", a new one" if target.there is None else ", which is there and keeps what it has"
    say(f"push: to the {target.kind} repository {target.name} ({seen}):")
    for file in files:
        replaces = ", in place of the one there" if file.path in (target.there or ()) else ""
        say(f"  {decimal(file.size):>10}  {file.path}{replaces}")
    say(f"  {decimal(sum(file.size for file in files)):>10}  in {len(files)} files")


def ask() -> None:
    """Asks the person at the terminal.

    Raises:
        UsageError: there is none, or they say no.
    """
    if not sys.stdin.isatty():
        raise UsageError(NOT_ASKED)
    try:
        answer = input("Upload this? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was uploaded")


# ------------------------------------------------------------------------------------------------------ files


def files_of(subject: Subject, title: str, license: str | None) -> tuple[list[File], list[str]]:
    """The files of a model's repository, the two pages first; and what is to be said about them."""
    of_model, notes = model_files(subject.folder, subject.private)
    card, page = str(model_card(subject, title, license)), report_of(subject)
    refuse_private(CARD, card, subject.private)
    refuse_private(PAGE, page, subject.private)
    return [File(CARD, card.encode()), File(PAGE, page.encode()), *of_model], notes


def report_of(subject: Subject) -> str:
    """The report of a model and of what led to it, with names in place of paths."""
    with tempfile.TemporaryDirectory() as temporary:
        path = report.write_gathered(Gathered({subject.name: subject.stages}), Path(temporary) / PAGE)
        return subject.private.clean(path.read_text(encoding="utf-8"))


def model_files(folder: Path, private: Private) -> tuple[list[File], list[str]]:
    """What a folder that ``save_pretrained`` wrote gives to others; and which files are left out or changed.

    Raises:
        UsageError: there are no weights, or they are pickled, or a file must not leave.
    """
    files, notes = [], []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise UsageError(f"{path} is a link, which may lead anywhere; put the file itself there")
        if path.is_dir() or name == CARD:
            continue
        if path.suffix in PICKLES:
            raise UsageError(
                f"{path} may be a pickle, which runs code where it is loaded; save the model as safetensors "
                f"and remove it"
            )
        if path.suffix == ".safetensors":
            check_safetensors(path, private)
            files.append(File(name, path))
        elif path.suffix in TEXTS and not name.startswith("."):
            text = path.read_text(encoding="utf-8")
            cleaned = without_paths(text, private) if name.endswith("config.json") else text
            refuse_private(str(path), cleaned, private, only_keys=path.name in VOCABULARIES)
            files.append(File(name, path if cleaned == text else cleaned.encode()))
            if cleaned != text:
                notes.append(f"{name}: paths in it became names")
        elif path.suffix in OTHERS:
            files.append(File(name, path))
        else:
            notes.append(f"left out: {name}")
    if not any(file.path.endswith(".safetensors") for file in files):
        raise UsageError(f"{folder} holds no safetensors; save the model with save_pretrained")
    return files, notes


def check_safetensors(path: Path, private: Private) -> None:
    """Refuses a file that only is called so, and one whose remarks must not leave."""
    try:
        with safe_open(path, framework="numpy") as weights:
            remarks = weights.metadata() or {}
    except SafetensorError as error:
        raise UsageError(f"{path} is no file of safetensors ({error}); save the model again") from error
    for text in texts_in(remarks):
        refuse_private(str(path), text, private)


def without_paths(text: str, private: Private) -> str:
    """A configuration in JSON in which keys that name places have names; as it is where there is no path."""
    content = json.loads(text)

    def cleaned(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: cleaned(inside, name) for name, inside in value.items()}
        if isinstance(value, list):
            return [cleaned(inside, key) for inside in value]
        if isinstance(value, str) and key.endswith(PATH_KEYS):
            known = private.clean(value)
            return re.split(r"[\\/]", known)[-1] if is_absolute(known) else known
        return value

    found = cleaned(content)
    return text if found == content else json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def refuse_private(name: str, text: str, private: Private, only_keys: bool = False) -> None:
    """Refuses a text that holds what must not leave.

    Raises:
        UsageError: it does; the message names what, and does not show it.
    """
    found = private.found_in(text, only_keys)
    if found:
        raise UsageError(
            f"{name} holds {' and '.join(found)}, so that nothing was uploaded; take it out and give the "
            f"command again"
        )


def data_files(subject: Subject, title: str, folder: Path) -> list[File]:
    """The files of a repository of data, its card first."""
    parts, people = data.write(subject, folder)
    card = str(data.data_card(subject, parts, people, title))
    refuse_private(CARD, card, subject.private)
    return [File(CARD, card.encode()), *(File(part.path, part.file) for part in parts)]


# -------------------------------------------------------------------------------------------------- the Hub


def check_name(name: str) -> None:
    """Refuses what cannot be a repository's name, before anything is read."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(
            f"'{name}' is no name of a repository: write owner/name, of up to 96 letters, digits, '-', '_' "
            f"and '.'"
        ) from error


def hub() -> Any:
    """The Hub, by this machine's token.

    Raises:
        UsageError: there is no token.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise UsageError(
            "there is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN to a token that may "
            "write (https://huggingface.co/settings/tokens)"
        )
    return HfApi(library_name="preferl")


def repository(api: Any, name: str, kind: str, public: bool) -> Repository:
    """A repository as it is now.

    Raises:
        UsageError: the Hub cannot be asked, the token may not write, or the repository is public and that was
            not asked for.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    with said_in_a_sentence(name, api.endpoint):
        who = api.whoami()
        if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UsageError(
                f"the token of {who['name']} may only read: make one that may write at "
                f"{api.endpoint}/settings/tokens, and log in with it (`hf auth login`, or HF_TOKEN)"
            )
        full = name if "/" in name else f"{who['name']}/{name}"
        try:
            info = api.repo_info(full, repo_type=kind)
        except RepositoryNotFoundError:
            return Repository(full, kind, public)
    if not info.private and not public:
        raise UsageError(
            f"{full} is there already and public, and what is pushed is private by default: give --public if "
            f"everybody may see this model, or another name"
        )
    if info.private and public:
        say(f"push: {full} is there already and private, and stays so; its settings on the Hub change that")
    return Repository(full, kind, not info.private, frozenset(file.rfilename for file in info.siblings or ()))


def upload(api: Any, target: Repository, files: Sequence[File], subject: Subject) -> str:
    """Uploads files in one commit; returns the repository's address."""
    from huggingface_hub import CommitOperationAdd

    with said_in_a_sentence(target.name, api.endpoint):
        if target.there is None:
            api.create_repo(target.name, repo_type=target.kind, private=not target.public)
        api.create_commit(
            target.name,
            [CommitOperationAdd(file.path, file.content) for file in files],
            commit_message=f"{subject.record.kind} of {subject.name}, by preferl",
            repo_type=target.kind,
        )
    return f"{api.endpoint}/{'datasets/' if target.kind == 'dataset' else ''}{target.name}"


@contextlib.contextmanager
def said_in_a_sentence(name: str, endpoint: str) -> Iterator[None]:
    """Errors of the Hub and of the way there as one sentence with what to do.

    Raises:
        UsageError: there was one.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # of whichever library the Hub's client asks with
        raise UsageError(reason(error, name, endpoint)) from error


def reason(error: BaseException, name: str, endpoint: str) -> str:
    """Why the Hub did not take something, and what to do."""
    status, said = status_of(error)
    if status == 401:
        return (
            f"the Hub ({endpoint}) does not know this token (401): log in with `hf auth login`, or set "
            f"HF_TOKEN to one that may write"
        )
    if status in (403, 404):
        return (
            f"this token may not write to {name} ({status}): take one with the right to write "
            f"({endpoint}/settings/tokens), or the name of a repository of your own"
        )
    if status in (409, 412):
        return f"{name} is taken, or being changed ({status}): give the command again, or another name"
    if status is not None:
        return f"the Hub ({endpoint}) did not take {name} ({status}: {said}); give the command again later"
    return f"the Hub ({endpoint}) cannot be reached ({said}): give the command again where there is a network"


def status_of(error: BaseException) -> tuple[int | None, str]:
    """The status that the Hub answered with, if that is what went wrong, and what was said with it."""
    from huggingface_hub.errors import HfHubHTTPError

    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            return cause.response.status_code, " ".join((cause.server_message or str(cause)).split())
    return None, " ".join(f"{type(causes[-1]).__name__}: {causes[-1]}".split())
