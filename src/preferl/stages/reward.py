"""reward: a reward model from comparisons, trained through the whole trunk.

Losses and their loop are in ``learning.comparisons``. The weights with the lowest dev log-loss are kept,
scores are normalised to mean 0 and sd 1 on reference samples, and quality is reported on the eval split.

Where the rows are single responses with ratings by attribute, the model gets one head an attribute, trained
by regression (``learning.attributes``), and ``--reward_mixture`` says how one score is made of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preferl.data import sources
from preferl.data.records import prompt_key, prompt_text
from preferl.data.sources import Source
from preferl.data.types import Scorer
from preferl.evaluation.attributes import attribute_measures
from preferl.evaluation.audit import audit_scorer
from preferl.evaluation.baselines import baselines
from preferl.evaluation.scored import ScoredPairs, quality_of, scores_of
from preferl.judging.scorers import MEMBER, ShardedScorer, load_scorer, say_what_was_cut, scored
from preferl.learning import defaults
from preferl.learning.attributes import (
    Attributes,
    attributes_in,
    fitted_mixture,
    keep_reference,
    logits_of_rated,
    logits_of_texts,
    optimise_attributes,
    to_rating_scale,
)
from preferl.learning.comparisons import LOSSES, comparisons_for, optimise
from preferl.learning.fit import why_not_longer as fit_why_not_longer
from preferl.learning.optim import check_optim
from preferl.models import load, lora, plan
from preferl.models.attributes import collapse, mixture_text, parse_mixture, scale_of_mixture
from preferl.models.reward import (
    RewardModel,
    fold_normalisation,
    load_reward_model,
    new_attribute_model,
    reward_mean,
    save_reward_adapter,
    scalar_head,
    with_new_adapter,
)
from preferl.options.reward import RewardConfig
from preferl.runs import devices, distributed
from preferl.runs.checkpoint import Checkpoint
from preferl.runs.errors import UsageError
from preferl.runs.record import StageRecord
from preferl.runs.stage import Callback, Stage
from preferl.sampling.policy import Policy, Responses
from preferl.statistics.intervals import Estimate

FITTED = "bt"  # the mixture that explains pairs best
FEWEST_SAMPLES = 32  # of the reference policy, for the mean and standard deviation of its scores


def run(config: RewardConfig, fresh: bool | str = False, callbacks: Sequence[Callback] = ()) -> Path:
    """Trains, normalises, saves ``model/`` and reports; returns the stage's directory.

    With ``num_members`` each member is such a directory below this one, and this one holds what they say
    together.
    """
    check_options(config)
    with Stage("reward", config, fresh, callbacks, EXTENDABLE) as stage:
        if stage.is_finished:
            return stage.path
        load.refuse_absent(config.model_name_or_path, config.reference_policy)
        config = plan.settled(config, stage, work_of)
        source = sources.load_source(**config.source()).training_on(config.split)
        if config.also_train_on:
            more = sources.load_beside("also_train_on", **config.source_of(config.also_train_on))
            source = source.also_training_on(more)
        if rates_attributes(source):
            run_attributes(source, config, stage)
            return stage.path
        refuse_mixture(config)
        for split in ("train", "dev", "eval"):
            source.need("pairs", split)
        kwargs, name = config.chat_template_kwargs, config.model_name_or_path
        if config.num_members > 1:
            source = load.read_by(source, [load.load_tokenizer(name, kwargs)])
            stage.begin(source.notes, keep=MEMBER)
            trained = train_members(stage.config, stage)  # each chooses its own passes
        else:
            weights = lora.weights_for(config)
            model, tokenizer = load_reward_model(name, stage.device, True, config.pooling, kwargs, weights)
            source = load.read_by(source, [tokenizer])
            start = defaults.start_of(model, name, bool(config.lora_r))
            config = defaults.completed("reward", config, start, stage)
            saved = stage.begin(source.notes, keep=MEMBER)
            policy = None
            if config.reference_policy:
                policy = Policy.load(config.reference_policy, stage.device, stage.dtype, kwargs)
            trained = train(RewardModel(model, tokenizer), source, config, stage, saved, policy)
        report(trained, source, config, stage)
    return stage.path


def work_of(config: RewardConfig) -> plan.Work:
    """What is planned for: pairs, where a ranking has several."""
    config = defaults.with_batches("reward", config)
    # The best weights so far, and the average, are kept beside those that are trained.
    copies = 1 + bool(config.weight_average)
    samples = min(config.normalise_samples, config.sampling_batch_size)
    return plan.Work(
        roles=[
            *plan.role("reward", config.model_name_or_path, trained=True, logits=False, copies=copies),
            *plan.role("policy", config.reference_policy),
        ],
        row_tokens=2 * config.max_length,
        length=config.max_length,
        batch_rows=config.train_batch_size,
        cached_tokens=samples * (plan.PROMPT_TOKENS + config.response_length),
        read={"reward": 3},
        rows=config.rows_read,
        epochs=config.num_train_epochs,
    )


def rates_attributes(source: Source) -> bool:
    """Whether what trains is single responses with ratings."""
    return any(row.ratings for row in source.train.rated)


def run_attributes(source: Source, config: RewardConfig, stage: Stage) -> None:
    """Trains one head an attribute, makes the mixture that was asked for, and finishes the stage."""
    refuse_with_ratings(config)
    attributes = attributes_in(source)
    source.need("rated", "dev")
    weights = given_mixture(config, attributes)
    pairs_of = source
    if config.mixture_dataset_name is not None:
        pairs_of = sources.load_beside(
            "mixture_dataset_name", **config.source_of(config.mixture_dataset_name)
        )
        pairs_of.need("pairs", "train")
    kwargs = config.chat_template_kwargs
    policy = None
    if config.reference_policy:
        policy = Policy.load(config.reference_policy, stage.device, stage.dtype, kwargs)
    model, tokenizer = new_attribute_model(
        config.model_name_or_path, stage.device, attributes.names, config.pooling
    )
    load.set_template_kwargs(tokenizer, kwargs)
    source, pairs_of = (load.read_by(data, [tokenizer]) for data in (source, pairs_of))
    start = defaults.start_of(model, config.model_name_or_path)
    config = defaults.completed("reward", config, start, stage)
    saved = stage.begin([*source.notes, *attributes.notes])
    model.get_input_embeddings().requires_grad_(config.train_embeddings)
    scorer = RewardModel(model, tokenizer, max_length=config.max_length)
    stage.say(
        f"{load.parameter_count(model):,} parameters; {len(source.train.rated):,} rated responses, "
        f"attributes {', '.join(attributes.names)}"
    )
    fitted = optimise_attributes(
        scorer, attributes, source, config, stage, config.patience, config.weight_average, saved
    )
    model.requires_grad_(True)
    to_rating_scale(model, attributes)
    keep_reference(model, reference_logits(config, scorer, source, policy))
    summary: dict[str, Any] = {
        "updates": fitted.step,
        "best_update": fitted.best_step,
        **fitted.best,
        "dev/final_loss": fitted.last["dev/loss"],
        "parameters": load.parameter_count(model),
        "loss_name": "regression",
        "attributes": attributes.names,
        "rated_responses": len(source.train.rated),
    }
    if config.reward_mixture == FITTED:
        found = fitted_mixture(scorer, attributes.names, pairs_of.train.pairs, config.seed)
        weights = {name: coefficient.value for name, coefficient in found.items()}
        for name, coefficient in found.items():
            summary |= Estimate(coefficient.value, coefficient.low, coefficient.high).named(f"mixture/{name}")
    if weights:
        model.config.reward_mixture = weights
        stage.say(f"mixture {mixture_text(weights)}")
    else:
        stage.say(
            "no mixture: whatever takes a reward from it must name one, as "
            f"{stage.path}#1*{attributes.names[0]}, or give --reward_mixture here"
        )
    distributed.write(lambda: load.save(model, tokenizer, stage.model))
    report_attributes(scorer, attributes, weights, source, pairs_of, summary, config, stage)


def given_mixture(config: RewardConfig, attributes: Attributes) -> dict[str, float]:
    """The weights that were given; none where they are fitted, or there is no mixture.

    Raises:
        UsageError: they are of other attributes; what was left out is said.
    """
    if config.reward_mixture is None or config.reward_mixture == FITTED:
        return {}
    beside = "".join(f" ({note})" for note in attributes.notes if note.startswith("left out"))
    return parse_mixture(config.reward_mixture, attributes.names, f"reward_mixture{beside}")


def reference_logits(
    config: RewardConfig, scorer: RewardModel, source: Source, reference: Policy | None
) -> np.ndarray:
    """``logits_NK`` of reference samples: of a policy, or the rated responses that train."""
    if reference is not None:
        made = reference_samples(config, source, reference)
        return logits_of_texts(scorer, made.prompts, made.completions, made.finished)
    rows = source.train.rated[: config.normalise_samples]
    return logits_of_rated(scorer, rows)


def report_attributes(
    scorer: RewardModel,
    attributes: Attributes,
    weights: dict[str, float],
    source: Source,
    pairs_of: Source,
    summary: dict[str, Any],
    config: RewardConfig,
    stage: Stage,
) -> None:
    """Measures every attribute on held-out ratings, and the mixture on held-out pairs where there are such:
    those of ``mixture_dataset_name``, or responses to one prompt whose ratings mix to different numbers."""
    rows = source.eval.rated
    heads: list[dict[str, Any]] = []
    if rows:
        logits_NK = logits_of_rated(scorer, rows)
        predicted_NK = logits_NK + np.array(scorer.model.config.rating_mean)
        heads = attribute_measures(attributes.names, predicted_NK, attributes.ratings(rows), rows)
    for row in heads:
        for measure in ("correlation", "agreement"):
            name = f"eval/{row['attribute']}_{measure}"
            summary |= Estimate.read(row[measure]).named(name) if row[measure]["value"] is not None else {}
        say_attribute(row, stage)
    if not weights:
        distributed.write(lambda: stage.write_json("audit.json", {"attributes": heads}))
        stage.finish(train_pairs=0, **summary)
        return
    mean, sd = scale_of_mixture(scorer.model.config, weights)
    summary |= {"reward_mixture": weights, "reference_mean": mean, "reference_sd": sd}
    collapse(scorer.model, scalar_head(scorer.model), weights)
    if pairs_of is source:
        pairs_of = source.ranked_by_ratings(weights)
    if not (pairs_of.eval.pairs and pairs_of.train.pairs):
        stage.say("no pairs of held-out responses to one prompt: the mixture is not audited")
        distributed.write(lambda: stage.write_json("audit.json", {"attributes": heads}))
        stage.finish(train_pairs=0, **summary)
        return
    report(Trained(scorer, sd, summary), pairs_of, config, stage, {"attributes": heads})


def say_attribute(row: Mapping[str, Any], stage: Stage) -> None:
    correlation, agreement = (Estimate.read(row[name]) for name in ("correlation", "agreement"))
    line = f"{row['attribute']}: correlation with {row['responses']} held-out ratings "
    line += correlation.text(".2f", missing="undefined")
    if row["pairs"]:
        line += f"; orders {agreement.text('.1%')} of {row['pairs']} pairs as rated"
    stage.say(line)


def refuse_with_ratings(config: RewardConfig) -> None:
    """Refuses options that ratings have no use for.

    Raises:
        UsageError: one is given.
    """
    of_pairs = {"loss": "auto", "lora_r": 0, "num_members": 1, "also_train_on": None, "label_smoothing": 0.0}
    for name, neutral in of_pairs.items():
        if getattr(config, name) != neutral:
            raise UsageError(
                f"{name} is {getattr(config, name)}, which is of comparisons; '{config.dataset_name}' has "
                f"ratings by attribute, one head of the model for each: leave {name} out"
            )
    fits = config.reward_mixture == FITTED
    if fits != (config.mixture_dataset_name is not None):
        raise UsageError(
            f"reward_mixture {FITTED} and mixture_dataset_name go together: the pairs of that data set are "
            f"what the weights are fitted on"
        )


def refuse_mixture(config: RewardConfig) -> None:
    """Refuses options of ratings where there are none.

    Raises:
        UsageError: they are given.
    """
    for name in ("reward_mixture", "mixture_dataset_name"):
        if getattr(config, name) is not None:
            raise UsageError(
                f"{name} is of ratings by attribute; '{config.dataset_name}' has none (rows with prompt, "
                f"completion and ratings), so leave it out"
            )


@dataclass(frozen=True)
class Trained:
    """A trained reward: its scorer, the sd of its raw scores, what the summary says of the training."""

    scorer: Scorer
    sd: float
    summary: dict[str, Any]


def why_not_longer(stored: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """Why more epochs or updates do not extend what was interrupted: the best weights of those measured are
    kept, so a longer run must measure at the same updates; None where it does."""
    why = fit_why_not_longer(stored, options)
    if why:
        return why
    if options["weight_average"]:
        return (
            f"weight_average {options['weight_average']} is a share of all updates (only 0 can be extended)"
        )
    if options["num_members"] > 1:
        return "members that are finished cannot be extended"
    name = "num_train_epochs" if options["max_steps"] is None else "max_steps"
    before, after = stored[name], options[name]
    # Of part of an epoch the number of updates is rounded.
    whole = float(before).is_integer() and float(after).is_integer()
    if not whole or after * stored["num_evals"] != before * options["num_evals"]:
        return (
            f"the weights kept are the best of those measured, which {name} {after} would have measured at "
            f"other updates; raise num_evals in the same proportion (from {stored['num_evals']})"
        )
    return None


EXTENDABLE = dict.fromkeys(("num_train_epochs", "max_steps", "num_evals"), why_not_longer)


def check_options(config: RewardConfig) -> None:
    """Refuses what cannot work, before anything is loaded."""
    lora.check_options(config)
    check_optim(config.optim)
    if config.loss not in ("auto", *LOSSES):
        raise UsageError(f"loss '{config.loss}' is unknown; use auto, {', '.join(LOSSES)}")
    if config.label_smoothing and config.loss in ("plackett_luce", "rao_kupper"):
        raise UsageError(f"label_smoothing is of the pairwise losses; {config.loss} has none")


def train(
    scorer: RewardModel,
    source: Source,
    config: RewardConfig,
    stage: Stage,
    saved: Checkpoint | None = None,
    reference: Policy | None = None,
) -> Trained:
    """Trains a reward model in place, normalises and saves it.

    Args:
        scorer: the model with which to start; its ``max_length`` is set.
        source: preferences.
        config: the options.
        stage: where it is logged and saved.
        saved: the checkpoint to go on from.
        reference: the policy on whose samples scores are normalised; None for the training pairs' responses.
    """
    loss, comparisons, notes = comparisons_for(config, source)
    for note in notes:
        stage.say(note)
    model, tokenizer = scorer.model, scorer.tokenizer
    if config.lora_r:
        base = config.model_name_or_path
        model = with_new_adapter(model, base, config, config.lora_dropout)
    else:
        model.get_input_embeddings().requires_grad_(config.train_embeddings)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    stage.say(
        f"{load.parameter_count(model):,} parameters, {trainable:,} trained; "
        f"{len(comparisons):,} comparisons, loss {loss}"
    )
    scorer = RewardModel(model, tokenizer, max_length=config.max_length)
    dev_pairs = source.need("pairs", "dev")[:1000]
    fitted, sequences = optimise(scorer, loss, comparisons, dev_pairs, config, stage, saved)
    if not config.lora_r:
        model.requires_grad_(True)
    mean, sd = reference_scores(config, scorer, source, reference)
    mean += reward_mean(model)
    fold_normalisation(model, mean, sd)
    if config.lora_r:
        adapter = stage.path / "adapter"
        distributed.write(lambda: save_reward_adapter(model, adapter, config.pooling))
        scorer.model = ordinary(model, adapter, config)
    distributed.write(lambda: load.save(scorer.model, tokenizer, stage.model))
    return Trained(
        scorer,
        sd,
        {
            "updates": fitted.step,
            "best_update": fitted.best_step,
            "dev/loss": fitted.best_loss,
            "dev/accuracy": fitted.best["dev/accuracy"],
            "dev/final_loss": fitted.last["dev/loss"],
            "dev/final_accuracy": fitted.last["dev/accuracy"],
            "sequences": sequences,
            "parameters": load.parameter_count(scorer.model),
            "trained_parameters": trainable,
            "comparisons": len(comparisons),
            "loss_name": loss,
            "reference_mean": mean,
            "reference_sd": sd,
        },
    )


def ordinary(adapted: Any, adapter: Path, config: RewardConfig) -> Any:
    """The reward model that LoRA weights and their base make together."""
    base, pooling = config.model_name_or_path, config.pooling

    def load_base() -> Any:
        model, _ = load_reward_model(base, adapted.device, True, pooling, config.chat_template_kwargs)
        model.config.reward_mean = reward_mean(adapted)
        return model

    return lora.ordinary(adapted, adapter, base, load_base)


def report(
    trained: Trained,
    source: Source,
    config: RewardConfig,
    stage: Stage,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Measures a reward on the eval pairs, writes samples and the audit (with ``more`` in it), and finishes
    the stage."""
    eval_pairs = source.need("pairs", "eval")[: config.max_eval_pairs]
    train_pairs = source.need("pairs", "train")
    scorer, sd = trained.scorer, trained.sd
    chosen_N, rejected_N = scores_of(ShardedScorer(scorer), eval_pairs)
    unseen = ScoredPairs(eval_pairs, chosen_N * sd, rejected_N * sd)
    quality = quality_of(unseen.gap_N, eval_pairs, config.seed)
    if config.audit:
        audit = audit_scorer(scorer, unseen, train_pairs, sd, config.seed) | dict(more or {})
        distributed.write(lambda: stage.write_json("audit.json", audit))
    simple = audit["baselines"] if config.audit else baselines(train_pairs, unseen, seed=config.seed)
    for row in simple["rows"]:
        name = f"{row['baseline'].replace(' ', '_')}_baseline"
        quality |= Estimate.read(row["accuracy"]).named(f"{name}_accuracy")
        quality |= Estimate.read(row["model_minus_baseline"]).named(f"{name}_gain")
    quality["doubts"] = doubts(quality, next(row.get("prefers") for row in simple["rows"]))
    stage.log_samples(
        {
            "prompt": prompt_text(pair.prompt),
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "score_chosen": chosen,
            "score_rejected": rejected,
        }
        for pair, chosen, rejected in list(zip(eval_pairs, chosen_N, rejected_N, strict=True))[:200]
    )
    trained_on = {split: trained_on_too(source, split) for split in ("dev", "eval")}
    say_quality(quality, stage, trained_on["eval"] == len(source.eval.pairs))
    for doubt in quality["doubts"]:
        stage.say(f"warning: {doubt}; a policy may learn no more from it (more labels help)")
    cut = say_what_was_cut([], [scorer], stage.say)
    stage.finish(
        **cut,
        train_pairs=len(train_pairs),
        **trained.summary,
        **{f"eval/{name}": value for name, value in quality.items()},
        **{f"{split}/share_trained_on": n / len(source[split].pairs) for split, n in trained_on.items()},
    )


def trained_on_too(source: Source, split: str) -> int:
    """How many pairs of a split are training pairs: all of them where a data set is too small to divide."""
    known = {(prompt_key(p.prompt), p.chosen, p.rejected) for p in source.train.pairs}
    return sum((prompt_key(p.prompt), p.chosen, p.rejected) in known for p in source[split].pairs)


def train_members(config: RewardConfig, stage: Stage) -> Trained:
    """Trains each member in a directory of its own, where none is finished there; the reward is their mean,
    whose sd is taken for 1."""
    for member in range(config.num_members):
        own = dataclasses.replace(
            config,
            num_members=1,
            seed=config.seed + member,
            output_dir=str(stage.path / f"{MEMBER}{member}"),
        )
        stage.say(f"member {member + 1} of {config.num_members}")
        run(own)
    scorer = load_scorer(str(stage.path), stage.device)
    records = [StageRecord(stage.path / f"{MEMBER}{m}").summary for m in range(config.num_members)]
    # Unit-sd scores become log-odds again by the members' own scale.
    sd = float(np.mean([record["reference_sd"] for record in records]))
    return Trained(
        scorer,
        sd,
        {
            "members": config.num_members,
            "eval/member_accuracies": [record["eval/accuracy"] for record in records],
            "parameters": sum(record["parameters"] for record in records),
            "reference_sd": sd,
        },
    )


def reference_scores(
    config: RewardConfig, scorer: RewardModel, source: Source, reference: Policy | None
) -> tuple[float, float]:
    """Mean and standard deviation of the scores of reference samples."""
    count = config.normalise_samples
    if reference is not None:
        made = reference_samples(config, source, reference)
        scores = scored(scorer, made.prompts, made.completions, finished=made.finished)
    else:
        scores = np.concatenate(scores_of(scorer, source.train.pairs[: count // 2]))
    return float(scores.mean()), float(scores.std())


def reference_samples(config: RewardConfig, source: Source, reference: Policy) -> Responses:
    """What a policy responds to training prompts."""
    count = config.normalise_samples
    prompts = source.need("prompts", "train")[:count]
    seed = devices.generator(config.seed, "reward", "reference")
    # Few prompts are asked several times: one response each would hardly say how scores spread.
    each = -(-min(FEWEST_SAMPLES, count) // len(prompts))
    return reference.respond(prompts, each, seed, config)


def doubts(quality: Mapping[str, Any], prefers: str | None) -> list[str]:
    """What a reward model's accuracy cannot be told from, in sentences.

    Args:
        quality: its accuracy, and what it gains on length, with intervals.
        prefers: what the rule of length prefers, ``longer`` or ``shorter``.
    """
    found = []
    accuracy, gain = Estimate.read(quality, "accuracy"), Estimate.read(quality, "length_baseline_gain")
    if accuracy.low is not None and accuracy.low <= 0.5:
        found.append("on these pairs the reward model cannot be told from chance")
    if gain.low is not None and gain.low <= 0:
        found.append(
            f"on these pairs the reward model cannot be told from preferring the {prefers} response "
            f"(difference {gain.text('+.1%')})"
        )
    return found


def say_quality(quality: dict[str, Any], stage: Stage, trained_on: bool) -> None:
    words = quality["bag_of_words_baseline_accuracy"]
    words = "unknown" if words is None else f"{words:.1%}"
    of_prompts = f" of {quality['prompts']} prompts" if quality["prompts"] < quality["pairs"] else ""
    which = "accuracy where it trained" if trained_on else "held-out accuracy"
    line = (
        f"{which} {Estimate.read(quality, 'accuracy').text('.1%')} on {quality['pairs']} pairs{of_prompts}; "
        f"length alone {quality['length_baseline_accuracy']:.1%}, a bag of words {words}"
    )
    if "fraction_of_bayes" in quality:
        line += (
            f"; against r* {quality['expected_accuracy']:.1%} = "
            f"{quality['fraction_of_bayes']:.1%} of the best possible {quality['bayes_accuracy']:.1%}"
        )
    stage.say(line)
