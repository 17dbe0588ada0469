"""How near every algorithm comes to the exact optimum, and after how many samples.

Fast tier: a table as policy, vocabulary 4, length 3, coefficient 0.5. Hard tier: a small transformer,
vocabulary 8, length 4, coefficient 0.3 (benchmarks/exact.py). F = (J - J_ref) / (J* - J_ref) by enumeration.
Controls must fall short, or the table proves nothing.

python benchmarks/optimum.py [--tier fast hard] [--seeds 3] [--only ppo rebel]
"""

import argparse
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

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


PPO = {"critic_learning_rate": 0.1, "cliprange_value": 100.0, "num_ppo_epochs": 4}
IN_LOSS = {"algorithm": "reinforce", "kl_in": "loss"}
FAST = {
    "reinforce": fast(20_480, 64, algorithm="reinforce"),
    "reinforce, running baseline": fast(20_480, 64, algorithm="reinforce", baseline="running"),
    "rloo k=2": fast(20_480, 64, algorithm="rloo", num_generations=2),
    "rloo k=4": fast(20_480, 64, algorithm="rloo"),
    "grpo, no sd scaling": fast(20_480, 64, algorithm="grpo", scale_rewards=False, loss_average="sum"),
    "ppo": fast(20_480, 256, algorithm="ppo", **PPO),
    "ppo, response ratio": fast(20_480, 256, algorithm="ppo", ratio_level="response", **PPO),
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
HARD = {
    "reinforce": Setting(32_768, {"algorithm": "reinforce", "batch_size": 128, "learning_rate": 2e-3}),
    "rloo k=4": Setting(32_768, {"algorithm": "rloo", "batch_size": 128, "learning_rate": 2e-3}),
    "ppo": Setting(
        32_768, {"algorithm": "ppo", "batch_size": 256, "learning_rate": 1e-3, "num_ppo_epochs": 4}
    ),
    "rebel": Setting(32_768, {"algorithm": "rebel", "batch_size": 256, "learning_rate": 1e-3}),
    "online_dpo, soft labels": Setting(
        32_768, {"algorithm": "online_dpo", "batch_size": 256, "learning_rate": 1e-3}
    ),
}
TIERS = {"fast": (FAST, tabular_task, 0.5), "hard": (HARD, transformer_task, 0.3)}


def curves(tier: str, name: str, seeds: range, every: int = 1, samples: int | None = None) -> list[Curve]:
    """F over training of one setting, for each seed a task and a run of its own."""
    settings, make, coef = TIERS[tier]
    setting, found = settings[name], []
    for seed in seeds:
        task: Task = make(seed, coef)
        config = setting.config(seed, coef, samples)
        found.append(train(task, config, every=every, checked=not setting.control))
    return found


def reached(found: list[Curve], level: float) -> str:
    """Median number of samples to a level over the seeds that got there, and how many did not."""
    counts = [count for curve in found if (count := curve.reached(level)) is not None]
    if not counts:
        return "never"
    missed = len(found) - len(counts)
    return f"{round(median(counts)):,}" + (f" ({missed} never)" if missed else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tier", nargs="+", default=list(TIERS), choices=list(TIERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=None, help="settings whose name begins so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for tier in options.tier:
        print(f"\n{tier} tier, {options.seeds} seeds")
        print(f"{'':30}{'samples':>9}{'F (each seed)':>26}{'to .95':>16}{'to .99':>16}")
        for name, setting in TIERS[tier][0].items():
            if options.only and not any(name.startswith(start) for start in options.only):
                continue
            found = curves(tier, name, range(options.seeds))
            final = " ".join(f"{curve.final:.3f}" for curve in found)
            label = name + (" (control)" if setting.control else "")
            levels = "".join(f"{reached(found, level):>16}" for level in (0.95, 0.99))
            print(f"{label:30}{setting.samples:>9,}{final:>26}{levels}", flush=True)


if __name__ == "__main__":
    main()
