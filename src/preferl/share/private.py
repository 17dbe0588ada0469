"""What must not leave this machine: local paths, names of the machine and its person, keys.

Records of stages hold paths, because stages find each other by them. A page that is shared has names in
their place: they are replaced in the finished text, so that verdicts and tables are computed from the records
as they are. What a person made and preferl does not change (a chat template, data) is only looked through.
"""

import getpass
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import escape

from preferl.reporting.markdown import cell
from preferl.runs.inputs import names_in
from preferl.runs.record import StageRecord, stage_of

# By their form; an underscore may have a backslash before it, as Markdown has.
KEYS = {
    "a token of the Hub": r"\bhf\\?_[A-Za-z0-9]{16,}",
    "an API key": r"\b[sr]k-[A-Za-z0-9_-]{16,}",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github\\?_pat(?:\w|\\_){20,})",
    "a key of AWS": r"\bAKIA[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
# Variables of the environment whose values are secrets, and the length from which a value is looked for.
SECRET_VARIABLE = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD)$")
SHORTEST_SECRET = 12
# Absolute paths of at least two parts, in a sentence; not the rest of a relative path or of a URL.
ABSOLUTE = re.compile(r"(?<![\w/:.~@+=<-])~?(?:/[\w.@+-]+){2,}|(?<!\w)[A-Za-z]:(?:[\\/][\w.@+-]+)+")
SERVER = re.compile(r"https?://[^/\s#?|\"']+")
PUBLIC_SERVER = "https://huggingface.co"
# A word like these names a machine or a person only beside an @ or in an address.
PLAIN_WORD = re.compile(r"[a-z]{1,11}", re.IGNORECASE)
SHARED_USERS = ("root", "user", "admin", "ubuntu", "debian")


@dataclass(frozen=True)
class Secret:
    """Something that must not leave: its ``kind`` in words, its ``pattern``, and what stands ``instead``."""

    kind: str
    pattern: re.Pattern[str]
    instead: str


class Private:
    """What must not leave this machine.

    Args:
        names: local paths, as texts, and the name that stands for each.
    """

    def __init__(self, names: Mapping[str, str]):
        self.names: dict[str, str] = {}
        for text, name in names.items():
            self.names |= dict(zip(spellings(text), spellings(name), strict=True))
        self._paths = literal(*self.names)
        self._absolute = literal(*filter(is_absolute, self.names))
        self.keys = [*keys_by_form(), *keys_of_environment()]
        self.secrets = [*self.keys, *places_of_machine()]

    def clean(self, text: str) -> str:
        """A text with names in place of paths, and nothing in it that must not leave."""
        text = self._paths.sub(lambda found: self.names[found[0]], text)
        for secret in self.secrets:
            text = secret.pattern.sub(secret.instead, text)
        return text

    def found_in(self, text: str, only_keys: bool = False) -> list[str]:
        """The kinds of what must not leave and stands in a text."""
        looked_for = self.keys if only_keys else self.secrets
        kinds = [secret.kind for secret in looked_for if secret.pattern.search(text)]
        if not only_keys and self._absolute.search(text):
            kinds.append("a local path")
        return list(dict.fromkeys(kinds))


def spellings(text: str) -> tuple[str, ...]:
    """A text as it is, and as it stands in HTML, in Markdown and in JSON."""
    return text, str(escape(text)), cell(text), json.dumps(text, ensure_ascii=False)[1:-1]


def literal(*texts: str) -> re.Pattern[str]:
    """A pattern of these texts, the longest that fits, where no longer name goes on; of none it fits
    nowhere."""
    longest_first = sorted(texts, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first)) or r"(?!)"
    return re.compile(rf"(?<![\w~-])(?:{pattern})(?![\w-])")


def is_absolute(text: str) -> bool:
    """Whether a text is a path from a root, from a home directory or up from here."""
    return re.match(r"(?:~\w*|\.\.|[A-Za-z]:)?[\\/]\.*\w", text) is not None


# --------------------------------------------------------------------------------------------------- secrets


def keys_by_form() -> list[Secret]:
    """Keys that are known by their form."""
    return [Secret(kind, re.compile(pattern), "[key]") for kind, pattern in KEYS.items()]


def keys_of_environment() -> list[Secret]:
    """Keys that this process was given, whatever their form, and the Hub's token of this machine."""
    from huggingface_hub import get_token

    values = {
        f"the value of {name}": value.strip()
        for name, value in os.environ.items()
        if SECRET_VARIABLE.search(name.upper())
    }
    values["the token of the Hub"] = get_token() or ""
    return [
        Secret(kind, re.compile("|".join(map(re.escape, spellings(value)))), "[key]")
        for kind, value in values.items()
        if len(value) >= SHORTEST_SECRET
    ]


def places_of_machine() -> list[Secret]:
    """The home directory, the directory of this command, the names of the machine and of its person."""
    found = []
    for kind, path, instead in (
        ("the path of the current directory", Path.cwd(), "."),
        ("the path of the home directory", Path.home(), "~"),
    ):
        if len(path.parts) > 2:  # of /root or /app nobody is known
            found.append(Secret(kind, literal(*spellings(str(path))), instead))
    machine = socket.gethostname()
    if machine and machine != "localhost":
        pattern = rf"\b{re.escape(machine)}\b"
        if PLAIN_WORD.fullmatch(machine):
            pattern = rf"(?<=@){re.escape(machine)}\b|(?<=//){re.escape(machine)}\b"
        found.append(Secret("the name of this machine", re.compile(pattern), "[machine]"))
    person = user_name()
    if person and person not in SHARED_USERS:
        pattern = (
            rf"\b{re.escape(person)}(?=@)|(?<=/home/){re.escape(person)}\b|(?<=/Users/){re.escape(person)}\b"
        )
        found.append(Secret("the name of this machine's user", re.compile(pattern), "[user]"))
    return found


def user_name() -> str:
    """The name of who runs this; empty where the system knows none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return ""


# ----------------------------------------------------------------------------------------------- local paths


class Names:
    """Names for local paths: a stage's is its directory's, with what lies in it; any other's its last part.
    Two paths never get one name."""

    def __init__(self) -> None:
        self.of_text: dict[str, str] = {}
        self._of_place: dict[str, str] = {}

    def add(self, text: str, place: Path) -> None:
        """A text that names a place."""
        if "/" in text or "\\" in text:
            self.of_text.setdefault(text, self._name(place))

    def _name(self, place: Path) -> str:
        key = os.path.normpath(place)
        if key not in self._of_place:
            stage = stage_of(place)
            within = () if stage is None else place.relative_to(stage).parts
            name = "/".join((place.name if stage is None else stage.name, *within))
            name = name.replace("\\", "/").split("/")[-1] if stage is None else name
            count = 2
            free = name
            while free in self._of_place.values():
                free, count = f"{name}-{count}", count + 1
            self._of_place[key] = free
        return self._of_place[key]


def local_names(run: Path, records: Sequence[StageRecord]) -> dict[str, str]:
    """Every local path that the records of a run hold, and the addresses of servers, with what stands for
    each.

    Args:
        run: as it was given.
        records: of its stages.
    """
    names = Names()
    for record in records:
        names.add(str(record.path), record.path)
        for parent in record.manifest.get("parents", {}).values():
            if "path" in parent:
                place = (record.path / parent["path"]).resolve()
                names.add(parent["name"], place)
                names.add(str(place), place)
    for text in (str(run), str(run.resolve())):
        names.add(text, run.resolve())
    for record in records:
        for text in texts_in(record.config):
            for part in (text, *names_in(text)):
                if is_absolute(part) and " + " not in part:  # else it is a mixture of several
                    names.add(part, Path(part).expanduser())
        for text in (*texts_in(record.config), *texts_in(record.manifest), *texts_in(record.summary)):
            for found in ABSOLUTE.findall(text):
                names.add(found, Path(found).expanduser())
            for server in SERVER.findall(text):
                if server != PUBLIC_SERVER:
                    names.of_text[server] = "https://[server]"
    return names.of_text


def texts_in(value: Any) -> Iterator[str]:
    """Every text in nested mappings and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inside in value.values():
            yield from texts_in(inside)
    elif isinstance(value, list | tuple):
        for inside in value:
            yield from texts_in(inside)
