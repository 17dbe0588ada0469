"""What a training step needs of memory, computed from configurations before anything is loaded.

Weights, gradients and an optimiser's state follow from the number of parameters, activations from what a
layer keeps of a token (``models.shapes``). With ``gradient_checkpointing`` a layer keeps its input, and all
of that for one layer at a time. Under autocast weights with gradients have a copy of two bytes. Of logits at
most ``LOGITS_BYTES`` are there at once, ``LOGITS_AT_ONCE`` times: without the banned tokens, at the
temperature, their softmax, the gradients of these.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from preferl.models.adapters import CONFIG as ADAPTER_FILE
from preferl.models.adapters import find_adapter
from preferl.models.load import (
    known_configuration,
    model_directory,
    refuse_more_layers_than_weights,
)
from preferl.models.output_head import LOGITS_BYTES
from preferl.models.shapes import (
    CACHE_BYTES,
    MOST_TOKENS,
    Shape,
    floor_power,
    is_small,
    shape_of,
    sizes,
)
from preferl.models.storage import stored_dtype
from preferl.runs.errors import UsageError
from preferl.runs.memory import GIB, free_memory, machine_memory, map_large_tensors
from preferl.runs.progress import say

CPU_PASS_BYTES, CPU_PASS_TOKENS = 1 * GIB, 1024
"""Activations and tokens of a pass on a CPU at most, where one row has fewer: larger passes are no faster
there."""
MOST_LAYERS = 1000
"""A configuration of more is not built: it takes for ever."""
LOGITS_AT_ONCE = 6
"""Tensors of the size of some tokens' logits, in the pass to their log-probabilities and back."""
PROMPT_TOKENS = 128
"""Of a prompt, where nothing bounds it: what is planned for."""


@dataclass(frozen=True)
class Role:
    """A model and its part in a stage.

    Args:
        name: ``policy``, ``reference``, ``reward``, ``critic``.
        config: of its model in transformers.
        stored: the dtype of its weights where they are frozen.
        trained: whether it has gradients and an optimiser.
        logits: whether it says something over the vocabulary; else it has a scalar head.
        copies: of what is trained, kept beside it: the best weights so far, their average.
        owns_base: whether its frozen weights are its own; else they are those of another role.
    """

    name: str
    config: Any
    stored: torch.dtype = torch.float32
    trained: bool = False
    logits: bool = True
    copies: int = 0
    owns_base: bool = True


def role(name: str, model: str | None, **how: Any) -> list[Role]:
    """A role by the name of its model; none where there is no model of that name (yet), or its configuration
    is one of which none can be built: whoever loads it says what is wrong.

    Raises:
        UsageError: it is an adapter without a base, or names more layers than it has weights.
    """
    if model is None:
        return []
    directory = model_directory(model)
    if (Path(directory) / ADAPTER_FILE).exists():  # it is merged into its base
        adapter = find_adapter(directory)
        directory = directory if adapter is None else adapter.base
    try:
        config = known_configuration(directory)
        if not hasattr(config, "get_text_config"):
            return []
        refuse_more_layers_than_weights(config, Path(directory))
        if sizes(config)[0] > MOST_LAYERS:
            return []
        if not is_small(config):
            shape_of(config)
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - of whichever family's code
        reason = type(error).__name__
        say(f"'{model}' is not planned for: its family cannot be built without weights ({reason})")
        return []
    stored = stored_dtype(directory) if Path(directory).is_dir() else getattr(config, "dtype", None)
    narrow = isinstance(stored, torch.dtype) and stored.itemsize == 2
    return [Role(name, config, stored if narrow else torch.float32, **how)]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Work:
    """What a stage does, as far as its options say it.

    Args:
        roles: its models, those that are trained first.
        row_tokens: padded tokens of the longest row that is not cut further (a pair has two sequences).
        length: tokens of its longest sequence.
        batch_rows: rows of a batch, of at most ``row_tokens`` each.
        cached_tokens: whose keys and values a policy keeps while it samples; 0 where none samples.
        read: how often each role reads a row of the run, a backward pass as two: ``{"policy": 3}``.
        rows: rows that the run reads; None where the data decides.
        epochs: how often it reads them then.
    """

    roles: list[Role]
    row_tokens: int
    length: int
    batch_rows: int
    cached_tokens: int = 0
    read: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rows: int | None = None
    epochs: float = 1.0


@dataclass(frozen=True)
class Levers:
    """What makes a step take less memory."""

    micro_batch_tokens: int | None = None
    gradient_checkpointing: bool | None = None
    lora_r: int = 0
    load_in_4bit: bool = False
    optim: str = "adamw"
    offload: bool = False

    @classmethod
    def of(cls, options: Any) -> "Levers":
        """Those of a stage's options."""
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(**{name: getattr(options, name) for name in names if hasattr(options, name)})


@dataclass(frozen=True)
class Needs:
    """Bytes of one role. Activations and logits are there while a pass of it is under way, a cache while it
    samples."""

    weights: float
    gradients: float
    optimiser: float
    activations: float
    logits: float
    cache: float

    @property
    def in_pass(self) -> float:
        """What is there only while a pass with its gradient is under way."""
        return self.activations + self.logits


NF4_BYTES = 4.127 / 8  # of a weight: four bits, and its share of twice quantised scales (arXiv 2305.14314)
MOMENTS_BYTES = {"adamw": 8.0, "adamw_8bit": 2.03}  # of a trained weight; in 8 bits with a scale for 256


def needs(
    role: Role,
    work: Work,
    levers: Levers,
    dtype: torch.dtype,
    tokens: int,
    recompute: bool,
    device: str = "cpu",
) -> Needs:
    """What a role takes in a stage whose passes have so many padded tokens."""
    shape = shape_of(role.config)
    lora = levers.lora_r if role.trained else 0
    own = shape.parameters
    if not role.logits and not shape.tied:
        own -= shape.embeddings  # a scalar head stands where the output layer was
    is_whole = role.trained and not lora
    width = 4.0 if is_whole else float(role.stored.itemsize)
    base = width * own
    if levers.load_in_4bit and not is_whole:
        base -= (width - NF4_BYTES) * shape.in_linear
    trained = (shape.lora(lora) if lora else own) if role.trained else 0
    weights = (base if role.owns_base or is_whole else 0.0) + (4.0 * trained if lora else 0.0)
    weights += 4.0 * role.copies * trained
    if dtype != torch.float32 and is_whole:
        weights += 2.0 * shape.in_linear  # autocast keeps a copy of what has gradients, for the pass
    activations = logits = 0.0
    if role.trained:
        activations = layer_bytes(shape, tokens, work.length, lora, dtype, recompute)
        logits = head_bytes(shape, tokens, bool(lora), role.logits)
    return Needs(
        weights=weights,
        gradients=4.0 * trained,
        optimiser=MOMENTS_BYTES.get(levers.optim, 8.0) * trained,
        activations=activations,
        logits=logits,
        cache=float(cached(role, work, device) * shape.cache_per_token(dtype.itemsize)),
    )


def cached(role: Role, work: Work, device: str) -> int:
    """Tokens whose keys and values a role keeps at once."""
    if role.name != "policy" or not work.cached_tokens:
        return 0
    layers, _, _, kv, _, _ = sizes(role.config)
    return min(work.cached_tokens, floor_power(CACHE_BYTES[device] / (4 * 2 * layers * kv)))


def layer_bytes(
    shape: Shape, tokens: int, length: int, lora_r: int, dtype: torch.dtype, recompute: bool
) -> float:
    """Activations of the layers of a pass that are kept for its gradient."""
    of_layer = float(shape.kept_per_token(length, lora_r, dtype != torch.float32)) * tokens
    if recompute:
        return shape.layers * 4.0 * shape.width * tokens + of_layer
    return shape.layers * of_layer


def head_bytes(shape: Shape, tokens: int, lora: bool, logits: bool) -> float:
    """What the head of a pass takes: logits by parts, and the gradient of an output layer before it is
    added."""
    if not logits:
        return 12.0 * shape.width * tokens
    at_once = LOGITS_AT_ONCE * min(4.0 * tokens * shape.vocabulary, LOGITS_BYTES)
    return at_once + (0.0 if lora else 4.0 * shape.embeddings)


# ------------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Machine:
    """What a process may use at most, what is free now (bytes), and what that is of."""

    most: float
    free: float
    name: str
    is_cpu: bool

    @classmethod
    def here(cls, device: torch.device) -> "Machine":
        """This one, or its GPU."""
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            return cls(float(total), float(free), torch.cuda.get_device_name(device), False)
        return cls(machine_memory(), free_memory(), "this machine", True)

    @property
    def device(self) -> str:
        return "cpu" if self.is_cpu else "cuda"

    @property
    def process(self) -> float:
        """What interpreter, libraries and a tokenizer take (torch's own code is read into memory as it is
        used, 0.3 GiB of it only in a first update), or a CUDA context."""
        return 0.75 * GIB if self.is_cpu else 1.0 * GIB


@dataclass(frozen=True)
class Plan:
    """What each role of a stage takes, and how large its passes are."""

    needs: Mapping[str, Needs]
    tokens: int
    recompute: bool
    offloads: bool = False

    @property
    def kept(self) -> float:
        """Weights and optimisers, which are there all the time."""
        return sum(n.weights + n.optimiser for n in self.needs.values())

    @property
    def total(self) -> float:
        """The most at any time: in an update, or while sampling. One role's pass is under way at a time."""
        gradients = sum(n.gradients for n in self.needs.values())
        update = gradients + max((n.in_pass for n in self.needs.values()), default=0.0)
        if self.offloads:
            # Frozen models are there one at a time, an optimiser's state in its own step alone.
            kept = sum(n.weights for n in self.needs.values() if n.gradients)
            step = gradients + max(n.optimiser for n in self.needs.values())
            frozen = max((n.weights for n in self.needs.values() if not n.gradients), default=0.0)
            return kept + max(update, step, frozen, sum(n.cache for n in self.needs.values()))
        return self.kept + max(update, sum(n.cache for n in self.needs.values()))

    @property
    def is_large(self) -> bool:
        """Whether a pass keeps more than it should on a CPU."""
        return max(n.activations for n in self.needs.values()) > CPU_PASS_BYTES

    def fits(self, machine: Machine) -> bool:
        """Whether a process on this machine can have so much at all."""
        return self.total + machine.process <= machine.most


def plan(work: Work, levers: Levers, dtype: torch.dtype, machine: Machine) -> Plan:
    """The size of passes that fits, and what a step takes with it. Activations are made again where a row
    would not fit otherwise."""
    given = levers.gradient_checkpointing
    for recompute in (False, True) if given is None else (given,):
        tokens = levers.micro_batch_tokens or tokens_that_fit(work, levers, dtype, machine, recompute)
        found = with_tokens(work, levers, dtype, tokens, recompute, machine.device)
        if recompute or given is not None:
            break
        if found.fits(machine) and not (machine.is_cpu and found.is_large):
            break
    return found


def with_tokens(
    work: Work, levers: Levers, dtype: torch.dtype, tokens: int, recompute: bool, device: str = "cpu"
) -> Plan:
    """What a step takes whose passes have so many tokens, and one row at least."""
    in_pass = min(max(tokens, work.row_tokens), work.row_tokens * work.batch_rows)
    found = {role.name: needs(role, work, levers, dtype, in_pass, recompute, device) for role in work.roles}
    return Plan(found, tokens, recompute, levers.offload and device != "cpu")


def tokens_that_fit(work: Work, levers: Levers, dtype: torch.dtype, machine: Machine, recompute: bool) -> int:
    """``micro_batch_tokens``: the power of two whose activations have room beside all else. What is free at
    the moment does not count: the same command has the same passes another day."""
    tokens = CPU_PASS_TOKENS if machine.is_cpu else MOST_TOKENS
    single = dataclasses.replace(work, row_tokens=1, batch_rows=MOST_TOKENS)
    while tokens > 1:
        found = with_tokens(single, levers, dtype, tokens, recompute, machine.device)
        if found.fits(machine) and not (machine.is_cpu and found.is_large):
            break
        tokens //= 2
    return tokens


REMEDIES: tuple[Mapping[str, Any], ...] = (
    {"micro_batch_tokens": None},
    {"gradient_checkpointing": True},
    {"offload": True},
    {"lora_r": 16},
    {"load_in_4bit": True},
    {"optim": "adamw_8bit"},
)
"""What makes a step smaller, the cheapest first; each stands on those before it."""


def remedy(options: Any, work_of: Callable[[Any], Work], dtype: torch.dtype, machine: Machine) -> str:
    """The settings with which a stage would fit, in a sentence."""
    changes: dict[str, Any] = {}
    for change in REMEDIES:
        ((name, value),) = change.items()
        if not hasattr(options, name) or getattr(options, name) == value:
            continue
        if name == "lora_r" and options.lora_r:
            continue
        if name == "gradient_checkpointing" and options.gradient_checkpointing is None:
            continue  # it was chosen already
        if name == "offload" and machine.is_cpu:
            continue
        changes[name] = value
        options = dataclasses.replace(options, **{name: value})
        found = plan(work_of(options), Levers.of(options), dtype, machine)
        if found.fits(machine):
            changes = {k: found.tokens if k == "micro_batch_tokens" else v for k, v in changes.items()}
            text = " ".join(f"--{k} {str(v).lower()}" for k, v in changes.items())
            return f"it would with {text} ({(found.total + machine.process) / GIB:.1f} GiB)"
    return "no setting here makes it fit: take a smaller model, shorter rows, or a larger machine"


def lines(found: Plan, machine: Machine) -> list[str]:
    """The plan in one or two sentences."""
    parts = {
        "weights": sum(n.weights for n in found.needs.values()),
        "gradients": sum(n.gradients for n in found.needs.values()),
        "optimiser": sum(n.optimiser for n in found.needs.values()),
        "activations": max(n.in_pass for n in found.needs.values()),
        "cache": sum(n.cache for n in found.needs.values()),
    }
    told = ", ".join(f"{name} {value / GIB:.2f}" for name, value in parts.items() if value)
    again = ", activations made again for the gradient" if found.recompute else ""
    first = (
        f"plan: {(found.total + machine.process) / GIB:.1f} GiB of {machine.most / GIB:.1f} that it may have "
        f"({told}), passes of {found.tokens:,} tokens{again}"
    )
    if found.total + machine.process > machine.free:
        short = f"plan: only {machine.free / GIB:.1f} GiB are free on {machine.name} now; end other programs"
        return [first, short]
    return [first]


def settled(options: Any, stage: Any, work_of: Callable[[Any], Work]) -> Any:
    """A stage's options with ``micro_batch_tokens`` and ``gradient_checkpointing`` chosen where they were not
    given, as ``stage`` records; the plan is said where a model is not small.

    Raises:
        UsageError: it cannot fit this machine; names what would.
    """
    if options.offload and stage.device.type == "cpu":
        stage.say("offload: everything is in the CPU's memory already; nothing moves")
    left_open = [
        name for name in ("micro_batch_tokens", "gradient_checkpointing") if getattr(options, name) is None
    ]
    # What was chosen when it was begun stays, or what goes on would not be what began.
    kept = stage.found.chosen if stage.goes_on else {}
    options = dataclasses.replace(options, **{name: kept.get(name) for name in left_open})
    work = work_of(options)
    if all(is_small(role.config) for role in work.roles):
        found = Plan({}, options.micro_batch_tokens or MOST_TOKENS, bool(options.gradient_checkpointing))
    else:
        machine = Machine.here(stage.device)
        if machine.is_cpu:
            map_large_tensors()
        found = plan(work, Levers.of(options), stage.dtype, machine)
        if not found.fits(machine):
            raise UsageError(refusal(options, found, stage.name, work_of, stage.dtype, machine))
        for line in lines(found, machine):
            stage.say(line)
    chosen = {"micro_batch_tokens": found.tokens, "gradient_checkpointing": found.recompute}
    stage.choose({name: chosen[name] for name in left_open})
    return dataclasses.replace(options, **chosen)


def refusal(
    options: Any,
    found: Plan,
    name: str,
    work_of: Callable[[Any], Work],
    dtype: torch.dtype,
    machine: Machine,
) -> str:
    """Why a stage does not fit, and what would."""
    return (
        f"{name} needs {(found.total + machine.process) / GIB:.1f} GiB, and may have "
        f"{machine.most / GIB:.1f} GiB of {machine.name}; {remedy(options, work_of, dtype, machine)}"
    )


def table(found: Plan) -> list[str]:
    """What each role takes, in GiB."""
    columns = [f.name for f in dataclasses.fields(Needs)]
    rows = [f"{'GiB':<12}" + "".join(f"{column:>13}" for column in columns)]
    for name, each in found.needs.items():
        values = [getattr(each, column) for column in columns]
        rows.append(f"{name:<12}" + "".join(f"{value / GIB:>13.2f}" for value in values))
    return rows


def time_lines(work: Work, found: Plan, rows: int | None, speed: float) -> list[str]:
    """How often each role reads a row, and the hours that it takes at so many operations a second. A row is
    taken to be as long as it may be, so that it is rather less."""
    total = 1000 if rows is None else rows if work.rows is not None else rows * work.epochs
    operations = 0.0
    reads = []
    for role in work.roles:
        shape = shape_of(role.config)
        each = work.read.get(role.name, 1.0)
        if role.trained and found.recompute:
            each *= 4 / 3  # one more pass beside a pass and its gradient, which costs two
        reads.append(f"{role.name} {each:.3g}")
        parameters = shape.in_linear + (shape.embeddings if role.logits else 0)
        operations += 2.0 * parameters * each * total * work.row_tokens
    counted = "for each 1,000 rows" if rows is None else f"for {total:,.0f} rows"
    return [
        f"passes over a row (a gradient counts two): {', '.join(reads)}",
        f"at most about {operations / speed / 3600:.2g} hours {counted} at {speed / 1e9:,.0f} GFLOP/s",
    ]
