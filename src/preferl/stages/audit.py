"""audit: any reward on any labelled pairs, by category: benchmarks such as RewardBench, or a model at hand.

Writes ``audit.json`` (accuracy, calibration, categories, biases, baselines, disagreements), prints accuracy
by category with intervals. Of a reward model with one head an attribute every attribute is audited too: on
the same pairs, and on held-out ratings where the data set has such.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preferl.data import sources
from preferl.data.records import Pair, Rated, prompt_text
from preferl.data.sources import Source
from preferl.data.types import Measures, Scorer
from preferl.evaluation.attributes import agreement_of_heads, attribute_measures
from preferl.evaluation.audit import audit_scorer
from preferl.evaluation.scored import quality_of, scores_of, those_read
from preferl.judging.judges import Judge
from preferl.judging.juries import keep_replies, load_pairwise_judge, report_on
from preferl.judging.scorers import judges_in, load_scorer, reward_models, say_what_was_cut, tokenizers_of
from preferl.learning.attributes import logits_of_pairs, logits_of_rated
from preferl.models import load
from preferl.models.attributes import attributes_of, chosen_mixture, split_mixture
from preferl.models.load import model_directory
from preferl.models.reward import RewardModel, configuration, load_attribute_model, saved_attributes
from preferl.options.audit import AuditConfig
from preferl.options.judging import check_judge, jury_of, names_judge, parse_judge
from preferl.runs.checkpoint import Parts
from preferl.runs.descent import with_data_set
from preferl.runs.errors import UsageError
from preferl.runs.progress import say
from preferl.runs.record import StageRecord
from preferl.runs.stage import Callback, Stage
from preferl.statistics.intervals import Estimate

PART = 2000  # pairs that are scored between two writes
SIDES = ("chosen", "rejected")


def run(config: AuditConfig, fresh: bool | str = False, callbacks: Sequence[Callback] = ()) -> Path:
    """Scores all pairs and writes what they show; returns the stage's directory."""
    check_options(config)
    config = with_data_set(config)
    with Stage("audit", config, fresh, callbacks) as stage:
        if stage.is_finished:
            return stage.path
        source = sources.load_source(**config.source()).measured_on(config.split)
        heads = heads_of(config.reward_model)
        source = with_mixed_pairs(source, config.reward_model, heads)
        source.need("pairs", "eval")
        scorer = load_audited(config, stage.device)
        for tokenizer in tokenizers_of(scorer):
            load.set_template_kwargs(tokenizer, config.chat_template_kwargs)
        source = load.read_by(source, tokenizers_of(scorer))
        pairs = source.need("pairs", "eval")[: config.max_pairs]
        check_category(pairs, config)
        train_pairs: Sequence[Pair] = ()
        if config.train_dataset_name:
            training = sources.load_beside(
                "train_dataset_name", **config.source_of(config.train_dataset_name)
            )
            train_pairs = load.read_by(training, tokenizers_of(scorer)).need("pairs", "train")
        stage.begin(source.notes)
        keep_replies(judges_in(scorer), stage.path)
        by_attribute: list[Measures] = []
        if heads:
            by_attribute = audit_heads(config.reward_model, pairs, source.eval.rated, stage)
        audit(scorer, pairs, train_pairs, scale_of(config.reward_model), config, stage, by_attribute)
    return stage.path


def heads_of(reward_model: str) -> list[str]:
    """The attributes of a reward model; none of any other reward."""
    name, _ = split_mixture(reward_model)
    saved = (Path(model_directory(name)) / "config.json").exists()
    return saved_attributes(name) if saved else []


def with_mixed_pairs(source: Source, reward_model: str, heads: Sequence[str]) -> Source:
    """Responses with ratings as pairs, in the order of their ratings mixed as the reward mixes its heads,
    where the data set has no pairs of its own."""
    if not heads or source.eval.pairs or not source.eval.rated:
        return source
    name, mixture = split_mixture(reward_model)
    return source.ranked_by_ratings(chosen_mixture(configuration(name), mixture, name))


def audit_heads(
    reward_model: str, pairs: Sequence[Pair], rated: Sequence[Rated], stage: Stage
) -> list[Measures]:
    """Every attribute's agreement with the pairs, and its correlation with ratings of it."""
    scorer = RewardModel(*load_attribute_model(reward_model, stage.device))
    names = attributes_of(scorer.model.config)
    if any(name in row.ratings for row in rated for name in names):
        ratings = [[row.ratings.get(name, math.nan) for name in names] for row in rated]
        logits_NK = logits_of_rated(scorer, rated)
        predicted_NK = logits_NK + np.array(getattr(scorer.model.config, "rating_mean", 0.0))
        found = attribute_measures(names, predicted_NK, np.array(ratings, dtype=np.float64), rated)
    else:
        found = agreement_of_heads(names, *logits_of_pairs(scorer, pairs), pairs)
    for row in found:
        agreement = estimate_text(row["agreement"])
        say(f"audit:   attribute {row['attribute']:<18} {agreement}  {row['pairs']:>6,} pairs")
    return found


def check_options(config: AuditConfig) -> None:
    """Refuses what cannot work, before anything is loaded."""
    if names_judge(config.reward_model):
        check_judge(config.reward_model)


def load_audited(config: AuditConfig, device: torch.device) -> Any:
    """The scorer; or a judge that compares the two responses of a pair, where its text asks for that."""
    how = config.how_judged(config.seed)
    if names_judge(config.reward_model):
        first = (jury_of(config.reward_model) or ("", [config.reward_model]))[1][0]
        if parse_judge(first).config.ask == "pairwise":
            return load_pairwise_judge(config.reward_model, device, how)
    return load_scorer(config.reward_model, device, how)


def audit(
    scorer: Scorer,
    pairs: Sequence[Pair],
    train_pairs: Sequence[Pair],
    scale: float,
    config: AuditConfig,
    stage: Stage,
    by_attribute: Sequence[Measures] = (),
) -> None:
    """Audits a scorer on pairs and finishes the stage.

    Args:
        scorer: what is audited.
        pairs: labelled pairs.
        train_pairs: what the baselines learn from; may be empty.
        scale: what brings scores to log-odds.
        config: the options.
        stage: where it is written.
        by_attribute: what was found of a reward model's heads.
    """
    chosen_N, rejected_N = scores_in_parts(scorer, pairs, Parts(stage.state, stage.owner))
    scored = those_read(pairs, chosen_N, rejected_N, scale)
    left_out = len(pairs) - len(scored.pairs)
    if left_out:
        stage.say(
            f"{left_out} of {len(pairs)} pairs are left out: the judge wrote nothing readable about them"
        )
    found = audit_scorer(
        scorer, scored, train_pairs, scale, config.seed, config.category, phrases=config.phrases
    )
    if by_attribute:
        found |= {"attributes": list(by_attribute)}
    if left_out:
        found["left_out"]["pairs"] = f"nothing readable was judged about {left_out} of {len(pairs)}"
    stage.write_json("audit.json", found)
    stage.log_samples(
        {
            "prompt": prompt_text(pair.prompt),
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "score_chosen": chosen,
            "score_rejected": rejected,
        }
        for pair, chosen, rejected in zip(pairs, chosen_N, rejected_N, strict=True)
        if not np.isnan(chosen + rejected)
    )
    say_result(found)
    quality = quality_of(scored.gap_N, scored.pairs, config.seed)
    cut = say_what_was_cut([], [scorer], stage.say)
    judged = report_on(judges_in(scorer), stage.say)
    stage.finish(
        **cut,
        reward=config.reward_model,
        reward_models=list(reward_models(scorer)),
        scale=scale,
        **judged,
        **{f"{config.split}/{name}": value for name, value in quality.items()},
    )


def scores_in_parts(scorer: Scorer, pairs: Sequence[Pair], parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the chosen and of the rejected responses; what was scored before an interruption is read."""
    if isinstance(scorer, Judge) and scorer.keeps_replies:
        return scores_of(scorer, pairs)
    chosen, rejected = [], []
    for start in range(0, len(pairs), PART):

        def score(part: Sequence[Pair] = pairs[start : start + PART]) -> Any:
            both = scores_of(scorer, part)
            tensors = {name: torch.from_numpy(x_N) for name, x_N in zip(SIDES, both, strict=True)}
            return tensors, {"judges": [judge.state(whole=False) for judge in judges_in(scorer)]}

        found, plain = parts.get(str(start), score)
        for judge, state in zip(judges_in(scorer), plain["judges"], strict=True):
            judge.restore(state)
        chosen.append(found["chosen"].numpy())
        rejected.append(found["rejected"].numpy())
    return np.concatenate(chosen), np.concatenate(rejected)


def check_category(pairs: Sequence[Pair], config: AuditConfig) -> None:
    """Refuses a category column that no pair has."""
    if config.category and not any(config.category in pair.columns for pair in pairs):
        raise UsageError(
            f"'{config.dataset_name}' has no column '{config.category}'; it has "
            f"{', '.join(sorted({name for pair in pairs for name in pair.columns})) or 'none'}"
        )


def scale_of(reward_model: str) -> float:
    """What brings scores to log-odds: a reward stage scaled its own to sd 1, other models are taken as is."""
    directory = Path(reward_model)
    if not (directory / "manifest.json").exists():
        return 1.0
    return float(StageRecord(directory).summary.get("reference_sd", 1.0))


def say_result(found: dict[str, Any]) -> None:
    """Accuracy with intervals: of everything, by category, by style and by section."""
    accuracy = found["accuracy"]
    say(
        f"audit: accuracy {estimate_text(accuracy['accuracy'])} on {accuracy['pairs']:,} pairs of "
        f"{accuracy['prompts']:,} prompts"
    )
    rows = (found.get("by_category") or {"rows": []})["rows"] + (found.get("by_style") or [])
    for row in rows:
        say(f"audit:   {row['category']:<28} {estimate_text(row['accuracy'])}  {row['pairs']:>6,} pairs")
    for row in found.get("by_section") or []:
        say(f"audit:   {row['section']:<28} {row['accuracy']:.1%}  {row['pairs']:>20,} pairs")
    for line in benchmark_lines(found):
        say(f"audit: {line}")
    for row in (found.get("baselines") or {"rows": []})["rows"]:
        say(
            f"audit:   baseline {row['baseline']:<19} {estimate_text(row['accuracy'])}; model minus baseline "
            f"{estimate_text(row['model_minus_baseline'], '+.1%')}"
        )


def benchmark_lines(found: dict[str, Any]) -> list[str]:
    """The score of a benchmark by its published rule, or why the numbers here are not the benchmark's."""
    score = found.get("benchmark")
    if score is None:
        if found.get("by_section"):
            return [
                "RewardBench's own score is the mean of its four sections, where a tie of the scores "
                "counts as wrong; here it counts half"
            ]
        return []
    lines = [f"{score['benchmark']} by its published rule ({score['rule']}):"]
    for row in score["rows"]:
        text = "undefined" if row["score"] is None else f"{row['score']:.1%}"
        if "low" in row:
            text += f" [{row['low']:.1%}, {row['high']:.1%}]"
        lines.append(f"  {row['category']:<28} {text}  {row['prompts']:>6,} prompts")
    right = score.get("prompts_right")
    if right:
        lines.append(
            f"  {right['score']:.1%} [{right['low']:.1%}, {right['high']:.1%}] of {right['prompts']:,} "
            f"prompts right by best of 4"
        )
    if score["score"] is None:
        lines.append(
            f"  no score of {score['benchmark']}'s: {', '.join(score['missing'])} is missing; the accuracy "
            f"on pairs above is not the benchmark's number"
        )
    else:
        lines.append(
            f"  score {score['score']:.1%}; the accuracy on pairs above is not the benchmark's number"
        )
    return lines


def estimate_text(row: dict[str, Any], form: str = ".1%") -> str:
    """A number with its interval, or why there is none."""
    return Estimate.read(row).text(form, missing=f"undefined ({row.get('reason')})")
