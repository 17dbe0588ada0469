"""PPO at the defaults on a person's first pairs: few, easily told apart, and no model to begin with."""

import dataclasses
import itertools
import json
import random

import pytest

from preferl.data.files import write_rows
from preferl.stages import reward, rl, sft
from seeds import SEEDS, require_at_most

THINGS = ("tea", "bread", "a bike", "the moon", "rain", "a cat", "chess", "salt", "a train", "music")
ASKED = ("Tell me about {}.", "What do you think of {}?", "Explain {} to a child.")
POLITE, RUDE = ("Gladly! ", "Of course. ", "Happy to help: "), ("Why ask me? ", "Whatever. ", "Look it up. ")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Pairs of polite and rude answers, the model that sft makes of them, and its reward model."""
    folder = tmp_path_factory.mktemp("first")
    rng = random.Random(1)
    rows = [
        {
            "prompt": f"{asked.format(thing)} ({number})",
            "chosen": f"{rng.choice(POLITE)}{thing} is nice, and many people like it.",
            "rejected": f"{rng.choice(RUDE)}{thing} is boring.",
        }
        for number, (asked, thing, _) in enumerate(itertools.product(ASKED, THINGS, range(8)))
    ]
    write_rows(folder / "pairs.jsonl", rows)
    common = {"dataset_name": str(folder / "pairs.jsonl"), "num_threads": 1, "device": "cpu"}
    start = sft.run(sft.SftConfig(output_dir=str(folder / "sft"), **common))
    judge = reward.run(
        reward.RewardConfig(output_dir=str(folder / "reward"), model_name_or_path=str(start), **common)
    )
    models = {"model_name_or_path": str(start), "reward_model": str(judge)}
    return rl.RlConfig(output_dir=str(folder / "rl"), eval_every=0, **models, **common)


def test_the_policy_stays_near_its_start(trained):
    """Of a start that is nearly sure of every token, and rewards that are nearly all alike, a critic that
    says anything makes noise, and whitened noise leads tens of nats away in two iterations."""
    furthest = []
    for seed in SEEDS:
        # As many iterations of warm-up as the default has: one.
        config = dataclasses.replace(
            trained, seed=seed, num_iterations=4, warmup_ratio=0.25, max_kl="none", save_every=0
        )
        path = rl.run(config, fresh=True)
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        furthest.append(max(row["train/kl"] for row in rows))
    require_at_most(5.0, 20.0, furthest)
