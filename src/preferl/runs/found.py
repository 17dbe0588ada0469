"""What a directory holds of a stage: nothing, unfinished work, a finished stage; of today's options and
inputs, or of others."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preferl.runs.descent import with_data_set
from preferl.runs.errors import UsageError
from preferl.runs.files import read_json, read_yaml
from preferl.runs.inputs import Changes, Identity, changed_options, changes, hash_of, identify
from preferl.runs.mark import check_ours, contents, read_mark
from preferl.runs.progress import say

# Options by which a stage becomes longer.
LENGTHS = {"num_train_epochs", "num_iterations", "max_steps", "num_evals"}


@dataclass(frozen=True)
class Found:
    """What a directory holds of a stage.

    Args:
        state: ``nothing``, ``unfinished``, ``finished`` or ``damaged``.
        stored: the options with which it was begun, as they were given.
        changes: how what it is made of differs from what would be read today.
        chosen: device, dtype, threads and the values of options that were left open, as it was begun.
        redo: the name of the redo in which it was begun.
        has_inputs: whether its inputs were recorded; they were not always.
    """

    state: str
    stored: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    changes: Changes = dataclasses.field(default_factory=Changes)
    chosen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    redo: str | None = None
    has_inputs: bool = True

    @property
    def is_unfinished(self) -> bool:
        return self.state == "unfinished"

    @property
    def is_stale(self) -> bool:
        """Finished with the same options, of other inputs."""
        return self.state == "finished" and bool(self.changes) and not self.changes.options

    def is_this_finished(self, path: Path) -> bool:
        """Whether it is what would be made today.

        Raises:
            UsageError: it is finished with other options or of other inputs, or its record is damaged.
        """
        if self.state == "damaged":
            raise UsageError(f"{path}: {self.changes}; use --fresh to make it anew, or another --output_dir")
        if self.state != "finished":
            return False
        if self.is_stale:
            raise UsageError(
                f"{path} is stale ({self.changes}); use --fresh to do it again, --keep_stale to take it as "
                f"it is, or another --output_dir"
            )
        if self.changes:
            longer = (
                f" (the optimiser's state of a finished stage is not kept: to train its model further, give "
                f"--model_name_or_path {path} and another --output_dir)"
            )
            raise UsageError(
                f"{path} was finished with other options ({self.changes}); use --fresh to do it again, or "
                f"another --output_dir{longer if self.changes.options.keys() <= LENGTHS else ''}"
            )
        return True


def kept_though_stale(name: str, found: Found) -> bool:
    """Whether a stage is stale and so, where that was asked for, taken as it is; that is said."""
    if found.is_stale:
        say(f"{name}: kept, though stale: {found.changes}")
    return found.is_stale


def plain_options(config: Any) -> dict[str, Any]:
    """A stage's options as they stand in its ``config.yaml``."""
    return yaml.safe_load(yaml.safe_dump(dataclasses.asdict(config)))


def stored_options(path: Path) -> dict[str, Any] | None:
    """The options with which a stage was finished; None where there is no finished one.

    Raises:
        UsageError: its ``config.yaml`` is damaged.
    """
    if not (path / "DONE").exists() or not (path / "config.yaml").exists():
        return None
    return read_yaml(path / "config.yaml")


def examine(path: Path, name: str, now: Identity) -> Found:
    """What a directory holds of a stage, beside what would be made today.

    Raises:
        UsageError: it holds something else.
    """
    check_ours(path, "stage", name)
    finished, manifest_file, config_file = (path / file for file in ("DONE", "manifest.json", "config.yaml"))
    if not finished.exists():
        refuse_unmarked(path)
        if not (config_file.exists() and manifest_file.exists()):
            return Found("nothing")
    try:
        stored, manifest = read_yaml(config_file), read_json(manifest_file)
        if finished.exists() and "options" in manifest:
            content = {role: parent["hash"] for role, parent in manifest["parents"].items()}
            if read_json(finished)["made_of"] != hash_of(manifest["options"], content):
                raise ValueError("DONE was written for another manifest.json")
        if "options" in manifest:
            found = changes(path, manifest, stored, now)
        else:  # from before inputs were recorded: it is known by its options alone
            found = changed_options(stored, now.given)
    except (UsageError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        return Found("damaged", {}, Changes(inputs={"": f"the record of this stage is damaged ({reason})"}))
    state = "finished" if finished.exists() else "unfinished"
    return Found(
        state,
        stored,
        found,
        manifest.get("chosen", {}),
        manifest.get("redo"),
        has_inputs="options" in manifest,
    )


def found_now(name: str, config: Any) -> Found:
    """What a stage's directory holds of it, beside what its options would make today."""
    options = plain_options(with_data_set(config))
    return examine(Path(config.output_dir), name, identify(options))


def refuse_unmarked(path: Path) -> None:
    """What bears no mark is not begun anew, because that deletes what is there.

    Raises:
        UsageError: the directory holds a stage from before there were marks.
    """
    if path.is_dir() and contents(path) and read_mark(path) is None:
        raise UsageError(
            f"{path} was made by a preferl that did not mark its directories yet, and nothing in it is "
            f"deleted: choose another --output_dir, or delete it yourself"
        )
