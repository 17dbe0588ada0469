"""Are items on which a reward-model ensemble disagrees worth more than random ones? Measured on the world.

One annotator, who draws his choices from Bradley-Terry on the gold reward, labels the same pool of pairs
twice for each seed: with random selection, and with ``--selection informative`` (one item in five at random),
the ensemble trained again and the pool scored anew every so many labels, by the code of ``preferl label``.
Printed is the share of held-out pairs that the ensemble orders as the gold reward does, by labels spent.

    python benchmarks/label_efficiency.py --model_name_or_path runs/demo/sft
"""

import argparse
import random
import tempfile
from pathlib import Path

import numpy as np
import torch

from preferl.data import formats
from preferl.data.records import Pair
from preferl.data.world_files import write_world
from preferl.judging.scorers import load_scorer
from preferl.label import live
from preferl.label.accounts import Accounts
from preferl.label.answers import Answer
from preferl.label.items import without_label
from preferl.label.schema import open_database
from preferl.label.store import Claim, Store
from preferl.world import gold_reward

CPU = torch.device("cpu")
HELD_OUT = 1500


def gold(prompt: list[dict[str, str]], response: str) -> float:
    return gold_reward(prompt[-1]["content"], response)


def answer(claim: Claim, rng: random.Random) -> Answer:
    """A choice drawn from Bradley-Terry on the gold reward."""
    first, second = (gold(claim.prompt, text) for text in claim.shown)
    if rng.random() < 1 / (1 + np.exp(second - first)):
        return Answer(ranks=[1, 2], strength=2)
    return Answer(ranks=[2, 1], strength=-2)


def accuracy(path: Path, pairs: list[Pair]) -> float:
    """Share of the pairs of different gold reward that the ensemble's mean orders alike."""
    prompts = [pair.prompt for pair in pairs]
    scorer = load_scorer(str(path), CPU)
    chosen, rejected = (scorer(prompts, [getattr(p, side) for p in pairs]) for side in ("chosen", "rejected"))
    gap_N = np.subtract(chosen, rejected)
    truth_N = np.array([gold(p.prompt, p.chosen) - gold(p.prompt, p.rejected) for p in pairs])
    kept_N = truth_N != 0
    return float((np.sign(gap_N) == np.sign(truth_N))[kept_N].mean())


def curve(
    folder: Path, selection: str, seed: int, steps: list[int], pool: list[Pair], test: list[Pair],
    model: str,
) -> list[float]:  # fmt: skip
    """Accuracy after each number of labels."""
    database = open_database(str(folder / "label.sqlite"))
    store = Store(database)
    store.configure(selection=selection, gold_share=0.0, repeat_share=0.0, seed=seed)
    store.add_items(without_label(pair.comparison()) for pair in pool)
    person, rng = Accounts(database).add("annotator").id, random.Random(seed)
    config = live.RefitConfig(
        model_name_or_path=model, output_dir=str(folder), once=True, audit=False, num_evals=3, seed=seed,
        device="cpu", num_threads=1, num_train_epochs=4, train_batch_size=16, learning_rate=1e-3,
        lr_end_factor=0.0, pooling="mean", train_embeddings=False, patience=20,
    )  # fmt: skip
    found, done = [], 0
    for step in steps:
        while done < step:
            claim = store.claim(person)
            assert claim is not None
            store.submit(person, claim.id, f"label-{done:06d}", answer(claim, rng))
            done += 1
        found.append(accuracy(live.train_and_score(config, store, done, CPU), test))
    database.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model_name_or_path", default="runs/demo/sft")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 200, 400, 800])
    arguments = parser.parse_args()
    rows: dict[str, list[list[float]]] = {"random": [], "informative": []}
    with tempfile.TemporaryDirectory() as name:
        write_world(Path(name))
        comparisons = formats.load(str(Path(name) / "preferences.jsonl")).records
        pairs = [pair for comparison in comparisons for pair in comparison.pairs()]
        pool = [pair for pair in pairs if pair.columns["split"] == "train"]
        test = [pair for pair in pairs if pair.columns["split"] == "eval"][:HELD_OUT]
        for seed in range(arguments.seeds):
            for selection, curves in rows.items():
                folder = Path(name) / f"{selection}-{seed}"
                folder.mkdir()
                curves.append(
                    curve(folder, selection, seed, arguments.steps, pool, test, arguments.model_name_or_path)
                )
                print(selection, seed, [f"{share:.3f}" for share in curves[-1]], flush=True)
    print(f"\n{len(pool)} pairs to choose from, {len(test)} held out, {arguments.seeds} seeds")
    print("| labels | " + " | ".join(map(str, arguments.steps)) + " |")
    print("|---" * (len(arguments.steps) + 1) + "|")
    for selection, curves in rows.items():
        array = 100 * np.array(curves)
        cells = [f"{m:.1f} ± {s:.1f} %" for m, s in zip(array.mean(0), array.std(0, ddof=1), strict=True)]
        print(f"| {selection} | " + " | ".join(cells) + " |")
    gap = 100 * (np.array(rows["informative"]) - np.array(rows["random"]))
    cells = [f"{m:+.1f} ± {s:.1f}" for m, s in zip(gap.mean(0), gap.std(0, ddof=1), strict=True)]
    print("| difference, of the same seed | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
