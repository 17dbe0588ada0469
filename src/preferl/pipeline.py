"""The whole pipeline over one run directory: which stages, in which order, and how they find each other.

``preferl demo`` and ``preferl run`` build a ``RunConfig`` and call ``run``. Stages meet through their
directories; this file fills in the paths, so that a configuration names only what is particular to it.
"""

import dataclasses
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preferl.runs.config import DataOptions, DeviceOptions, inherit, to_yaml
from preferl.runs.errors import UsageError
from preferl.runs.mark import check_ours
from preferl.runs.progress import clock, say
from preferl.runs.record import write_run_files
from preferl.runs.stage import is_finished
from preferl.stages import best_of, collect, dpo, evaluate, report, reward, rl, sft
from preferl.stages.best_of import BestOfConfig
from preferl.stages.collect import CollectConfig
from preferl.stages.dpo import DpoConfig
from preferl.stages.evaluate import EvaluateConfig
from preferl.stages.reward import RewardConfig
from preferl.stages.rl import RlConfig
from preferl.stages.sft import SftConfig

USUAL = ("sft", "collect", "reward", "rl", "evaluate", "report")
# A language model of the reward model's own: of another size than the policy, or with another tokenizer.
BACKBONE = "backbone"
# Rejection-sampling fine-tuning: the SFT model trained further on the best of its own responses.
BEST_OF, DISTIL = "best_of", "distil"
STAGES = ("sft", "collect", BACKBONE, "reward", BEST_OF, DISTIL, "dpo", "rl", "evaluate", "report")
RUNNERS: dict[str, Any] = {
    "sft": sft,
    "collect": collect,
    BACKBONE: sft,
    "reward": reward,
    BEST_OF: best_of,
    DISTIL: sft,
    "dpo": dpo,
    "rl": rl,
    "evaluate": evaluate,
}
# ``@/reward`` in a text stands for the directory of this run's reward stage, ``@other name/reward`` for that
# of another point of the same sweep.
REFERENCE = re.compile(r"@([^@/]*)/(\w+)")
SHARED = tuple(f.name for f in dataclasses.fields(DeviceOptions))
DATA = tuple(f.name for f in dataclasses.fields(DataOptions))
SAMPLING = ("temperature", "response_length", "stop_sequences")


@dataclass(kw_only=True)
class RunConfig(DataOptions, DeviceOptions):
    """A run. What stands here (seed, device, data set, sampling) holds for every stage that does not say
    otherwise; the stages' own options stand under their names."""

    output_dir: str = "runs/run"
    """The run's directory; each stage is a directory in it."""
    stages: list[str] = field(default_factory=lambda: list(USUAL))
    """Which stages, in this order: sft, collect, reward, rl, evaluate, report; with ``backbone`` before
    ``reward`` the reward model starts from a language model of its own; ``best_of`` and ``distil`` after
    ``reward`` train the SFT model on the best of its own responses; ``dpo`` trains it on the pairs."""
    rounds: int = 1
    """How often collect, reward and rl are done: each further round labels samples of the last policy, adds
    them to the pairs, trains the reward model anew and goes on from the policy (``collect-2``, ``reward-2``,
    ``rl-2``, …)."""
    model_name_or_path: str | None = None
    """Base model of the first stage that needs one; without it a small one is made."""
    temperature: float = 1.0
    """Sampling temperature of every stage."""
    response_length: int = 48
    """Most tokens of a response, EOS included, in every stage."""
    stop_sequences: list[str] = field(default_factory=list)
    """Texts that end a response, as EOS does, in every stage."""
    sft: SftConfig = field(default_factory=SftConfig)
    """Options of the sft stage."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """Options of the collect stage."""
    backbone: SftConfig = field(default_factory=SftConfig)
    """Options of the backbone stage: an sft stage of the reward model's own."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Options of the reward stage."""
    best_of: BestOfConfig = field(default_factory=BestOfConfig)
    """Options of the best_of stage."""
    distil: SftConfig = field(default_factory=lambda: SftConfig(learning_rate=1e-3, num_train_epochs=2))
    """Options of the distil stage: an sft stage on the demonstrations of best_of."""
    dpo: DpoConfig = field(default_factory=DpoConfig)
    """Options of the dpo stage."""
    rl: RlConfig = field(default_factory=RlConfig)
    """Options of the rl stage."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Options of the evaluate stage."""


def run(config: RunConfig, fresh: bool = False) -> Path:
    """Runs the stages that are not finished; returns the path of the report, or of the run directory.

    Raises:
        UsageError: an unknown stage, or a stage without the one it needs.
    """
    started, root = time.monotonic(), Path(config.output_dir)
    config = resolve(config)
    check_ours(root, "run", root.name)
    write_run_files(root, to_yaml(config))
    redo = fresh
    for name, options in planned(config):
        # What follows a stage that was done again is done again too: it was made from what is gone.
        plain = dataclasses.asdict(options)
        done_before = is_finished(Path(options.output_dir), kind_of(name), plain, redo)
        RUNNERS[name].run(options, fresh=redo)
        redo = redo or not done_before
    result = report.write(root) if "report" in config.stages else root
    if "evaluate" in config.stages:
        say(f"run: verdict: {report.verdict_of(root)}")
    say(f"run: {clock(time.monotonic() - started)} minutes; {result}")
    return result


def kind_of(name: str) -> str:
    """What a run's stage is by itself: ``distil`` and ``backbone`` are sft stages."""
    return RUNNERS[name].__name__.rpartition(".")[2]


def planned(config: RunConfig) -> list[tuple[str, Any]]:
    """Kind and options of every stage of a resolved run, in the order in which they run."""
    once = [(name, getattr(config, name)) for name in config.stages if name != "report"]
    later = [part for number in range(2, config.rounds + 1) for part in round_of(config, number)]
    at = next((i for i, (name, _) in enumerate(once) if name == "evaluate"), len(once))
    return once[:at] + later + once[at:]


def round_of(config: RunConfig, number: int) -> list[tuple[str, Any]]:
    """The stages of a further round: it labels what the policy of the round before writes; the reference
    stays the SFT model."""
    root = Path(config.output_dir)

    def at(kind: str, round_: int) -> str:
        return str(root / (kind if round_ == 1 else f"{kind}-{round_}"))

    before, seed = number - 1, config.seed + 1000 * (number - 1)
    changes: dict[str, dict[str, Any]] = {
        "collect": {"model_name_or_path": at("rl", before), "add_to": at("collect", before)},
        "reward": {"dataset_name": at("collect", number)},
        "rl": {
            "model_name_or_path": at("rl", before),
            "ref_model": config.rl.ref_model or config.rl.model_name_or_path,
            "reward_model": at("reward", number),
        },
    }
    return [
        (kind, dataclasses.replace(getattr(config, kind), **change, output_dir=at(kind, number), seed=seed))
        for kind, change in changes.items()
    ]


def resolve(config: RunConfig) -> RunConfig:
    """The same run with every stage's paths, data set, seed and sampling filled in."""
    unknown = [name for name in config.stages if name not in STAGES]
    if unknown:
        raise UsageError(f"stages names {', '.join(unknown)}; the stages are {', '.join(STAGES)}")
    root, present = Path(config.output_dir), set(config.stages)
    if config.rounds < 1:
        raise UsageError(f"rounds is {config.rounds}; it must be at least 1")
    if config.rounds > 1 and not {"collect", "reward", "rl"} <= present:
        raise UsageError("a run in rounds needs the stages collect, reward and rl")
    last = f"-{config.rounds}" if config.rounds > 1 else ""

    def at(name: str) -> str:
        return str(root / name)

    shared = {name: inherit(getattr(config, name), config, SHARED) for name in STAGES[:-1]}
    for name in STAGES[:-1]:
        shared[name] = inherit(shared[name], config, SAMPLING)
        if name not in ("reward", DISTIL, "dpo"):  # which read what a stage has written
            shared[name] = inherit(shared[name], config, DATA)
        shared[name] = dataclasses.replace(shared[name], output_dir=at(name))
    base = at("sft") if "sft" in present else config.model_name_or_path
    if base is None and present & {"collect", "reward", BEST_OF, DISTIL, "dpo", "rl", "evaluate"}:
        raise UsageError("a run without the sft stage needs --model_name_or_path, the policy to start from")
    annotator = config.collect.annotator if "collect" in present else None
    default = RunConfig()

    def fill(name: str, **values: Any) -> None:
        """Sets what still has its default."""
        stage, usual = shared[name], getattr(default, name)
        open_fields = {k: v for k, v in values.items() if getattr(stage, k) == getattr(usual, k)}
        shared[name] = dataclasses.replace(stage, **open_fields)

    fill("sft", model_name_or_path=config.model_name_or_path)
    fill("collect", model_name_or_path=base)
    fill("reward", model_name_or_path=at(BACKBONE) if BACKBONE in present else base)
    if "collect" in present:
        fill("reward", dataset_name=at("collect"))
        fill("dpo", dataset_name=at("collect"))
    else:
        fill("reward", dataset_name=config.dataset_name, reference_policy=base)
        fill("dpo", dataset_name=config.dataset_name)
        for name in ("reward", "dpo"):
            shared[name] = inherit(shared[name], config, DATA)
    fill("dpo", model_name_or_path=base)
    fill("rl", model_name_or_path=base, reward_model=at("reward"), gold=annotator)
    fill(BEST_OF, model_name_or_path=base, reward_model=at("reward"), gold=annotator)
    fill(DISTIL, model_name_or_path=base, dataset_name=at(BEST_OF))
    trained = (f"rl{last}" if name == "rl" else name for name in ("rl", "dpo", DISTIL) if name in present)
    policy = next(map(at, trained), base)
    # A run of dpo needs no reward model: where it has none, what labelled the pairs is the measure.
    measure = annotator if "dpo" in present and "reward" not in present else None
    # The reward is what the policy was trained against, however it is put together.
    given = shared["rl"].reward_model if "rl" in present and config.rounds == 1 else None
    fill(
        "evaluate",
        model_name_or_path=policy,
        ref_model=base,
        reward_model=measure or given or at(f"reward{last}"),
        gold=annotator,
    )

    def here(found: re.Match[str]) -> str:
        name, stage = found[1], found[2]
        if name:
            raise UsageError(f"'{found[0]}' names another point; only a sweep has points")
        if stage not in present:
            raise UsageError(f"'{found[0]}' names no stage of this run ({', '.join(config.stages)})")
        return at(stage)

    return dataclasses.replace(config, **map_texts(shared, lambda text: REFERENCE.sub(here, text)))


def map_texts(options: Any, change: Callable[[str], str]) -> Any:
    """Options with every text in them changed, however deep."""
    if isinstance(options, str):
        return change(options)
    if isinstance(options, list):
        return [map_texts(value, change) for value in options]
    if isinstance(options, dict):
        return {key: map_texts(value, change) for key, value in options.items()}
    if dataclasses.is_dataclass(options) and not isinstance(options, type):
        return dataclasses.replace(options, **{k: map_texts(v, change) for k, v in vars(options).items()})
    return options


def demo_config(output_dir: str = "runs/demo", seed: int = 0) -> RunConfig:
    """The embedded world in minutes on two CPU cores."""
    return RunConfig(
        output_dir=output_dir,
        seed=seed,
        # A million parameters leave a few per cent of probability on noise; 0.8 takes most of it away.
        temperature=0.8,
        reward=RewardConfig(
            num_train_epochs=2,
            train_batch_size=32,
            learning_rate=1.5e-3,
            lr_end_factor=0.0,
            patience=20,
            # So small a language model has never read its EOS token: it finds what it knows in all of them.
            pooling="mean",
            # A third of the million parameters; frozen, the labels' noise has fewer to hide in.
            train_embeddings=False,
        ),
        rl=RlConfig(batch_size=64, eval_every=2),
    )
