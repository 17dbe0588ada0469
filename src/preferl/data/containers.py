"""Where the rows of a name are: a file, a folder of files, a data set that ``save_to_disk`` wrote, a cloned
repository of the Hub, or a name of the Hub.

``name:config[split]@revision`` names a part of what has several: a configuration (or a folder), a split, a
revision of the Hub. What is not there is answered by what is. Scripts of data sets are never run.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preferl.data.files import KINDS_READ, Row, Table, file_rows, is_data
from preferl.data.records import DataError
from preferl.data.splits import meaning, split_of_file

# Hub names of the shipped configurations, as files of the folder PREFERL_DATA.
OFFLINE = {
    "Anthropic/hh-rlhf:helpful-base": "pref/hh_helpful_base.*.jsonl.gz",
    "Anthropic/hh-rlhf:harmless-base": "pref/hh_harmless_base.*.jsonl.gz",
    "roneneldan/TinyStories": "lm/tinystories_5k.jsonl.gz",
}
HUB = "hf://datasets/"  # before a name that is one of the Hub's, whatever it looks like
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# An ending of letters, as no repository's name has it; versions (v2.5) have digits.
LIKE_A_FILE = re.compile(r".*\.[A-Za-z]{2,8}")
# What tools write beside data, which is none.
NO_DATA = (
    *(
        "dataset_info.json",
        "dataset_infos.json",
        "dataset_dict.json",
        "state.json",
        "config.json",
        "package.json",
    ),
    *("metadata.json", "croissant.json", "tokenizer.json", "tokenizer_config.json", "requirements.txt"),
    *("LICENSE.txt", "LICENCE.txt"),
)


@dataclass(frozen=True)
class Name:
    """A name with what it says about configuration, split and revision.

    Example:
        >>> Name.parse("org/name:pref[test]@v1")
        Name(base='org/name', config='pref', split='test', revision='v1')
    """

    base: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Name":
        """Takes a name apart; the name of what is there is taken as it is, whatever letters are in it."""
        if Path(text).expanduser().exists():
            return cls(text)
        start = len(HUB) if text.startswith(HUB) else 0
        found = re.match(r"[^:@\[]*", text[start:])
        assert found is not None
        base = text[: start + found.end()]
        parts = re.findall(r":([^:@\[]+)|\[([^\]]+)\]|@([^:@\[]+)", text[len(base) :])
        config, split, revision = ("".join(part[i] for part in parts) or None for i in range(3))
        named = cls(base, config, split, revision)
        return named if base else cls(text)

    def __str__(self) -> str:
        text = self.base + (f":{self.config}" if self.config else "")
        text += f"[{self.split}]" if self.split else ""
        return text + (f"@{self.revision}" if self.revision else "")


def named(name: str, config: str | None = None, split: str | None = None, revision: str | None = None) -> str:
    """A name with the configuration, split and revision that options give.

    Raises:
        DataError: the name itself says something else.

    Example:
        >>> named("org/name", config="pref", revision="v1")
        'org/name:pref@v1'
    """
    found = Name.parse(name)
    given = {"config": config, "split": split, "revision": revision}
    for field, value in given.items():
        there = getattr(found, field)
        if value and there and there != value:
            raise DataError(
                f"'{name}' names the {field} '{there}' and the option '{value}'; give one of them"
            )
    return str(replace(found, **{field: value for field, value in given.items() if value}))


def read_rows(name: str | Table) -> Iterator[Row]:
    """The rows of a data set.

    Raises:
        DataError: there is no such file or data set, or the file's kind is not known.
    """
    if isinstance(name, Table):
        yield from name.read()
        return
    wanted = Name.parse(name)
    rows = _all_rows(wanted)
    yield from rows if wanted.split is None else of_split(name, rows, wanted.split)


def of_split(name: str, rows: Iterator[Row], split: str) -> Iterator[Row]:
    """The rows of one of the data set's own splits.

    Raises:
        DataError: it has no such split.
    """
    seen: dict[str, None] = {}
    for row in rows:
        own = own_split(row)
        seen[own or ""] = None
        if own == split:
            yield row
    if split not in seen:
        there = ", ".join(filter(None, seen))
        has = f"it has {there}" if there else "its rows have no splits of their own"
        raise DataError(f"data set '{name}' has no split '{split}'; {has}")


def own_split(row: Row) -> str | None:
    """What the data set itself calls the split of a row: by its column, else by its file or the Hub."""
    column = row.value.get("split") if isinstance(row.value, dict) else None
    return column if isinstance(column, str) and column else row.split


def _all_rows(name: Name) -> Iterator[Row]:
    path = Path(name.base).expanduser()
    if path.exists():
        if name.revision:
            raise DataError(
                f"'{name.base}' lies here, in one revision: leave out @{name.revision}; `git checkout "
                f"{name.revision}` in a cloned repository gives that one"
            )
        yield from _local_rows(path, name)
        return
    for file in offline(name):
        yield from _file(file, split_of_file(file.name))
    if not offline(name):
        refuse_no_hub_name(name)
        yield from hub_rows(name)


def offline(name: Name) -> list[Path]:
    """What the folder PREFERL_DATA holds for a Hub name."""
    root = os.environ.get("PREFERL_DATA")
    pattern = OFFLINE.get(str(replace(name, split=None, revision=None)))
    return sorted(Path(root).glob(pattern)) if root and pattern else []


def refuse_no_hub_name(name: Name) -> None:
    """What looks like a path or an option does not go to the Hub.

    Raises:
        DataError: it does.
    """
    base = name.base
    if base.startswith(HUB):
        return
    if base.startswith("-"):
        raise DataError(f"'{base}' looks like an option, not like a data set; `--help` lists the options")
    folder, _, last = base.rpartition("/")
    known = is_data(base) or base.startswith((".", "/", "~")) or base.count("/") > 1
    near = _near(Path(folder or ".").expanduser(), last)
    here = folder and Path(folder).expanduser().is_dir()
    if not (known or near or here or LIKE_A_FILE.fullmatch(last) or not HUB_NAME.fullmatch(base)):
        return
    advice = f"; did you mean '{near}'?" if near else ""
    if HUB_NAME.fullmatch(base) and not is_data(base):
        advice += f" (a data set of the Hub that is called so: {HUB}{base})"
    raise DataError(f"'{base}' is no file or folder here; check the path{advice}")


def _near(folder: Path, last: str) -> str | None:
    """What in a folder is called nearly so."""
    if not folder.is_dir():
        return None
    names = [path.name for path in folder.iterdir() if path.is_dir() or is_data(path.name)]
    found = difflib.get_close_matches(last, names, n=1, cutoff=0.8)
    return str(folder / found[0]) if found else None


# -------------------------------------------------------------------------------------------------- folders


def _local_rows(path: Path, name: Name) -> Iterator[Row]:
    if _is_saved(path):
        yield from _saved_rows(path)
    else:
        for file, split in _local_files(path, name):
            yield from _file(file, split)


def _is_saved(path: Path) -> bool:
    """Whether ``save_to_disk`` wrote a folder."""
    marks = any((path / mark).exists() for mark in ("state.json", "dataset_dict.json"))
    return marks and not (path / "manifest.json").exists()


def _local_files(path: Path, name: Name) -> Iterable[tuple[Path, str | None]]:
    """The files of a data set that lies here, each with the split that its name or the README says.

    Raises:
        DataError: there are none, or no such configuration.
    """
    if path.is_file():
        if name.config:
            raise DataError(f"'{path}' is a file, which has no configuration '{name.config}'")
        return [(path, split_of_file(path.name))]
    if (path / "manifest.json").exists():  # a stage's directory
        return _files_of(path / "data", str(path))
    if (path / name.config if name.config else path).is_dir() and not _card_files(path):
        return _files_of(_data_folder(path / (name.config or "")), str(path))
    return _configured(path, name.config)


def files_of(name: str) -> list[Path]:
    """The files whose rows ``read_rows`` will give; none where they are the Hub's or in memory.

    Raises:
        DataError: what lies here has none, or no such configuration.
    """
    wanted = Name.parse(name)
    path = Path(wanted.base).expanduser()
    if not path.exists():
        return offline(wanted)
    return [] if _is_saved(path) else [file for file, _ in _local_files(path, wanted)]


def _file(path: Path, split: str | None) -> Iterator[Row]:
    for row in file_rows(path):
        yield replace(row, split=row.split or split, file=str(path))


def _files_of(folder: Path, name: str) -> list[tuple[Path, str | None]]:
    """A folder's files in order, with their splits.

    Raises:
        DataError: it has none.
    """
    found = _files_in(folder)
    of_splits = {} if found else _folders_of_splits(folder)
    if not found and not of_splits:
        raise DataError(f"folder '{name}' holds no file of data: {_what_is_there(Path(name))}")
    in_folders = [(file, split) for split, files in of_splits.items() for file in files]
    return [(file, split_of_file(file.name)) for file in found] + in_folders


def _folders_of_splits(folder: Path) -> dict[str, list[Path]]:
    """The files of folders that are called like splits, where all that have files of data are."""
    below = (
        [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
        if folder.is_dir()
        else []
    )
    files = {p.name: found for p in below if (found := _files_in(p))}
    return files if all(map(meaning, files)) else {}


def _files_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    named = [p for p in folder.iterdir() if is_data(p.name) and not p.name.startswith(".") and p.is_file()]
    return sorted(p for p in named if p.name not in NO_DATA)


def _data_folder(path: Path) -> Path:
    """Repositories of the Hub have their files in ``data``."""
    return path if _files_in(path) or not _files_in(path / "data") else path / "data"


def _what_is_there(folder: Path) -> str:
    """What a folder without files of data has, and what to do."""
    scripts = sorted(p.name for p in folder.glob("*.py"))
    found = {str(p.parent.relative_to(folder)) for p in folder.rglob("*") if is_data(p.name)}
    below = sorted(name for name in found if not name.startswith("."))
    if below:
        return f"name one of the folders in it that do, as {folder / below[0]} ({', '.join(below[:8])})"
    if scripts:
        return (
            f"it has a script ({scripts[0]}), which is not run; most data sets with a script have files too, "
            f"in the revision refs/convert/parquet of the Hub"
        )
    return f"files that are read end with {KINDS_READ}"


def _saved_rows(path: Path) -> Iterator[Row]:
    """What ``save_to_disk`` wrote: a data set, or several by split."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever is damaged: files of Arrow, JSON beside them, a missing part
        raise DataError(f"'{path}' is no whole data set of save_to_disk: {error}; save it again") from error
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {None: loaded}
    yield from _split_rows(str(path), splits)


def _split_rows(name: str, splits: Mapping[Any, Any]) -> Iterator[Row]:
    """The rows of data sets by split."""
    for split, rows in splits.items():
        file = f"{name}[{split}]" if split else name
        for number, row in enumerate(rows, 1):
            yield Row(f"{file} row {number}", dict(row), split, file)


# -------------------------------------------------------------------------------------- cloned repositories


def _card_files(folder: Path) -> dict[str, list[tuple[str | None, str]]]:
    """Configuration -> (split, pattern of files) in a repository's README, where it says so."""
    card = folder / "README.md"
    if not card.is_file():
        return {}
    from huggingface_hub import DatasetCardData
    from huggingface_hub.repocard import RepoCard

    try:
        data: DatasetCardData = RepoCard.load(card, ignore_metadata_errors=True).data  # type: ignore[assignment]
    except (OSError, ValueError):
        return {}
    found: dict[str, list[tuple[str | None, str]]] = {}
    for config in getattr(data, "configs", None) or []:
        files = config.get("data_files") if isinstance(config, dict) else None
        if files is None:
            continue
        below = str(config.get("data_dir") or "")
        name = str(config.get("config_name") or "default")
        found[name] = [(split, str(Path(below) / pattern)) for split, pattern in _patterns(files)]
    return found


def _patterns(files: Any) -> Iterator[tuple[str | None, str]]:
    """(split, pattern) of ``data_files``: a text, texts, a mapping by split, or a list of both in words."""
    if isinstance(files, str):
        yield None, files
    elif isinstance(files, dict) and "path" in files:
        for _, pattern in _patterns(files["path"]):
            yield files.get("split"), pattern
    elif isinstance(files, dict):
        for split, patterns in files.items():
            for _, pattern in _patterns(patterns):
                yield split, pattern
    else:
        for part in files:
            yield from _patterns(part)


def _configured(folder: Path, config: str | None) -> Iterator[tuple[Path, str | None]]:
    """The files of a cloned repository's configuration, with their splits.

    Raises:
        DataError: there is no such configuration, several and none is named, or files are not there.
    """
    configs = _card_files(folder)
    if config is None and len(configs) > 1 and "default" not in configs:
        raise DataError(several(str(folder), list(configs)))
    chosen = config or ("default" if "default" in configs else next(iter(configs), ""))
    if chosen not in configs:
        folders = sorted(p.name for p in folder.iterdir() if p.is_dir() and _files_in(p))
        raise DataError(
            f"'{folder}' has no configuration '{chosen}'; it has {', '.join([*configs, *folders]) or 'none'}"
        )
    for split, pattern in configs[chosen]:
        files = sorted(p for p in folder.glob(pattern) if p.is_file())
        if not files:
            raise DataError(f"'{folder}' lacks '{pattern}', which its README names; clone it whole")
        for file in files:
            yield file, split or split_of_file(file.name)


def several(name: str, configs: list[str]) -> str:
    """Says that a configuration must be named, and which there are."""
    return (
        f"data set '{name}' has several configurations: {', '.join(configs)}; name one, as "
        f"{name}:{configs[0]} or with --config_name {configs[0]}"
    )


# -------------------------------------------------------------------------------------------------- the Hub


def hub_rows(name: Name) -> Iterator[Row]:
    """Rows of a Hub data set, all splits one after the other.

    Raises:
        DataError: the Hub does not give it; says what it has where it can.
    """
    import datasets

    repository = name.base.removeprefix(HUB)
    at = f"@{name.revision}" if name.revision else ""
    try:
        config, folder = _hub_config(repository, name)
        loaded = datasets.load_dataset(repository, config, data_dir=folder, revision=name.revision)
    except DataError:
        raise
    except Exception as error:
        raise DataError(_hub_failure(repository, name, error)) from error
    splits: dict[str, Any] = dict(loaded.items())  # type: ignore[union-attr]
    if name.split and name.split not in splits:
        raise DataError(f"data set '{name}' has no split '{name.split}'; it has {', '.join(splits)}")
    part = config or folder
    title = f"{repository}:{part}{at}" if part else f"{repository}{at}"
    wanted = {split: rows for split, rows in splits.items() if name.split in (None, split)}
    yield from _split_rows(title, wanted)


def _hub_config(repository: str, name: Name) -> tuple[str | None, str | None]:
    """The configuration and the folder to read: a name that is no configuration is a folder's."""
    import datasets

    configs = datasets.get_dataset_config_names(repository, revision=name.revision)
    if name.config in configs:
        return name.config, None
    if name.config is not None:
        if configs not in (["default"], []) and not _hub_has(repository, name):
            raise DataError(
                f"data set '{repository}' has no configuration '{name.config}'; it has {', '.join(configs)}"
            )
        return None, name.config
    if len(configs) < 2:
        return None, None
    usual = datasets.get_dataset_default_config_name(repository, revision=name.revision)
    if usual is None:
        raise DataError(several(repository, configs))
    return usual, None


def _hub_has(repository: str, name: Name) -> bool:
    """Whether a repository has a folder that is called like the configuration that was asked for."""
    from huggingface_hub import HfApi

    files = HfApi().list_repo_files(repository, repo_type="dataset", revision=name.revision)
    return any(file.startswith(f"{name.config}/") for file in files)


def _hub_failure(repository: str, name: Name, error: Exception) -> str:
    """Why the Hub did not give a data set, with what it has instead."""
    from huggingface_hub.errors import RevisionNotFoundError

    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "script" in lines[0]:
        return (
            f"data set '{name}' comes with a script, which is not run; its files may be at "
            f"{repository}@refs/convert/parquet ({lines[0]})"
        )
    causes = [error, error.__cause__, error.__context__]
    unknown = any(isinstance(cause, RevisionNotFoundError) for cause in causes)
    if name.revision and (unknown or "evision" in str(error)):
        there = _revisions(repository)
        return f"data set '{repository}' has no revision '{name.revision}'; it has {there or 'others'}"
    return (
        f"data set '{name}' is no local file, and the Hub did not give it: {lines[0]}; "
        f"check the name, the network, or set PREFERL_DATA to a folder that has it"
    )


def _revisions(repository: str) -> str:
    """The branches and tags of a repository, in words; empty where the Hub does not say."""
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(repository, repo_type="dataset")
    except Exception:  # noqa: BLE001 - the first error is the one to tell
        return ""
    return ", ".join(ref.name for ref in [*refs.branches, *refs.tags])
