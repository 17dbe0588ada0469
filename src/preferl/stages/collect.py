"""collect: samples responses from a policy (or reads them), lets an annotator compare them, writes pairs.

``data/train.jsonl``, ``dev``, ``rl`` and ``eval`` carry TRL's columns (prompt, chosen, rejected) and beside
them who labelled, what sampled, and where the annotator has them the true utilities and P(the label prefers
chosen), with its errors and its bias for a place.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preferl.data import formats, sources
from preferl.data.files import RowError, json_lines
from preferl.data.layouts import chosen_layouts
from preferl.data.records import (
    SPLITS,
    Candidates,
    Comparison,
    DataError,
    Pair,
    PromptRecord,
    known_probability,
    prompt_text,
)
from preferl.data.splits import counts, divide, normalised
from preferl.data.types import Scorer
from preferl.evaluation.selection import matched, most_contradictory
from preferl.judging.annotators import Annotator, load_annotator
from preferl.judging.judges import PairwiseJudge
from preferl.judging.juries import keep_replies, report_on
from preferl.judging.scorers import check_prompts, judges_in, load_scorer, say_what_was_cut, scored
from preferl.models import load
from preferl.options.collect import CollectConfig
from preferl.options.judging import check_judge, names_judge
from preferl.runs import devices
from preferl.runs.checkpoint import Parts
from preferl.runs.descent import with_data_set
from preferl.runs.errors import UsageError
from preferl.runs.inputs import seen_from
from preferl.runs.progress import Steps
from preferl.runs.stage import Callback, Stage
from preferl.sampling.policy import Policy

GOLD = ("gold_chosen", "gold_rejected")
MOST_VISITS = 20


def run(config: CollectConfig, fresh: bool | str = False, callbacks: Sequence[Callback] = ()) -> Path:
    """Writes labelled pairs in four splits; returns the stage's directory."""
    check_options(config)
    config = with_data_set(config)
    with Stage("collect", config, fresh, callbacks) as stage:
        if stage.is_finished:
            return stage.path
        load.refuse_absent(config.model_name_or_path)
        annotator = load_annotator(config, config.seed, stage.device, config.written_as == "pairs")
        how = config.how_judged(config.seed)
        misled = load_scorer(config.adversarial, stage.device, how) if config.adversarial else None
        older = sources.load_source(config.add_to) if config.add_to else None
        asked = annotator if isinstance(annotator, PairwiseJudge) else annotator.utility
        policies: list[Policy] = []
        if config.responses_file:
            candidates, note = read_candidates(Path(config.responses_file), config)
            for made in candidates.values():
                check_prompts([asked], [one.prompt for one in made])
            stage.begin([note])
        else:
            assert config.model_name_or_path
            policy = Policy.load(
                config.model_name_or_path, stage.device, stage.dtype, config.chat_template_kwargs
            )
            source = load.read_by(sources.load_source(**config.source()), [policy.tokenizer])
            source.need("prompts", "train")
            prompts = {split: source[split].prompts for split in SPLITS}
            for records in prompts.values():
                check_prompts([asked], [record.prompt for record in records])
            stage.begin([*source.notes, *policy.notes])
            candidates = sample_candidates(policy, prompts, config, stage)
            policies = [policy]
        judges = [*judges_in(annotator), *judges_in(misled)]
        keep_replies(judges, stage.path, Parts(stage.state, stage.owner))
        compare(candidates, annotator, misled, older, config, stage, policies)
    return stage.path


def compare(
    candidates: dict[str, list[Candidates]],
    annotator: Annotator | PairwiseJudge,
    misled: Scorer | None,
    older: sources.Source | None,
    config: CollectConfig,
    stage: Stage,
    policies: Sequence[Policy] = (),
) -> None:
    """Lets the annotator compare the candidates of every split, and finishes the stage.

    Args:
        candidates: responses by split.
        annotator: who labels.
        misled: the reward whose mistakes are searched for, if any.
        older: comparisons to which these are added.
        config: the options.
        stage: where they are written.
        policies: what sampled them.
    """
    summary: dict[str, Any] = {}
    for split, rows in candidates.items():
        rng = np.random.default_rng(devices.derived_seed(config.seed, "collect", split, "labels"))
        limit, path = getattr(config.pairs, split), stage.data / f"{split}.jsonl"
        if isinstance(annotator, Annotator) and config.written_as == "rankings":
            rankings, left_out = rank(rows[:limit], annotator, rng, split, config)
            formats.write(path, [*(older.own(split).comparisons if older else ()), *rankings])
            records = [pair for ranking in rankings for pair in ranking.pairs()]
            summary[split] = describe(records, rows) | {"rankings": len(rankings), "left_out": left_out}
        else:
            excess = None
            if misled is not None and isinstance(annotator, Annotator) and rows:
                excess = excess_of(rows, misled, annotator)
            pairs, left_out = pairs_of(rows, config.matched, excess)
            pairs = pairs[:limit]
            records = label(pairs, annotator, rng, split, config)
            left_out["tied or unreadable"] = len(pairs) - len(records)
            formats.write(path, [*(older.own(split).pairs if older else ()), *records])
            summary[split] = describe(records, rows) | {"left_out": left_out}
        stage.log(split=split, **summary[split])
        stage.log_samples({"split": split, **example(r)} for r in records[:10])
    judged = report_on(judges_in(annotator), stage.say)
    say_result(summary, config, stage)
    counts: dict[str, Any] = {}
    if older is not None:
        counts["added_to"] = {split: len(older.own(split).pairs) for split in SPLITS}
        stage.say(f"added to {counts['added_to']['train']} training pairs of {config.add_to}")
    if isinstance(annotator, PairwiseJudge):
        counts["judge"] = dataclasses.asdict(annotator.counts)
    readers = [annotator, *([] if misled is None else [misled])]
    cut = say_what_was_cut(policies, readers, stage.say)
    stage.finish(splits=summary, annotator=config.annotator, **counts, **judged, **cut)


def say_result(summary: dict[str, Any], config: CollectConfig, stage: Stage) -> None:
    """Says what there is, and what there is less of than was asked for.

    Raises:
        DataError: there is no training pair.
    """
    for split in SPLITS:
        counted = summary.get(split, {"pairs": 0})
        wanted, got = getattr(config.pairs, split), counted.get("rankings", counted["pairs"])
        if got < wanted:
            reasons = ", ".join(counted.get("left_out", {"identical": 0, "empty": 0}))
            stage.say(
                f"{split} has {got} {config.written_as}, fewer than the {wanted} asked for: "
                f"the rest was {reasons}, or had no prompts"
            )
    train = summary.get("train", {"pairs": 0})
    if not train["pairs"]:
        reasons = ", ".join(f"{count} {why}" for why, count in train.get("left_out", {}).items() if count)
        raise DataError(
            f"collect: no training pair at all; left out were {reasons or 'all, for want of prompts'}"
        )
    stage.say(
        f"{train['pairs']} training pairs by {config.annotator}"
        + (
            f" from {train['rankings']} rankings"
            if "rankings" in train
            else f", {train['first_wins_rate']:.1%} won by the first response"
        )
    )


def check_options(config: CollectConfig) -> None:
    """Refuses what cannot work, before anything is loaded."""
    if names_judge(config.annotator):
        check_judge(config.annotator)
    if config.layout not in ("pairs", "rankings"):
        chosen_layouts(config.layout)  # of the data set
    if config.written_as == "rankings" and (config.matched or config.adversarial):
        raise UsageError("matched and adversarial choose pairs; use --layout pairs")
    if config.adversarial and names_judge(config.annotator):
        raise UsageError("adversarial needs an annotator with a utility; a judge only compares")
    if config.written_as == "pairs" and config.tie_policy == "tie":
        raise UsageError(
            "tie_policy tie needs --layout rankings: a pair has no place for a tie; use coin or skip"
        )
    if config.written_as == "rankings" and config.tie_policy == "skip":
        raise UsageError(
            "tie_policy skip is for --layout pairs; a ranking keeps ties (tie) or breaks them (coin)"
        )
    if not (config.model_name_or_path or config.responses_file):
        raise UsageError("collect needs --model_name_or_path (a policy) or --responses_file")


def sample_candidates(
    policy: Policy, prompts: dict[str, list[PromptRecord]], config: CollectConfig, stage: Stage
) -> dict[str, list[Candidates]]:
    """Visits the prompts of each split in rounds until there are responses for the comparisons asked for, or
    ``MOST_VISITS`` times as many visits as would do if no two responses were equal. What was sampled before
    an interruption is read."""
    K = config.num_generations
    each = K * (K - 1) // 2 if config.written_as == "pairs" and not config.adversarial else 1
    visits = {
        split: -(-int(1.1 * getattr(config.pairs, split)) // each) if prompts[split] else 0
        for split in SPLITS
    }
    out: dict[str, list[Candidates]] = {}
    parts = Parts(stage.state, stage.owner)
    with Steps("collect", sum(visits.values())) as steps:
        for split, due in visits.items():
            order = rounds(prompts[split], config.seed, split)
            generator = devices.generator(config.seed, "collect", split)
            rows = out[split] = []
            chunk = max(1, 4 * config.sampling_batch_size // K)
            while due:
                asked = list(itertools.islice(order, min(chunk, due)))

                def answer(
                    asked: list[PromptRecord] = asked, generator: torch.Generator = generator
                ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
                    made = policy.respond(asked, K, generator, config)
                    texts = {"responses": made.completions, "finished": made.finished}
                    return {"generator": generator.get_state()}, texts | {"length": made.mean_length}

                tensors, texts = parts.get(f"{split}-{len(rows)}", answer)
                generator.set_state(tensors["generator"])
                for i, record in enumerate(asked):
                    row = slice(i * K, (i + 1) * K)
                    rows.append(Candidates(record.prompt, texts["responses"][row], texts["finished"][row]))
                eos_rate = sum(texts["finished"]) / len(texts["finished"])
                steps.advance(len(asked), length=texts["length"], eos=eos_rate)
                due -= len(asked)
                if not due:
                    due = visits_missing(rows, getattr(config.pairs, split), config, each)
                    steps.more(due)
    return out


def visits_missing(rows: Sequence[Candidates], wanted: int, config: CollectConfig, each: int) -> int:
    """How many more prompts to visit for ``wanted`` comparisons, by what the visits so far have given."""
    if config.written_as == "rankings":
        have = sum(len({text for text in row.responses if text.strip()}) > 1 for row in rows)
    else:
        nothing = [np.zeros(len(row.responses)) for row in rows] if config.adversarial else None
        have = len(pairs_of(rows, config.matched, nothing)[0])
    most = MOST_VISITS * -(-wanted // each)
    if have >= wanted or len(rows) >= most:
        return 0
    return min(-(-(wanted - have) * len(rows) // max(have, 1)), most - len(rows))


def rounds(prompts: Sequence[PromptRecord], seed: int, split: str | None) -> Iterator[PromptRecord]:
    """Every prompt once in random order, then again in another order, without end."""
    rng = random.Random(devices.derived_seed(seed, "collect", split, "order"))
    while prompts:
        order = list(prompts)
        rng.shuffle(order)
        yield from order


def read_candidates(path: Path, config: CollectConfig) -> tuple[dict[str, list[Candidates]], str]:
    """Responses from a file, split by prompt, and what was read, in a sentence.

    Raises:
        DataError: the file is not there, a row is not {"prompt", "responses": [two or more texts]}, or none
            trains.
    """
    if not path.is_file():
        raise DataError(f"responses_file '{path}' is not a file")
    rows: list[Candidates] = []
    own: list[str | None] = []
    for line in json_lines(path):
        row = line.value if isinstance(line.value, dict) else {}
        responses = row.get("responses")
        fine = isinstance(responses, list) and len(responses) > 1
        try:
            prompt = formats.KINDS["prompt"].read(row).prompt
        except RowError:
            fine = False
        if not (fine and all(isinstance(text, str) for text in responses)):
            raise DataError(f'{line.where}: a row must be {{"prompt": …, "responses": [two or more texts]}}')
        rows.append(Candidates(prompt, responses, [True] * len(responses)))
        own.append(row.get("split"))
    splits = divide([normalised(row.prompt) for row in rows], own, config.split_shares)
    out: dict[str, list[Candidates]] = {split: [] for split in SPLITS}
    for row, split in zip(rows, splits.names, strict=True):
        out.setdefault(split, []).append(row)
    for split in splits.on_train:
        out[split] = out["train"]
    note = f"{path}: {len(rows)} rows used; split: {counts(splits)} ({splits.how})"
    if not out["train"]:
        raise DataError(
            f"no row trains ({note}). Mark some as train in a column `split`, or leave the column out "
            f"and let --split_shares divide them"
        )
    return {split: out[split] for split in SPLITS}, note


def pairs_of(
    rows: Sequence[Candidates], only_matched: bool = False, excess: Sequence[np.ndarray] | None = None
) -> tuple[list[Candidates], dict[str, int]]:
    """Pairs of different responses, and how many were left out for what.

    With ``excess`` (scores minus utilities of a row's responses) only the most contradictory pair of a row.
    """
    pairs, left_out = [], {"identical": 0, "empty": 0} | ({"unmatched": 0} if only_matched else {})
    for number, row in enumerate(rows):
        fitting = []
        for i, j in itertools.combinations(range(len(row.responses)), 2):
            first, second = row.responses[i], row.responses[j]
            if first == second:
                left_out["identical"] += 1
            elif not (first.strip() and second.strip()):
                left_out["empty"] += 1
            elif only_matched and not matched(first, second):
                left_out["unmatched"] += 1
            else:
                fitting.append((i, j))
        if excess is not None and fitting:
            fitting = [most_contradictory(excess[number], fitting)]
        pairs += [
            Candidates(row.prompt, [row.responses[i], row.responses[j]], [row.finished[i], row.finished[j]])
            for i, j in fitting
        ]
    return pairs, left_out


def excess_of(rows: Sequence[Candidates], reward: Scorer, annotator: Annotator) -> list[np.ndarray]:
    """Score minus utility of every row's responses, each in standard deviations over all of them.

    Pairs are chosen by the utility and before labels are drawn, so labels stay what they are on any pair.
    """
    prompts = [row.prompt for row in rows for _ in row.responses]
    texts = [text for row in rows for text in row.responses]
    finished = [done for row in rows for done in row.finished]
    score_N = scored(reward, prompts, texts, finished=finished)
    utility_N = annotator.utilities(prompts, texts, finished)
    excess_N = score_N / (score_N.std() or 1) - utility_N / (utility_N.std() or 1)
    return np.split(excess_N, np.cumsum([len(row.responses) for row in rows])[:-1])


def label(
    pairs: Sequence[Candidates],
    annotator: Annotator | PairwiseJudge,
    rng: np.random.Generator,
    split: str,
    config: CollectConfig,
) -> list[Pair]:
    """The annotator's choice for every pair, with provenance."""
    if not pairs:
        return []
    judged = annotator(
        [p.prompt for p in pairs],
        [p.responses[0] for p in pairs],
        [p.responses[1] for p in pairs],
        rng,
        [p.finished[0] for p in pairs],
        [p.finished[1] for p in pairs],
    )
    p_first_N = judged.probability_N
    if isinstance(annotator, Annotator):
        p_first_N = annotator.label_probability(judged.utility_a_N, judged.utility_b_N)
    who = who_and_whose(annotator, config)
    records = []
    for i, pair in enumerate(pairs):
        if not judged.kept_N[i] or (judged.tied_N[i] and config.tie_policy == "skip"):
            continue
        won = 0 if judged.first_wins_N[i] else 1
        utility = (float(judged.utility_a_N[i]), float(judged.utility_b_N[i]))
        p_first = float(p_first_N[i])
        columns = {
            "split": split,
            **who,
            "selection": selection_of(config),
            "chosen_position": won,
            "finished_chosen": pair.finished[won],
            "finished_rejected": pair.finished[1 - won],
        }
        p_chosen = p_first if won == 0 else 1 - p_first
        if isinstance(annotator, PairwiseJudge):  # it knows no truth, only what it thinks
            columns["judged_probability"] = p_chosen
        else:
            columns |= {"gold_chosen": utility[won], "gold_rejected": utility[1 - won], "p_chosen": p_chosen}
        records.append(Pair(pair.prompt, pair.responses[won], pair.responses[1 - won], None, columns))
    return records


def rank(
    rows: Sequence[Candidates],
    annotator: Annotator,
    rng: np.random.Generator,
    split: str,
    config: CollectConfig,
) -> tuple[list[Comparison], dict[str, int]]:
    """The annotator's ranking of every prompt's different responses, and how many were left out for what."""
    different, left_out = [], {"identical": 0, "empty": 0}
    for row in rows:
        first = {text: i for i, text in reversed(list(enumerate(row.responses))) if text.strip()}
        left_out["empty"] += sum(not text.strip() for text in row.responses)
        left_out["identical"] += sum(bool(t.strip()) for t in row.responses) - len(first)
        kept = sorted(first.values())
        if len(kept) > 1:
            texts, finished = [row.responses[i] for i in kept], [row.finished[i] for i in kept]
            different.append(Candidates(row.prompt, texts, finished))
    # All at once: a utility may be a model.
    utilities = iter(
        annotator.utilities(
            [row.prompt for row in different for _ in row.responses],
            [text for row in different for text in row.responses],
            [done for row in different for done in row.finished],
        )
    )
    who = who_and_whose(annotator, config)
    rankings = []
    for row in different:
        utility_K = np.array(list(itertools.islice(utilities, len(row.responses))), dtype=np.float64)
        read_K = ~np.isnan(utility_K)
        if not read_K.all():  # of a judge that wrote nothing readable about some
            left_out["unreadable"] = left_out.get("unreadable", 0) + int((~read_K).sum())
            texts = [text for text, read in zip(row.responses, read_K, strict=True) if read]
            ended = [done for done, read in zip(row.finished, read_K, strict=True) if read]
            row, utility_K = Candidates(row.prompt, texts, ended), utility_K[read_K]
            if len(utility_K) < 2:
                continue
        columns = {
            "split": split,
            **who,
            "finished": row.finished,
            "gold": utility_K.tolist(),
        }
        columns |= how_labelled(annotator, len(row.responses))
        ranks = annotator.rank(utility_K, rng)
        each = ("finished", "gold")
        rankings.append(Comparison(row.prompt, row.responses, ranks, None, columns, each))
    return rankings, left_out


def how_labelled(annotator: Annotator, shown: int) -> dict[str, Any]:
    """What `known_probability` needs to know of a ranking's labels, as columns; what is not there is 0."""
    deterministic = annotator.mode == "deterministic"
    columns: dict[str, Any] = {"label_mode": annotator.mode} if deterministic else {}
    columns |= {} if deterministic else {"label_scale": annotator.scale}
    columns |= {"label_error_rate": annotator.error_rate} if annotator.error_rate else {}
    columns |= {"label_coin_width": annotator.coin_width} if annotator.coin_width else {}
    if annotator.position_bias:
        columns |= {"label_position_bias": annotator.position_bias, "label_shown": shown}
    return columns


def who_and_whose(annotator: Annotator | PairwiseJudge, config: CollectConfig) -> dict[str, str]:
    """Columns of every row: who labelled, and whose responses they are, as seen from this stage's
    directory."""
    here = Path(config.output_dir)
    source = config.responses_file or config.model_name_or_path or ""
    return {"annotator": seen_from(here, annotator.name), "source": seen_from(here, source)}


def selection_of(config: CollectConfig) -> str:
    """How the pairs were chosen, for the column ``selection``."""
    names = ("adversarial" if config.adversarial else "", "matched" if config.matched else "")
    return " ".join(filter(None, names)) or "random"


def describe(records: Sequence[Pair], rows: Sequence[Candidates]) -> dict[str, Any]:
    """Counts and utilities of a split."""
    if not records:
        return {"pairs": 0, "prompts": 0}
    known = [p for p in map(known_probability, records) if p is not None]
    p = np.array(known)
    gold = np.array([r.columns[k] for r in records for k in GOLD if k in r.columns])
    finished = [f for row in rows for f in row.finished]
    positions = [r.columns["chosen_position"] for r in records if "chosen_position" in r.columns]
    return {
        "pairs": len(records),
        "prompts": len({prompt_text(r.prompt) for r in records}),
        "first_wins_rate": float(np.mean([p == 0 for p in positions])) if positions else None,
        "bayes_accuracy": float(np.maximum(p, 1 - p).mean()) if known else None,
        "gold_mean": float(gold.mean()) if len(gold) else None,
        "gold_sd": float(gold.std()) if len(gold) else None,
        "eos_rate": sum(finished) / len(finished),
    }


def example(record: Pair) -> dict[str, Any]:
    return {
        "prompt": prompt_text(record.prompt),
        "chosen": record.chosen,
        "rejected": record.rejected,
        **record.columns,
    }
