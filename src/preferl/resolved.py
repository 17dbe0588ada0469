"""Configurations for ``--print_config``: what the model at hand decides is written out with its reason, as
the stages themselves will choose it when they have loaded the model.

A model is known by its configuration; one that a stage of the same run will make by what that stage starts
from.
"""

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from preferl import pipeline
from preferl.learning import defaults
from preferl.models.load import known_configuration
from preferl.models.shapes import shape_of
from preferl.options.defaults import TRAINING, Start
from preferl.pipeline import NAMES, OWN, SHARED, RunConfig, RunOptions
from preferl.stages.rl import has_critic_model


def stage_yaml(kind: str, options: Any) -> str:
    """A stage's options as YAML."""
    return as_yaml(dataclasses.asdict(options), *chosen(kind, options, start_of(options, {})))


def run_yaml(config: RunConfig, leave_open: bool = False) -> str:
    """The options of a run and of its stages as YAML. Those of further rounds follow from the first's.

    Args:
        config: of the run.
        leave_open: what the model decides stays open, as in a sweep, whose points may have several models.
    """
    given = {key: value for key, value in config.given.items() if key in (*OWN, *SHARED)}
    own = dataclasses.asdict(pipeline.merged(RunOptions(), given))
    text = as_yaml({name: own.pop(name) for name in ("output_dir", "stages")} | own)
    made: dict[str, Start] = {}
    for name, options in pipeline.resolve(config).items():
        kind = config.kinds.get(name)
        if kind is None:  # of a further round
            continue
        start = None if leave_open else start_of(options, made)
        if start is not None:
            made[options.output_dir] = start
        content = ({} if name in NAMES else {"kind": kind}) | dataclasses.asdict(options)
        del content["output_dir"]
        of_stage = as_yaml(content, *chosen(kind, options, start))
        text += f"{name}:\n{textwrap.indent(of_stage, '  ')}"
    return text


def as_yaml(content: Mapping[str, Any], values: Mapping[str, Any] | None = None, reason: str = "") -> str:
    """A mapping as YAML, with ``values`` instead of its own, each with the reason beside it."""
    values = values or {}
    lines, said = [], f"  # by default: {reason}"
    for name, value in content.items():
        line = yaml.safe_dump({name: values.get(name, value)}, sort_keys=False, allow_unicode=True).rstrip()
        if name in values:
            line += said
            said = "  # by default, likewise"
        lines.append(f"{line}\n")
    return "".join(lines)


def start_of(options: Any, made: Mapping[str, Start]) -> Start | None:
    """Where the model that a stage starts from began; None where it is not known yet.

    Args:
        options: of the stage.
        made: directory -> where that began from which a stage of this run will be made there.
    """
    lora = bool(getattr(options, "lora_r", 0))
    name = getattr(options, "model_name_or_path", None)
    if name is None:
        return Start(new=True, parameters=0, lora=lora, untrained=True)
    if name in made:
        return dataclasses.replace(made[name], lora=lora, untrained=False)
    config = known_configuration(name)
    if config is None:
        return None
    return Start(defaults.is_new(config, name), shape_of(config).parameters, lora)


def chosen(kind: str, options: Any, start: Start | None) -> tuple[dict[str, Any], str]:
    """What a stage will choose of options that were left open, and why."""
    if start is None or kind not in TRAINING:
        return {}, ""
    leave: tuple[str, ...] = ()
    # A critic of its own takes the policy's rate where that was given, or where both train LoRA weights.
    if kind == "rl" and (
        options.learning_rate is not None or options.lora_r or not has_critic_model(options)
    ):
        leave = ("critic_learning_rate",)
    values, source = defaults.left_open(kind, options, start, leave)
    return values, f"{start} ({source})"
