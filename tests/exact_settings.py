"""Settings with which every algorithm is held against the exact optimum of an enumerated space.

Fast tier: a table as policy, vocabulary 4, length 3, coefficient 0.5. Hard tier: a small transformer,
vocabulary 8, length 4, coefficient 0.3 (exact.py). ``benchmarks/optimum.py`` prints the whole table.
"""

from dataclasses import dataclass, field
from typing import Any

from exact import Curve, Task, tabular_task, train, transformer_task
from preferl.stages.rl import RlConfig

# No shaping: the objective is the reward alone, minus the KL.
PURE = {"missing_eos_penalty": 0.0, "reward_clip": 0.0, "eval_every": 0, "save_every": 0, "warmup_ratio": 0.0}


@dataclass(frozen=True)
class Setting:
    """Options of ``preferl rl`` and the samples it may draw; ``control``: it must fall short."""

    samples: int
    options: dict[str, Any] = field(default_factory=dict)
    control: bool = False

    def config(self, seed: int, coef: float, samples: int | None = None) -> RlConfig:
        iterations = (samples or self.samples) // self.options["batch_size"]
        return RlConfig(seed=seed, kl_coef=coef, num_iterations=iterations, **PURE, **self.options)


def fast(
    samples: int, batch_size: int, learning_rate: float = 0.1, control: bool = False, **more: Any
) -> Setting:
    options = {"batch_size": batch_size, "learning_rate": learning_rate, "max_grad_norm": 1e9, **more}
    return Setting(samples, options, control)


# Whitened advantages are as large at the optimum as anywhere. With sixteen updates a batch they push the best
# response's probability so low in the first iterations that, on one seed of many, it is never drawn again.
PPO = {
    "critic_learning_rate": 0.1,
    "num_ppo_epochs": 4,
    "whiten_advantages": False,
}
IN_LOSS = {"algorithm": "reinforce", "kl_in": "loss"}
FAST = {
    "reinforce": fast(20_480, 64, algorithm="reinforce"),
    "reinforce, running baseline": fast(20_480, 64, algorithm="reinforce", baseline="running"),
    "rloo k=2": fast(20_480, 64, algorithm="rloo", num_generations=2),
    "rloo k=4": fast(20_480, 64, algorithm="rloo"),
    "grpo, no sd scaling": fast(20_480, 64, algorithm="grpo", scale_rewards=False, loss_average="sum"),
    "ppo": fast(20_480, 256, 0.05, algorithm="ppo", **PPO),
    "ppo, response ratio": fast(20_480, 256, 0.05, algorithm="ppo", ratio_level="response", **PPO),
    "rebel": fast(8_192, 64, algorithm="rebel"),
    "online_dpo, soft labels": fast(16_384, 128, algorithm="online_dpo"),
    "online_dpo, sampled labels": fast(40_960, 256, algorithm="online_dpo", preference_labels="sampled"),
    "k2 of responses in the loss": fast(20_480, 64, **IN_LOSS),
    "exact KL in the loss": fast(20_480, 64, kl_estimator="exact", **IN_LOSS),
    "k2 of tokens in the loss": fast(20_480, 64, kl_estimator="k2_token", **IN_LOSS),
    "k3 in the loss": fast(20_480, 64, control=True, kl_estimator="k3", **IN_LOSS),
    "k1 in the loss": fast(20_480, 64, control=True, kl_estimator="k1", **IN_LOSS),
    "grpo as published": fast(20_480, 64, control=True, algorithm="grpo", kl_in="loss", kl_estimator="k3"),
    "grpo, sd scaling": fast(20_480, 64, algorithm="grpo", loss_average="sum"),
    "online_dpo, hard labels": fast(
        16_384, 128, control=True, algorithm="online_dpo", preference_labels="hard"
    ),
}
# One ratio and one advantage for each response, and advantages as they are: whitened ones do not fade as the
# optimum comes near (docs/log.md).
WHOLE = {"batch_size": 256, "learning_rate": 5e-4, "num_ppo_epochs": 4, "num_mini_batches": 2}
HARD = {
    "reinforce": Setting(32_768, {"algorithm": "reinforce", "batch_size": 256, "learning_rate": 1e-3}),
    "rloo k=4": Setting(16_384, {"algorithm": "rloo", **WHOLE}),
    "ppo": Setting(24_576, {"algorithm": "ppo", **WHOLE, "batch_size": 512}),
    "ppo, half the samples": Setting(12_288, {"algorithm": "ppo", **WHOLE}),
    "rebel": Setting(8_192, {"algorithm": "rebel", "batch_size": 256, "learning_rate": 1e-3}),
    "online_dpo, soft labels": Setting(
        12_288,
        {
            "algorithm": "online_dpo",
            "batch_size": 256,
            "learning_rate": 1e-3,
            "num_generations": 8,
            "num_ppo_epochs": 4,
        },
    ),
}


def one_transformer_task(seed: int, coef: float) -> Task:
    """The hard tier has one task and several runs: tasks differ more than runs (docs/log.md)."""
    return transformer_task(0, coef)


TIERS = {"fast": (FAST, tabular_task, 0.5), "hard": (HARD, one_transformer_task, 0.3)}


def curves(tier: str, name: str, seeds: range, every: int = 1, samples: int | None = None) -> list[Curve]:
    """F over training of one setting, for each seed a run of its own, and on the fast tier a task too."""
    settings, make, coef = TIERS[tier]
    setting, found = settings[name], []
    for seed in seeds:
        task: Task = make(seed, coef)
        config = setting.config(seed, coef, samples)
        found.append(train(task, config, every=every, checked=not setting.control))
    return found
