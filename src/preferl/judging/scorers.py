"""Scorers: reward-model directories and Python functions behind one call.

A scorer is TRL's reward function: ``f(prompts, completions, **columns) -> list[float]``. preferl passes
``finished`` (whether each response ended with EOS) among the columns.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from preferl.models.load import model_directory
from preferl.models.reward import RewardModel, load_reward_model
from preferl.runs.errors import UsageError

Scorer = Callable[..., list[float]]


def load_scorer(name: str, device: torch.device) -> Scorer:
    """A scorer from ``module:function`` or from a reward model's directory or Hub name.

    Raises:
        UsageError: neither can be loaded.
    """
    if ":" in name and not Path(name).exists():
        return load_function(name)
    if not Path(model_directory(name)).exists() and name.count("/") != 1:
        raise UsageError(
            f"reward '{name}' is neither a directory nor module:function; "
            f"give the directory of a reward stage, a Hub name, or module:function"
        )
    return RewardModel(*load_reward_model(name, device))


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
