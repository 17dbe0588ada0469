"""Which stages a run has where nobody lists them: they follow from what its data set is.

The embedded world has all of them. A data set of a person's own has what can be made of it:

==========================  ==========================================================
demonstrations, texts       sft
demonstrations, a reward    sft (unless …), rl, evaluate
pairs, rankings             sft (unless the model answers already), reward, rl, evaluate
pairs, with options of dpo  sft (unless …), reward (to evaluate by), dpo, evaluate
good and bad responses      sft (unless …), dpo with KTO's loss
prompts and a reward        rl, evaluate
prompts and an annotator    collect, reward, rl, evaluate
==========================  ==========================================================

What cannot work is refused here, before a model is loaded or anything is sampled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preferl.data.sources import Source, load_source
from preferl.data.splits import too_few
from preferl.options.shared import DataOptions
from preferl.pipeline import DATA, RunConfig
from preferl.runs.descent import is_world
from preferl.runs.errors import UsageError


@dataclass(frozen=True)
class Choice:
    """Stages of a run, options that go with them, and why."""

    stages: list[str]
    why: str
    options: Mapping[str, Any] | None = None


def with_stages(config: RunConfig) -> tuple[RunConfig, str | None]:
    """A run with the stages that its data set is for, and a sentence that says which and why; as it is, and
    None, where it lists its stages or has no data set but the embedded world.

    Raises:
        DataError: the data set cannot be read.
        UsageError: no stage can learn from it as the options are.
    """
    dataset = config.given.get("dataset_name")
    if dataset is None or is_world(dataset) or "stages" in config.given:
        return config, None
    options = DataOptions(**{key: config.given[key] for key in DATA if key in config.given})
    # Only what kind of data it is counts here; the stages look for copies, and say what they find.
    source = load_source(**options.source() | {"near_copies": "never"})
    choice = choose(config, source)
    said = f"{dataset} holds {choice.why}: the stages are {', '.join(choice.stages)} (others with --stages)"
    few = too_few(len(source.eval.prompts)) if "evaluate" in choice.stages else ""
    said += f". Of eval's rows {few}" if few else ""
    return config.changed({"stages": choice.stages, **(choice.options or {})}), said


def choose(config: RunConfig, source: Source) -> Choice:
    """The stages of a run on a data set.

    Raises:
        UsageError: no stage can learn from it as the options are.
    """
    train = source.train
    evaluated = ["evaluate", "report"]
    first, start = sft_first(config)
    annotator = config.of("collect").get("annotator")
    if annotator is not None and source.prompts:
        return Choice(
            [*first, "collect", "reward", "rl", *evaluated],
            f"prompts, whose responses the annotator {annotator} compares{start}",
        )
    if train.comparisons and not train.rated:  # pairs of labels are only some of the labelled rows
        if config.of("dpo"):
            return Choice(
                [*first, "reward", "dpo", *evaluated], f"comparisons, and there are options of dpo{start}"
            )
        if config.of("rl").get("reward_model"):
            return Choice([*first, "rl", *evaluated], f"comparisons, and rl has a reward of its own{start}")
        return Choice([*first, "reward", "rl", *evaluated], f"comparisons{start}")
    if train.rated:
        return of_rated(config, source, first, start)
    if train.demonstrations:
        if config.of("rl").get("reward_model"):
            return Choice([*first, "rl", *evaluated], f"demonstrations, and rl has a reward{start}")
        return Choice(["sft", "report"], "demonstrations")
    return of_prompts(config, source)


def of_rated(config: RunConfig, source: Source, first: list[str], start: str) -> Choice:
    """The stages of a run on single responses with ratings, or called good or bad."""
    if any(rated.good is not None for rated in source.train.rated):
        loss = config.of("dpo").get("loss_type")
        return Choice(
            [*first, "dpo", "report"],
            f"responses that are called good or bad, which KTO learns from{start}",
            None if loss else {"dpo.loss_type": "kto"},
        )
    attributes = sorted({name for rated in source.train.rated for name in rated.ratings})
    if config.of("reward").get("reward_mixture"):
        return Choice([*first, "reward", "rl", "evaluate", "report"], f"ratings{start}")
    raise UsageError(
        f"'{source.name}' holds ratings of responses ({', '.join(attributes)}), and nothing says what of "
        f"them is the reward: give --reward.reward_mixture '1*{attributes[0]}' or a sum such as "
        f"'0.7*{attributes[0]} + 0.3*{attributes[-1]}', or --stages '[reward]' for the reward model alone"
    )


def of_prompts(config: RunConfig, source: Source) -> Choice:
    """The stages of a run on prompts alone."""
    reward = config.of("rl").get("reward_model")
    if not reward:
        raise UsageError(
            f"'{source.name}' holds prompts and no responses, and nothing says which response is good: give "
            f"--rl.reward_model (module:function, a reward model, judge:…) to train against it, or "
            f"--collect.annotator to label samples of the model; docs/data.md says what each stage reads"
        )
    if config.base is None:
        raise UsageError(
            f"'{source.name}' holds prompts and no responses, from which no model can be made: give "
            f"--model_name_or_path, or --columns completion=COLUMN where a column holds the answers"
        )
    return Choice(["rl", "evaluate", "report"], f"prompts, and the reward is {reward}")


def sft_first(config: RunConfig) -> tuple[list[str], str]:
    """Whether a model must learn to answer first, and why it need not."""
    if config.of("sft"):
        return ["sft"], "; sft has options"
    if config.base is None:
        return ["sft"], "; a new small model learns the better ones first"
    if is_instruct(config.base):
        return [], f"; {config.base} has a chat template, so it starts without sft"
    return ["sft"], f"; {config.base} has no chat template, so it learns the better ones first"


def is_instruct(model: str) -> bool:
    """Whether a model answers already: whether its tokenizer came with a chat template of its own."""
    from preferl.models.load import load_tokenizer, reads_dialogue

    return reads_dialogue(load_tokenizer(model))
