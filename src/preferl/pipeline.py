"""A run: which stages, in which order, and how they find each other.

A configuration holds what a person gave, and nothing else. A stage's other options come, in this order, from
the run (``--temperature`` holds for every stage that has one), from what is usual in a run (the reward model
learns from the pairs of collect: ``@/collect``), and from the stage's own defaults.

``@/reward`` in a text stands for the directory of this run's stage ``reward``, the newest of that name where
there are several rounds. A stage has a name and a kind; the usual names are kinds themselves, and a stage of
another name says which kind it is::

    stages: [sft, collect, reward, best_of, again, evaluate]
    again: {kind: sft, model_name_or_path: "@/sft", dataset_name: "@/best_of"}

``--push_to_hub NAME`` uploads the model after the last stage, as ``preferl push RUN NAME`` does.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from preferl.options.audit import AuditConfig
from preferl.options.best_of import BestOfConfig
from preferl.options.collect import CollectConfig
from preferl.options.dpo import DpoConfig
from preferl.options.evaluate import EvaluateConfig
from preferl.options.reward import RewardConfig
from preferl.options.rl import RlConfig
from preferl.options.sft import SftConfig
from preferl.options.shared import DataOptions, StageOptions
from preferl.runs import lock, tracking
from preferl.runs.config import Parser, declared, field_texts, leaf_keys
from preferl.runs.descent import WORLD, is_world, may_be_of_world, refuse_no_data_set, started_from
from preferl.runs.errors import UsageError
from preferl.runs.found import examine, kept_though_stale, plain_options, stored_options
from preferl.runs.inputs import NAMING, NOT_COMPARED, changed_options, identify
from preferl.runs.mark import check_ours, claim, remove
from preferl.runs.progress import clock, each_note_once, say
from preferl.runs.ranges import Count, Positive
from preferl.runs.record import Redo, write_run_files
from preferl.runs.shipped import configurations

KINDS: dict[str, type] = {
    "sft": SftConfig,
    "collect": CollectConfig,
    "reward": RewardConfig,
    "best_of": BestOfConfig,
    "dpo": DpoConfig,
    "rl": RlConfig,
    "audit": AuditConfig,
    "evaluate": EvaluateConfig,
}
# Names that are no kinds: a language model of the reward model's own, and rejection-sampling fine-tuning, the
# SFT model trained further on the best of its own responses.
NAMES = {name: name for name in KINDS} | {"backbone": "sft", "distil": "sft"}
USUAL = ("sft", "collect", "reward", "rl", "evaluate", "report")
IN_ROUNDS = ("collect", "reward", "rl")
REFERENCE = re.compile(r"@([^@/]*)/(\w+(?:-\d+)?)")
DATA = tuple(f.name for f in dataclasses.fields(DataOptions))


@dataclass(kw_only=True)
class RunOptions(DataOptions, StageOptions):
    """Options of the run itself. Seed, device, data set and sampling hold for every stage that does not say
    otherwise; the stages' own options stand under their names."""

    output_dir: str = "runs/run"
    """The run's directory; each stage is a directory in it."""
    stages: list[str] | str = field(default_factory=lambda: list(USUAL))
    """Which stages, in this order, as ``sft,reward,rl``. Usual names: sft, collect, reward, rl, evaluate,
    report; ``backbone`` is a language model of the reward model's own; ``best_of`` and ``distil`` train the
    SFT model on the best of its own responses; ``dpo`` trains it on the pairs; ``audit`` measures a reward. A
    stage of another name says what it is: ``NAME.kind``."""
    rounds: Count = 1
    """How often collect, reward and rl are done: each further round labels samples of the last policy, adds
    them to the pairs, trains the reward model anew and goes on from the policy (``collect-2``, ``reward-2``,
    ``rl-2``, …)."""
    model_name_or_path: str | None = None
    """Base model of the first stage that needs one; without it a small one is made."""
    temperature: Positive = 1.0
    """Sampling temperature of every stage."""
    response_length: Count = 48
    """Most tokens of a response, EOS included, in every stage."""
    stop_sequences: list[str] = field(default_factory=list)
    """Texts that end a response, as EOS does, in every stage."""


OWN = ("output_dir", "stages", "rounds", "model_name_or_path")  # of the run, and of no stage
SHARED = tuple(f.name for f in dataclasses.fields(RunOptions) if f.name not in OWN)


class RunConfig:
    """What a person gave for a run.

    Example:
        >>> config = RunConfig(output_dir="runs/a", temperature=0.8, rl={"kl_coef": 0.2})
        >>> config.stages
        ['sft', 'collect', 'reward', 'rl', 'evaluate', 'report']

    Raises:
        UsageError: a stage or an option is unknown, or a stage does not say which kind it is.
    """

    def __init__(self, **given: Any):
        if isinstance(given.get("stages"), str):
            given["stages"] = [name.strip() for name in given["stages"].split(",")]
        self.given = given
        options = {f.name for f in dataclasses.fields(RunOptions)}
        wrong = [name for name, value in given.items() if name not in options and not isinstance(value, dict)]
        if wrong:
            known = [*options, *NAMES]
            raise UsageError(f"a run has no option '{wrong[0]}'{nearest(wrong[0], known)}")
        for name, kind in self.kinds.items():
            if not re.fullmatch(r"\w+(-\w+)*", name):  # it becomes the name of a directory
                raise UsageError(f"'{name}' is no name of a stage; take letters, digits, _ and -")
            if not kind:
                raise UsageError(
                    f"'{name}' is no stage{nearest(name, list(NAMES))}; the usual ones are "
                    f"{', '.join(NAMES)}; another says what it is, as --{name}.kind sft"
                )
            if kind not in KINDS:
                raise UsageError(f"{name}.kind is {kind!r}; the kinds of stages are {', '.join(KINDS)}")
            if NAMES.get(name, kind) != kind:
                raise UsageError(f"{name}.kind is {kind!r}, but {name} is a stage of kind {NAMES[name]}")
        if len(set(self.stages)) < len(self.stages):
            raise UsageError(f"stages is {self.stages}; a stage stands there twice")
        RunOptions(**{name: value for name, value in given.items() if name in options})  # their ranges
        if self.rounds > 1 and not set(IN_ROUNDS) <= set(self.stages):
            raise UsageError("a run in rounds needs the stages collect, reward and rl")

    @property
    def output_dir(self) -> str:
        return self.given.get("output_dir", "runs/run")

    @property
    def stages(self) -> list[str]:
        return self.given.get("stages", list(USUAL))

    @property
    def rounds(self) -> int:
        return self.given.get("rounds", 1)

    @property
    def base(self) -> str | None:
        return self.given.get("model_name_or_path")

    def of(self, name: str) -> dict[str, Any]:
        """The options that were given for a stage."""
        return {key: value for key, value in self.given.get(name, {}).items() if key != "kind"}

    @property
    def kinds(self) -> dict[str, str | None]:
        """Name -> kind of every stage that is run or has options; None where nothing says it."""
        named = [name for name, value in self.given.items() if isinstance(value, dict)]
        names = dict.fromkeys([*(name for name in self.stages if name != "report"), *named])
        return {name: self.given.get(name, {}).get("kind", NAMES.get(name)) for name in names}

    def changed(self, changes: Mapping[str, Any]) -> "RunConfig":
        """The same with dotted keys set, as ``{"rl.kl_coef": 0.2}``."""
        given = dict(self.given)
        for key, value in changes.items():
            given = with_key(given, key.split("."), value)
        return RunConfig(**given)

    def to_yaml(self) -> str:
        """The YAML that gives it back."""
        first = {name: self.given[name] for name in ("output_dir", "stages") if name in self.given}
        return yaml.safe_dump(plain(first | self.given), sort_keys=False, allow_unicode=True)


def with_key(given: Mapping[str, Any], key: Sequence[str], value: Any) -> dict[str, Any]:
    """A nested mapping with one key set."""
    head, rest = key[0], key[1:]
    return {**given, head: with_key(given.get(head, {}), rest, value) if rest else value}


def plain(value: Any) -> Any:
    """Nested mappings and lists as YAML has them; dataclasses become mappings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def config_class(kind: str, given: Mapping[str, Any]) -> type:
    """The options of a kind of stage; an algorithm of a person's own brings its own to rl."""
    if kind == "rl" and ":" in str(given.get("algorithm", "")):
        return stage_module("rl").config_class(given["algorithm"])  # type: ignore[no-any-return]
    return KINDS[kind]


def stage_module(kind: str) -> Any:
    """The module of a kind of stage, or ``report``'s; torch is loaded with the first of them."""
    return import_module(f"preferl.stages.{kind}")


# -------------------------------------------------------------------------------------------------- planning


@dataclass(frozen=True)
class Planned:
    """One stage of a run, before it is known where stages lie.

    Args:
        name: its directory's.
        kind: of ``KINDS``.
        options: all of them, typed; references to other stages stand in texts.
        keys: dotted keys of the configuration that decide what it makes, those of what it reads included.
        reads: references in its options, as ``@/sft``.
        content: hash of kind, options and the content of what it reads: equal hashes make the same.
    """

    name: str
    kind: str
    options: Any
    keys: frozenset[str]
    reads: tuple[str, ...]
    content: str

    @property
    def reference(self) -> str:
        return f"@/{self.name}"

    def placed(self, places: Mapping[str, Path]) -> Any:
        """Its options where every reference is the directory of ``places``, and with a directory of its
        own."""
        options = replace_references(self.options, lambda found: str(places[found[0]]))
        return dataclasses.replace(options, output_dir=str(places[self.reference]))


@dataclass(frozen=True)
class Usual:
    """A usual value, and the keys of the configuration that decide it."""

    value: Any
    keys: frozenset[str] = frozenset()


def plan(config: RunConfig, others: Mapping[str, Planned] | None = None) -> list[Planned]:
    """Every stage of a run in the order in which they are done.

    Args:
        config: the run.
        others: stages of other runs, by the references that name them, as ``@other name/reward``.

    Raises:
        UsageError: an unknown option, a reference to nothing, or a stage without the model it starts from.
    """
    done: dict[str, Planned] = {}
    for name, kind, number in order_of(config):
        # 1. All options: what was given, and for the rest what is usual after the stages before it.
        options, keys = with_defaults(name, kind, number, Before(config, done))
        # 2. References stay texts, made exact: `@/rl` is the newest rl that comes before, `@/rl-2` perhaps.
        known = {stage.reference: stage for stage in done.values()} | dict(others or {})
        options, reads = with_references(options, functools.partial(resolved, done=done, others=others))
        if options.dataset_name is None:  # the world, where everything began there
            model = started_from(options)
            refuse_no_data_set(model, is_on_world(model, known))
            options = dataclasses.replace(options, dataset_name=WORLD)
        stage_module(kind).check_options(options)  # before the first stage is begun
        # 3. A key that decides what a parent makes decides what this stage makes too.
        keys = keys.union(*(known[reference].keys for reference in reads))
        # 4. The same is true of content: it is by what parents make, not by where they lie, so that a sweep
        #    finds out which stages of its runs are one and the same.
        content = content_of(kind, options, {reference: known[reference].content for reference in reads})
        full = name if number == 1 else f"{name}-{number}"
        done[full] = Planned(full, kind, options, keys, reads, content)
    return list(done.values())


def is_on_world(model: str | None, known: Mapping[str, Planned]) -> bool:
    """Whether a model is new, or of stages that have data of the embedded world only.

    Args:
        model: a stage's model_name_or_path; perhaps a reference.
        known: the stages before it, by reference.
    """
    stage = known.get(model or "")
    if model is None or stage is None:
        return model is None or may_be_of_world(model)
    data = stage.options.dataset_name
    made_on_world = is_world(data) or is_on_world(data, known)
    return made_on_world and is_on_world(started_from(stage.options), known)


def order_of(config: RunConfig) -> Iterator[tuple[str, str, int]]:
    """Name, kind and round of every stage, in the order in which they are done: further rounds before
    ``evaluate``."""
    names = [name for name in config.stages if name != "report"]
    at = names.index("evaluate") if "evaluate" in names else len(names)
    in_order = [(name, 1) for name in names[:at]]
    for number in range(2, config.rounds + 1):
        in_order += [(name, number) for name in IN_ROUNDS]
    in_order += [(name, 1) for name in names[at:]]
    kinds = config.kinds
    for name, number in in_order:
        kind = kinds[name]
        assert kind is not None
        yield name, kind, number


def with_references(options: Any, resolve: Callable[[re.Match[str]], str]) -> tuple[Any, tuple[str, ...]]:
    """Options whose references are resolved, and which they are, each once."""
    options = replace_references(options, resolve)
    found: list[str] = []
    for text in texts_of(options):
        found += [match[0] for match in REFERENCE.finditer(text)]
    return options, tuple(dict.fromkeys(found))


def resolved(found: re.Match[str], done: Mapping[str, Planned], others: Mapping[str, Planned] | None) -> str:
    """A reference as it is kept: to the newest stage of that name that comes before."""
    run, name = found[1], found[2]
    if run:
        if others is None:
            raise UsageError(f"'{found[0]}' names another point; only a sweep has points")
        if found[0] not in others:
            hint = nearest(found[0], others) or f"; there are {', '.join(others) or 'none'}"
            raise UsageError(f"'{found[0]}' is no stage of an earlier point{hint}")
        return found[0]
    rounds = [full for full in done if re.fullmatch(rf"{re.escape(name)}(-\d+)?", full)]
    if not rounds:
        before = ", ".join(done) or "none"
        raise UsageError(f"'{found[0]}' names no stage of this run that comes before (those are: {before})")
    return f"@/{rounds[-1]}"


@dataclass(frozen=True)
class Before:
    """What a stage of a run can refer to: the stages before it, and what the run starts from."""

    config: RunConfig
    done: Mapping[str, Planned]

    def last(self, *kinds: str, without: Collection[str] = ()) -> Planned | None:
        """The newest stage of some kinds."""
        found = [s for s in self.done.values() if s.kind in kinds and s.name not in without]
        return found[-1] if found else None

    def reference(self, *kinds: str, without: Collection[str] = ()) -> Usual | None:
        stage = self.last(*kinds, without=without)
        return Usual(stage.reference) if stage else None

    @property
    def model(self) -> Usual:
        """The model that the run was given."""
        return Usual(self.config.base, frozenset({"model_name_or_path"}))

    @property
    def policy(self) -> Usual:
        """The policy that everything starts from."""
        return Usual("@/sft") if "sft" in self.done else self.model

    @property
    def pairs(self) -> Usual:
        """The pairs of this run, or the data set that it was given."""
        given = Usual(self.config.given.get("dataset_name", "world"), frozenset({"dataset_name"}))
        return self.reference("collect") or given

    def truth(self, name: str) -> Usual | None:
        """What a stage may take for the truth: the world's own reward, on its prompts. An annotator is none:
        it is what the reward model was taught to be like."""
        given = self.config.given.get("dataset_name", "world")
        own = self.config.of(name).get("dataset_name", given)
        return Usual("world", frozenset({"dataset_name", f"{name}.dataset_name"})) if own == "world" else None

    def option(self, name: str, *kinds: str) -> Usual | None:
        """An option of the newest stage of some kinds."""
        stage = self.last(*kinds)
        if stage is None:
            return None
        own = frozenset(key for key in stage.keys if key.endswith(f".{name}"))
        return Usual(getattr(stage.options, name), own)


def usual_options(name: str, kind: str, before: Before) -> dict[str, Usual | None]:
    """What a stage of a run has by default; most are references to stages before it."""
    if name == "backbone":  # a new small model
        return {}
    if name == "distil":
        return {
            "model_name_or_path": before.policy,
            "dataset_name": before.reference("best_of"),
            "num_train_epochs": Usual(2.0),
        }
    annotator, scored = before.option("annotator", "collect"), before.reference("reward")
    truth = before.truth(name)
    usual: dict[str, dict[str, Usual | None]] = {
        "sft": {"model_name_or_path": before.model},
        "collect": {"model_name_or_path": before.policy},
        "reward": {
            "model_name_or_path": Usual("@/backbone") if "backbone" in before.done else before.policy,
            "dataset_name": before.pairs,
            "reference_policy": None if before.last("collect") else before.policy,
        },
        "dpo": {"model_name_or_path": before.policy, "dataset_name": before.pairs},
        "best_of": {"model_name_or_path": before.policy, "reward_model": scored, "gold": truth},
        "audit": {"reward_model": scored},
        "rl": {
            "model_name_or_path": before.policy,
            "reward_model": scored,
            "gold": truth,
            "annotator": annotator,
        },
        "evaluate": {
            "model_name_or_path": before.reference("rl", "dpo", "sft", without=("sft", "backbone"))
            or before.policy,
            "ref_model": before.policy,
            "reward_model": measure_of(before),
            "gold": truth,
        },
    }
    return usual[kind]


def measure_of(before: Before) -> Usual | None:
    """The reward of an evaluation is what the policy was trained against, however it is put together. A run
    of dpo needs no reward model: where it has none, what labelled the pairs is the measure."""
    if before.last("rl"):
        return before.option("reward_model", "rl")
    if before.last("dpo") and not before.last("reward"):
        return before.option("annotator", "collect")
    return before.reference("reward")


def further_round(kind: str, before: Before) -> dict[str, Usual | None]:
    """What a stage of a further round goes on from, whatever was given for the first: it labels what the last
    policy writes, and adds to the last pairs."""
    policy = before.reference("rl")
    if kind == "collect":
        return {"model_name_or_path": policy, "add_to": before.reference("collect")}
    return {"model_name_or_path": policy} if kind == "rl" else {}


def with_defaults(name: str, kind: str, number: int, before: Before) -> tuple[Any, frozenset[str]]:
    """A stage's options, each from the first of these that has it: the stage, the run, what is usual, the
    kind's defaults; and the keys of the configuration that decide them."""
    # 1. What was given for the stage itself.
    config, own = before.config, before.config.of(name)
    chosen = config_class(kind, own)
    known = {f.name for f in dataclasses.fields(chosen)}
    if "output_dir" in own:
        raise UsageError(f"{name}.output_dir: a run's stages lie in its own directory; give one --output_dir")
    for key in own:
        if key not in known:
            raise UsageError(f"stage {name} has no option '{key}'{nearest(key, known)}")
    # 2. What is usual in a run. A further round goes on from the last one, whatever was given for the first.
    usual = {key: value for key, value in usual_options(name, kind, before).items() if value is not None}
    if number > 1:
        goes_on = {key: value for key, value in further_round(kind, before).items() if value is not None}
        own = {key: value for key, value in own.items() if key not in goes_on}
        usual |= goes_on
        if kind == "rl":  # the reference stays that of the first round
            first = before.done[name].options
            usual["ref_model"] = Usual(first.ref_model or first.model_name_or_path, before.done[name].keys)
    # 3. What was given for the run, between the two. Options about a data set are about the run's, not about
    #    what another stage has written.
    written = "dataset_name" in usual and str(usual["dataset_name"].value).startswith("@")
    applies = [key for key in SHARED if key in known and not (written and key in DATA)]
    run = {key: config.given[key] for key in applies if key in config.given}
    usual_values = {key: value.value for key, value in usual.items()}
    options = merged(chosen(), usual_values | run | own)
    if number > 1:  # another round, other random numbers
        options = dataclasses.replace(options, seed=options.seed + 1000 * (number - 1))
    if "model_name_or_path" in usual and options.model_name_or_path is None and kind != "sft":
        raise UsageError(
            f"the stage {name} needs a model to start from: give --model_name_or_path, or the stage sft "
            f"before it"
        )
    # 4. Which keys of the configuration decided: of each option only that of the value which won.
    keys = {f"{name}.{key}" for key in leaf_keys(own)} | (run.keys() - own.keys())
    for key, value in usual.items():
        if key not in own and key not in run:
            keys |= value.keys & set(leaf_keys(config.given))
    return options, frozenset(keys)


def merged(options: Any, given: Mapping[str, Any]) -> Any:
    """A dataclass with some fields replaced, also inside those that are dataclasses themselves."""
    changes = {}
    for key, value in given.items():
        now = getattr(options, key)
        nested = dataclasses.is_dataclass(now) and isinstance(value, Mapping)
        changes[key] = merged(now, value) if nested else value
    return dataclasses.replace(options, **changes)


def content_of(kind: str, options: Any, read: Mapping[str, str]) -> str:
    """SHA-256 of a kind, its options and the content behind its references."""
    by_content = dataclasses.asdict(replace_references(options, lambda found: read[found[0]]))
    decisive = {name: value for name, value in by_content.items() if name not in NOT_COMPARED}
    return hashlib.sha256(json.dumps([kind, decisive], sort_keys=True).encode()).hexdigest()


def replace_references(options: Any, replacement: Callable[[re.Match[str]], str]) -> Any:
    """Options with every reference in their texts replaced; a match's groups are run and stage."""
    return map_texts(options, lambda text: REFERENCE.sub(replacement, text))


def map_texts(options: Any, change: Callable[[str], str]) -> Any:
    """Options with every text in them changed, however deep."""
    if isinstance(options, str):
        return change(options)
    if isinstance(options, list):
        return [map_texts(value, change) for value in options]
    if isinstance(options, dict):
        return {key: map_texts(value, change) for key, value in options.items()}
    if dataclasses.is_dataclass(options) and not isinstance(options, type):
        changed = {name: map_texts(value, change) for name, value in vars(options).items()}
        return dataclasses.replace(options, **changed)
    return options


def texts_of(options: Any) -> list[str]:
    """Every text in a stage's options, however deep."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    map_texts(options, note)
    return found


# ------------------------------------------------------------------------------------------------- running


def run(config: RunConfig, fresh: bool = False, keep_stale: bool = False) -> Path:
    """Runs the stages that are not finished; returns the path of the report, or of the run directory.

    Args:
        config: the run.
        fresh: all of them anew. An interrupted one goes on, with or without it.
        keep_stale: a stage that was made of other inputs than today's is taken as it is.

    Raises:
        UsageError: a configuration that cannot work, or a directory that is in use or holds something else.
    """
    started, root = time.monotonic(), Path(config.output_dir)
    stages = plan(config)
    places = places_of(config, stages)
    check_ours(root, "run", root.name)
    lock.refuse_if_held(root)
    redo = Redo(root, config.to_yaml(), fresh)
    check_stages(stages, places, redo.name)
    claim(root, "run", root.resolve().name)
    with lock.hold(root):
        redo.begin()
        try_functions(stages, places, redo.name)
        write_run_files(root, config.to_yaml())
        made: set[Path] = set()
        with each_note_once():
            for stage in stages:
                if not run_stage(stage, places, made, redo.name, keep_stale):
                    say(f"{stage.name}: finished before in {places[stage.reference]}")
        result = write_report(root, config, bool(made)) if "report" in config.stages else root
        redo.end()
    if "evaluate" in config.kinds.values():
        for line in stage_module("report").lines_of(root):
            say(f"run: {line}")
    if {"sft", "dpo", "rl"} & set(config.kinds.values()):
        say(f"run: `preferl chat {config.output_dir}` talks with the policy; what came out, for a browser:")
    say(f"run: {clock(time.monotonic() - started)} minutes; {result}")
    return result


def try_functions(stages: Sequence[Planned], places: Mapping[str, Path], redo: str | None) -> None:
    """Calls the reward functions of the stages that are not finished, before the first is run.

    Raises:
        UsageError: one cannot be imported, or does not do for the rows that are there.
    """
    # With it comes torch, which help, plans and pages do without.
    from preferl.data.sources import load_source
    from preferl.judging.trial import functions_of, try_out

    for stage in stages:
        if redo is None and (places[stage.reference] / "DONE").exists():
            continue
        functions = functions_of(stage.options)
        data = getattr(stage.options, "dataset_name", None)
        # Rows that the run has yet to make are tried by the stage itself.
        if functions and data and not data.startswith("@"):
            try_out(functions, load_source(**stage.options.source()))


def write_report(root: Path, config: RunConfig, is_new: bool = True) -> Path:
    """Writes the report of a run and tells the trackers; returns its path.

    Args:
        root: the run's directory.
        config: the run.
        is_new: whether a stage ran; what trackers know already they are not told again.
    """
    report = stage_module("report")
    found = report.read([root])
    page: Path = report.write_gathered(found, report.usual_place([root]))
    names = RunOptions(report_to=config.given.get("report_to", [])).report_to
    if is_new or not tracking.is_reported(root, names):
        word = report.overall(found.runs).word
        tracking.report(root, names, plain(config.given), word, report.markdown(found), page)
    return page


def places_of(config: RunConfig, stages: Sequence[Planned]) -> dict[str, Path]:
    """Where the stages of a run lie, by reference."""
    return {stage.reference: Path(config.output_dir) / stage.name for stage in stages}


def resolve(config: RunConfig) -> dict[str, Any]:
    """Name -> options of every stage of a run, as it will be given them."""
    stages = plan(config)
    places = places_of(config, stages)
    return {stage.name: stage.placed(places) for stage in stages}


def check_stages(stages: Sequence[Planned], places: Mapping[str, Path], redo: str | None) -> None:
    """Refuses, before anything runs, what no stage would do again.

    Raises:
        UsageError: a stage is finished with other options, or a directory holds something else.
    """
    open_ended: set[str] = set()  # made by this run: what reads from it is known when it is there
    for stage in stages:
        path, options = places[stage.reference], plain_options(stage.placed(places))
        check_ours(path, "stage", stage.kind)
        if redo is not None:
            continue
        if any(reference in open_ended for reference in stage.reads):
            refuse_other_options(path, options)
            open_ended.add(stage.reference)
            continue
        found = examine(path, stage.kind, identify(options))
        if found.state != "finished" or found.is_stale or not found.is_this_finished(path):
            open_ended.add(stage.reference)


def refuse_other_options(path: Path, options: Mapping[str, Any]) -> None:
    """Refuses a finished stage whose options are others, those that name what is yet to be made aside.

    Raises:
        UsageError: it is one.
    """
    stored = stored_options(path)
    if stored is None:
        return
    before, now = ({k: v for k, v in given.items() if k not in NAMING} for given in (stored, options))
    different = changed_options(before, now)
    if different:
        raise UsageError(
            f"{path} was finished with other options ({different}); use --fresh to do the run "
            f"again, or another --output_dir"
        )


def run_stage(
    stage: Planned, places: Mapping[str, Path], made: set[Path], redo: str | None, keep_stale: bool = False
) -> bool:
    """Runs one stage and adds it to what was ``made``, unless it is finished; says whether it ran.

    Args:
        stage: what to run.
        places: where the stages lie.
        made: directories of the stages that ran.
        redo: the redo that this is part of: what was finished before it is done again.
        keep_stale: what was made of other inputs than today's is taken as it is.
    """
    path, options = places[stage.reference], stage.placed(places)
    found = examine(path, stage.kind, identify(plain_options(options)))
    fresh: bool | str = False
    if redo is not None and (found.redo != redo or found.state == "damaged"):
        fresh = redo
    elif keep_stale and kept_though_stale(stage.name, found):
        return False
    elif found.is_stale or (found.is_unfinished and found.changes.inputs and not found.changes.options):
        say(f"{stage.name}: done again: {found.changes}")
        fresh = True
    elif found.is_this_finished(path):
        remove(path / "state")  # it was killed between DONE and the end
        return False
    stage_module(stage.kind).run(options, fresh=fresh)
    made.add(path)
    return True


# ------------------------------------------------------------------------------------------------- reading


def parser_for_run(arguments: Sequence[str], prog: str, description: str, **groups: type) -> Parser:
    """A parser of a run's options, of every stage's under its name, and of ``groups`` under theirs.

    Stages of names of their own are known by what ``arguments`` and the files in them say.
    """
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file; may be given several times")
    declarations = declared(arguments)
    with field_texts(arguments):
        parser.add_class_arguments(RunOptions, nested_key=None)
        for name, kind in (NAMES | kinds_in(declarations)).items():
            own = declarations.get(name)
            if kind in KINDS:
                chosen = config_class(kind, own if isinstance(own, dict) else {})
                parser.add_class_arguments(chosen, name, skip={"output_dir"})
            parser.add_argument(f"--{name}.kind", help="the kind of stage: " + ", ".join(KINDS))
        for name, options in groups.items():
            parser.add_class_arguments(options, name)
    return parser


def kinds_in(declarations: Mapping[str, Any]) -> dict[str, str]:
    """Name -> kind of the stages that say their kind."""
    stages = {name: value for name, value in declarations.items() if isinstance(value, dict)}
    return {name: str(options["kind"]) for name, options in stages.items() if "kind" in options}


def given_in(parser: Parser, arguments: Sequence[str]) -> dict[str, Any]:
    """What flags and files give, typed; a later one wins."""
    given = parser.parse_args(list(arguments), defaults=False).as_dict()
    return {name: value for name, value in given.items() if name != "config"}


def demo_file() -> Path:
    """The configuration of ``preferl demo``."""
    return configurations()["demo"]


def demo_config(**given: Any) -> RunConfig:
    """The embedded world in minutes on two CPU cores."""
    return RunConfig(**yaml.safe_load(demo_file().read_text(encoding="utf-8"))).changed(given)
