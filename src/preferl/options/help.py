"""The help of a command: the options that people change, in groups. ``--help all`` shows all of them."""

import argparse
import dataclasses
import typing
from collections.abc import Mapping, Sequence

from preferl.options.defaults import rules
from preferl.runs.config import Parser
from preferl.runs.ranges import without_ranges

AT_HAND = "; by default by the model at hand (docs/models.md)"  # what a default's rule says better
Groups = Mapping[str, tuple[str, ...]]

SAMPLING = ("temperature", "response_length")
MEMORY = ("lora_r", "load_in_4bit", "optim", "micro_batch_size", "gradient_checkpointing", "dtype", "device")
TOLD = ("report_to",)
GROUPS: dict[str, Groups] = {
    "sft": {
        "What": ("model_name_or_path", "dataset_name", "split", "columns", "output_dir"),
        "How": ("learning_rate", "num_train_epochs", "max_steps", "train_batch_size", "max_length", "seed"),
        "Memory and devices": MEMORY,
        "Who is told": TOLD,
    },
    "collect": {
        "What": ("model_name_or_path", "dataset_name", "responses_file", "columns", "output_dir"),
        "Who compares": ("annotator", "label_mode", "label_scale", "error_rate", "tie_policy"),
        "How much": ("pairs", "layout", "num_generations"),
        "Sampling": (*SAMPLING, "sampling_batch_size", "seed", "device"),
    },
    "reward": {
        "What": ("model_name_or_path", "dataset_name", "split", "columns", "reference_policy", "output_dir"),
        "How": (
            "loss", "learning_rate", "num_train_epochs", "train_batch_size", "max_length", "pooling",
            "num_members", "max_train_comparisons", "seed",
        ),
        "Memory and devices": MEMORY,
        "Who is told": TOLD,
    },
    "dpo": {
        "What": ("model_name_or_path", "ref_model", "dataset_name", "split", "columns", "output_dir"),
        "How": (
            "loss_type", "beta", "learning_rate", "num_train_epochs", "max_steps", "train_batch_size",
            "max_length", "seed",
        ),
        "Memory and devices": MEMORY,
        "Who is told": TOLD,
    },
    "rl": {
        "What": ("model_name_or_path", "reward_model", "dataset_name", "gold", "output_dir"),
        "How": (
            "algorithm", "kl_coef", "learning_rate", "num_iterations", "batch_size", "num_generations",
            "num_ppo_epochs", "max_kl", "eval_every", "seed",
        ),
        "Sampling": SAMPLING,
        "Memory and devices": MEMORY,
        "Who is told": TOLD,
    },
    "best_of": {
        "What": ("model_name_or_path", "reward_model", "dataset_name", "split", "output_dir"),
        "How": ("num_generations", "seed"),
        "Sampling": (*SAMPLING, "sampling_batch_size", "dtype", "device"),
    },
    "audit": {
        "What": ("reward_model", "dataset_name", "split", "columns", "as_dialogue", "output_dir"),
        "How": ("seed", "dtype", "device"),
    },
    "evaluate": {
        "What": (
            "model_name_or_path", "ref_model", "reward_model", "gold", "held_out_reward", "judge",
            "dataset_name", "split", "output_dir",
        ),
        "How": ("max_eval_prompts", "best_of", "best_of_prompts", "num_generations", "seed"),
        "Sampling": (*SAMPLING, "sampling_batch_size", "dtype", "device"),
    },
    "chat": {
        "What": ("prompt", "system", "reward_model", "preferences"),
        "Sampling": (*SAMPLING, "seed", "dtype", "device"),
    },
    "serve": {"Where": ("port", "device", "dtype")},
    "run": {
        "What": ("dataset_name", "model_name_or_path", "stages", "columns", "output_dir"),
        "Every stage": (*SAMPLING, "seed", "device", "dtype", "rounds", *TOLD),
    },
}  # fmt: skip


HELP = ("-h", "--help")


def asks_for_help(arguments: Sequence[str]) -> bool:
    return any(text in HELP for text in arguments)


def taken_from(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Arguments for the parser, and whether the short help is asked for: ``--help`` without ``all``."""
    place = next((i for i, text in enumerate(arguments) if text in HELP), None)
    if place is None:
        return list(arguments), False
    after = list(arguments[place + 1 :])
    if after[:1] == ["all"]:
        return [*arguments[: place + 1], *after[1:]], False
    return list(arguments), True


def usual(kind: str, options: type, parser: Parser, description: str, takes: str = "") -> str:
    """The text of a command's short help.

    Args:
        kind: of a stage, or ``run``.
        options: its dataclass.
        parser: of all of its options, with their texts.
        description: what the command is for.
        takes: what stands in front of its options.
    """
    texts = {action.dest: action.help or "" for action in parser._actions}
    fields = {field.name: field for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    types, by_rule = typing.get_type_hints(options), rules(kind)
    shown = [name for names in GROUPS[kind].values() for name in names]
    hidden = len(fields) - len(shown)
    more = f"{hidden} more options with --help all; " if hidden else ""
    more += "--print_config shows all values."
    if kind == "run":
        more += (
            " A stage's own are given under its name, as --rl.kl_coef 0.1; `preferl rl --help` lists them."
        )
    short = argparse.ArgumentParser(
        prog=parser.prog,
        usage=" ".join(filter(None, [parser.prog, takes, "[--config FILE|NAME …] [--OPTION VALUE …]"])),
        description=description,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    for title, names in GROUPS[kind].items():
        group = short.add_argument_group(title)
        for name in names:
            default = by_rule.get(name) or said(default_of(fields[name]))
            text = texts[name].replace(AT_HAND, "")
            text = f"{text.rstrip('.')} (default: {default})" if default else text
            group.add_argument(f"--{name}", metavar=value_of(types[name]), help=text.replace("%", "%%"))
    return short.format_help()


def default_of(field: "dataclasses.Field[typing.Any]") -> typing.Any:
    if field.default_factory is dataclasses.MISSING:
        return field.default
    return field.default_factory()


def said(default: object) -> str:
    """A default as it is given; nothing for none."""
    if default is None or default in ([], {}):
        return ""
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(default).items())
    return str(default).lower() if isinstance(default, bool) else str(default)


def value_of(hint: object) -> str:
    """What stands for a value of this type."""
    text = without_ranges(hint)
    for kind, word in (("bool", "true|false"), ("int", "N"), ("float", "X")):
        if text.startswith(kind):
            return word
    return "TEXT" if "str" in text else "VALUE"
