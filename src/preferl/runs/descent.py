"""Where a model comes from, back through the manifests of the stages that made it; and so which data set a
stage has that names none.

The embedded world is the data of models that began on it. A model of any other origin has no usual data set:
training it on the world because an option was forgotten would be silently wrong.
"""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from preferl.runs.errors import UsageError
from preferl.runs.files import read_json, read_yaml
from preferl.runs.objects import object_of

WORLD = "world"
# Options of a stage that name what its own output is made from.
MADE_FROM = ("model_name_or_path", "dataset_name", "add_to")

Config = TypeVar("Config")


def is_world(dataset_name: object) -> bool:
    """Whether a data set is the embedded world, or preferl's own pairs (``world:…``)."""
    return isinstance(dataset_name, str) and dataset_name.split(":")[0] == WORLD


def began_on_world(directory: Path) -> bool:
    """Whether a stage, and every stage that it is made from, has data of the embedded world only. What was
    made from a model or a file of any other origin did not, nor what has no manifest.

    Raises:
        UsageError: the record of a stage is damaged.
    """
    seen: set[Path] = set()
    waiting = [directory]
    while waiting:
        stage = waiting.pop().resolve()
        stage = stage.parent if stage.name == "model" else stage
        if stage in seen:
            continue
        seen.add(stage)
        manifest, config = stage / "manifest.json", stage / "config.yaml"
        if not (manifest.is_file() and config.is_file()):
            return False
        options, parents = read_yaml(config), read_json(manifest).get("parents", {})
        for option in MADE_FROM:
            name = options.get(option)
            if name is None or is_world(name):
                continue
            # A run may have been moved; only older stages have no path from where they lie.
            place = parents.get(option, {}).get("path") if isinstance(parents, dict) else None
            waiting.append(stage / place if place else Path(name))
    return True


def began_without_model(name: str) -> bool:
    """Whether the stages that made a model lead back to an sft that began without one: so preferl initialised
    its weights. False for whatever has no manifest, as a model of the Hub.

    Raises:
        UsageError: the record of a stage is damaged.
    """
    stage = Path(name).resolve()
    seen: set[Path] = set()
    while stage not in seen:
        seen.add(stage)
        stage = stage.parent if stage.name == "model" else stage
        manifest, config = stage / "manifest.json", stage / "config.yaml"
        if not (manifest.is_file() and config.is_file()):
            return False
        made, options = read_json(manifest), read_yaml(config)
        model = options.get("model_name_or_path")
        if model is None:
            return made.get("stage") == "sft"
        parents = made.get("parents", {})
        place = parents.get("model_name_or_path", {}).get("path") if isinstance(parents, dict) else None
        stage = (stage / place if place else Path(model)).resolve()
    return False


def may_be_of_world(model: str) -> bool:
    """Whether a model began on the world, or is not there yet: a path of more than one slash is no Hub name,
    trains on nothing as long as it is absent, and whoever loads it says so."""
    absent = model.count("/") > 1 and not Path(model).exists()
    return absent or began_on_world(Path(model))


def with_data_set(config: Config) -> Config:
    """A stage's options with a data set: where none is named, the embedded world, if the model began there or
    is yet to be made.

    Raises:
        UsageError: it began elsewhere.
    """
    options: Any = config
    if options.dataset_name is not None:
        return config
    model = started_from(options)
    refuse_no_data_set(model, model is None or may_be_of_world(str(object_of(model) or model)))
    return dataclasses.replace(options, dataset_name=WORLD)


def started_from(options: Any) -> str | None:
    """The model that a stage is about: what it starts from, or the reward that it audits."""
    starts = hasattr(options, "model_name_or_path")
    return options.model_name_or_path if starts else options.reward_model


def refuse_no_data_set(model: str | None, on_world: bool) -> None:
    """Refuses the embedded world as the data set of a model that did not begin there.

    Raises:
        UsageError: it is of another origin.
    """
    if not on_world:
        raise UsageError(
            f"no data set is named, and '{model}' was not trained on the embedded world: give --dataset_name "
            f"(your file, folder or Hub name), or --dataset_name world if you mean the world"
        )
