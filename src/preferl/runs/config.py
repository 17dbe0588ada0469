"""Configuration: the leaves that several stages share, and the YAML / command-line loader.

A stage's own options stand in a dataclass at the top of its file, which inherits the leaves it needs, so
that its keys are flat and carry TRL's names (``--learning_rate``, ``--dataset_name``). Precedence:
defaults < YAML files from left to right < flags.
"""

import contextlib
import dataclasses
import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from preferl.runs import distributed
from preferl.runs.errors import UsageError
from preferl.runs.objects import object_of
from preferl.runs.progress import printable
from preferl.runs.ranges import (
    Bound,
    Count,
    Decay,
    Natural,
    NonNegative,
    Positive,
    RangedOptions,
    Seed,
    Share,
    without_ranges,
)

Config = TypeVar("Config")


@dataclass(kw_only=True)
class DeviceOptions(RangedOptions):
    seed: Seed = 0
    """Seed of everything random in this stage."""
    device: str = "auto"
    """``auto`` (CUDA when there is one, else CPU), ``cpu`` or ``cuda[:n]``."""
    dtype: str = "auto"
    """``auto`` (bfloat16 on a GPU that has it, else float32), ``float32`` or ``bfloat16``."""
    num_threads: Natural = 0
    """CPU threads; 0 leaves torch's own choice. Results repeat bit for bit at one thread count."""


@dataclass(kw_only=True)
class ReadOptions(RangedOptions):
    """How rows are read: the same in every command that reads a data set."""

    dataset_format: str = "auto"
    """``auto`` (found from all rows), or what to read them as: ``preference`` or ``ranking``, ``rated``,
    ``demonstration``, ``text``, ``prompt``."""
    columns: dict[str, str] | str | None = None
    """Which column is what, as ``prompt=question,chosen=good,rejected=bad`` (docs/data.md)."""
    winner: str | None = None
    """The column that says which response is better, with its coding where the values leave it open, as
    ``overall_preference:strength(-3..3, negative=a)``; or a rating, or a weighted sum of ratings, by which
    the responses to one prompt are compared."""
    layout: str | None = None
    """A layout of ``preferl data layouts``, or a YAML file that adds to them."""
    bad_rows: str = "default"
    """``default`` (each kind of defect has its own policy), ``skip`` (leave them out) or ``error``."""
    config_name: str | None = None
    """Which of a data set's configurations (or folders); the same as ``name:config``."""
    revision: str | None = None
    """A branch, tag or commit of a data set of the Hub; the same as ``name@revision``."""

    def reading(self) -> dict[str, Any]:
        """What a person said about columns, as the arguments of ``data.columns.Options``."""
        return {"columns": self.columns, "winner": self.winner, "layout": self.layout}


@dataclass(kw_only=True)
class DataOptions(ReadOptions):
    dataset_name: str | None = None
    """``world``, preferl's own pairs (``world:demonstration``, ``world:analysis``), a Hub name
    (``name:config[split]@revision``), or local files: JSON Lines, CSV, parquet, a folder. By default the
    embedded world, of models that are new or were trained on it."""
    max_rows: Count | None = None
    """Read at most this many rows of the data set."""
    opening_words: Count = 12
    """Plain-text corpora: the first so many words of a text are its prompt, the rest its response."""
    max_response_words: Count | None = None
    """Plain-text corpora: the response ends with the last sentence within so many words."""
    max_prompt_words: Count | None = None
    """Leave out prompts longer than this (counted in the report)."""
    as_dialogue: bool | None = None
    """Read a plain-text prompt as the user's turn of a dialogue. By default where the model that answers, or
    the reward model that is trained or audited, has a chat template of its own; texts never are one."""
    split_shares: list[Share] = field(default_factory=lambda: [0.8, 0.1, 0.1])
    """Shares of train, dev and eval of a data set without splits of its own."""
    split_by: str = "prompt"
    """What the hash that divides such a data set is of: the ``prompt``, or the whole ``row``."""
    near_copies: str = "auto"
    """Whether prompts of one split are looked for among those of another where they are nearly equal:
    ``auto`` (in data sets of up to 100,000 prompts), ``always`` or ``never``."""

    def source(self) -> dict[str, Any]:
        """These options as the arguments of ``data.sources.load_source``."""
        names = [f.name for f in dataclasses.fields(DataOptions) if f.name != "dataset_name"]
        options = {name: getattr(self, name) for name in names}
        if self.dataset_name is not None:  # where there is none, ``runs.descent.with_data_set`` says which
            options["name"] = object_of(self.dataset_name) or self.dataset_name
        return options

    def source_of(self, name: str) -> dict[str, Any]:
        """The same for another data set beside it, which is read as it is: what was said about the columns,
        the winner, the kind, the configuration and the revision was said of the first. A file of layouts adds
        to those of both."""
        layout = self.layout if self.layout is not None and Path(self.layout).is_file() else None
        said = dict.fromkeys(("config_name", "revision", "columns", "winner"))
        return self.source() | said | {"name": name, "dataset_format": "auto", "layout": layout}


@dataclass(kw_only=True)
class TemplateOptions:
    chat_template_kwargs: dict[str, Any] | None = None
    """What the chat template is given besides messages, as ``{"enable_thinking": false}``; ``chat_template``
    names one of several. Kept with a model that is saved, whose own are the default."""


@dataclass(kw_only=True)
class SplitOption:
    split: str | None = None
    """The rows to work on instead of the usual ones: a split by the data set's own name, or train, dev, rl,
    eval or all."""


@dataclass(kw_only=True)
class DataCommandOptions(SplitOption, ReadOptions):
    """Options of ``preferl data``."""


@dataclass(kw_only=True)
class OptimOptions(RangedOptions):
    learning_rate: NonNegative | None = None
    """Peak learning rate of AdamW; by default by the model at hand (docs/models.md)."""
    lr_scheduler_type: str = "cosine"
    """``cosine``, ``linear`` or ``constant``, after the warm-up."""
    lr_end_factor: NonNegative = 0.1
    """The learning rate decays to this fraction of its peak."""
    warmup_ratio: Share = 0.05
    """Fraction of the updates during which the learning rate rises from 0."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay."""
    adam_beta2: Decay = 0.999
    """Decay of AdamW's second moment."""
    adam_epsilon: Positive = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: Bound = 1.0
    """Gradients are clipped to this norm."""
    offload: bool = False
    """On one GPU: frozen models and the optimiser's state lie in the CPU's memory while nobody uses them;
    slower, with the same numbers. Nothing moves on a CPU."""
    optim: str = "adamw"
    """``adamw``, or ``adamw_8bit``: moments in eight bits (Dettmers et al. 2022), a quarter of their memory,
    paged on a GPU; needs bitsandbytes."""


@dataclass(kw_only=True)
class LoraOptions(RangedOptions):
    lora_r: Natural = 0
    """Train LoRA weights of this rank instead of the whole model; 0 for none. The reference of a policy is
    then the policy without them and costs no memory."""
    lora_alpha: Positive = 16.0
    """LoRA's scale is alpha / r."""
    lora_target_modules: list[str] = field(default_factory=list)
    """Names of the layers that get LoRA weights, as ``q_proj``; by default all linear layers of the trunk."""
    load_in_4bit: bool = False
    """QLoRA: the frozen weights are quantised to four bits (NF4, double quantisation); needs ``lora_r`` and
    bitsandbytes (``pip install preferl[quant]``)."""


@dataclass(kw_only=True)
class SamplingOptions(RangedOptions):
    temperature: Positive = 1.0
    """Sampling temperature; log-probabilities and KL carry it too."""
    response_length: Count = 48
    """Most tokens of a response, EOS included."""
    stop_sequences: list[str] = field(default_factory=list)
    """Texts that end a response, as EOS does; they stay in it."""
    sampling_batch_size: Count = 256
    """Sequences decoded at once."""


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
            text = f"{typed[1]} is {value[1]!r}; its type is {self.type_of(typed[1])}"
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
