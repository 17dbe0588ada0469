"""RLHF of a model that people use, over several seeds: one table of what each way makes of it.

The stages are those of `--config smollm2` (docs/real-models.md): one set of labels and one reward model for
each seed; DPO, PPO and RLOO from them; each evaluated beside the start and best-of-4 on the same held-out
prompts. Every stage is a `preferl run` in a process of its own, so its peak memory is its own. The same
command goes on where it was interrupted, and adds seeds and arms.

    python benchmarks/instruction_prompts.py
    python benchmarks/real_model.py --seeds 3 [--model FOLDER] [--arms PPO RLOO]
    python benchmarks/real_model.py --human [--model FOLDER]     a reward model of people's choices instead

Columns: `gold` is the instructions' truth, `wins` against the start by it, `fulfilled` the share of answers
that do what they were asked, `proxy` the reward model, KL in nats per response, `perplexity` under the start,
minutes and processor minutes of the training, peak memory of its process, forward passes of all models in
training and for one answer. Best-of-4 has no training and costs four answers and their rewards each time:
from how many answers on a trained policy is cheaper stands below the table. One seed has the intervals of
the evaluation, several have Student's between seeds.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from preferl.pipeline import RunConfig
from preferl.runs.progress import say
from preferl.runs.record import StageRecord
from preferl.runs.shipped import configurations
from preferl.statistics import mean_interval

# From the same labels: each pair once, LoRA like the other arms.
DPO = {
    "kind": "dpo",
    "beta": 0.1,
    "lora_r": 16,
    "lora_alpha": 32,
    "learning_rate": 1e-4,
    "num_train_epochs": 1,
    "train_batch_size": 16,
    "micro_batch_size": 4,
    "max_length": 192,
    "num_evals": 4,
    "check_samples": 64,
}
NUMBERS = ("gold", "wins", "fulfilled", "proxy", "KL", "tokens", "perplexity")
COSTS = ("minutes", "CPU minutes", "peak GiB", "training passes", "passes an answer")
Summary = Mapping[str, Any]


def with_arms(given: dict[str, Any]) -> RunConfig:
    """The configuration of a sweep over ways to train as one run: a stage and its evaluation for each way."""
    given = dict(given)
    points, rl, evaluate = given.pop("sweep")["points"], given.pop("rl"), given.pop("evaluate")
    arms: dict[str, dict[str, Any]] = {"DPO": DPO}
    for point in points:
        own = {key.removeprefix("rl."): value for key, value in point.items() if key != "name"}
        arms[point["name"]] = {"kind": "rl"} | rl | own
    for name, arm in arms.items():
        given[name] = arm
        given[f"evaluate_{name}"] = {
            "kind": "evaluate",
            "model_name_or_path": f"@/{name}",
            "reward_model": "@/reward",
        } | evaluate
    return RunConfig(**given)


def arms_of(config: RunConfig) -> list[str]:
    """The ways to train that a configuration has."""
    return [name for name, kind in config.kinds.items() if kind in ("dpo", "rl") and name in config.given]


def run_stage(config: RunConfig, stages: Sequence[str]) -> None:
    """Runs the last of some stages in a process of its own, where it is not finished.

    Raises:
        SystemExit: it failed; the stages before it are kept.
    """
    run = Path(config.output_dir)
    if (run / stages[-1] / "DONE").exists():
        return
    file = run.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(config.changed({"stages": list(stages)}).to_yaml(), encoding="utf-8")
    say(f"{run.name}: {stages[-1]}")
    done = subprocess.run([sys.executable, "-m", "preferl", "run", "--config", str(file)], check=False)
    if done.returncode:
        raise SystemExit(f"{stages[-1]} of {run} ended with {done.returncode}; the same command goes on")


# ---------------------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class Row:
    """What one way made of the model with one seed: numbers, and intervals of those that have them.

    Example: ``Row({"gold": 0.4, "KL": 2.1}, {"gold": (0.2, 0.6)})``.
    """

    numbers: dict[str, float]
    bounds: dict[str, tuple[float, float]]


def row_of(found: Summary, compared: Summary, costs: Mapping[str, float]) -> Row:
    """One row from the means of a policy and its comparison with the start.

    Args:
        found: means of the measures, as an evaluation's summary has them.
        compared: the win rate by gold, with its interval.
        costs: of training.
    """
    keys = {"gold": "gold", "fulfilled": "held_out", "proxy": "score", "KL": "kl", "tokens": "length"}
    numbers: dict[str, float] = {}
    bounds: dict[str, tuple[float, float]] = {}
    for name, key in (keys | {"perplexity": "perplexity"}).items():
        if found.get(key) is not None:
            numbers[name] = found[key]
        if f"{key}_low" in found:
            bounds[name] = found[f"{key}_low"], found[f"{key}_high"]
    if "win_rate" in compared:
        numbers["wins"] = compared["win_rate"]
        bounds["wins"] = compared["win_rate_low"], compared["win_rate_high"]
    return Row(numbers | dict(costs), bounds)


def rows_of_seed(run: Path, arms: Sequence[str]) -> dict[str, Row]:
    """The rows of one seed: start and best-of-n from the first evaluation, and every way."""
    rows: dict[str, Row] = {}
    for arm in arms:
        evaluated = StageRecord(run / f"evaluate_{arm}").summary
        spent = evaluated["cost"]
        if not rows:
            one = {"passes an answer": spent["policy_per_response"]}
            rows["start"] = row_of(evaluated["policies"]["reference"] | {"kl": 0.0}, {}, one)
            for best in evaluated["best_of"]:
                several = {"passes an answer": sum(best["forward_passes_per_response"].values())}
                rows[f"best of {best['n']}"] = row_of(best | {"kl": best["kl_bound"]}, best, several)
        trained = StageRecord(run / arm).summary
        costs = {
            "minutes": trained["seconds"] / 60,
            "CPU minutes": trained["cpu_seconds"] / 60,
            "peak GiB": trained["peak_memory_mib"] / 1024,
            "training passes": spent["training_total"],
            "passes an answer": spent["policy_per_response"],
        }
        rows[arm] = row_of(evaluated["policies"]["policy"], evaluated["comparison"]["gold"], costs)
    return rows


def print_break_even(run: Path, arms: Sequence[str]) -> None:
    """From how many answers on a trained policy costs less than best-of-n."""
    for arm in arms:
        for best in StageRecord(run / f"evaluate_{arm}").summary["best_of"]:
            answers = best.get("break_even_queries")
            if answers is not None:
                print(f"{arm} costs as much as best of {best['n']} after {answers:,.0f} answers")


def cell(rows: Sequence[Row], name: str) -> str:
    """A number over seeds: the mean with Student's interval; of one seed the evaluation's own interval."""
    values = [row.numbers[name] for row in rows if name in row.numbers]
    if not values:
        return "–"
    scale, digits = (100, 0) if name in ("wins", "fulfilled") else (1, 1 if name in COSTS else 2)
    digits = 0 if "passes" in name else digits
    low, high = rows[0].bounds.get(name, (None, None))
    if len(values) > 1 and name not in COSTS:
        _, low, high = mean_interval(np.array(values))
    text = f"{scale * np.mean(values):.{digits}f}"
    return text if low is None else f"{text} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def print_table(by_seed: Sequence[Mapping[str, Row]]) -> None:
    """Markdown: a line for every way."""
    print(f"\n{len(by_seed)} seed{'s' if len(by_seed) > 1 else ''}")
    print("| | " + " | ".join((*NUMBERS, *COSTS)) + " |")
    print("|" + "---|" * (1 + len(NUMBERS) + len(COSTS)))
    for name in by_seed[0]:
        rows = [rows[name] for rows in by_seed if name in rows]
        print(f"| {name} | " + " | ".join(cell(rows, number) for number in (*NUMBERS, *COSTS)) + " |")


def print_reward(summaries: Sequence[Summary], names: Sequence[str] = ("",)) -> None:
    """The reward models on held-out labels, beside length and a bag of words."""
    print("\n| reward model | held-out labels, % | of Bayes | length, % | bag of words, % | pairs |")
    print("|---|---|---|---|---|---|")
    for name, found in zip(names, summaries, strict=True):
        accuracy = [100 * found[f"eval/accuracy{end}"] for end in ("", "_low", "_high")]
        bayes, *others = (
            found.get(f"eval/{key}")
            for key in ("fraction_of_bayes", "length_baseline_accuracy", "bag_of_words_baseline_accuracy")
        )
        said = ["–" if other is None else f"{100 * other:.1f}" for other in others]
        print(
            f"| {name} | {accuracy[0]:.1f} [{accuracy[1]:.1f}, {accuracy[2]:.1f}] | "
            f"{'–' if bayes is None else f'{bayes:.2f}'} | {' | '.join(said)} | {found['eval/pairs']} |"
        )


# --------------------------------------------------------------------------------------------------- the runs


def instructions(options: argparse.Namespace) -> None:
    """All seeds and arms of the instructions, then the table of those that are finished."""
    given = yaml.safe_load((options.config or configurations()["smollm2"]).read_text(encoding="utf-8"))
    base = with_arms(given)
    if options.model:
        base = base.changed({"model_name_or_path": options.model})
    known = arms_of(base)
    arms = options.arms or known
    if not set(arms) <= set(known):
        raise SystemExit(f"--arms: the arms are {', '.join(known)}")
    by_seed, rewards = [], []
    for seed in range(options.seeds):
        run = options.out / f"seed-{seed}"
        config = base.changed({"output_dir": str(run), "seed": seed})
        for stages in (["collect"], ["collect", "reward"]):
            run_stage(config, stages)
        for arm in arms:
            for stages in ([arm], [arm, f"evaluate_{arm}"]):
                run_stage(config, ["collect", "reward", *stages])
        by_seed.append(rows_of_seed(run, arms))
        rewards.append(StageRecord(run / "reward").summary)
        print_reward(rewards, [f"seed {number}" for number in range(len(rewards))])
        print_table(by_seed)
        print_break_even(run, arms)


def human(options: argparse.Namespace) -> None:
    """A reward model of people's choices, on held-out choices and on the benchmark that is there."""
    given = yaml.safe_load((options.config or configurations()["smollm2_hh"]).read_text(encoding="utf-8"))
    if options.model:
        given["model_name_or_path"] = options.model
    run = options.out / "human"
    stages = ["reward"]
    data = os.environ.get("PREFERL_DATA")
    benchmark = Path(data) / "bench" / "llmbar.jsonl.gz" if data else None
    if benchmark is not None and benchmark.exists():
        given["llmbar"] = {"kind": "audit", "dataset_name": str(benchmark), "split": "all"}
        stages.append("llmbar")
    else:
        say("LLMBar is left out: bench/llmbar.jsonl.gz is not under $PREFERL_DATA")
    config = RunConfig(**given | {"output_dir": str(run)})
    for end in range(1, len(stages) + 1):
        run_stage(config, stages[:end])
    print_reward([StageRecord(run / "reward").summary], ["hh-rlhf helpful"])
    if "llmbar" in stages:
        found = StageRecord(run / "llmbar").summary
        value, low, high = (100 * found[f"all/accuracy{end}"] for end in ("", "_low", "_high"))
        print(f"LLMBar: {value:.1f} [{low:.1f}, {high:.1f}] % of {found['all/pairs']} pairs")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="+", help="by default all: DPO, PPO, RLOO")
    parser.add_argument("--model", help="another model than the Hub's: a directory")
    parser.add_argument("--config", type=Path, help="instead of smollm2 or smollm2_hh")
    parser.add_argument("--human", action="store_true", help="the reward model of people's choices")
    parser.add_argument("--out", type=Path, default=Path("runs/real_model"))
    options = parser.parse_args()
    run: Callable[[argparse.Namespace], None] = human if options.human else instructions
    run(options)


if __name__ == "__main__":
    main()
