"""Configuration: from YAML files and flags to a stage's options (``preferl.options``).

Keys are flat and carry TRL's names (``--learning_rate``, ``--dataset_name``). Precedence: defaults < YAML
files from left to right < flags.
"""

import contextlib
import dataclasses
import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from preferl.runs import distributed
from preferl.runs.errors import UsageError
from preferl.runs.progress import printable
from preferl.runs.ranges import without_ranges

Config = TypeVar("Config")


class Parser(ArgumentParser):
    """jsonargparse's parser whose errors are one line and name the nearest known key."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        text = str(message).strip()
        hint = ""
        typed = re.match(r'Parser key "([\w.]+)":', text)
        value = re.search(r"(?:Got|Given) value: (.*)", text)
        unknown = re.search(r"unrecognized arguments?: --([\w.]+)|[Oo]ption '([\w.]+)'|Key '([\w.]+)'", text)
        if unknown:
            key = next(group for group in unknown.groups() if group)
            near = difflib.get_close_matches(key, self.keys(), n=1, cutoff=0.5)
            text = f"unknown option '{key}'"
            hint = f"; did you mean '{near[0]}'?" if near else f"; see `{self.prog} --help`"
        elif typed and value:
            wanted = self.type_of(typed[1])
            text = f"{typed[1]} is {value[1]!r}; its type is {wanted}"
            hint = ", as [a,b]" if wanted.startswith("list[") else ""
        else:
            text = text.split("\n")[0] if len(text) > 400 else text
        distributed.let_main_speak()
        print(printable(f"{self.prog}: error: {text}{hint}".replace("\n", " ")), file=sys.stderr)
        raise SystemExit(2)

    def type_of(self, key: str) -> str:
        """The type of an option, as messages name it."""
        hints = [getattr(action, "_typehint", None) for action in self._actions if action.dest == key]
        return without_ranges(hints[0]) if hints else "another"

    def keys(self) -> list[str]:
        """Every dotted option name of this parser."""
        names = [o[2:] for action in self._actions for o in action.option_strings]
        return sorted({n for n in names if n and not n.endswith("+")})


def parser_for(config_class: type, prog: str, description: str, arguments: Sequence[str] = ()) -> Parser:
    """A parser with one flag per field of ``config_class``, ``--config`` and ``--print_config``. They have
    help texts where ``arguments`` ask for them."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file; may be given several times")
    with field_texts(arguments):
        parser.add_class_arguments(config_class, nested_key=None)
    return parser


@contextlib.contextmanager
def field_texts(arguments: Sequence[str]) -> Iterator[None]:
    """An option's help is the text below its field; jsonargparse's own setting otherwise.

    The texts are read from the source, which takes longer than all else that a parser does, so only where
    ``arguments`` show them.
    """
    shown = any(text == "-h" or text.startswith(("--help", "--print_config=")) for text in arguments)
    set_parsing_settings(docstring_parse_attribute_docstrings=shown)
    try:
        yield
    finally:
        set_parsing_settings(docstring_parse_attribute_docstrings=False)


def checked(config_class: type[Config], options: Mapping[str, Any]) -> Config:
    """An instance of ``config_class`` from options as keywords, each of the type that its field has.

    Raises:
        UsageError: there is no such option, or a value is of another type.
    """
    known = {f.name: f for f in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise UsageError(f"there is no option {name}; {hint}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config_class, nested_key=None)
    plain = {
        name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
        for name, value in options.items()
    }
    try:
        namespace = parser.parse_object(plain, defaults=True)
    except ArgumentError as error:
        found = re.search(r'[Kk]ey "([\w.]+)"', str(error))
        name = found[1].split(".")[0] if found else ""
        if name not in options:
            raise UsageError(f"the options cannot be read: {error}") from error
        wanted = without_ranges(known[name].type)
        raise UsageError(f"{name} is {options[name]!r}; its type is {wanted}") from error
    return instantiate(parser, config_class, namespace)


def declared(arguments: Sequence[str], files: bool = True) -> dict[str, Any]:
    """What flags and YAML files say (or flags alone), unchecked and nested, a later one over an earlier one.

    For what must be known before there can be a parser: which options an algorithm of a person's own has, of
    which kind a stage is. Files that cannot be read are the parser's to complain about.
    """
    found: dict[str, Any] = {}
    for i, argument in enumerate(arguments):
        name, equals, text = argument.partition("=")
        if not equals:
            text = arguments[i + 1] if i + 1 < len(arguments) else ""
        if name == "--config":
            found = _over(_file(text) if files else None, found)
        elif name.startswith("--"):
            value: Any = _yaml(text)
            for part in reversed(name.removeprefix("--").split(".")):
                value = {part: value}
            found = _over(value, found)
    return found


def _file(path: str) -> Any:
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _over(later: Any, earlier: dict[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one."""
    found = dict(earlier)
    for key, value in later.items() if isinstance(later, dict) else ():
        before = found.get(key)
        found[key] = _over(value, before) if isinstance(value, dict) and isinstance(before, dict) else value
    return found


def leaf_keys(given: Mapping[str, Any]) -> list[str]:
    """Every dotted key of a nested mapping.

    Example:
        >>> leaf_keys({"seed": 1, "collect": {"pairs": {"train": 5}}})
        ['seed', 'collect.pairs.train']
    """
    found = []
    for key, value in given.items():
        inner = leaf_keys(value) if isinstance(value, Mapping) else []
        found += [f"{key}.{rest}" for rest in inner] or [key]
    return found


def instantiate(parser: ArgumentParser, config_class: type[Config], namespace: Any) -> Config:
    """The parsed namespace as an instance of ``config_class``, other flags left aside."""
    built = parser.instantiate(namespace)
    fields = {f.name for f in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    # Not vars(): a key that is called like one of the namespace's methods is kept under another name there.
    return config_class(**{name: built[name] for name in fields if name in built})
