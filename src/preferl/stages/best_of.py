"""best_of: samples N responses to each prompt, keeps the best by a reward, writes them as demonstrations.

Best-of-n (Stiennon et al. 2020) as data: ``preferl sft`` on what is written here is rejection-sampling
fine-tuning (Touvron et al. 2023, "Llama 2", section 3.2.3; RAFT, Dong et al. 2023). Prompts of the split
``rl`` (of ``train``, where nothing is marked ``rl``) become the demonstrations' ``train``, prompts of ``dev``
stay ``dev``; no other prompt is read.

Different from both papers: a response that was cut off is never chosen, because a demonstration ends with
EOS and would teach to stop in mid-sentence. One round; for the next, name the fine-tuned policy.

preferl best_of --model_name_or_path runs/sft --reward_model runs/reward
preferl sft --model_name_or_path runs/sft --dataset_name runs/best_of --output_dir runs/distil
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preferl.data import formats, sources
from preferl.data.records import DataError, Demonstration, Prompt, PromptRecord, prompt_key, prompt_text
from preferl.data.types import Scorer
from preferl.judging.juries import keep_replies, report_on
from preferl.judging.scorers import (
    check_prompts,
    judges_in,
    load_scorer,
    reward_models,
    say_what_was_cut,
    score_responses,
    tokenizers_of,
)
from preferl.judging.trial import functions_of, refuse_missing_columns
from preferl.maths.kl import best_of_n_kl_bound
from preferl.models import load
from preferl.options.best_of import BestOfConfig
from preferl.runs import devices
from preferl.runs.checkpoint import Parts
from preferl.runs.descent import with_data_set
from preferl.runs.errors import UsageError
from preferl.runs.inputs import seen_from
from preferl.runs.progress import Sample, Steps, say
from preferl.runs.stage import Callback, Stage
from preferl.sampling.policy import Policy
from preferl.statistics import mean_interval
from preferl.statistics.intervals import Estimate

LOGGED = 20  # prompts of each split in samples.jsonl


@dataclass(frozen=True)
class Choices:
    """The N responses to one prompt. ``length_N`` counts tokens, EOS included; ``gold_N`` may be unknown.

    Example: ``Choices("2 + 2?", ["4.", "It is"], np.array([True, False]), np.array([3, 4]),
    np.array([1.2, -0.3]), None)``.
    """

    prompt: Prompt
    responses: list[str]
    finished_N: np.ndarray
    length_N: np.ndarray
    score_N: np.ndarray
    gold_N: np.ndarray | None


@dataclass(frozen=True)
class Kept:
    """The responses of one prompt that became demonstrations, by their numbers, best first."""

    row: Choices
    numbers: list[int]

    @property
    def score(self) -> float:
        return float(self.row.score_N[self.numbers[0]])


def run(config: BestOfConfig, fresh: bool | str = False, callbacks: Sequence[Callback] = ()) -> Path:
    """Writes the chosen responses as demonstrations in two splits; returns the stage's directory."""
    check_options(config)
    config = with_data_set(config)
    with Stage("best_of", config, fresh, callbacks) as stage:
        if stage.is_finished:
            return stage.path
        load.refuse_absent(config.model_name_or_path)
        functions = functions_of(config)
        source = sources.load_source(**config.source()).training_on(config.split)
        refuse_missing_columns(functions, source)
        policy = Policy.load(
            config.model_name_or_path, stage.device, stage.dtype, config.chat_template_kwargs
        )
        how = config.how_judged(config.seed)
        scorer = load_scorer(config.reward_model, stage.device, how)
        source = load.read_by(source, [policy.tokenizer], tokenizers_of(scorer))
        prompts, notes = prompts_to_answer(source, config)
        gold = load_scorer(config.gold, stage.device, how) if config.gold else None
        check_prompts((scorer, gold), [record.prompt for records in prompts.values() for record in records])
        stage.begin([*notes, *policy.notes])
        keep_replies([*judges_in(scorer), *judges_in(gold)], stage.path)
        came_from = {"train": config.split or ("rl" if source["rl"].prompts else "train"), "dev": "dev"}
        choose_best(policy, scorer, gold, prompts, came_from, config, stage)
    return stage.path


def choose_best(
    policy: Policy,
    scorer: Scorer,
    gold: Scorer | None,
    prompts: dict[str, list[PromptRecord]],
    came_from: dict[str, str],
    config: BestOfConfig,
    stage: Stage,
) -> None:
    """Samples, scores, keeps the best responses to the prompts of each split, and finishes the stage.

    Args:
        policy: what samples.
        scorer: what chooses.
        gold: what is only watched.
        prompts: of each split of the demonstrations.
        came_from: which split of the data set those are.
        config: the options.
        stage: where the demonstrations are written.
    """
    summary: dict[str, Any] = {}
    with Steps("best_of", sum(map(len, prompts.values()))) as steps:
        for split, asked in prompts.items():
            rows = sample(policy, scorer, gold, asked, split, config, stage, steps)
            kept, left_out = choose(rows, config)
            if split == "train":
                check_something_is_left(rows, kept, config)
            formats.write(
                stage.data / f"{split}.jsonl", demonstrations(kept, split, came_from[split], config)
            )
            summary[split] = describe(rows, kept) | {"left_out": left_out}
            stage.log(split=split, **summary[split])
            stage.log_samples(examples(rows, split))
    say_result(summary, config)
    responses = config.num_generations * sum(map(len, prompts.values()))
    cut = say_what_was_cut([policy], [scorer, *([gold] if gold else [])], stage.say)
    stage.finish(
        **cut,
        num_generations=config.num_generations,
        splits=summary,
        kl_bound=kl_bound(config),
        forward_passes={"policy": responses, "reward": responses * len(reward_models(scorer))},
        gold=config.gold,
        **report_on([*judges_in(scorer), *judges_in(gold)], stage.say),
    )


def check_options(config: BestOfConfig) -> None:
    """Refuses what cannot work, before anything is loaded."""
    if config.keep > config.num_generations:
        raise UsageError(
            f"keep is {config.keep}; it must lie between 1 and the num_generations of "
            f"{config.num_generations}"
        )


def prompts_to_answer(
    source: sources.Source, config: BestOfConfig
) -> tuple[dict[str, list[PromptRecord]], list[str]]:
    """The prompts of each split of the demonstrations, in random order, and notes on the data.

    A data set that names its splits may hold one prompt in several: a prompt that is in ``eval`` answers
    nothing here, one that is in ``dev`` too trains nothing.
    """
    asked = {"train": source.prompts or source.need("prompts", "train"), "dev": source.dev.prompts}
    notes, out = list(source.notes), {}
    reserved = {"train": ("dev", "eval"), "dev": ("eval",)}
    limits = {"train": config.max_prompts, "dev": config.dev_prompts}
    for split, prompts in asked.items():
        held = {prompt_key(p.prompt) for other in reserved[split] for p in source.own(other).prompts}
        free = [p for p in prompts if prompt_key(p.prompt) not in held]
        if len(free) < len(prompts):
            notes.append(
                f"left out {len(prompts) - len(free)} of {len(prompts)} prompts for {split}: they are in "
                f"{' or '.join(reserved[split])} too"
            )
        random.Random(devices.derived_seed(config.seed, "best_of", split, "order")).shuffle(free)
        out[split] = free[: limits[split]]
    if not out["train"]:
        raise DataError(
            f"data set '{source.name}': every prompt to train on is in dev or eval too; give each prompt one "
            f"split"
        )
    return out, notes


def sample(
    policy: Policy,
    scorer: Scorer,
    gold: Scorer | None,
    prompts: Sequence[PromptRecord],
    split: str,
    config: BestOfConfig,
    stage: Stage,
    steps: Steps,
) -> list[Choices]:
    """N responses to each prompt with their scores; those from before an interruption are read.

    Raises:
        UsageError: a scorer returned another number of scores than it was given, or a non-finite one.
    """
    N = config.num_generations
    generator, parts = devices.generator(config.seed, "best_of", split), Parts(stage.state, stage.owner)
    chunk = max(1, 4 * config.sampling_batch_size // N)
    judges = [*judges_in(scorer), *judges_in(gold)]
    rows = []
    for start in range(0, len(prompts), chunk):
        asked = prompts[start : start + chunk]

        def answer(asked: Sequence[PromptRecord] = asked) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
            made = policy.respond(asked, N, generator, config)
            tensors = {"score": torch.from_numpy(score_responses(scorer, made))}
            if gold is not None:
                tensors["gold"] = torch.from_numpy(score_responses(gold, made))
            texts = {"responses": made.completions, "finished": made.finished, "lengths": made.lengths}
            texts["judges"] = [judge.state(whole=False) for judge in judges]
            return tensors | {"generator": generator.get_state()}, texts

        tensors, texts = parts.get(f"{split}-{start}", answer)
        for judge, state in zip(judges, texts["judges"], strict=True):
            judge.restore(state)
        generator.set_state(tensors.pop("generator"))
        value_PN = {name: x_N.numpy().reshape(-1, N) for name, x_N in tensors.items()}
        finished_PN = np.array(texts["finished"]).reshape(-1, N)
        length_PN = np.array(texts["lengths"]).reshape(-1, N)
        for i, record in enumerate(asked):
            rows.append(
                Choices(
                    record.prompt,
                    texts["responses"][i * N : (i + 1) * N],
                    finished_PN[i],
                    length_PN[i],
                    value_PN["score"][i],
                    value_PN["gold"][i] if gold is not None else None,
                )
            )
        best = float(value_PN["score"].max(-1).mean())
        reward, eos = float(value_PN["score"].mean()), float(finished_PN.mean())
        steps.advance(len(asked), reward=reward, best=best, eos=eos)
        steps.samples([best_to_show(row) for row in rows[-len(asked) :][:2]])
    return rows


def best_to_show(row: Choices) -> Sample:
    """The response of the highest score."""
    best = int(row.score_N.argmax())
    return Sample(prompt_text(row.prompt), row.responses[best], {"best": float(row.score_N[best])})


def choose(rows: Sequence[Choices], config: BestOfConfig) -> tuple[list[Kept], dict[str, int]]:
    """What is kept of every prompt, in the prompts' order, and how many prompts were left out for what."""
    left_out = {"all cut off": 0, "all finished ones empty": 0, "below min_score": 0, "below top_fraction": 0}
    kept = []
    for row in rows:
        numbers = best_numbers(row, config.keep, config.min_score)
        if numbers:
            kept.append(Kept(row, numbers))
        elif not row.finished_N.any():
            left_out["all cut off"] += 1
        elif not best_numbers(row, 1, None):
            left_out["all finished ones empty"] += 1
        else:
            left_out["below min_score"] += 1
    # A product such as 0.1 * 30 may lie a rounding error above the number that is meant.
    wanted = math.ceil(config.top_fraction * len(kept) - 1e-9)
    order = sorted(range(len(kept)), key=lambda i: -kept[i].score)
    left_out["below top_fraction"] = len(kept) - wanted
    return [kept[i] for i in sorted(order[:wanted])], left_out


def best_numbers(row: Choices, keep: int, min_score: float | None) -> list[int]:
    """Numbers of the best different responses that ended by themselves, best first; of equal scores the
    earlier. A response that was cut off would teach to end there, an empty one is no demonstration."""
    numbers: list[int] = []
    for i in np.argsort(-row.score_N, kind="stable").tolist():
        text = row.responses[i]
        usable = bool(row.finished_N[i]) and bool(text.strip())
        usable = usable and (min_score is None or row.score_N[i] >= min_score)
        if usable and len(numbers) < keep and all(text != row.responses[j] for j in numbers):
            numbers.append(i)
    return numbers


def check_something_is_left(rows: Sequence[Choices], kept: Sequence[Kept], config: BestOfConfig) -> None:
    """Without a training demonstration there is nothing to write.

    Raises:
        DataError: no response could be chosen; says why.
    """
    if kept:
        return
    responses = f"{sum(len(row.responses) for row in rows):,} responses to {len(rows):,} prompts"
    if not any(row.finished_N.any() for row in rows):
        raise DataError(
            f"best_of: all {responses} were cut off at response_length {config.response_length}, and what "
            f"does not end by itself is no demonstration; raise --response_length, or train the policy to end"
        )
    chosen = [(row, best_numbers(row, 1, None)) for row in rows]
    scores = [row.score_N[numbers[0]] for row, numbers in chosen if numbers]
    if not scores:
        raise DataError(
            f"best_of: of {responses} none ended by itself with any text in it; look at what the policy "
            f"writes, or raise --response_length"
        )
    raise DataError(
        f"best_of: none of {responses} has a reward of min_score {config.min_score:g} or more; the best one "
        f"that ended by itself has {max(scores):.3g}: lower --min_score"
    )


def demonstrations(
    kept: Sequence[Kept], split: str, prompt_split: str, config: BestOfConfig
) -> list[Demonstration]:
    """One record for each kept response; the column ``split`` is what later stages split by,
    ``prompt_split`` the split that its prompt came from."""
    here = Path(config.output_dir)
    whose, judged_by = (seen_from(here, text) for text in (config.model_name_or_path, config.reward_model))
    records = []
    for one in kept:
        row = one.row
        for place, i in enumerate(one.numbers, 1):
            columns = {
                "split": split,
                "prompt_split": prompt_split,
                "source": whose,
                "reward_model": judged_by,
                "score": float(row.score_N[i]),
                "place": place,
                "num_generations": config.num_generations,
            }
            if row.gold_N is not None:
                columns["gold"] = float(row.gold_N[i])
            records.append(Demonstration(row.prompt, row.responses[i], columns))
    return records


def describe(rows: Sequence[Choices], kept: Sequence[Kept]) -> dict[str, Any]:
    """A split's numbers: of all responses, of the kept ones, and what choosing gained on the same prompts."""
    summary: dict[str, Any] = {"sampled": {"prompts": 0, "responses": 0}, "kept": {}}
    if rows:
        summary["sampled"] = means([Kept(row, list(range(len(row.responses)))) for row in rows])
        summary["sampled"]["cut_off"] = float(np.mean([~row.finished_N for row in rows]))
    summary["kept"] = means(kept) if kept else {"prompts": 0, "responses": 0}
    if kept:
        for measure in measures(kept[0].row):
            gain = [
                float(values(k.row, measure)[k.numbers].mean() - values(k.row, measure).mean()) for k in kept
            ]
            summary["gain"] = summary.get("gain", {}) | mean_interval(gain).named(measure)
    return summary


def means(kept: Sequence[Kept]) -> dict[str, Any]:
    """Means with 95 % intervals over the prompts, each of which weighs the same: responses to one prompt are
    no independent draws."""
    row: dict[str, Any] = {"prompts": len(kept), "responses": sum(len(k.numbers) for k in kept)}
    for measure in measures(kept[0].row):
        own = [float(values(k.row, measure)[k.numbers].mean()) for k in kept]
        row |= mean_interval(own).named(measure)
    row["length"] = float(np.mean([k.row.length_N[k.numbers].mean() for k in kept]))
    return row


def measures(row: Choices) -> list[str]:
    return ["score"] if row.gold_N is None else ["score", "gold"]


def values(row: Choices, measure: str) -> np.ndarray:
    found = row.score_N if measure == "score" else row.gold_N
    assert found is not None
    return found


def kl_bound(config: BestOfConfig) -> float | None:
    """Upper bound of KL(kept || policy) in nats per response; None where more is chosen than the best of N.

    A threshold or a share of the prompts conditions on the score itself, and second best ones follow another
    law. Counting what was cut off as the worst of all is still best-of-N.
    """
    if config.keep > 1 or config.min_score is not None or config.top_fraction < 1:
        return None
    return best_of_n_kl_bound(config.num_generations)


def examples(rows: Sequence[Choices], split: str) -> list[dict[str, Any]]:
    """Some prompts with the best and the worst of their responses by the reward."""
    out = []
    for row in rows[:LOGGED]:
        chosen, worst = best_numbers(row, 1, None), int(row.score_N.argmin())
        best = chosen[0] if chosen else int(row.score_N.argmax())
        shown: dict[str, Any] = {"split": split, "prompt": prompt_text(row.prompt)}
        for name, i in (("best", best), ("worst", worst)):
            shown |= {name: row.responses[i], f"{name}_score": row.score_N[i]}
            shown[f"{name}_finished"] = bool(row.finished_N[i])
            if row.gold_N is not None:
                shown[f"{name}_gold"] = row.gold_N[i]
        out.append(shown)
    return out


def say_result(summary: dict[str, Any], config: BestOfConfig) -> None:
    train, dev = summary["train"], summary["dev"]
    sampled, kept = train["sampled"], train["kept"]
    left_out = ", ".join(f"{count} {why}" for why, count in train["left_out"].items() if count)
    say(
        f"best_of: {kept['responses']:,} demonstrations for {kept['prompts']:,} of {sampled['prompts']:,} "
        f"prompts{f' (left out: {left_out})' if left_out else ''}, {dev['kept']['responses']:,} held out"
    )
    for measure, name in (("score", "reward"), ("gold", "gold reward")):
        if measure in kept:
            say(
                f"best_of: {name} {sampled[measure]:.2f} -> {kept[measure]:.2f}, on the same prompts "
                f"{Estimate.read(train['gain'], measure).text('+.2f')}"
            )
    say(
        f"best_of: {sampled['cut_off']:.1%} of the responses cut off at {config.response_length} tokens; "
        f"length {sampled['length']:.1f} -> {kept['length']:.1f}"
    )
