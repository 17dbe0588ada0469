"""preferl: RLHF, complete, correct and fast, from preferences to policy.

The names below are the public interface; what is not among them may change. They are loaded when they are
first used, so that importing the package is fast.

    import preferl

    data = preferl.load_dataset("pairs.jsonl")
    reward = preferl.train_reward("Qwen/Qwen3-0.6B", data)
    policy = preferl.train_rl("Qwen/Qwen3-0.6B", data, reward_funcs=[reward.model, my_function])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preferl.api import (
        Collected,
        Evaluated,
        Result,
        Trained,
        collect,
        evaluate,
        load_dataset,
        train_dpo,
        train_reward,
        train_rl,
        train_sft,
    )
    from preferl.data.records import DataError
    from preferl.learning.algorithms import Algorithm, register_algorithm
    from preferl.models.reward import RewardModel
    from preferl.runs.errors import DivergedError, UsageError
    from preferl.sampling.policy import Policy

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "Collected",
    "DataError",
    "DivergedError",
    "Evaluated",
    "Policy",
    "Result",
    "RewardModel",
    "Trained",
    "UsageError",
    "collect",
    "evaluate",
    "load_dataset",
    "register_algorithm",
    "train_dpo",
    "train_reward",
    "train_rl",
    "train_sft",
]

_ELSEWHERE = {
    "Algorithm": "preferl.learning.algorithms",
    "DataError": "preferl.data.records",
    "DivergedError": "preferl.runs.errors",
    "Policy": "preferl.sampling.policy",
    "RewardModel": "preferl.models.reward",
    "UsageError": "preferl.runs.errors",
    "register_algorithm": "preferl.learning.algorithms",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'preferl' has no attribute '{name}'")
    return getattr(import_module(_ELSEWHERE.get(name, "preferl.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
