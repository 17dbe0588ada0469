"""The stages as functions: objects in, objects out.

    data   = preferl.load_dataset("pairs.jsonl")
    reward = preferl.train_reward("Qwen/Qwen3-0.6B", data)
    policy = preferl.train_rl("Qwen/Qwen3-0.6B", data, reward_funcs=[reward.model, my_function])
    found  = preferl.evaluate(policy, reference="Qwen/Qwen3-0.6B", data=data, reward_funcs=reward.model)

Options are those of the commands, as keywords (``preferl rl --help``). A model that is handed over is never
changed: what is trained is a copy. Without ``output_dir`` a stage is written to a temporary directory, which
lives as long as its result.
"""

import contextlib
import dataclasses
import hashlib
import re
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from transformers import PreTrainedModel

from preferl.data import sources
from preferl.data.files import Table
from preferl.data.records import DataError, PromptRecord
from preferl.data.sources import Part, Source
from preferl.data.types import Scorer
from preferl.judging.scorers import as_scorer, load_scorer
from preferl.learning.algorithms import Algorithm
from preferl.models import load
from preferl.models.reward import RewardModel
from preferl.options.shared import DataOptions
from preferl.reporting.measures import main_measure
from preferl.runs import devices, distributed, progress
from preferl.runs.config import checked
from preferl.runs.errors import DivergedError, UsageError
from preferl.runs.inputs import hash_directory
from preferl.runs.objects import PREFIX, named
from preferl.runs.record import StageRecord
from preferl.runs.stage import Callback
from preferl.sampling.policy import Policy
from preferl.stages import collect as collect_stage
from preferl.stages import dpo, reward, rl, sft
from preferl.stages import evaluate as evaluate_stage

Model = TypeVar("Model")
# Options that may be given as objects.
MODEL_OPTIONS = ("ref_model", "reference_policy")
REWARD_OPTIONS = ("gold", "annotator", "held_out_reward", "adversarial")
# What the command line calls what is an argument here.
ARGUMENTS = {
    "model_name_or_path": "model",
    "dataset_name": "data",
    "reward_model": "reward_funcs",
    "fresh": "fresh=True",
    "keep_stale": "the command line's --keep_stale",
}


# --------------------------------------------------------------------------------------------------- results


class Result:
    """What a stage left: ``path`` is its directory, ``metrics`` the rows that it logged, ``summary`` what it
    found, ``samples`` texts beside numbers."""

    def __init__(self, path: Path, temporary: "_Temporary | None" = None):
        self.path = Path(path)
        self._temporary = temporary  # deleted with this object
        record = StageRecord(self.path)
        self.metrics: list[dict[str, Any]] = record.metrics
        self.summary: dict[str, Any] = record.summary
        self.samples: list[dict[str, Any]] = record.samples

    def save(self, directory: str | Path) -> Path:
        """Copies the stage to a directory that is not there yet, or empty; commands take it by name.

        Raises:
            UsageError: something is there.
        """
        target = Path(directory)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{target} is not empty, and nothing is overwritten; name another directory")
        return Path(shutil.copytree(self.path, target, dirs_exist_ok=True))

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self.path}')"


class Trained(Result, Generic[Model]):
    """A result whose ``model`` is a ``Policy``, or a reward: a function of prompts and completions."""

    def __init__(
        self,
        path: Path,
        temporary: "_Temporary | None",
        load_model: Callable[[str], Model],
    ):
        super().__init__(path, temporary)
        self._load_model = load_model

    @cached_property
    def model(self) -> Model:
        """What was trained, loaded when it is first asked for."""
        return self._load_model(str(self.path))


class Collected(Result):
    """Comparisons: a result that is a data set."""

    @cached_property
    def data(self) -> Source:
        """The comparisons, in the splits in which they were collected."""
        return sources.load_source(str(self.path))


class Evaluated(Result):
    """A policy beside its reference."""

    @property
    def win_rate(self) -> float:
        """Share of eval prompts on which the policy's responses beat the reference's (a tie is half), by the
        reward that neither trained nor labelled where there is one. ``summary["comparison"]`` has every
        measure, with intervals."""
        return self.summary["comparison"][self.measure]["win_rate"]

    @property
    def measure(self) -> str:
        """What ``win_rate`` is by: ``gold``, ``held_out`` or ``score``, the first that is known."""
        return main_measure(self.summary)

    @property
    def kl(self) -> float:
        """KL(policy || reference), in nats per response."""
        return self.summary["policies"]["policy"]["kl"]


ModelLike: TypeAlias = str | Path | Policy | RewardModel | PreTrainedModel | Trained[Any]
"""A model by name, or one in memory; what was trained here stands for its model."""
DataLike: TypeAlias = str | Path | Source | Collected | Iterable[Any] | Mapping[str, Iterable[Any]]
"""A data set by name, rows (dicts, texts that are prompts, a ``datasets.Dataset``), or such by split."""
RewardLike: TypeAlias = str | Path | Scorer | Callable[..., Any] | Trained[Any] | Sequence[Any]
"""A function, a reward model, a name as ``--reward_model`` takes it, or several of these."""


# ------------------------------------------------------------------------------------------------- functions


def load_dataset(data: DataLike, verbose: bool = True, **options: Any) -> Source:
    """A data set, checked and split: ``.train``, ``.dev`` and ``.eval`` with their ``.prompts``,
    ``.demonstrations`` and ``.comparisons``; ``.prompts`` are those to train a policy on.

    Args:
        data: a name as ``--dataset_name`` takes it (``world``, a Hub name, a file, a folder), rows as dicts,
            a ``datasets.Dataset``, or such by the name of their split.
        verbose: say what was read as what, and how it is split.
        **options: ``dataset_format``, ``max_rows``, ``split_shares``, … and ``seed`` (of the world).

    Raises:
        DataError: there is no such data set, or its rows cannot be read.
        UsageError: there is no such option.
    """
    if isinstance(data, Source):
        if options:
            raise UsageError(f"{', '.join(options)}: this data set is loaded already")
        return data
    if isinstance(data, Collected):
        data = str(data.path)
    with _speaking_of_arguments(verbose):
        seed = options.pop("seed", 0)
        config = checked(DataOptions, options)
        name = str(data) if isinstance(data, str | Path) else _table(data)
        source = sources.load_source(**config.source() | {"name": name, "seed": seed})
        for note in source.notes:
            progress.say(f"data: {note}")
    return source


def train_sft(
    model: ModelLike | None,
    data: DataLike,
    *,
    tokenizer: Any = None,
    output_dir: str | Path | None = None,
    fresh: bool = False,
    callbacks: Sequence[Callback] = (),
    verbose: bool = True,
    **options: Any,
) -> Trained[Policy]:
    """Fine-tunes a language model on demonstrations (``preferl sft``).

    Args:
        model: what is fine-tuned; None for a small new model, with a tokenizer of its own.
        data: demonstrations; of comparisons the best response.
        tokenizer: of a ``model`` that is one of transformers.
        output_dir: where the stage is written; by default to a temporary directory.
        fresh: do it anew, whatever is there.
        callbacks: called as ``f(step, metrics)`` with every row that is logged.
        verbose: say what happens, and show progress.
        **options: those of ``preferl sft``.

    Raises:
        UsageError: an argument cannot be used.
        DataError: the data cannot.
        DivergedError: a number is not finite; training stopped before the update.
    """
    with _Call(output_dir, fresh, callbacks, verbose) as call:
        chosen = None if model is None else call.model(model, tokenizer)
        options |= {"model_name_or_path": chosen, "dataset_name": call.data(data, options)}
        path = call.run(sft.run, sft.SftConfig, options)
        return Trained(path, call.temporary, _policy_loader(options))


def train_reward(
    model: ModelLike,
    data: DataLike,
    *,
    tokenizer: Any = None,
    output_dir: str | Path | None = None,
    fresh: bool = False,
    callbacks: Sequence[Callback] = (),
    verbose: bool = True,
    **options: Any,
) -> Trained[Scorer]:
    """Trains a reward model on comparisons, or on ratings by attribute (``preferl reward``); ``.model``
    scores prompts and completions.

    Args:
        model: what it starts from: a language model (a head is added), an encoder, or a reward model.
        data: comparisons, or rows with prompt, completion and ratings.
        **options: those of ``preferl reward``. The others are those of ``train_sft``.

    Raises:
        UsageError, DataError, DivergedError: as ``train_sft``.
    """
    with _Call(output_dir, fresh, callbacks, verbose) as call:
        options |= {
            "model_name_or_path": call.model(model, tokenizer),
            "dataset_name": call.data(data, options),
        }
        path = call.run(reward.run, reward.RewardConfig, options)
        return Trained(path, call.temporary, _scorer_loader(options))


def train_dpo(
    model: ModelLike,
    data: DataLike,
    *,
    tokenizer: Any = None,
    output_dir: str | Path | None = None,
    fresh: bool = False,
    callbacks: Sequence[Callback] = (),
    verbose: bool = True,
    **options: Any,
) -> Trained[Policy]:
    """Fine-tunes a policy on comparisons themselves, by DPO or IPO, or on single responses called good or
    bad, by KTO (``preferl dpo``).

    Args:
        model: the policy to start from.
        data: comparisons; with ``loss_type="kto"`` also rows with prompt, completion and label.
        **options: those of ``preferl dpo``; ``ref_model`` may be a model. The others are those of
            ``train_sft``.

    Raises:
        UsageError, DataError, DivergedError: as ``train_sft``.
    """
    with _Call(output_dir, fresh, callbacks, verbose) as call:
        options |= {
            "model_name_or_path": call.model(model, tokenizer),
            "dataset_name": call.data(data, options),
        }
        path = call.run(dpo.run, dpo.DpoConfig, options)
        return Trained(path, call.temporary, _policy_loader(options))


def train_rl(
    model: ModelLike,
    prompts: DataLike,
    reward_funcs: RewardLike,
    *,
    reward_weights: Sequence[float] | None = None,
    algorithm: str | Algorithm = "ppo",
    tokenizer: Any = None,
    output_dir: str | Path | None = None,
    fresh: bool = False,
    callbacks: Sequence[Callback] = (),
    verbose: bool = True,
    **options: Any,
) -> Trained[Policy]:
    """Fine-tunes a policy against a reward under a KL penalty to the frozen reference (``preferl rl``).

    Args:
        model: the policy to start from.
        prompts: a data set, whose dev prompts are measured beside; or prompts of one (``data.prompts``), all
            of which train and none is measured. Their other columns are what reward functions get.
        reward_funcs: what is maximised; of several parts the weighted sum. Functions are called as TRL calls
            them: ``f(prompts, completions, **columns)`` gives a number, or None, for each completion.
        reward_weights: of the parts of a list; by default 1 each.
        algorithm: ``ppo``, ``reinforce``, ``rloo``, ``grpo``, ``rebel``, ``online_dpo``, or your own row.
        **options: those of ``preferl rl``; ``ref_model`` may be a model, ``gold`` a reward. The others are
            those of ``train_sft``.

    Raises:
        UsageError, DataError, DivergedError: as ``train_sft``.
    """
    with _Call(output_dir, fresh, callbacks, verbose) as call:
        options |= {
            "model_name_or_path": call.model(model, tokenizer),
            "dataset_name": call.data(prompts, options),
            "reward_model": call.reward(reward_funcs, reward_weights),
            "algorithm": call.algorithm(algorithm),
        }
        path = call.run(rl.run, lambda: rl.config_class(options["algorithm"]), options)
        return Trained(path, call.temporary, _policy_loader(options))


def collect(
    model: ModelLike,
    data: DataLike,
    annotator: RewardLike = "world",
    *,
    tokenizer: Any = None,
    output_dir: str | Path | None = None,
    fresh: bool = False,
    callbacks: Sequence[Callback] = (),
    verbose: bool = True,
    **options: Any,
) -> Collected:
    """Samples responses and has them compared (``preferl collect``); the result's ``data`` are comparisons.

    Args:
        model: the policy that writes the responses.
        data: prompts.
        annotator: the utility by which responses are compared: a function, a reward model, or a name as
            ``--annotator`` takes it.
        **options: those of ``preferl collect``, as ``pairs={"train": 1000}``. The others are those of
            ``train_sft``.

    Raises:
        UsageError, DataError: as ``train_sft``.
    """
    with _Call(output_dir, fresh, callbacks, verbose) as call:
        options |= {
            "model_name_or_path": call.model(model, tokenizer),
            "dataset_name": call.data(data, options),
            "annotator": call.reward(annotator),
        }
        path = call.run(collect_stage.run, collect_stage.CollectConfig, options)
        return Collected(path, call.temporary)


def evaluate(
    model: ModelLike,
    reference: ModelLike,
    data: DataLike,
    reward_funcs: RewardLike,
    *,
    reward_weights: Sequence[float] | None = None,
    tokenizer: Any = None,
    output_dir: str | Path | None = None,
    fresh: bool = False,
    callbacks: Sequence[Callback] = (),
    verbose: bool = True,
    **options: Any,
) -> Evaluated:
    """Compares a policy with its reference on the data set's eval prompts (``preferl evaluate``).

    Args:
        model: the policy.
        reference: what it is compared with, and the reference of the KL.
        data: prompts, and responses of the data set's own where it has some.
        reward_funcs: the reward that the policy was trained on.
        **options: those of ``preferl evaluate``; ``gold`` and ``held_out_reward`` may be rewards. The others
            are those of ``train_rl``.

    Raises:
        UsageError, DataError: as ``train_sft``.
    """
    with _Call(output_dir, fresh, callbacks, verbose) as call:
        options |= {
            "model_name_or_path": call.model(model, tokenizer),
            "ref_model": call.model(reference, tokenizer),
            "dataset_name": call.data(data, options),
            "reward_model": call.reward(reward_funcs, reward_weights),
        }
        path = call.run(evaluate_stage.run, evaluate_stage.EvaluateConfig, options)
        return Evaluated(path, call.temporary)


# ------------------------------------------------------------------------------------------------- one call


class _Temporary:
    """A directory that is deleted when nobody holds this object any more."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="preferl-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class _Call(contextlib.ExitStack):
    """One call: where it is written, and names for the objects that it was given."""

    def __init__(
        self, output_dir: str | Path | None, fresh: bool, callbacks: Sequence[Callback], verbose: bool
    ):
        super().__init__()
        self.fresh, self.callbacks = fresh, callbacks
        self.objects: dict[str, Any] = {}
        self.temporary: _Temporary | None = None
        self.enter_context(_speaking_of_arguments(verbose))
        if output_dir is None:
            if distributed.launched() > 1:
                raise UsageError("several processes write one directory: give output_dir")
            self.temporary = _Temporary()
            output_dir = self.temporary.path / "stage"
        self.path = Path(output_dir)

    def run(self, run: Callable[..., Path], config_class: Callable[[], Any] | type, options: dict) -> Path:
        """Runs a stage with options among which there may be objects; returns its directory."""
        for name in MODEL_OPTIONS:
            if options.get(name) is not None:
                options[name] = self.model(options[name])
        for name in REWARD_OPTIONS:
            if options.get(name) is not None:
                options[name] = self.reward(options[name])
        if "output_dir" in options:
            raise UsageError("output_dir is given twice")
        with named(self.objects):
            chosen = config_class if isinstance(config_class, type) else config_class()
            config = checked(chosen, options | {"output_dir": str(self.path)})
            return run(config, self.fresh, self.callbacks)

    def name(self, kind: str, fingerprint: str, value: Any) -> str:
        """A name for an object. It is of what the object is, so that a finished stage knows what made it."""
        name = f"{PREFIX}{kind}-{fingerprint[:12]}"
        self.objects[name] = value
        return name

    def model(self, given: Any, tokenizer: Any = None) -> str:
        """A model's name; one in memory is written to a directory that lasts as long as the call."""
        if isinstance(given, str | Path):
            return str(given)
        if isinstance(given, Trained):
            if given._temporary is None:
                return str(given.path)
            return self.name("result", hash_directory(given.path), str(given.path))
        if isinstance(given, Policy | RewardModel):
            given, tokenizer = given.model, given.tokenizer
        if not isinstance(given, PreTrainedModel):
            raise UsageError(
                f"model is a {type(given).__name__}; give a name, a Policy, a RewardModel, a model of "
                f"transformers with its tokenizer, or a result of training"
            )
        if tokenizer is None:
            raise UsageError("model is one of transformers: give its tokenizer too (tokenizer=…)")
        if getattr(given, "_hf_peft_config_loaded", False):
            raise UsageError("model has adapters; merge them first, or give the directory of the adapter")
        name = f"{PREFIX}model-{load.weights_hash(given)[:12]}"
        if name not in self.objects:
            place = self.enter_context(tempfile.TemporaryDirectory(prefix="preferl-model-"))
            load.save(given, tokenizer, Path(place))
            self.objects[name] = place
        return name

    def data(self, given: Any, options: Mapping[str, Any]) -> str:
        """A data set's name."""
        if isinstance(given, str | Path):
            return str(given)
        if isinstance(given, Collected) and given._temporary is None:
            return str(given.path)
        if isinstance(given, Collected):
            given = given.data
        if isinstance(given, Sequence) and given and all(isinstance(p, PromptRecord) for p in given):
            given = Source(
                "prompts", {"train": Part(list(given)), "dev": Part(), "rl": Part(), "eval": Part()}
            )
        if isinstance(given, Source):
            late = [f.name for f in dataclasses.fields(DataOptions) if f.name in options]
            if late:
                raise UsageError(f"{late[0]}: the data set is loaded already; give it to load_dataset")
            return self.name("data", _digest(given.name, given.parts), given)
        table = _table(given)
        return self.name("rows", _digest(table.rows), table)

    def reward(self, given: Any, weights: Sequence[float] | None = None) -> str:
        """A reward's name."""
        if isinstance(given, str | Path):
            return str(given)
        several = isinstance(given, Sequence)
        parts = [
            part.model if isinstance(part, Trained) else part for part in (given if several else [given])
        ]
        parts = [str(part) if isinstance(part, Path) else part for part in parts]
        for part in parts:
            if not isinstance(part, str) and not callable(part):
                raise UsageError(f"reward_funcs holds a {type(part).__name__}, which cannot be called")
        rewards = parts if several else parts[0]

        def load_reward(device: torch.device) -> Scorer:
            return as_scorer(rewards, device, weights)

        return self.name("reward", _digest([_identity(part) for part in parts], weights), load_reward)

    def algorithm(self, given: str | Algorithm) -> str:
        """An algorithm's name."""
        if isinstance(given, str):
            return given
        if not isinstance(given, Algorithm):
            raise UsageError(f"algorithm is a {type(given).__name__}; give a name or an Algorithm")
        return self.name("algorithm", _identity(given), given)


def _table(data: Any) -> Table:
    """Rows in memory; texts are prompts.

    Raises:
        DataError: it is nothing that has rows.
    """
    if isinstance(data, Mapping):
        if not all(isinstance(rows, Iterable) and not isinstance(rows, str) for rows in data.values()):
            raise DataError(
                "data is a dict whose values are no rows; give {'train': rows, 'test': rows} or rows"
            )
        return Table({str(split): _rows(rows) for split, rows in data.items()})
    if not isinstance(data, Iterable):
        raise DataError(f"data is a {type(data).__name__}; give a name, rows as dicts, or a datasets.Dataset")
    return Table(_rows(data))


def _rows(rows: Iterable[Any]) -> list[Any]:
    found = list(rows)
    if found and all(isinstance(row, str) for row in found):
        return [{"prompt": text} for text in found]
    return found


def _digest(*values: Any) -> str:
    return hashlib.sha256(repr(values).encode("utf-8", "replace")).hexdigest()


def _identity(value: Any) -> str:
    """What tells an object from another of its kind: weights of a model, the code of a function with what it
    refers to. What has no such fingerprint is never the same as before."""
    from datasets.fingerprint import Hasher

    if isinstance(value, RewardModel):
        return load.weights_hash(value.model)
    try:
        return Hasher.hash(value)
    except Exception:  # noqa: BLE001 - an open connection, a lock: whatever the pickler of a fingerprint says
        return uuid.uuid4().hex


def _policy_loader(options: Mapping[str, Any]) -> Callable[[str], Policy]:
    device, dtype = options.get("device", "auto"), options.get("dtype", "auto")
    return lambda path: Policy.load(path, device, dtype)


def _scorer_loader(options: Mapping[str, Any]) -> Callable[[str], Scorer]:
    device = options.get("device", "auto")
    return lambda path: load_scorer(path, devices.chosen_device(device))


@contextlib.contextmanager
def _speaking_of_arguments(verbose: bool) -> Iterator[None]:
    """Errors name arguments where commands have flags; ``verbose`` False: nothing is said."""
    with contextlib.nullcontext() if verbose else progress.quiet():
        try:
            yield
        except (UsageError, DataError, DivergedError) as error:
            text = str(error).replace(" (--debug shows where)", "")
            said = re.sub(r"--(\w+)", lambda flag: ARGUMENTS.get(flag[1], flag[1]), text)
            raise type(error)(said) from error.__cause__ or error
