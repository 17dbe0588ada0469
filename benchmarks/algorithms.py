"""Every way from preferences to a policy on the embedded world, as one table: win rate against the SFT model.

Two columns: at an equal number of samples (responses that an update has seen), and at equal forward passes of
language models (counted: one sequence through one model, a backward pass counts two), those of PPO. Rows of a
seed share their SFT model, pairs and reward model, whose cost is not counted. Mean ± standard deviation over
seeds, by gold reward, which nothing was trained on.

python benchmarks/algorithms.py [--seeds 0 1 2] [--samples 3200] [--rows PPO REBEL] [--out runs/algorithms]
"""

import argparse
import dataclasses
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from preferl import pipeline, sweep
from preferl.runs.directory import StageRecord

BATCH = 32
BASE = ["sft", "collect", "reward"]
# The settings of each row; learning rates are the best of a few on seed 0 (docs/algorithms.md).
ROWS: dict[str, dict[str, Any]] = {
    "SFT": {},
    "DPO": {"dpo.beta": 0.1, "dpo.learning_rate": 3e-4},
    "REINFORCE": {"rl.algorithm": "reinforce", "rl.learning_rate": 1e-3},
    "PPO": {"rl.algorithm": "ppo", "rl.learning_rate": 5e-4},
    "RLOO k=2": {"rl.algorithm": "rloo", "rl.num_generations": 2, "rl.learning_rate": 1e-3},
    "RLOO k=4": {"rl.algorithm": "rloo", "rl.num_generations": 4, "rl.learning_rate": 1e-3},
    "REBEL": {"rl.algorithm": "rebel", "rl.learning_rate": 5e-4},
    "GRPO": {"rl.algorithm": "grpo", "rl.learning_rate": 1e-3},
    "online DPO": {"rl.algorithm": "online_dpo", "rl.learning_rate": 5e-4},
}


def stage_of(row: str) -> str | None:
    """The stage that trains the policy of a row."""
    return {"SFT": None, "DPO": "dpo"}.get(row, "rl")


def point(row: str, samples: float) -> dict[str, Any]:
    """The keys of a row that may see so many responses."""
    stage = stage_of(row)
    stages = [*BASE, *([stage] if stage else []), "evaluate"]
    if stage is None:
        return {"stages": stages}
    if stage == "dpo":
        return {"stages": stages, **ROWS[row], "dpo.num_train_epochs": samples / 2 / 5000}
    return {"stages": stages, **ROWS[row], "rl.num_iterations": max(round(samples / BATCH), 1)}


def run(points: list[dict[str, Any]], seeds: list[int], out: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Runs the points, sharing what they share; (row's keys as text, seed) -> summary by stage."""
    base = pipeline.demo_config()
    options = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    options |= {
        "output_dir": str(out),
        "rl": dataclasses.replace(base.rl, batch_size=BATCH, eval_every=0, num_mini_batches=0),
        "evaluate": dataclasses.replace(base.evaluate, best_of=[]),
    }
    config = sweep.SweepConfig(**options, sweep=sweep.SweepOptions(points=points, seeds=seeds))
    outcome = sweep.run(config)
    if outcome.errors:
        raise SystemExit(outcome.errors[0])
    plans = [sweep.plan(out, p, seed) for p in sweep.points_of(config) for seed in seeds]
    found = {}
    for plan in plans:
        found[str(plan.point.keys), plan.seed] = {
            name: StageRecord(path).summary for name, path in plan.where.items()
        }
    return found


def passes(summaries: dict[str, Any], row: str) -> int:
    """Forward passes of the policy's training."""
    stage = stage_of(row)
    return sum(summaries[stage]["forward_passes"].values()) if stage else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=3200)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"))
    options = parser.parse_args()
    rows = [*options.rows, *([] if "PPO" in options.rows else ["PPO"])]
    first = {row: point(row, options.samples) for row in rows}
    found = run(list(first.values()), options.seeds, options.out)

    def of(row: str, keys: dict[str, Any], seed: int) -> dict[str, Any]:
        return found[str(keys), seed]

    seed = options.seeds[0]
    budget = passes(of("PPO", first["PPO"], seed), "PPO")
    second = {}
    for row in rows:
        spent = passes(of(row, first[row], seed), row)
        second[row] = point(row, options.samples * budget / spent) if spent else first[row]
    found |= run([keys for row, keys in second.items() if keys != first[row]], options.seeds, options.out)

    print(f"\nwin rate against the SFT model by gold reward; gold gain; KL (nats); seeds {options.seeds}")
    titles = (f"{options.samples} samples", f"{budget} passes")
    print(f"{'':12}" + "".join(f"{title:>44}" for title in titles))
    for row in options.rows:
        cells = [cell([of(row, keys, s) for s in options.seeds], row) for keys in (first[row], second[row])]
        print(f"{row:12}" + "".join(f"{text:>44}" for text in cells))


def cell(summaries: list[dict[str, Any]], row: str) -> str:
    """Win rate, gain and KL over seeds, and the passes that were counted."""
    gold = [s["evaluate"]["comparison"]["gold"] for s in summaries]
    wins = [100 * g["win_rate"] for g in gold]
    spread = f" ± {stdev(wins):.1f}" if len(wins) > 1 else ""
    gain = mean(g["difference"] for g in gold)
    kl = mean(s["evaluate"]["policies"]["policy"]["kl"] for s in summaries)
    return f"{mean(wins):.1f}{spread} %  {gain:+.2f}  KL {kl:.1f}  {passes(summaries[0], row):>6}"


if __name__ == "__main__":
    main()
