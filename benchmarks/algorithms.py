"""Every way from preferences to a policy on the embedded world, as one table: win rate against the SFT model.

Two columns: at an equal number of samples (responses that an update has seen), and at equal forward passes of
language models (counted: one sequence through one model, a backward pass counts two), those of PPO. Rows of a
seed share their SFT model, pairs and reward model, whose cost is not counted. Mean ± standard deviation over
seeds, by gold reward, which nothing was trained on.

python benchmarks/algorithms.py [--seeds 0 1 2] [--samples 1600] [--rows PPO REBEL] [--out runs/algorithms]
"""

import argparse
import dataclasses
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from preferl import pipeline
from preferl.runs.record import StageRecord
from preferl.stages import evaluate

BASE = ["sft", "collect", "reward"]
BATCH = 32
# Stage and settings of each row; learning rates were chosen by hand, not searched.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "SFT": ("", {}),
    "DPO": ("dpo", {"learning_rate": 3e-4}),
    "REINFORCE": ("rl", {"algorithm": "reinforce", "learning_rate": 1e-3}),
    "PPO": ("rl", {"algorithm": "ppo", "learning_rate": 5e-4}),
    "RLOO k=2": ("rl", {"algorithm": "rloo", "num_generations": 2, "learning_rate": 1e-3}),
    "RLOO k=4": ("rl", {"algorithm": "rloo", "num_generations": 4, "learning_rate": 1e-3}),
    "REBEL": ("rl", {"algorithm": "rebel", "learning_rate": 5e-4}),
}


def base_run(out: Path, seed: int) -> dict[str, Any]:
    """Makes SFT model, pairs and reward model of a seed, as in the demo; the options of all stages."""
    config = pipeline.demo_config(output_dir=str(out / f"seed-{seed}" / "base"), seed=seed)
    pipeline.run(config.changed({"stages": BASE}))
    quick = {"rl.batch_size": BATCH, "rl.eval_every": 0, "evaluate.best_of": []}
    return pipeline.resolve(config.changed(quick | {"stages": [*BASE, "dpo", "rl", "evaluate"]}))


def run_row(
    stages: dict[str, Any], out: Path, row: str, samples: float, name: str, seed: int
) -> dict[str, Any]:
    """Trains a row on so many responses and evaluates it; the summaries of both stages."""
    kind, settings = ROWS[row]
    place = out / f"seed-{seed}" / name / row.replace(" ", "-")
    policy, training = stages["evaluate"].ref_model, {}
    if kind:
        pairs = StageRecord(Path(stages["collect"].output_dir)).summary["splits"]["train"]["pairs"]
        budget = (
            {"num_train_epochs": samples / 2 / pairs}
            if kind == "dpo"
            else {"num_iterations": max(round(samples / BATCH), 1)}
        )
        options = dataclasses.replace(stages[kind], output_dir=str(place / kind), **settings, **budget)
        policy = str(pipeline.KINDS[kind][0].run(options))
        training = StageRecord(Path(policy)).summary
    measured = evaluate.run(
        dataclasses.replace(stages["evaluate"], model_name_or_path=policy, output_dir=str(place / "evaluate"))
    )
    return {"training": training, "evaluate": StageRecord(measured).summary}


def passes(summaries: dict[str, Any]) -> int:
    """Forward passes of the policy's training."""
    return sum(summaries["training"].get("forward_passes", {}).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=1600)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"))
    options = parser.parse_args()
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed in options.seeds:
        stages = base_run(options.out, seed)

        def train(row: str, samples: float, name: str) -> dict[str, Any]:
            return run_row(stages, options.out, row, samples, name, seed)  # noqa: B023 - called at once

        budget = passes(train("PPO", options.samples, "samples"))
        for row in options.rows:
            first = train(row, options.samples, "samples")
            found.setdefault((row, "samples"), []).append(first)
            spent = passes(first)
            same = not spent or row == "PPO"
            second = first if same else train(row, options.samples * budget / spent, "passes")
            found.setdefault((row, "passes"), []).append(second)

    print(f"\nwin rate against SFT by gold reward; gold gain; KL (nats); passes; seeds {options.seeds}")
    print(f"{'':12}{f'{options.samples} samples':>42}{f'{budget} passes':>42}")
    for row in options.rows:
        print(f"{row:12}" + "".join(f"{cell(found[row, column]):>42}" for column in ("samples", "passes")))


def cell(summaries: list[dict[str, Any]]) -> str:
    """Win rate, gain and KL over seeds, and the passes that were counted."""
    gold = [s["evaluate"]["comparison"]["gold"] for s in summaries]
    wins = [100 * g["win_rate"] for g in gold]
    spread = f" ± {stdev(wins):.1f}" if len(wins) > 1 else ""
    gain = mean(g["difference"] for g in gold)
    kl = mean(s["evaluate"]["policies"]["policy"]["kl"] for s in summaries)
    return f"{mean(wins):.1f}{spread} %  {gain:+.2f}  {kl:.1f}  {passes(summaries[0]):>6}"


if __name__ == "__main__":
    main()
