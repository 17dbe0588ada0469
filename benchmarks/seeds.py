"""The demo over several seeds: one line each, and the worst of every figure.

python benchmarks/seeds.py [--seeds 3] [--out runs/seeds]
"""

import argparse
from pathlib import Path

from preferl import pipeline
from preferl.runs.record import StageRecord

FIGURES = (
    "seconds",
    "well-formed",
    "agreement",
    "words",
    "length",
    "of Bayes",
    "gold gain",
    "low",
    "win rate",
    "KL",
    "EOS",
)


def figures(run: Path) -> list[float]:
    """The figures of a finished run, in the order of FIGURES. Beside the reward model's agreement with
    held-out labels stands that of a bag of words and of length alone."""
    sft, reward, evaluate = (StageRecord(run / name).summary for name in ("sft", "reward", "evaluate"))
    stages = ("sft", "collect", "reward", "rl", "evaluate")
    gold, policy = evaluate["comparison"]["gold"], evaluate["policies"]["policy"]
    return [
        sum(StageRecord(run / name).summary["seconds"] for name in stages),
        sft["dev/well_formed_rate"],
        reward["eval/accuracy"],
        reward["eval/bag_of_words_baseline_accuracy"],
        reward["eval/length_baseline_accuracy"],
        reward["eval/fraction_of_bayes"],
        gold["difference"],
        gold["difference_low"],
        gold["win_rate"],
        policy["kl"],
        policy["eos_rate"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        run = options.out / f"seed-{seed}"
        pipeline.run(pipeline.demo_config(output_dir=str(run), seed=seed))
        rows.append(figures(run))
    print("seed  " + "  ".join(f"{name:>11}" for name in FIGURES))
    for seed, row in enumerate(rows):
        print(f"{seed:>4}  " + "  ".join(f"{value:>11.3f}" for value in row))


if __name__ == "__main__":
    main()
