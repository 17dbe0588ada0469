"""Scorers: reward models, ensembles, mixtures, named utilities and Python functions behind one call.

A scorer is TRL's reward function: ``f(prompts, completions, **columns) -> list[float]``. preferl passes
``finished`` (whether each response ended with EOS) among the columns. What a scorer is made of is written as

    runs/demo/reward                          a reward model (or an ensemble: the mean of its members)
    my_rewards:politeness                     a function of yours
    length, world, sentiment, keyword:please  named utilities
    min(runs/a, runs/b), mean-1.5sd(runs/a)   members put together in another way
    judge:http://localhost:8000/v1#model      a language model's score of each response (judging/judges.py)
    0.7*runs/helpful + 0.3*concise            a weighted sum; " + " with spaces
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preferl.data.records import Prompt
from preferl.data.types import Scorer
from preferl.judging.judges import load_pointwise_judge
from preferl.judging.utilities import NAMED, named_utility
from preferl.models.load import model_directory
from preferl.models.reward import RewardModel, load_reward_model
from preferl.runs import distributed
from preferl.runs.errors import UsageError
from preferl.sampling.policy import Responses

JUDGE = "judge:"
MEMBER = "member-"  # the directories of an ensemble's members
WEIGHTED = re.compile(r"\s*([+-]?\d*\.?\d+(?:e-?\d+)?)\s*\*\s*(.+)")
COMBINED = re.compile(r"(mean|min|mean-(\d*\.?\d+)sd)\((.+)\)")


class Ensemble:
    """Several scorers of the same thing as one (Coste et al. 2023).

    ``how``: ``mean``, ``min`` (worst case), or ``mean-<k>sd``, the mean minus k standard deviations over the
    members (uncertainty-weighted).
    """

    def __init__(self, members: Mapping[str, Scorer], how: str = "mean"):
        self.members, self.how = dict(members), how
        found = re.fullmatch(r"mean-(\d*\.?\d+)sd", how)
        if how not in ("mean", "min") and not found:
            raise UsageError(f"'{how}' does not put members together; use mean, min or mean-<k>sd")
        self.penalty = float(found[1]) if found else 0.0
        self.last_parts: dict[str, list[float]] = {}

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any) -> list[float]:
        self.last_parts = {n: list(f(prompts, completions, **columns)) for n, f in self.members.items()}
        score_MN = np.array(list(self.last_parts.values()), dtype=np.float64)
        if self.how == "min":
            return score_MN.min(0).tolist()
        return (score_MN.mean(0) - self.penalty * score_MN.std(0)).tolist()


class Mixture:
    """A weighted sum of scorers, for several objectives at once."""

    def __init__(self, parts: Mapping[str, tuple[float, Scorer]]):
        self.parts = dict(parts)
        self.last_parts: dict[str, list[float]] = {}

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any) -> list[float]:
        self.last_parts = {n: list(f(prompts, completions, **columns)) for n, (_, f) in self.parts.items()}
        weight_P = np.array([weight for weight, _ in self.parts.values()])
        return (weight_P @ np.array(list(self.last_parts.values()), dtype=np.float64)).tolist()


class ShardedScorer:
    """A scorer of which each of several processes asks only for its own responses; all get all scores."""

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self.last_parts: dict[str, list[float]] = {}

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any) -> list[float]:
        rows = distributed.shard(range(len(completions)))
        scores, parts = [], {}
        with distributed.sync_errors():
            if rows:
                own = [[column[i] for i in rows] for column in (prompts, completions, *columns.values())]
                scores = list(self.scorer(own[0], own[1], **dict(zip(columns, own[2:], strict=True))))
                parts = getattr(self.scorer, "last_parts", {})
            if len(scores) != len(rows):
                raise UsageError(
                    f"the reward function returned {len(scores)} scores for {len(rows)} responses; "
                    f"it must return one number for each"
                )
        names = max(distributed.all_gather(list(parts)), key=len)
        self.last_parts = {name: distributed.gather_rows(parts.get(name, [])) for name in names}
        return distributed.gather_rows(scores)


def load_scorer(spec: str, device: torch.device) -> Scorer:
    """The scorer that a text describes, as this module's docstring has it.

    Raises:
        UsageError: a part of it cannot be loaded.
    """
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
            parts[name] = (float(found[1]), load_one(name, device))
        return Mixture(parts)
    return load_one(spec.strip(), device)


def load_one(name: str, device: torch.device) -> Scorer:
    """A scorer without weights: members together, a utility, a function, a directory or a Hub name."""
    if name.startswith(JUDGE):
        return load_pointwise_judge(name, device)
    combined = COMBINED.fullmatch(name)
    if combined:
        how, inside = combined[1], combined[3]
        members: dict[str, Scorer] = {}
        for part in (piece.strip() for piece in inside.split(",")):
            scorer = load_one(part, device)
            own = scorer.members if isinstance(scorer, Ensemble) else {part: scorer}
            members |= {key if key not in members else f"{part}/{key}": m for key, m in own.items()}
        return Ensemble(members, how)
    if not Path(name).exists():
        utility = named_utility(name)
        if utility is not None:
            return utility
        if ":" in name:
            return load_function(name)
    inner = sorted(Path(name).glob(f"{MEMBER}*/model/config.json"), key=_member_number)
    if inner:
        return Ensemble(
            {
                path.parent.parent.name: RewardModel(*load_reward_model(str(path.parent.parent), device))
                for path in inner
            }
        )
    if not Path(model_directory(name)).exists() and name.count("/") != 1:
        raise UsageError(
            f"reward '{name}' is neither a directory nor module:function nor one of "
            f"{', '.join(sorted(NAMED))}; give the directory of a reward stage, a Hub name, or "
            f"module:function"
        )
    return RewardModel(*load_reward_model(name, device))


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


def reward_models(scorer: Scorer) -> dict[str, RewardModel]:
    """The reward models inside a scorer, by name."""
    return {name: part for name, part in parts_of(scorer) if isinstance(part, RewardModel)}


def load_function(name: str) -> Scorer:
    """The function ``module:function``, looked up in the current folder too."""
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"reward function '{name}' cannot be imported: {error}; "
            f"write it as module:function, with the module in the current folder or installed"
        ) from error
    if not callable(function):
        raise UsageError(f"'{name}' is not a function: f(prompts, completions, **columns) is needed")
    return accept_columns(function)


def accept_columns(function: Callable[..., Any]) -> Scorer:
    """Passes a function only the columns that it can take."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return function

    def call(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        known = {k: v for k, v in columns.items() if k in parameters}
        return function(prompts=prompts, completions=completions, **known)

    return call


def score_responses(scorer: Scorer, made: Responses) -> np.ndarray:
    """``score_B``: a finite score of every response, in float64. The scorer is told which responses ended and
    how many tokens each has.

    Raises:
        UsageError: the scorer returned another number of scores than it was given, or a non-finite one.
    """
    scores = scorer(made.prompts, made.completions, finished=made.finished, lengths=made.lengths)
    check_scores(scores, made.completions)
    return np.array(scores, dtype=np.float64)


def check_scores(scores: Sequence[float], completions: Sequence[str]) -> None:
    """A score is a finite number for every response, or the run stops: never a silent 0."""
    if len(scores) != len(completions):
        raise UsageError(
            f"the reward function returned {len(scores)} scores for {len(completions)} responses; "
            f"it must return one number for each"
        )
    for score, completion in zip(scores, completions, strict=True):
        if score is None or not abs(float(score)) < float("inf"):
            raise UsageError(
                f"the reward function returned {score!r} for the response {completion[:80]!r}; "
                f"it must return a finite number"
            )
