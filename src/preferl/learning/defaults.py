"""Options that depend on the model at hand: learning rates, the KL coefficient, sizes of batches.

A model that preferl initialised learns with rates a hundred times those of a pretrained one, which they would
destroy. So these options have no value of their own: where they are not given, a row of ``TABLE`` decides, by
where the start's weights began, how many they are, and whether all of them are trained or LoRA weights.

Where they began stands in the model's own ``config.json`` (``ORIGIN``), which every stage keeps; for a model
of an older preferl its stages' manifests tell. Everything else counts as pretrained.
"""

import dataclasses
from collections.abc import Collection
from typing import Any, TypeVar

from preferl.models.tiny import NEW, ORIGIN
from preferl.options.defaults import TABLE, Start
from preferl.runs.descent import began_without_model
from preferl.runs.objects import object_of
from preferl.runs.stage import Stage

Config = TypeVar("Config")


def with_batches(kind: str, config: Config) -> Config:
    """Options with sizes of batches, before there is a model to decide them: those of pretrained ones, which
    are all that memory is planned for."""
    rows = [row.values for row in TABLE if row.stage == kind and row.start == "pretrained"]
    sizes = {
        name: int(max(values[name] for values in rows))
        for name in ("train_batch_size", "batch_size")
        if name in rows[0] and getattr(config, name) is None
    }
    return dataclasses.replace(config, **sizes)  # type: ignore[type-var]


def start_of(model: Any, name: str | None, lora: bool = False) -> Start:
    """Where a model that was loaded began; the model is told, and says it wherever it is saved.

    Args:
        model: of transformers or peft.
        name: where it came from; None where it is initialised now.
        lora: LoRA weights of it are trained.
    """
    new = is_new(model.config, name)
    if new:
        setattr(model.config, ORIGIN, NEW)
    # transformers counts both of the weights that share a byte where they are quantised to four bits.
    return Start(new, model.num_parameters(), lora, untrained=name is None)


def is_new(config: Any, name: str | None) -> bool:
    """Whether preferl initialised the model of a configuration, by the configuration or by its stages."""
    if getattr(config, ORIGIN, None) == NEW:
        return True
    return name is not None and object_of(name) is None and began_without_model(name)


def completed(
    kind: str, config: Config, start: Start, stage: Stage | None = None, leave: Collection[str] = ()
) -> Config:
    """Options with nothing of the table left open; what was given stays.

    Args:
        kind: of stage.
        config: its options.
        start: the model that it trains.
        stage: says what was chosen and why, and records it: one that was interrupted goes on with that. It
            has not begun yet.
        leave: options that stay open.
    """
    values, source = left_open(kind, config, start, leave)
    if stage is not None and values:
        values = stage.choose(values)
        listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
        stage.say(f"{listed} by default: {start} ({source})")
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def left_open(
    kind: str, config: Any, start: Start, leave: Collection[str] = ()
) -> tuple[dict[str, Any], str]:
    """What the table decides of options that were not given, and who says so. ``leave`` stay open."""
    row = next(row for row in TABLE if row.fits(kind, start))
    usual, source = row.of(start)
    values = {
        name: value for name, value in usual.items() if name not in leave and getattr(config, name) is None
    }
    return values, source
