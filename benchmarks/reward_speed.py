"""Reward training: preferl's loop against TRL's RewardTrainer on the same model, pairs and threads.

    python benchmarks/reward_speed.py [--size S] [--batch 32] [--rounds 3] [--threads 2]

Two settings: random ids of 64 tokens a side, and the pairs of hh-rlhf (helpful) in the folder PREFERL_DATA,
at most 512 tokens a side. Both in float32, without gradient checkpointing, with fused AdamW. preferl's side
is ``learning.comparisons.optimise`` with its defaults (moving average of the weights, a line of metrics an
update); TRL's is ``RewardTrainer`` with its defaults otherwise, on the ids that preferl made. Rounds
alternate, all over the same batches. A step is all from the end of one update to the end of the next, without
evaluation; its time is the median over the rounds in which other processes used less than a fifth of a core
that these threads had need of, or over all rounds where there is no such round. A side's speed is that of the
whole epoch.

Needs TRL: pip install trl
"""

import argparse
import dataclasses
import itertools
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast, TrainerCallback

from preferl.data import sources
from preferl.data.records import Comparison, Pair, prompt_text
from preferl.learning.comparisons import optimise
from preferl.models import tiny
from preferl.models.reward import RewardModel
from preferl.runs import progress
from preferl.runs.stage import Stage
from preferl.stages import reward

SIZES: dict[str, dict[str, Any]] = {
    "S": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512},
    "M": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1024},
}
VOCABULARY = {"S": 1024, "M": 4096}
FIXED_LENGTH, MAX_LENGTH = 64, 512
HH_FILE = "pref/hh_helpful_base.train.jsonl.gz"
FOREIGN_LIMIT = 0.2  # of a core


@dataclass(frozen=True)
class Mark:
    """A moment: wall clock, busy time of all cores, processor time of this process."""

    wall: float
    busy: float | None
    own: float


def now() -> Mark:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    busy = None
    if Path("/proc/stat").exists():
        with open("/proc/stat") as file:
            ticks = [int(x) for x in file.readline().split()[1:9]]
        busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and iowait
    return Mark(time.perf_counter(), busy, usage.ru_utime + usage.ru_stime)


class Timing:
    """The rounds of one side, each with the same steps."""

    def __init__(self) -> None:
        self.rounds: list[list[tuple[float, float, bool]]] = []

    def add(self, marks: Sequence[Mark]) -> None:
        """Takes the steps between consecutive marks: seconds, processor seconds, undisturbed."""
        spare = max(0, (os.cpu_count() or 1) - torch.get_num_threads())
        steps = []
        for before, after in itertools.pairwise(marks):
            wall, own = after.wall - before.wall, after.own - before.own
            foreign = 0.0
            if before.busy is not None and after.busy is not None:
                foreign = (after.busy - before.busy - own) / wall
            steps.append((wall, own, foreign - spare <= FOREIGN_LIMIT))
        self.rounds.append(steps)

    def seconds(self) -> tuple[float, float]:
        """Wall clock and processor seconds of an epoch."""
        wall = own = 0.0
        for times in zip(*self.rounds, strict=True):
            kept = [step for step in times if step[2]] or times
            wall += statistics.median(step[0] for step in kept)
            own += statistics.median(step[1] for step in kept)
        return wall, own

    def disturbed(self) -> int:
        """Steps that were disturbed in every round."""
        return sum(not any(step[2] for step in times) for times in zip(*self.rounds, strict=True))


@dataclass(frozen=True)
class Setting:
    name: str
    comparisons: list[Comparison]
    tokenizer: Any


def fixed_lengths(size: str, count: int) -> Setting:
    """Pairs without a prompt: 63 random words and EOS, each word a token."""
    vocab = {"[PAD]": 0, "[EOS]": 1} | {f"w{i}": i for i in range(2, VOCABULARY[size])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="[EOS]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", eos_token="[EOS]")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCABULARY[size], (count, 2, FIXED_LENGTH - 1), generator=generator)
    texts = [[" ".join(f"w{i}" for i in row) for row in pair] for pair in ids.tolist()]
    return Setting(
        f"{FIXED_LENGTH} tokens a side", [Comparison("", pair, [1, 2]) for pair in texts], tokenizer
    )


def natural_lengths(size: str, count: int) -> Setting | None:
    """The first pairs of hh-rlhf that fit, with a tokenizer of these texts; None where the file is absent."""
    path = Path(os.environ.get("PREFERL_DATA", "")) / HH_FILE
    if not os.environ.get("PREFERL_DATA") or not path.exists():
        print(f"hh-rlhf left out: the folder PREFERL_DATA has no {HH_FILE}")
        return None
    pairs: list[Pair] = sources.load_source(str(path)).need("pairs", "train")
    texts = [text for p in pairs for text in (prompt_text(p.prompt), p.chosen, p.rejected)]
    tokenizer = tiny.train_tokenizer(texts, VOCABULARY[size])
    scorer = RewardModel(new_model(size, tokenizer), tokenizer)
    # Both sides get the same rows: preferl would cut longer ones, TRL leaves them out.
    fitting = [
        p for p in pairs if max(len(scorer.encode(p.prompt, t)) for t in (p.chosen, p.rejected)) <= MAX_LENGTH
    ]
    return Setting("hh-rlhf, natural lengths", [p.comparison() for p in fitting[:count]], tokenizer)


def new_model(size: str, tokenizer: Any) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY[size],
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **SIZES[size],
    )
    config.num_labels = 1
    return LlamaForSequenceClassification(config).eval()


class StageTimer:
    """Notes when each update was logged, which is the last thing that an update does."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self.rows: list[dict[str, Any]] = []

    def started_at(self, *_: Any) -> None:
        """Notes the beginning of the first update."""
        if not self.marks:
            self.marks.append(now())

    def logged(self, step: int | None, row: dict[str, Any]) -> None:
        self.rows.append({name.removeprefix("train/"): value for name, value in row.items()})
        self.marks.append(now())


class StepTimer(TrainerCallback):
    def __init__(self):
        self.marks: list[Mark] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self.marks:
            self.marks.append(now())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.marks.append(now())


@contextmanager
def quiet() -> Iterator[None]:
    """Neither side's progress on the terminal."""
    import datasets

    hidden = progress.console.quiet
    progress.console.quiet = True
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        progress.console.quiet = hidden


def train_ours(
    setting: Setting, size: str, batch: int, updates: int, seed: int
) -> tuple[list[Mark], dict[str, float]]:
    """preferl's loop; returns a mark an update and the first row of its metrics."""
    scorer = RewardModel(new_model(size, setting.tokenizer), setting.tokenizer, max_length=MAX_LENGTH)
    dev_pairs, timer = setting[0].comparisons.pairs(), StageTimer()
    scorer.model.base_model.register_forward_pre_hook(timer.started_at)
    options = reward.RewardConfig(
        train_batch_size=batch,
        num_train_epochs=updates * batch / len(setting.comparisons),
        num_evals=1,  # the last update's
        max_length=MAX_LENGTH,
        learning_rate=1e-4,
        warmup_ratio=0.0,
        save_every=0,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder, quiet():
        config = dataclasses.replace(options, output_dir=folder)
        with Stage("reward", config, callbacks=[timer.logged]) as stage:
            stage.begin({})
            optimise(scorer, "bradley_terry", setting.comparisons, dev_pairs, config, stage)
    return timer.marks, timer.rows[0]


def train_theirs(
    setting: Setting, size: str, batch: int, updates: int, seed: int, logging_steps: int = 10
) -> tuple[list[Mark], dict[str, float]]:
    """TRL's loop on the same ids; returns a mark an update and the first row of its metrics."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    model = new_model(size, setting.tokenizer)
    scorer = RewardModel(model, setting.tokenizer, max_length=MAX_LENGTH)
    columns: dict[str, list[list[int]]] = {"chosen_ids": [], "rejected_ids": []}
    for ranking in setting.comparisons:
        for column, text in zip(columns.values(), ranking.responses, strict=True):
            column.append(scorer.encode(ranking.prompt, text))
    timer = StepTimer()
    with tempfile.TemporaryDirectory() as folder, quiet():
        arguments = RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            max_steps=updates,
            max_length=MAX_LENGTH,
            learning_rate=1e-4,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=logging_steps,
            dataloader_pin_memory=False,
            seed=seed,
        )
        trainer = RewardTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict(columns),
            processing_class=setting.tokenizer,
            callbacks=[timer],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return timer.marks, trainer.state.log_history[0]


def check_same_loss(setting: Setting, size: str, batch: int) -> None:
    """One update on one batch: both sides log the same loss and the same norm of the gradient.

    Raises:
        SystemExit: they do not, and a comparison of speeds would mean nothing.
    """
    one = Setting(setting.name, setting.comparisons[:batch], setting.tokenizer)
    _, ours = train_ours(one, size, batch, 1, 0)
    _, theirs = train_theirs(one, size, batch, 1, 0, logging_steps=1)
    for name in ("loss", "grad_norm"):
        gap = abs(float(ours[name]) - float(theirs[name]))
        print(
            f"  {name:>9} of the first update: preferl {float(ours[name]):.7f}, TRL {float(theirs[name]):.7f}"
        )
        if gap > 1e-5 * max(1.0, abs(float(theirs[name]))):
            sys.exit(f"the two sides do not compute the same {name}")


def measure(setting: Setting, size: str, batch: int, rounds: int) -> dict[str, Timing]:
    """Rounds of one epoch each, alternately."""
    updates = len(setting.comparisons) // batch
    timings = {"preferl": Timing(), "TRL": Timing()}
    for _ in range(rounds):
        for name, train in (("preferl", train_ours), ("TRL", train_theirs)):
            marks, _ = train(setting, size, batch, updates + 1, 0)
            timings[name].add(marks[: updates + 1])
    return timings


def print_table(setting: Setting, timings: dict[str, Timing]) -> None:
    print(f"  {'':>8} {'s an epoch':>11} {'pairs/s':>9} {'pairs per CPU second':>21}")
    rates = {}
    for name, timing in timings.items():
        wall, own = timing.seconds()
        rates[name] = len(setting.comparisons) / wall, len(setting.comparisons) / own
        print(f"  {name:>8} {wall:11.2f} {rates[name][0]:9.1f} {rates[name][1]:21.1f}")
        if timing.disturbed():
            share = f"{timing.disturbed()} of {len(timing.rounds[0])} steps"
            print(f"  {name}: other processes were at work in every round of {share}")
    ratios = [ours / theirs for ours, theirs in zip(rates["preferl"], rates["TRL"], strict=True)]
    print(f"  preferl / TRL: {ratios[0]:.2f} by wall clock, {ratios[1]:.2f} by processor time")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="S")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--updates", type=int, default=16, help="batches of an epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--settings", nargs="+", choices=("fixed", "natural"), default=("fixed", "natural"))
    options = parser.parse_args()
    try:
        import trl
    except ImportError:
        sys.exit("this benchmark compares with TRL, which is not installed: pip install trl")
    torch.set_num_threads(options.threads)
    count = options.batch * options.updates
    print(
        f"TRL {trl.__version__}, torch {torch.__version__}, model {options.size}, "
        f"batch {options.batch} pairs, {options.threads} threads, "
        f"{options.rounds} rounds of {options.updates} updates"
    )
    makers = {"fixed": fixed_lengths, "natural": natural_lengths}
    for name in options.settings:
        setting = makers[name](options.size, count)
        if setting is None:
            continue
        whole = len(setting.comparisons) // options.batch * options.batch
        del setting.comparisons[whole:]
        print(f"\n{setting.name}, {len(setting.comparisons)} pairs")
        check_same_loss(setting, options.size, options.batch)
        print_table(setting, measure(setting, options.size, options.batch, options.rounds))


if __name__ == "__main__":
    main()
