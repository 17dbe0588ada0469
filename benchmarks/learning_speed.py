"""How fast PPO learns a reward of many points: updates until 80 % of the most that there is.

    python benchmarks/learning_speed.py [--seeds 8] [--whole] [--set cliprange_value=0.2 reward_clip=10]

A small Llama (4 layers of width 128, a vocabulary of 1,024) that preferl initialised learns sentences of
made-up words. Then PPO continues eight tokens by 24 more, without an end, and is paid a point for every token
that has a "k" in it: at first few do, 24 points are the most. Such a reward is a function of one's own:
nothing bounds it, and returns grow by several points while the critic learns them. All options are the
defaults of a small model but the length of the response and --max_kl none: so much reward lies far away. It
prints, for each seed, the updates until 80 %, the best reward of a batch and the KL there. A run ends when it
is there, or with --whole when its schedule ends.
"""

import argparse
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn import functional as F

from preferl.data.records import PromptRecord
from preferl.learning.models import RlModels
from preferl.models import load, tiny
from preferl.models.reward import critic_from_policy
from preferl.runs.errors import DivergedError
from preferl.sampling.cached import CachedEngine
from preferl.sampling.policy import Policy, Responses
from preferl.sampling.samples import Sampling
from preferl.stages import rl

PROMPT, RESPONSE = 8, 24  # tokens
ROW = 48  # tokens of a sentence's part that trains the language model
LEVEL = 0.8  # of the most points that there are
WORDS, SENTENCES = 6_000, 20_000
CPU = torch.device("cpu")


def made_up_words(count: int) -> list[str]:
    """Words of one to four syllables, each once, in an order of no meaning."""
    rng, words = random.Random(0), dict[str, None]()
    while len(words) < count:
        syllables = []
        for _ in range(rng.randint(1, 4)):
            end = rng.choice("bcdfghjklmnprstvwz") if rng.random() < 0.3 else ""
            syllables.append(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + end)
        words["".join(syllables)] = None
    return list(words)


def sentences(count: int) -> list[str]:
    """Of 8 to 24 words, of which a few are frequent (Zipf's law)."""
    rng, words = random.Random(11), made_up_words(WORDS)
    weights = [1 / (rank + 3) for rank in range(len(words))]
    return [" ".join(rng.choices(words, weights, k=rng.randint(8, 24))) + " ." for _ in range(count)]


def language_model(directory: Path, updates: int = 400) -> torch.Tensor:
    """Trains and saves the model; returns the ``ids_NS`` that it learned from."""
    texts = sentences(SENTENCES)
    tokenizer = tiny.train_tokenizer(texts, 1024)
    ids = [i for text in texts for i in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
    ids_NS = torch.tensor(ids[: len(ids) // ROW * ROW]).view(-1, ROW)
    torch.manual_seed(0)
    model = tiny.tiny_model(tokenizer, hidden_size=128, num_layers=4, num_heads=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, updates)
    for _ in range(updates):
        batch_BS = ids_NS[torch.randint(len(ids_NS), (32,))]
        logits_BSV = model(input_ids=batch_BS).logits[:, :-1]
        loss = F.cross_entropy(logits_BSV.flatten(0, 1), batch_BS[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    load.save(model.eval(), tokenizer, directory)
    return ids_NS


class Continues(Policy):
    """A policy whose prompts are numbers of rows, and whose responses have no end. Text that is encoded again
    may become other tokens; the points are of the tokens that were drawn."""

    ids_NS: torch.Tensor
    points_V: torch.Tensor
    points_B: list[float]

    def prompt_tokens(self, prompts: Any, response_length: int) -> list[list[int]]:
        return [self.ids_NS[int(prompt), :PROMPT].tolist() for prompt in prompts]

    def sampling(self, options: Any) -> Sampling:
        pad_id, eos_id = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return Sampling(options.temperature, options.response_length, (pad_id, eos_id), ())

    def respond(self, *arguments: Any, **options: Any) -> Responses:
        made = super().respond(*arguments, **options)
        response_BT = made.samples.tokens_BS[:, PROMPT:]
        self.points_B = (self.points_V[response_BT] * made.samples.mask_BT).sum(-1).tolist()
        return made

    def score(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        """The points of what was drawn last, as a reward function."""
        return self.points_B


def one_run(
    directory: Path, ids_NS: torch.Tensor, seed: int, options: dict[str, Any], whole: bool
) -> dict[str, Any]:
    """A run: updates until the level, and the best batch."""
    config = rl.RlConfig(
        model_name_or_path=str(directory),
        seed=seed,
        value_model="policy",
        **{"response_length": RESPONSE, "max_kl": "none", "eval_every": 0, "save_every": 0} | options,
    )
    torch.manual_seed(seed)
    (model, tokenizer), (reference, _) = (load.load_policy(str(directory), CPU) for _ in range(2))
    models = RlModels(model, reference, critic_from_policy(str(directory), CPU))
    policy = Continues(model, tokenizer, torch.float32, CachedEngine(model, tokenizer.pad_token_id))
    policy.ids_NS = ids_NS
    points = ["k" in tokenizer.decode([i]) for i in range(len(tokenizer))]
    policy.points_V = torch.tensor(points, dtype=torch.float32)
    policy.points_V[tokenizer.all_special_ids] = 0
    config = rl.with_defaults(config, models, policy.score)
    prompts = [PromptRecord(str(row)) for row in range(len(ids_NS))]
    trainer = rl.Trainer(
        config=config,
        policy=policy,
        learner=rl.learner_for(config, models, prompts, torch.float32),
        scorer=policy.score,
        gold=None,
        held_out=[],
        announce=lambda text: None,
    )
    rows: list[dict[str, Any]] = []
    try:
        for iteration in range(1, config.iterations + 1):
            row, _ = trainer.iterate(iteration)
            rows.append(row)
            if row["train/reward"] >= LEVEL * RESPONSE and not whole:
                break
    except DivergedError as error:
        print(f"seed {seed} ended: {error}", file=sys.stderr)
    reward = [row["train/reward"] for row in rows]
    reached = [number for number, value in enumerate(reward, 1) if value >= LEVEL * RESPONSE]
    best = max(range(len(rows)), key=reward.__getitem__)
    return {
        "reached": reached[0] if reached else None,
        "first": reward[0],
        "best": reward[best],
        "kl": rows[best]["train/kl"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--whole", action="store_true", help="all iterations")
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE", help="options of preferl rl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = {}
    for text in arguments.set:
        name, value = text.split("=", 1)
        options[name] = yaml.safe_load(value)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    with tempfile.TemporaryDirectory() as directory:
        ids_NS = language_model(Path(directory))
        print(f"updates until {LEVEL:.0%} of {RESPONSE} points; options {options or 'by default'}")
        found = []
        for seed in seeds:
            run = one_run(Path(directory), ids_NS, seed, options, arguments.whole)
            found.append(run["reached"])
            print(
                f"seed {seed}: {run['reached'] or 'never'}; reward {run['first']:.2f}, "
                f"best {run['best']:.2f} at KL {run['kl']:.0f}",
                flush=True,
            )
    middle = statistics.median(reached if reached is not None else float("inf") for reached in found)
    print(f"median of {len(found)} seeds: {middle:g} updates")


if __name__ == "__main__":
    main()
