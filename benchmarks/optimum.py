"""How near every algorithm comes to the exact optimum, and after how many samples.

Fast tier: a table as policy, vocabulary 4, length 3, coefficient 0.5. Hard tier: a small transformer,
vocabulary 8, length 4, coefficient 0.3 (tests/exact.py). F = (J - J_ref) / (J* - J_ref) by enumeration.
Controls must fall short, or the table proves nothing.

python benchmarks/optimum.py [--tier fast hard] [--seeds 3] [--only ppo rebel]
python benchmarks/optimum.py --markdown --seeds 16 --jobs 2       the tables of docs/algorithms.md: F's spread
"""

import argparse
import copy
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, quantiles

import torch

from preferl.maths import kl
from preferl.maths.policy import masked_sum
from preferl.sampling.logprobs import distributions

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from exact import Curve, Task, tabular_task, train, with_outlier
from exact_settings import FAST, TIERS, Setting, curves


def reached(found: list[Curve], level: float) -> str:
    """Median number of samples to a level over the seeds that got there, and how many did not."""
    counts = [count for curve in found if (count := curve.reached(level)) is not None]
    if not counts:
        return "never"
    missed = len(found) - len(counts)
    return f"{round(median(counts)):,}" + (f" ({missed} never)" if missed else "")


HEAD = "| | samples | F: median | quartiles | worst | to .95 | to .99 |\n|---|---|---|---|---|---|---|"


def markdown_row(label: str, samples: int, found: list[Curve]) -> str:
    """A row of the tables in docs/algorithms.md."""
    finals = [curve.final for curve in found]
    low, middle, high = quantiles(finals, n=4, method="inclusive")
    cells = [label, f"{samples:,}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{min(finals):.3f}"]
    return "| " + " | ".join([*cells, reached(found, 0.95), reached(found, 0.99)]) + " |"


def text_row(label: str, samples: int, found: list[Curve]) -> str:
    """A row with F of every seed."""
    final = " ".join(f"{curve.final:.3f}" for curve in found)
    levels = "".join(f"{reached(found, level):>20}" for level in (0.95, 0.99))
    return f"{label:34}{samples:>9,}{final:>32}{levels}"


def outlier_table(seeds: range) -> None:
    """What one reward of a million in one batch does, with rewards clipped and without."""
    print("\none reward of 1e6 in iteration 20 of 80 (64 samples each), fast tier: F, each seed")
    print(f"{'':12}{'no outlier':>22}{'clipped at 10':>22}{'not clipped':>22}")
    for name in ("rloo k=4", "ppo", "rebel"):
        cells = []
        for clip, hit in ((10.0, False), (10.0, True), (0.0, True)):
            finals = []
            for seed in seeds:
                task = tabular_task(seed)
                options = {**FAST[name].options, "batch_size": 64}
                config = Setting(5120, options).config(seed, task.coef)
                config = replace(config, reward_clip=clip)
                scorer = with_outlier(task, 20) if hit else task.scorer
                finals.append(train(task, config, every=80, scorer=scorer).final)
            cells.append(" ".join(f"{final:.3f}" for final in finals))
        print(f"{name:12}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


def kl_gradients(task: Task, moved: float, seed: int) -> dict[str, tuple[float, float]]:
    """For every place and estimator of the KL: the projection of its expected gradient on that of the KL, and
    the distance to it, both relative to its size. Expectations are exact, over all responses of a policy that
    lies ``moved`` (sd of its logits) from the reference."""
    policy = copy.deepcopy(task.reference)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        policy.table.add_(moved * torch.randn(policy.table.shape, generator=generator))
    now = distributions(policy, task.all)
    with torch.no_grad():
        reference = distributions(task.reference, task.all)
        ref_NT = reference.logprobs()
    logp_NT, mask_NT = now.logprobs(), task.all.mask_BT
    logp_N, ref_N = logp_NT.sum(-1), ref_NT.sum(-1)
    p_N = logp_N.exp().detach()
    exact_N = masked_sum(now.kl_to(reference), mask_NT)
    tokens = {kind: masked_sum(kl.kl_estimate(logp_NT, ref_NT, kind), mask_NT) for kind in ("k1", "k2", "k3")}

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, policy.table, retain_graph=True)[0].flatten()

    true = gradient((logp_N.exp() * (logp_N - ref_N)).sum())
    # A reward is detached and multiplies the gradient of log pi; each token carries what comes after it,
    # which sums to the whole.
    found = {
        f"{kind} in the reward": gradient((p_N * logp_N * value_N.detach()).sum())
        for kind, value_N in (*tokens.items(), ("exact", exact_N))
    }
    found["k1 in the loss"] = gradient((p_N * tokens["k1"]).sum())
    found["k2 of responses in the loss"] = gradient((p_N * kl.kl_estimate(logp_N, ref_N, "k2")).sum())
    for kind, value_N in (("k2", tokens["k2"]), ("k3", tokens["k3"]), ("exact", exact_N)):
        found[f"{kind} of tokens in the loss"] = gradient((p_N * value_N).sum())
    size = true.norm()
    return {name: (float(g @ true / size**2), float((g - true).norm() / size)) for name, g in found.items()}


def gradient_table(seeds: range) -> None:
    """The KL's expected gradient by place and estimator, near the reference and further away."""
    print("\nexpected gradient against that of the KL: projection, distance (1 and 0 are exact), fast tier")
    spreads = (0.1, 0.5, 1.0)
    print(f"{'':30}" + "".join(f"{f'logits moved by {spread}':>24}" for spread in spreads))
    columns = [[kl_gradients(tabular_task(seed), spread, seed) for seed in seeds] for spread in spreads]
    for name in columns[0][0]:
        cells = [[mean(found[name][part] for found in column) for part in (0, 1)] for column in columns]
        print(f"{name:30}" + "".join(f"{f'{along:.3f}, {off:.3f}':>24}" for along, off in cells))


def every_curve(tier: str, options: argparse.Namespace) -> Iterator[tuple[str, list[Curve]]]:
    """Each setting of a tier with the curves of its seeds, in order; ``jobs`` processes share the runs."""
    names = [name for name in TIERS[tier][0] if not options.only or name in options.only]
    every = 1 if tier == "fast" else 2
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, torch.set_num_threads, (1,)) as pool:
        one = [range(seed, seed + 1) for seed in range(options.seeds)]
        runs = {name: [pool.submit(curves, tier, name, seed, every) for seed in one] for name in names}
        for name, futures in runs.items():
            yield name, [curve for future in futures for curve in future.result()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tier", nargs="+", default=list(TIERS), choices=list(TIERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--markdown", action="store_true", help="the rows of docs/algorithms.md")
    parser.add_argument("--only", nargs="+", default=None, help="settings by name")
    parser.add_argument("--outlier", action="store_true", help="one reward of a million, and nothing else")
    parser.add_argument("--gradients", action="store_true", help="the KL's gradient by place and estimator")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.gradients:
        return gradient_table(range(10))
    if options.outlier:
        return outlier_table(range(options.seeds))
    for tier in options.tier:
        print(f"\n{tier} tier, {options.seeds} seeds")
        text_head = f"{'':34}{'samples':>9}{'F (each seed)':>32}{'to .95':>20}{'to .99':>20}"
        print(HEAD if options.markdown else text_head)
        for name, found in every_curve(tier, options):
            setting = TIERS[tier][0][name]
            label = name + (" (control)" if setting.control else "")
            row = markdown_row if options.markdown else text_row
            print(row(label, setting.samples, found), flush=True)


if __name__ == "__main__":
    main()
