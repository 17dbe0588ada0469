"""evaluate: the policy against its SFT model, best-of-N and the optimum, on prompts nothing has seen.

Responses of both policies to every eval prompt at one named temperature, and a pool of the SFT model's on
some of them: means, paired differences and win rates with intervals, what best-of-N and the optimum of the
policy's own objective would reach, signs of a gamed reward, and the cost of each way in forward passes of
language models and processor time.
"""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preferl.data import sources
from preferl.data.records import (
    DataError,
    Pair,
    Prompt,
    PromptRecord,
    columns_of,
    prompt_key,
    prompt_text,
)
from preferl.data.splits import too_few
from preferl.data.types import Scorer
from preferl.evaluation import comparison, pool
from preferl.evaluation.accuracy import accuracy_with_interval
from preferl.evaluation.comparison import KL_DRIFT_PER_TOKEN
from preferl.evaluation.features import most_common_sentence, sign_functions
from preferl.evaluation.pool import Pool
from preferl.evaluation.scored import ScoredPairs, scores_of
from preferl.judging.judges import PairwiseJudge
from preferl.judging.juries import keep_replies, load_pairwise_judge, report_on
from preferl.judging.scorers import (
    check_prompts,
    judges_in,
    load_scorer,
    reward_models,
    say_what_was_cut,
    score_responses,
    scored,
    tokenizers_of,
)
from preferl.judging.trial import functions_of, refuse_missing_columns
from preferl.judging.utilities import TRUTHS, NotSampled
from preferl.learning.rollout import Shaping
from preferl.models import load
from preferl.options.evaluate import EvaluateConfig
from preferl.options.judging import check_judge
from preferl.runs import devices
from preferl.runs.checkpoint import Parts, below
from preferl.runs.descent import with_data_set
from preferl.runs.errors import UsageError
from preferl.runs.inputs import names_in
from preferl.runs.objects import PREFIX as HANDED_OVER
from preferl.runs.progress import Steps, say
from preferl.runs.record import StageRecord
from preferl.runs.stage import Callback, Stage
from preferl.runs.trainer_state import find_trainer_state, place_of, read_curves
from preferl.sampling.policy import Policy, Responses
from preferl.sampling.samples import Samples, joined
from preferl.statistics import distinct_n, mean_interval, repetition
from preferl.statistics.frontier import break_even_queries
from preferl.statistics.intervals import Estimate, mean_share

# KL coefficients whose optimum is estimated from the pool, beside the policy's own.
FRONTIER_KL_COEFS = (3.0, 1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
BATCHES = 8  # of the sampler between two writes
EXAMPLES = 5  # of the SFT model's responses, from the lowest to the highest reward
# Options of the stages behind a policy that name what taught it, and what that did.
SIGNAL_OPTIONS = {"reward_model": "is the reward that was trained on", "annotator": "labelled the pairs"}
LEADS_BACK = ("reward_model", "dataset_name", "add_to")  # options that name an earlier stage
# Options of rl that make a reward of a score, in the order of ``Shaping``.
SHAPING = ("reward_clip", "length_penalty", "missing_eos_penalty", "replace_missing_eos")


def run(config: EvaluateConfig, fresh: bool | str = False, callbacks: Sequence[Callback] = ()) -> Path:
    """Samples, compares and writes ``summary.json`` and ``samples.jsonl``; returns the directory."""
    check_options(config)
    config = with_data_set(config)
    with Stage("evaluate", config, fresh, callbacks) as stage:
        if stage.is_finished:
            return stage.path
        load.refuse_absent(config.model_name_or_path, config.ref_model)
        functions = functions_of(config)
        source = sources.load_source(**config.source()).measured_on(config.split)
        refuse_missing_columns(functions, source)
        source.need("prompts", "eval")
        policy, reference = (
            Policy.load(name, stage.device, stage.dtype, config.chat_template_kwargs)
            for name in (config.model_name_or_path, config.ref_model)
        )
        named = {"score": config.reward_model, "gold": config.gold, "held_out": config.held_out_reward}
        how = config.how_judged(config.seed)
        scorers = {measure: load_scorer(name, stage.device, how) for measure, name in named.items() if name}
        others = [tokenizer for scorer in scorers.values() for tokenizer in tokenizers_of(scorer)]
        source = load.read_by(source, [policy.tokenizer], [reference.tokenizer, *others])
        check_prompts(scorers.values(), [record.prompt for record in source.eval.prompts])
        stage.begin([*source.notes, *policy.notes, *trained_on_these(config), *quantised_before(config)])
        keep_replies([judge for scorer in scorers.values() for judge in judges_in(scorer)], stage.path)
        evaluate(policy, reference, source, scorers, config, stage)
    return stage.path


def trained_on_these(config: EvaluateConfig) -> list[str]:
    """Says where the policy was trained on rows on which it is measured."""
    directory = Path(config.model_name_or_path)
    if not (directory / "manifest.json").exists():
        return []
    training = StageRecord(directory).config
    split = training.get("split")
    if split not in ("all", config.split or "eval") or training.get("dataset_name") != config.dataset_name:
        return []
    return [f"the policy was trained on the rows of '{split}', and is measured on some of them here"]


def quantised_before(config: EvaluateConfig) -> list[str]:
    """Says where the policy's training sampled other weights than are measured."""
    directory = Path(config.model_name_or_path)
    if not (directory / "manifest.json").exists() or not StageRecord(directory).config.get("load_in_4bit"):
        return []
    return [
        "the policy was trained on quantised weights (load_in_4bit): what is sampled here is its adapter "
        "merged into the model as it is stored"
    ]


def trained_elsewhere(config: EvaluateConfig, stage: Stage) -> dict[str, Any]:
    """Of a policy that no stage of preferl made: the ``file`` in which its trainer left the curves of the
    training, None where there is none. They become the metrics of this stage.

    Returns:
        Nothing where a stage made the policy, or it is the reference, or it was handed over from Python.
    """
    name = config.model_name_or_path
    folder = Path(name)
    made_here = any((place / "manifest.json").exists() for place in (folder, folder.parent))
    if made_here or name == config.ref_model or name.startswith(HANDED_OVER):
        return {}
    file = find_trainer_state(folder) if folder.is_dir() else None  # a name of the Hub is no folder
    if file is None:
        return {"file": None}
    try:
        curves = read_curves(file)
    except UsageError as error:
        stage.say(f"the curves of the training are left out: {error}")
        return {"file": None}
    for row in curves.rows:
        stage.log(**row)
    place = place_of(curves, folder)
    stage.say(f"the curves of the training are those of {place} ({len(curves.rows)} steps)")
    return {"file": place, "left_out": curves.left_out}


def training_signals(config: EvaluateConfig) -> dict[str, str]:
    """Which of ``gold`` and ``held_out_reward`` trained the policy or labelled the pairs behind it, by
    measure, with what it did: such a reward is no truth. One of ``TRUTHS`` is, whoever labelled."""
    uses = {config.reward_model: SIGNAL_OPTIONS["reward_model"]}
    # From the policy and the reward back through the stages that made them.
    read: set[Path] = set()
    waiting = [config.model_name_or_path, config.reward_model]
    while waiting:
        name = waiting.pop()
        waiting += [part for part in names_in(name) if part != name]
        directory = Path(name)
        if directory in read or not (directory / "manifest.json").exists():
            continue
        read.add(directory)
        options = StageRecord(directory).config
        for option, use in SIGNAL_OPTIONS.items():
            if options.get(option):
                uses.setdefault(options[option], use)
        waiting += [options[option] for option in LEADS_BACK if options.get(option)]
    # A part of a reward taught what the whole did.
    of_parts = {part: use for name, use in uses.items() for part in names_in(name)}
    uses = of_parts | uses
    named = {"gold": config.gold, "held_out": config.held_out_reward}
    return {key: uses[name] for key, name in named.items() if name in uses and name not in TRUTHS}


def evaluate(
    policy: Policy,
    reference: Policy,
    source: sources.Source,
    scorers: Mapping[str, Scorer],
    config: EvaluateConfig,
    stage: Stage,
) -> None:
    """Compares the policy with the reference on the source's eval prompts, and finishes the stage.

    Args:
        policy: what is evaluated.
        reference: what it is compared with, and the reference of the KL.
        source: prompts, and responses of the data set's own where it has some.
        scorers: by measure: ``score``, and where there are such ``gold`` and ``held_out``.
        config: the options.
        stage: where it is written.
    """
    records = source.need("prompts", "eval")[: config.max_eval_prompts]
    prompts = [record.prompt for record in records]
    if len(prompts) == 1:
        stage.say("one eval prompt: means have no interval, which needs at least 2")
    elif few := too_few(len(prompts)):
        stage.say(few)
    responder = Responder(config, scorers, stage)
    size = config.pool_size or max(config.best_of, default=0)
    with Steps("evaluate", 2 + bool(size)) as steps:
        rl = responder.respond("policy", policy, records, config.num_generations)
        steps.advance()
        sft = responder.respond("reference", reference, records, config.num_generations)
        steps.advance()
        few = records[: config.best_of_prompts]
        drawn = responder.respond("best-of", reference, few, size) if size else None
        steps.advance(bool(size))

    # The policy's own log-probabilities travel with its samples; only the reference's are missing.
    reference_logp_N = log_probability(reference, rl.made.samples)
    log_ratio_N = rl.logp_N - reference_logp_N
    training = training_of(config)
    policies = {
        "reference": means(sft) | perplexity(sft, sft.logp_N),
        "policy": means(rl) | perplexity(rl, reference_logp_N) | kl_summary(log_ratio_N, rl),
    }
    categories = [source.category(prompt) for prompt in prompts]
    against = {measure: comparison.compare(rl[measure], sft[measure], categories) for measure in scorers}
    for measure, row in against.items():
        row |= comparison.at_equal_length(rl[measure], sft[measure], rl.length_PG, sft.length_PG)
    judge = load_judge(config, stage)
    judged = None if judge is None else judge_by(judge, config)
    if judged is not None:
        against["judge"] = judged(prompts, rl, sft.first, sft.first_finished)
    references = against_references(source.references("eval"), prompts, rl, scorers, judged, stage)
    labelled = source["eval"].pairs[: config.max_eval_prompts]
    stage.log_samples(side_by_side(prompts, rl, sft, log_ratio_N))
    of_pool = from_pool(config, training, drawn, sft, rl, scorers["score"])
    asked = [asked for scorer in scorers.values() for asked in judges_in(scorer)]
    say_result(policies, against)
    for row in of_pool["best_of"]:
        say_best_of(row, spent=of_pool["cost"]["training_total"])
    cut = say_what_was_cut([policy, reference], scorers.values(), stage.say)
    stage.finish(
        **cut,
        prompts=len(prompts),
        trained_on=source.eval is source.train,
        num_generations=config.num_generations,
        temperature=config.temperature,
        policies=policies,
        comparison=against,
        references=references,
        labels=agreement_with_labels(labelled, scorers["score"], stage),
        signs=comparison.signs(
            rl.made.completions,
            sft.made.completions,
            config.num_generations,
            (rl.made.finished, sft.made.finished),
            sign_functions(config.phrases),
        ),
        examples=examples(prompts, sft, log_probability(policy, sft.made.samples)),
        training=training,
        **of_pool,
        gold=config.gold,
        training_signals=training_signals(config),
        elsewhere=trained_elsewhere(config, stage),
        **report_on([*asked, *([judge] if judge else [])], stage.say),
    )


def check_options(config: EvaluateConfig) -> None:
    """Refuses what cannot work, before anything is loaded."""
    sign_functions(config.phrases)
    if config.judge:
        check_judge(config.judge)
    size = config.pool_size
    if size is not None and size < max([1, *config.best_of]):
        raise UsageError(f"pool_size is {size}; best_of {config.best_of} needs at least its largest N")


# ------------------------------------------------------------------------------------------------- responses


@dataclass(frozen=True)
class ScoredResponses:
    """G responses of one policy to each of P prompts, with the values of every measure.

    ``cpu_seconds`` is the processor time of one response: of sampling it, and of its reward.
    """

    made: Responses
    value_PG: Mapping[str, np.ndarray]
    group_size: int
    cpu_seconds: tuple[float, float] = (0.0, 0.0)

    def __getitem__(self, measure: str) -> np.ndarray:
        return self.value_PG[measure]

    @property
    def length_PG(self) -> np.ndarray:
        return np.array(self.made.lengths).reshape(-1, self.group_size)

    @property
    def logp_N(self) -> np.ndarray:
        """log pi(y|x) of each response under the policy that wrote it, in nats."""
        return self.made.samples.logp_BT.double().sum(-1).cpu().numpy()

    @property
    def first(self) -> list[str]:
        """The first response to each prompt."""
        return self.made.completions[:: self.group_size]

    @property
    def first_finished(self) -> list[bool]:
        return self.made.finished[:: self.group_size]


class Responder:
    """Samples from a policy and scores what comes out; what was ready before an interruption is read."""

    def __init__(self, config: EvaluateConfig, scorers: Mapping[str, Scorer], stage: Stage):
        self.config, self.scorers, self.parts = config, scorers, Parts(stage.state, stage.owner)
        self.judges = [judge for scorer in scorers.values() for judge in judges_in(scorer)]

    def respond(
        self, name: str, policy: Policy, prompts: Sequence[PromptRecord], count: int
    ) -> ScoredResponses:
        """``count`` responses to each prompt, with every measure's values."""
        generator = devices.generator(self.config.seed, "evaluate", name)
        size = max(1, BATCHES * self.config.sampling_batch_size // count)
        samples, completions, seconds_2 = [], [], np.zeros(2)
        values: dict[str, list[np.ndarray]] = {measure: [] for measure in self.scorers}
        for start in range(0, len(prompts), size):
            asked = prompts[start : start + size]

            def compute(asked: Sequence[PromptRecord] = asked) -> tuple[dict[str, torch.Tensor], Any]:
                return self.sample(policy, asked, count, generator)

            tensors, plain = self.parts.get(f"{name}-{start}", compute)
            for judge, state in zip(self.judges, plain["judges"], strict=True):
                judge.restore(state)
            generator.set_state(tensors["generator"])
            samples.append(Samples.from_tensors(tensors, policy.sampling(self.config)))
            completions += plain["completions"]
            seconds_2 += plain["seconds"]
            for measure, value_N in below("value/", tensors).items():
                values[measure].append(value_N.numpy())
        whole = joined(samples)
        asked = [record for record in prompts for _ in range(count)]
        made = Responses(
            prompts=[record.prompt for record in asked],
            completions=completions,
            finished=whole.finished_B.tolist(),
            lengths=whole.mask_BT.sum(-1).tolist(),
            samples=whole,
            columns=columns_of(asked),
        )
        value_PG = {measure: np.concatenate(parts).reshape(-1, count) for measure, parts in values.items()}
        sampling, scoring = (seconds_2 / len(completions)).tolist()
        return ScoredResponses(made, value_PG, count, (sampling, scoring))

    def sample(
        self, policy: Policy, prompts: Sequence[PromptRecord], count: int, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Some of the responses, as ``Parts`` keeps them, with the seconds of sampling and of the reward."""
        started = time.process_time()
        made = policy.respond(prompts, count, generator, self.config)
        sampled = time.process_time()
        values = {"score": score_responses(self.scorers["score"], made)}
        scored = time.process_time()
        for measure, scorer in self.scorers.items():
            if measure != "score":
                values[measure] = score_responses(scorer, made)
        tensors = {f"value/{measure}": torch.from_numpy(value_N) for measure, value_N in values.items()}
        tensors |= made.samples.tensors() | {"generator": generator.get_state()}
        seconds = [sampled - started, scored - sampled]
        states = [judge.state(whole=False) for judge in self.judges]
        return tensors, {"completions": made.completions, "seconds": seconds, "judges": states}


def log_probability(policy: Policy, samples: Samples) -> np.ndarray:
    """log pi(y|x) of each response under a policy at the sampling temperature, in nats."""
    return policy.logprobs(samples).double().sum(-1).numpy()


def means(responses: ScoredResponses) -> dict[str, Any]:
    """Means of one policy's responses; ``repetition`` is the share of repeated word trigrams,
    ``common_sentence_share`` that of responses which have the most common sentence."""
    made = responses.made
    row: dict[str, Any] = {}
    for measure, value_PG in responses.value_PG.items():
        row |= mean_interval(value_PG.mean(-1)).named(measure)
    sentence, share = most_common_sentence(made.completions)
    return row | {
        **mean_interval(responses.length_PG.mean(-1)).named("length"),
        "eos_rate": made.eos_rate,
        "repetition": float(np.mean([repetition(text) for text in made.completions])),
        "distinct_2": distinct_n(made.completions, 2),
        "common_sentence": sentence,
        "common_sentence_share": share,
    }


def perplexity(responses: ScoredResponses, reference_logp_N: np.ndarray) -> dict[str, float]:
    """exp of minus the mean log-probability of a token under the SFT model: 1 for what it is sure of."""
    return {"perplexity": float(np.exp(-reference_logp_N.sum() / responses.length_PG.sum()))}


def kl_summary(log_ratio_N: np.ndarray, responses: ScoredResponses) -> dict[str, Any]:
    """Mean KL in nats per response with its standard error over prompts (infinite for one), and per token."""
    kl_P = log_ratio_N.reshape(responses.length_PG.shape).mean(-1)
    per_token = float(log_ratio_N.sum() / responses.length_PG.sum())
    error = float(kl_P.std(ddof=1) / len(kl_P) ** 0.5) if len(kl_P) > 1 else math.inf
    return {
        "kl": float(kl_P.mean()),
        "kl_se": error,
        "kl_per_token": per_token,
        "drifted": per_token > KL_DRIFT_PER_TOKEN,
    }


# ------------------------------------------------------------------------------------ against other responses


def load_judge(config: EvaluateConfig, stage: Stage) -> PairwiseJudge | None:
    """The language model that compares, if there is one."""
    if not config.judge:
        return None
    how = config.how_judged(config.seed, unparsable="skip")
    judge = load_pairwise_judge(config.judge, stage.device, how)
    keep_replies([judge], stage.path, Parts(stage.state, stage.owner))
    return judge


def judge_by(judge: PairwiseJudge, config: EvaluateConfig) -> Any:
    """A function (prompts, responses, other texts) -> win rate by a language model asked in both orders. Of
    several responses to a prompt the first is judged."""

    def win_rate(
        prompts: Sequence[Prompt], rl: ScoredResponses, others: Sequence[str], ended: Sequence[bool]
    ) -> dict[str, Any]:
        """Verdicts that cannot be read are left out and counted."""
        before = dataclasses.asdict(judge.counts)
        rng = np.random.default_rng(devices.derived_seed(config.seed, "evaluate", "judge"))
        judged = judge(prompts, rl.first, list(others), rng, rl.first_finished, ended)
        probability_N = judged.probability_N[judged.kept_N]
        if not len(probability_N):
            raise DataError(f"evaluate: no verdict could be read; {judge.advice()}")
        counts = {k: v - before[k] for k, v in dataclasses.asdict(judge.counts).items()}
        rate = mean_share(probability_N).named("win_rate")
        return rate | {"n": len(probability_N), **counts}

    return win_rate


def against_references(
    responses: Mapping[str, str],
    prompts: Sequence[Prompt],
    rl: ScoredResponses,
    scorers: Mapping[str, Scorer],
    judged: Any,
    stage: Stage,
) -> dict[str, Any]:
    """The policy against the data set's own responses, by every measure that reads texts; which do not is
    said."""
    known = [i for i, prompt in enumerate(prompts) if prompt_key(prompt) in responses]
    if not known:
        return {}
    asked = [prompts[i] for i in known]
    chosen = dataclasses.replace(rl, made=rl.made.rows([i * rl.group_size for i in known]), group_size=1)
    texts = [responses[prompt_key(prompt)] for prompt in asked]
    found: dict[str, Any] = {"prompts": len(known)}
    for measure, scorer in scorers.items():
        try:
            finished = [True] * len(texts)
            value_P1 = scored(scorer, asked, texts, finished=finished, **chosen.made.columns)[:, None]
        except NotSampled as error:
            stage.say(f"the data's own responses have no {measure}: {error}")
            continue
        mean = mean_interval(value_P1[:, 0]).named("mean")
        found[measure] = comparison.compare(rl[measure][known], value_P1) | mean
    if judged is not None:
        found["judge"] = judged(asked, chosen, texts, [True] * len(texts))
    return found


def agreement_with_labels(pairs: Sequence[Pair], scorer: Scorer, stage: Stage) -> dict[str, Any]:
    """How often the reward prefers what the data set's own labels of held-out pairs prefer. Of the policy
    this says nothing, as nobody labelled its responses; but it is all that people have said here."""
    if len(pairs) < 2:
        return {}
    try:
        scored = ScoredPairs(pairs, *scores_of(scorer, pairs))
    except NotSampled as error:
        stage.say(f"the reward is not compared with the data's labels: {error}")
        return {}
    found = accuracy_with_interval(scored)
    accuracy = found["accuracy"]
    return {"pairs": found["pairs"]} | {
        f"accuracy{end}": accuracy[key] for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
    }


def examples(
    prompts: Sequence[Prompt], sft: ScoredResponses, policy_logp_N: np.ndarray
) -> list[dict[str, Any]]:
    """Responses of the SFT model from the lowest to the highest reward, each with log pi - log pi_ref: the
    adjusted reward at a coefficient b is score - b * log_ratio."""
    score_N, texts = sft["score"].ravel(), sft.made.completions
    distinct = {texts[i]: i for i in np.argsort(score_N, kind="stable").tolist()}
    order = sorted(distinct.values(), key=lambda i: score_N[i])
    places = np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).round().astype(int)
    return [
        {
            "prompt": prompt_text(prompts[i // sft.group_size]),
            "response": texts[i],
            "log_ratio": policy_logp_N[i] - sft.logp_N[i],
            **{measure: value_PG.ravel()[i] for measure, value_PG in sft.value_PG.items()},
        }
        for i in (order[place] for place in places)
    ]


# ---------------------------------------------------------------------------------------------- from the pool


def training_of(config: EvaluateConfig) -> dict[str, Any]:
    """What trained the policy and at what cost, where it is a stage's directory: forward passes counted by
    model, processor time without what was only watched. The cost is that of all stages between the reference
    and the policy, as of every round; the rest is the last one's."""
    trained = trained_from(Path(config.ref_model), Path(config.model_name_or_path))
    if not trained:
        return {}
    record = trained[0]
    passes: Counter[str] = Counter()
    for one in trained:
        passes.update(one.summary.get("forward_passes", {}))
    seconds = [cpu_seconds_of(one) for one in trained]
    found = {
        "stage": record.manifest["stage"],
        "algorithm": record.config.get("algorithm") or record.config.get("loss") or record.manifest["stage"],
        "forward_passes": dict(passes),
        "cpu_seconds": None if None in seconds else sum(filter(None, seconds)),
    }
    if record.manifest["stage"] == "rl":
        found |= {key: record.config[key] for key in ("kl_coef", "kl_controller", *SHAPING)}
        found["by_this_reward"] = record.config["reward_model"] == config.reward_model
    return found


def trained_from(reference: Path, policy: Path) -> list[StageRecord]:
    """The stages that made a policy out of a reference, the last first; the last alone where their records do
    not lead to the reference, none where the policy is not a stage's."""
    found: list[StageRecord] = []
    place = policy.resolve()
    while place != reference.resolve():
        if not (place / "manifest.json").exists():
            return found[:1]
        found.append(StageRecord(place))
        parents = found[-1].manifest["parents"]
        # Stages from before inputs were recorded by option call it otherwise.
        before = parents.get("model_name_or_path") or parents.get("policy") or parents.get("model")
        if before is None or "path" not in before:  # it began with a model of the Hub
            return found[:1]
        place = (place / before["path"]).resolve()
    return found


def cpu_seconds_of(record: StageRecord) -> float | None:
    """Processor time of training without what was only watched; None where it was not measured."""
    iterations = [row["cpu_seconds"] for row in record.metrics if "cpu_seconds" in row]
    return sum(iterations) if iterations else record.summary.get("cpu_seconds")


def from_pool(
    config: EvaluateConfig,
    training: Mapping[str, Any],
    drawn: ScoredResponses | None,
    sft: ScoredResponses,
    rl: ScoredResponses,
    scorer: Scorer,
) -> dict[str, Any]:
    """``best_of``, ``frontier``, ``prediction``, ``verification`` and ``cost`` of the summary."""
    spent = sum(training.get("forward_passes", {}).values())
    cost: dict[str, Any] = {
        "training": training.get("forward_passes", {}),
        "training_total": spent,
        "training_cpu_seconds": training.get("cpu_seconds"),
        "policy_per_response": 1,
        "policy_cpu_seconds_per_response": rl.cpu_seconds[0],
    }
    if drawn is None:
        return {"best_of": [], "cost": cost}
    reference = Pool(dict(drawn.value_PG), drawn.length_PG, drawn.logp_N.reshape(drawn.length_PG.shape))
    per_response = sum(drawn.cpu_seconds)
    prompts = len(reference.length_PK)
    against = sft["gold"][:prompts] if "gold" in sft.value_PG else None
    policy = {measure: value_PG[:prompts] for measure, value_PG in rl.value_PG.items()}
    rows = []
    for n in sorted(set(config.best_of)):
        passes = {"policy": n, "reward": n * len(reward_models(scorer))}
        row = pool.best_of(reference, n, against, policy) | {
            "forward_passes_per_response": passes,
            "cpu_seconds_per_response": n * per_response,
        }
        if spent:
            row["break_even_queries"] = break_even_queries(spent, 1, sum(passes.values()))
        if training.get("cpu_seconds"):
            row["break_even_queries_cpu"] = break_even_queries(
                training["cpu_seconds"], rl.cpu_seconds[0], n * per_response
            )
        rows.append(row)
    found: dict[str, Any] = {"best_of": rows, "cost": cost, "verification": pool.verification(reference)}
    found["frontier"] = {
        "prompts": prompts,
        "pool": reference.size,
        "best_of": [pool.best_of(reference, n) for n in pool.sizes(reference.size, config.best_of)],
        "tilt": [pool.tilt(reference, kl_coef) for kl_coef in FRONTIER_KL_COEFS],
    }
    kl_coef = training.get("kl_coef")
    if kl_coef and training["kl_controller"] == "fixed" and training["by_this_reward"]:
        clip, *penalties = (training[key] for key in SHAPING)
        shaping = Shaping(clip or None, *penalties)
        shaped_N = shaping(torch.from_numpy(drawn["score"].ravel()), drawn.made.samples).numpy()
        found["prediction"] = pool.tilt(reference, kl_coef, shaped_N.reshape(drawn.length_PG.shape))
    return found


def side_by_side(
    prompts: Sequence[Prompt], rl: ScoredResponses, sft: ScoredResponses, log_ratio_N: np.ndarray
) -> list[dict[str, Any]]:
    """One row per prompt: the first response of both with score, gold, log-ratio and whether they ended; of a
    dialogue its turns too."""
    rows = []
    for p, prompt in enumerate(prompts):
        row = {
            "prompt": prompt_text(prompt),
            "reference": sft.first[p],
            "policy": rl.first[p],
            "kl": log_ratio_N[p * rl.group_size],
        }
        for name, responses in (("reference", sft), ("policy", rl)):
            row[f"{name}_finished"] = responses.first_finished[p]
            row |= {f"{name}_{m}": value_PG[p, 0] for m, value_PG in responses.value_PG.items()}
        if not isinstance(prompt, str) and len(prompt) > 1:
            row["turns"] = [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
        rows.append(row)
    return rows


def say_result(policies: dict[str, dict[str, Any]], comparison: dict[str, Any]) -> None:
    for measure, name in (("score", "reward"), ("gold", "gold reward")):
        if measure in comparison:
            c = comparison[measure]
            say(
                f"evaluate: {name} {policies['reference'][measure]:.2f} -> "
                f"{policies['policy'][measure]:.2f}, difference "
                f"{Estimate.read(c, 'difference').text('+.2f')}, win rate "
                f"{Estimate.read(c, 'win_rate').text('.1%')}"
            )
    if "judge" in comparison:
        c = comparison["judge"]
        say(
            f"evaluate: win rate by the judge {Estimate.read(c, 'win_rate').text('.1%')} on {c['n']} pairs; "
            f"{c['inconsistent']} verdicts changed with the order, {c['unparsable']} replies were unreadable"
        )
    p = policies["policy"]
    error = f" ± {p['kl_se']:.2f}" if math.isfinite(p["kl_se"]) else ""
    say(
        f"evaluate: KL {p['kl']:.2f}{error} nats per response, EOS {p['eos_rate']:.1%}, "
        f"length {p['length']:.1f}"
    )


def say_best_of(row: dict[str, Any], spent: int) -> None:
    """What best-of-n reaches and costs beside the policy, on the same prompts and in forward passes."""
    measure, name = ("gold", "gold reward") if "gold" in row else ("score", "reward")
    passes = sum(row["forward_passes_per_response"].values())
    line = (
        f"evaluate: best-of-{row['n']}: {name} {row[measure]:.2f}, the policy is ahead by "
        f"{Estimate.read(row, f'lead_{measure}').text('+.2f')}; {passes} forward passes for each answer"
    )
    if row.get("break_even_queries"):
        answers = f"{row['break_even_queries']:,.0f}"
        line += f": from {answers} answers on it costs more than training ({spent:,}) and answering"
    say(line)
