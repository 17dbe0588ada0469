"""Options that several stages share."""

import dataclasses
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preferl.runs.errors import UsageError
from preferl.runs.objects import object_of
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
)


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


TRACKERS = ("tensorboard", "wandb", "trackio")  # they are called like their packages


@dataclass(kw_only=True)
class TrackingOptions(RangedOptions):
    """
    Raises:
        UsageError: a tracker is unknown, or not installed.
    """

    report_to: list[str] | str = field(default_factory=list)
    """Who is told numbers, samples and options besides the files: ``tensorboard``, ``wandb``, ``trackio``, or
    several of them, as ``tensorboard,wandb``; needs ``pip install 'preferl[track]'``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.report_to, str):
            self.report_to = [name.strip() for name in self.report_to.split(",")]
        for name in self.report_to:
            if name not in TRACKERS:
                raise UsageError(f"report_to '{name}' is unknown; use {', '.join(TRACKERS)}, or [] for none")
            if importlib.util.find_spec(name) is None:
                raise UsageError(
                    f"report_to {name}: the package {name} is not installed: pip install 'preferl[track]'"
                )


@dataclass(kw_only=True)
class StageOptions(TrackingOptions, DeviceOptions):
    """What every stage has."""


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


@dataclass(kw_only=True)
class PhraseOptions:
    phrases: dict[str, list[str]] = field(default_factory=dict)
    """Lists of phrases that are looked for beside those of ``evaluation/phrases.yaml``, by name, as
    ``{"begging": ["please [do] rate (this|me)"]}``; a list of a name that is there takes its place."""
