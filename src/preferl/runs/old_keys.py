"""Names of measurements before they began with the split that they were made on.

A key begins with the split (``train/``, ``dev/``, ``eval/``), the same in ``metrics.jsonl`` and
``summary.json``. Runs from before say ``eval_accuracy`` for dev pairs in one file and for eval pairs in the
other; here is what each of their keys meant.
"""

import re
from collections.abc import Mapping
from typing import Any

# Kind of stage -> file -> pattern of an old key -> the new one; {split} is an option of the stage.
RL_OWN = (
    "step|alarms|updates|kl_coef|learning_rate|tokens_per_second|sampling_seconds|seconds|cpu_seconds|"
    "forward_passes|(policy|critic)_grad_norm"
)
OLD_KEYS: dict[str, dict[str, dict[str, str]]] = {
    "sft": {
        "metrics": {"loss|tokens": r"train/\g<0>", "eval_loss": "dev/loss"},
        "summary": {
            "eval_loss": "dev/loss",
            "samples|eos_rate|length|well_formed_rate": r"dev/\g<0>",
        },
    },
    "reward": {
        "metrics": {"loss|accuracy": r"train/\g<0>", "eval_(.*)": r"dev/\1"},
        "summary": {
            "eval_(.*)": r"eval/\1",
            "(expected_accuracy|bayes_accuracy|fraction_of_bayes|ece|length_baseline_accuracy)": r"eval/\1",
            "member_accuracies": "eval/member_accuracies",
            "dev_loss": "dev/loss",
            "final_dev_loss": "dev/final_loss",
        },
    },
    "dpo": {
        "metrics": {
            "loss|accuracy|margin|(chosen|rejected)_log_ratio": r"train/\g<0>",
            "eval_(.*)": r"dev/\1",
        },
        "summary": {"dev_(.*)": r"dev/\1", "samples|kl|kl_low|kl_high|eos_rate|length": r"dev/\g<0>"},
    },
    "rl": {
        "metrics": {
            "eval_(.*)": r"{eval_split}/\1",
            "sign/.*|reward_accuracy|reward_accuracy_pairs": r"{eval_split}/\g<0>",
            f"(?!({RL_OWN})$).*": r"train/\g<0>",
        },
        "summary": {},
    },
    "audit": {
        "metrics": {},
        "summary": {
            "eval_(.*)": r"{split}/\1",
            "expected_accuracy|bayes_accuracy|fraction_of_bayes|ece": r"{split}/\g<0>",
        },
    },
}


def renamed(kind: str, file: str, row: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ``metrics.jsonl``, or a ``summary.json``, of an old stage under today's names."""
    patterns = OLD_KEYS.get(kind, {}).get(file, {})
    return {_new_name(key, patterns, config): value for key, value in row.items()}


def _new_name(key: str, patterns: Mapping[str, str], config: Mapping[str, Any]) -> str:
    for pattern, new in patterns.items():
        found = re.fullmatch(pattern, key)
        if found:
            return found.expand(new).format(**config)
    return key
