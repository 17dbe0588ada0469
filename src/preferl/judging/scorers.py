"""Scorers: reward models, ensembles, mixtures, named utilities and Python functions behind one call.

A scorer takes prompts and completions as texts, and columns: ``f(prompts, completions, **columns)`` gives a
number (or None) for each. preferl passes ``finished``, ``lengths`` and ``completion_ids`` among the columns.
Functions of a person's own are called as TRL calls them (``reward_functions.py``). What a scorer is made of
is written as

    runs/demo/reward                          a reward model (or an ensemble: the mean of its members)
    runs/rm#0.7*helpfulness+0.3*correctness   a mixture of the attributes that a reward model rates
    my_rewards:politeness                     a function of yours
    length, world, sentiment, keyword:please  named utilities
    min(runs/a, runs/b), mean-1.5sd(runs/a)   members put together in another way
    judge:http://localhost:8000/v1#model      a language model's score of each response (judging/judges.py)
    mean(judge:runs/a, judge:runs/b)          several as a jury (judging/juries.py)
    0.7*runs/helpful + 0.3*concise            a weighted sum; " + " with spaces
"""

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preferl.data.records import DataError, Prompt
from preferl.data.types import Scorer
from preferl.judging.instructions import InstructionUtility
from preferl.judging.judges import Judge, PointwiseJudge
from preferl.judging.juries import load_pointwise_judge
from preferl.judging.reward_functions import RewardFunction, check_columns, load_function, scores_of_each
from preferl.judging.utilities import NAMED, WorldUtility, named_utility
from preferl.models import load
from preferl.models.attributes import split_mixture
from preferl.models.load import model_directory
from preferl.models.reward import RewardModel, load_beside, load_reward_model
from preferl.options.judging import JudgeConfig, names_judge
from preferl.runs import distributed
from preferl.runs.errors import DivergedError, UsageError
from preferl.runs.objects import object_of
from preferl.sampling.policy import Policy, Responses

MEMBER = "member-"  # the directories of an ensemble's members
WEIGHTED = re.compile(r"\s*([+-]?\d*\.?\d+(?:e-?\d+)?)\s*\*\s*(.+)")
Scores = list[float | None]
Parts = dict[str, Scores]
COMBINED = re.compile(r"(mean|min|mean-(\d*\.?\d+)sd)\((.+)\)")


class Ensemble:
    """Several scorers of the same thing as one (Coste et al. 2023).

    ``how``: ``mean``, ``min`` (worst case), or ``mean-<k>sd``, the mean minus k standard deviations over the
    members (uncertainty-weighted). A member that returns None for a response has no say in it.
    """

    def __init__(self, members: Mapping[str, Scorer], how: str = "mean"):
        self.members, self.how = dict(members), how
        found = re.fullmatch(r"mean-(\d*\.?\d+)sd", how)
        if how not in ("mean", "min") and not found:
            raise UsageError(f"'{how}' does not put members together; use mean, min or mean-<k>sd")
        self.penalty = float(found[1]) if found else 0.0
        self.last_parts: Parts = {}

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any) -> Scores:
        self.last_parts = scores_of_each(self.members, prompts, completions, columns)
        return combined(list(self.last_parts.values()), lambda score_MN, weight_M: self._together(score_MN))

    def _together(self, score_MN: np.ndarray) -> np.ndarray:
        if self.how == "min":
            return score_MN.min(0)
        return score_MN.mean(0) - self.penalty * score_MN.std(0)


class Mixture:
    """A weighted sum of scorers, for several objectives at once. A part that returns None for a response is
    left out of its sum."""

    def __init__(self, parts: Mapping[str, tuple[float, Scorer]]):
        self.parts = dict(parts)
        self.last_parts: Parts = {}

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any) -> Scores:
        scorers = {name: scorer for name, (_, scorer) in self.parts.items()}
        self.last_parts = scores_of_each(scorers, prompts, completions, columns)
        weight_P = np.array([weight for weight, _ in self.parts.values()])
        return combined(
            list(self.last_parts.values()), lambda score_PN, weight_P: weight_P @ score_PN, weight_P
        )


def combined(
    parts: Sequence[Scores],
    together: Callable[[np.ndarray, np.ndarray], np.ndarray],
    weight_P: np.ndarray | None = None,
) -> Scores:
    """One score of every response from those of several scorers; None where all of them say None.

    Args:
        parts: the scores of P scorers of N responses.
        together: (``score_PN``, ``weight_P``) to ``score_N``.
        weight_P: of the scorers; by default all the same.
    """
    weight_P = np.ones(len(parts)) if weight_P is None else weight_P
    if not any(None in scores for scores in parts):
        with np.errstate(invalid="ignore"):  # a score that is no number stays none, and ``scored`` names it
            return together(np.array(parts, dtype=np.float64), weight_P).tolist()
    # Response by response, since each has other scorers that know something of it.
    found: Scores = []
    for scores_P in zip(*parts, strict=True):
        known = [p for p, score in enumerate(scores_P) if score is not None]
        if not known:
            found.append(None)
            continue
        score_P1 = np.array([[scores_P[p]] for p in known], dtype=np.float64)
        with np.errstate(invalid="ignore"):
            found.append(float(together(score_P1, weight_P[known])[0]))
    return found


class ShardedScorer:
    """Scores this process's rows and all-gathers the rest."""

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self.last_parts: Parts = {}
        self.unread: Set[int] = frozenset()

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any) -> Scores:
        rows = distributed.shard(range(len(completions)))

        def own(column: Sequence[Any]) -> list[Any]:
            return [column[i] for i in rows]

        scores: Scores = []
        parts: Parts = {}
        with distributed.sync_errors():
            if rows:
                # Columns have a value for each response; what else is handed on is the same for all.
                own_columns = {name: own(c) if isinstance(c, list) else c for name, c in columns.items()}
                scores = list(self.scorer(own(prompts), own(completions), **own_columns))
                parts = getattr(self.scorer, "last_parts", {})
            if len(scores) != len(rows):
                raise UsageError(
                    f"the reward function returned {len(scores)} scores for {len(rows)} responses; "
                    f"it must return one number for each"
                )
        unread = unread_rows(self.scorer) if rows else frozenset()
        flags = distributed.gather_rows([row in unread for row in range(len(rows))])
        self.unread = {row for row, is_unread in enumerate(flags) if is_unread}
        # A process without rows knows no parts, so the names are those of one that has some.
        names = max(distributed.all_gather(list(parts)), key=len)
        self.last_parts = {name: distributed.gather_rows(parts.get(name, [])) for name in names}
        return distributed.gather_rows(scores)


def as_scorer(
    rewards: "Scorer | str | Sequence[Scorer | str]",
    device: torch.device,
    weights: Sequence[float] | None = None,
    judges: JudgeConfig | None = None,
) -> Scorer:
    """A reward however it is given: a function, a reward model, a name, or several of them.

    Args:
        rewards: what ``load_scorer`` reads, a callable, or a list of such; their weighted sum is the reward.
        device: where models that are named are loaded.
        weights: of a list's parts; by default 1 each.
        judges: how language models are asked, unless their own texts say otherwise.

    Raises:
        UsageError: a part cannot be loaded or called, or there is another number of weights.
    """
    if isinstance(rewards, str):
        return load_scorer(rewards, device, judges)
    if not isinstance(rewards, Sequence):
        return rewards if isinstance(rewards, SCORERS) else RewardFunction(rewards)
    weights = [1.0] * len(rewards) if weights is None else list(weights)
    if len(weights) != len(rewards) or not rewards:
        raise UsageError(f"reward_funcs has {len(rewards)} parts and reward_weights {len(weights)}")
    parts: dict[str, tuple[float, Scorer]] = {}
    for number, (part, weight) in enumerate(zip(rewards, weights, strict=True)):
        scorer = as_scorer(part, device, judges=judges)
        name = part if isinstance(part, str) else getattr(scorer, "name", type(scorer).__name__)
        parts[name if name not in parts else f"{name}-{number}"] = (float(weight), scorer)
    return Mixture(parts)


def load_scorer(
    spec: str,
    device: torch.device,
    judges: JudgeConfig | None = None,
    beside: torch.nn.Module | None = None,
) -> Scorer:
    """The scorer that a text describes, as this module's docstring has it, or the one that was handed over
    from Python under this name.

    Args:
        spec: the text.
        device: where reward models are loaded.
        judges: how language models are asked, unless their own texts say otherwise.
        beside: a frozen model in memory, whose weights reward models use where theirs are equal.

    Raises:
        UsageError: a part of it cannot be loaded.
    """
    given = object_of(spec)
    if given is not None:
        return given(device)
    base, mixture = split_mixture(spec)
    if mixture is not None and " + " not in base and not WEIGHTED.fullmatch(base):
        return load_one(spec.strip(), device, beside=beside)  # the sum is of attributes, and not of scorers
    terms = spec.split(" + ")
    weighted = [WEIGHTED.fullmatch(term) for term in terms]
    if any(weighted):
        if not all(weighted):
            bare = next(t for t, w in zip(terms, weighted, strict=True) if not w)
            raise UsageError(f"'{bare.strip()}' in '{spec}' has no weight; write 1*{bare.strip()}")
        parts: dict[str, tuple[float, Scorer]] = {}
        for found in weighted:
            assert found is not None
            name = found[2].strip()
            if name in parts:
                raise UsageError(f"'{name}' is twice in '{spec}'; add up its weights")
            parts[name] = (float(found[1]), load_one(name, device, judges, beside))
        return Mixture(parts)
    return load_one(spec.strip(), device, judges, beside)


def functions_named(spec: str) -> list[str]:
    """The functions of a person's own (``module:function``) that a text of ``load_scorer`` names."""
    if object_of(spec) is not None:
        return []
    terms = [WEIGHTED.fullmatch(term) for term in spec.split(" + ")]
    names = [found[2].strip() for found in terms if found] if all(terms) else [spec.strip()]
    members: list[str] = []
    for name in names:
        together = None if names_judge(name) else COMBINED.fullmatch(name)
        members += map(str.strip, together[3].split(",")) if together else [name]
    return [name for name in members if is_function(name)]


def is_function(name: str) -> bool:
    """Whether a scorer's name is that of a function of a person's own."""
    if ":" not in name or names_judge(name) or Path(split_mixture(name)[0]).exists():
        return False
    return named_utility(name) is None


def load_one(
    name: str,
    device: torch.device,
    judges: JudgeConfig | None = None,
    beside: torch.nn.Module | None = None,
) -> Scorer:
    """A scorer without weights: members together, a utility, a function, a directory or a Hub name."""
    if names_judge(name):
        # With a seed, so that a run that goes on is scored as one that was not interrupted.
        return load_pointwise_judge(name, device, judges or JudgeConfig(seed=0))
    put_together = COMBINED.fullmatch(name)
    if put_together:
        members = _members_of(put_together[3].split(","), device, judges, beside)
        return Ensemble(members, how=put_together[1])
    # A directory of that name wins over a utility or a function that is called so too.
    base, mixture = split_mixture(name)
    if is_function(name):
        return load_function(name)
    utility = None if Path(base).exists() else named_utility(name)
    if utility is not None:
        return utility
    inner = sorted(Path(base).glob(f"{MEMBER}*/model/config.json"), key=_member_number)
    if inner:
        directories = [path.parent.parent for path in inner]
        behind = "" if mixture is None else f"#{mixture}"
        return Ensemble({d.name: _reward_model(f"{d}{behind}", device, beside) for d in directories})
    if not Path(model_directory(base)).exists() and base.count("/") != 1:
        raise UsageError(
            f"reward '{name}' is neither a directory nor module:function nor one of "
            f"{', '.join(sorted(NAMED))}; give the directory of a reward stage, a Hub name, or "
            f"module:function"
        )
    return _reward_model(name, device, beside)


def _reward_model(name: str, device: torch.device, beside: torch.nn.Module | None) -> RewardModel:
    loaded = load_reward_model(name, device) if beside is None else load_beside(name, device, beside)
    return RewardModel(*loaded)


def _members_of(
    names: Sequence[str],
    device: torch.device,
    judges: JudgeConfig | None,
    beside: torch.nn.Module | None,
) -> dict[str, Scorer]:
    """Scorers by name, the members of an ensemble each by itself; a name that is taken gets another one in
    front."""
    members: dict[str, Scorer] = {}
    for name in map(str.strip, names):
        scorer = load_one(name, device, judges, beside)
        own = scorer.members if isinstance(scorer, Ensemble) else {name: scorer}
        # All of an ensemble's are looked up before any is added: they are not in each other's way.
        members |= {f"{name}/{key}" if key in members else key: member for key, member in own.items()}
    return members


def _member_number(path: Path) -> int:
    number = path.parent.parent.name.removeprefix(MEMBER)
    return int(number) if number.isdigit() else sys.maxsize


def parts_of(scorer: Scorer) -> Iterator[tuple[str, Scorer]]:
    """The simple scorers inside a scorer, with their names ("reward" for one that is simple itself)."""
    if isinstance(scorer, Ensemble):
        inside: Mapping[str, Scorer] = scorer.members
    elif isinstance(scorer, Mixture):
        inside = {name: part for name, (_, part) in scorer.parts.items()}
    elif isinstance(scorer, ShardedScorer):
        yield from parts_of(scorer.scorer)
        return
    else:
        yield "reward", scorer
        return
    for name, part in inside.items():
        for below, simple in parts_of(part):
            yield (name if below == "reward" else f"{name}/{below}"), simple


def check_prompts(scorers: Iterable[Scorer | None], prompts: Sequence[Prompt]) -> None:
    """Refuses prompts of which a part of a scorer knows nothing, before any response to them is sampled.

    Raises:
        UsageError: the part and the first such prompt.
    """
    for scorer in scorers:
        for _, part in parts_of(scorer) if scorer is not None else ():
            if isinstance(part, WorldUtility | InstructionUtility):
                part.check(prompts)


def reward_models(scorer: Scorer) -> dict[str, RewardModel]:
    """The reward models inside a scorer, by name."""
    return {name: part for name, part in parts_of(scorer) if isinstance(part, RewardModel)}


def columns_wanted(scorer: Scorer) -> list[str]:
    """The columns of rows without which functions inside a scorer cannot be called."""
    functions = [part for _, part in parts_of(scorer) if isinstance(part, RewardFunction)]
    return list(dict.fromkeys(name for function in functions for name in function.columns))


def all_reward_models(scorer: Scorer) -> bool:
    """Whether nothing but reward models makes a score, whose scale is known: a standard deviation of 1."""
    return all(isinstance(part, RewardModel) for _, part in parts_of(scorer))


def tokenizers_of(scorer: Scorer) -> list[Any]:
    """The tokenizers of the reward models inside a scorer."""
    return [model.tokenizer for model in reward_models(scorer).values()]


def what_was_cut(
    policies: Iterable[Policy], scorers: Iterable[Scorer]
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """How many prompts policies and how many responses reward models, also those of annotators, have cut so
    far in this process, by their names (a summary's ``cut_by_model``; empty for nothing), and that in
    sentences."""
    found: dict[str, int] = {}
    notes = []
    for policy in policies:
        name = policy.model.name_or_path
        if policy.prompts_cut and name not in found:
            found[name] = policy.prompts_cut
            notes.append(
                f"{policy.prompts_cut:,} of {policy.prompts_read:,} prompts were cut: with response_length "
                f"they exceed the {load.max_positions(policy.model)} positions of '{name}'; they have lost "
                f"their beginning, a system message first"
            )
    for scorer in scorers:
        inside = getattr(scorer, "utility", scorer)  # of a simulated annotator
        for model in reward_models(inside).values():
            if model.cut and model.name not in found:
                found[model.name] = model.cut
                notes.append(
                    f"the reward model '{model.name}' read {model.cut:,} of {model.read:,} responses cut: "
                    f"with their prompts they are longer than {model.max_length} tokens"
                )
    return ({"cut_by_model": found} if found else {}), notes


def say_what_was_cut(
    policies: Iterable[Policy], scorers: Iterable[Scorer], say: Callable[[str], None]
) -> dict[str, dict[str, int]]:
    """Says what was cut, and returns it for a stage's summary."""
    found, notes = what_was_cut(policies, scorers)
    for note in notes:
        say(note)
    return found


def judges_in(scorer: Any) -> list[Judge]:
    """The judges inside a scorer or an annotator, a jury as one."""
    inside = getattr(scorer, "utility", scorer)  # of a simulated annotator
    return [part for _, part in parts_of(inside) if isinstance(part, Judge)]


def unread_rows(scorer: Any) -> Set[int]:
    """Rows of the last call for which a judge wrote nothing readable, and was told to skip such."""
    if isinstance(scorer, ShardedScorer):
        return scorer.unread
    judges = [judge for judge in judges_in(scorer) if isinstance(judge, PointwiseJudge)]
    return frozenset().union(*(judge.unread for judge in judges))


SCORERS = (Ensemble, Mixture, ShardedScorer, RewardFunction, RewardModel, PointwiseJudge)
"""What is called with completions as texts; any other callable is a person's function
(``RewardFunction``)."""


def score_responses(scorer: Scorer, responses: Responses, **more: Any) -> np.ndarray:
    """``score_B``: a finite score of every response, in float64. The scorer is told which responses ended,
    how many tokens each has and which, and the other columns of their prompts' rows.

    Where a judge wrote nothing readable about a response, and skips such, it gets the mean score of the
    others here, which pulls it neither way; the judge counts them.

    Raises:
        UsageError, DivergedError: as of ``scored``.
        DataError: no response has a score.
    """
    check_columns(responses.columns)
    score_B = scored(
        scorer,
        responses.prompts,
        responses.completions,
        finished=responses.finished,
        lengths=responses.lengths,
        completion_ids=responses.completion_ids,
        **more,
        **responses.columns,
    )
    unread_B = np.isnan(score_B)
    if unread_B.all() and len(score_B):
        raise DataError(f"none of {len(score_B)} responses has a score: {culprit(scorer, 0)} read none")
    return np.where(unread_B, score_B[~unread_B].mean(), score_B) if unread_B.any() else score_B


def scored(
    scorer: Callable[..., Sequence[float | None]],
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    **columns: Any,
) -> np.ndarray:
    """``score_B`` (float64) of texts. A score is a finite number for every response, or the run stops: never
    a silent 0. It is NaN only where a judge wrote nothing readable and is told to skip such.

    Raises:
        UsageError: there is another number of scores, or one is None; the row is named.
        DivergedError: one is NaN or infinite; the scorer and the row are named.
    """
    scores = scorer(prompts, completions, **columns)
    if len(scores) != len(completions):
        raise UsageError(
            f"the reward function returned {len(scores)} scores for {len(completions)} responses; "
            f"it must return one number for each"
        )
    unread = unread_rows(scorer)
    for row, (score, completion) in enumerate(zip(scores, completions, strict=True)):
        if row in unread:
            continue
        if score is None:
            raise UsageError(
                f"no reward function has a score for row {row}, the response {completion[:80]!r}: all of "
                f"them returned None; at least one must return a number"
            )
        if not math.isfinite(score):
            raise DivergedError(
                f"{culprit(scorer, row)} returned {float(score)} for row {row}, the response "
                f"{completion[:80]!r}; it must return a finite number"
            )
    known = [math.nan if row in unread else score for row, score in enumerate(scores)]
    return np.array(known, dtype=np.float64)


def culprit(scorer: object, row: int) -> str:
    """Which part of a scorer gave a row a number that is none, as messages name it."""
    for name, scores in getattr(scorer, "last_parts", {}).items():
        if scores[row] is not None and not math.isfinite(scores[row]):
            return f"the reward '{name}'"
    inner = scorer.scorer if isinstance(scorer, ShardedScorer) else scorer
    name = getattr(inner, "name", None) or getattr(inner, "__name__", type(inner).__name__)
    return f"the reward '{name}'"
