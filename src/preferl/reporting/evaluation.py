"""Did it work? Policies side by side, win rates by every measure and category, responses to read."""

import random
from typing import Any

from preferl.reporting.page import Stages, Table, brackets, percent, short, signed, two

NAMES = {"score": "reward", "gold": "gold reward", "held_out": "held-out reward"}
MEASURES = NAMES | {"judge": "judge, both orders"}
BEST_FIRST = ("gold", "held_out", "score")  # what a policy is judged by, where it is known
MOST_CATEGORIES = 16


def main_measure(summary: dict[str, Any]) -> tuple[str, str]:
    """What a policy is judged by, with its name: gold, else a held-out reward, else the proxy itself."""
    key = next(measure for measure in BEST_FIRST if measure in summary["comparison"])
    return key, NAMES[key]


def with_interval(row: dict[str, Any], key: str, form: Any = two) -> str:
    """A value and its 95 % interval; a dash where it is not known."""
    return f"{form(row[key])} {brackets(row, key, form)}" if row.get(key) is not None else "–"


def policies_table(stages: Stages) -> Table | None:
    if "evaluate" not in stages:
        return None
    summary = stages["evaluate"].summary
    shown = [m for m in NAMES if m in summary["policies"]["policy"]]
    head = ["", *(NAMES[m] for m in shown), "KL (nats)", "length (tokens)", "ends by itself",
            "repeated trigrams", "distinct bigrams", "perplexity", "passes per answer"]  # fmt: skip
    rows = []
    for key, name in (("reference", "SFT model"), ("policy", "policy")):
        p = summary["policies"][key]
        rows.append(
            [
                name,
                *(with_interval(p, m) for m in shown),
                f"{p['kl']:.2f} ± {p['kl_se']:.2f}" if "kl" in p else "0",
                f"{p['length']:.1f}",
                percent(p["eos_rate"]),
                percent(p["repetition"]),
                two(p["distinct_2"]),
                f"{p['perplexity']:.2f}",
                "1",
            ]
        )
    for row in summary["best_of"]:
        passes = row["forward_passes_per_response"]
        cells = [with_interval(row, m) for m in shown]
        cost = f"{passes['policy']} + {passes['reward']} of the reward model"
        rows.append([f"best-of-{row['n']} ({row['prompts']} prompts)", *cells, f"≤ {row['kl_bound']:.2f}",
                     f"{row['length']:.1f}", "–", "–", "–", "–", cost])  # fmt: skip
    note = (
        f"{summary['prompts']} prompts of the eval split, temperature {summary['temperature']}, "
        f"{summary['num_generations']} response{'s' * (summary['num_generations'] > 1)} each; 95 % "
        f"intervals. KL in nats per response ± a standard error, perplexity under the SFT model. A pass is "
        f"one sequence through one language model."
    )
    return Table("Policies side by side", head, rows, note)


def win_rates_table(stages: Stages) -> Table | None:
    """The policy against the SFT model and against the data set's responses, by everything that can judge."""
    if "evaluate" not in stages:
        return None
    summary = stages["evaluate"].summary
    rows = []
    for against, found in (
        ("SFT model", summary["comparison"]),
        ("the data's responses", summary["references"]),
    ):
        for measure, name in MEASURES.items():
            if measure not in found:
                continue
            row = found[measure]
            equal = "–"
            if row.get("length_effect"):
                equal = with_interval(row, "length_controlled_win_rate", percent)
            rows.append(
                [
                    against,
                    name,
                    with_interval(row, "win_rate", percent),
                    equal,
                    with_interval(row, "difference", signed),
                    f"{row['n']:,}",
                ]
            )
    reasons = {row.get("length_control_left_out") for row in summary["comparison"].values()} - {None}
    note = (
        "A tie is half a win; 95 % intervals: Wilson’s and the paired bootstrap’s with one response to a "
        "prompt, else both levels resampled. “At equal length” is a logistic regression on the difference "
        "of lengths, read at 0 (Dubois et al. 2024)"
    )
    note += f"; left out where {' or '.join(sorted(reasons))}." if reasons else "."
    if "judge" in summary["comparison"]:
        j = summary["comparison"]["judge"]
        note += f" {j['inconsistent']} verdicts of the judge changed with the order, "
        note += f"{j['unparsable']} were unreadable."
    head = ["against", "by", "win rate", "at equal length", "difference of means", "comparisons"]
    return Table("Win rates", head, rows, note)


def categories_table(stages: Stages) -> Table | None:
    """The win rate against the SFT model by kind of prompt."""
    if "evaluate" not in stages:
        return None
    summary = stages["evaluate"].summary
    key, name = main_measure(summary)
    rows = sorted(summary["comparison"][key].get("by_category", []), key=lambda row: row["win_rate"])
    cells = [
        [
            row["category"],
            f"{row['prompts']}",
            with_interval(row, "win_rate", percent),
            with_interval(row, "difference", signed),
        ]
        for row in rows[:MOST_CATEGORIES]
    ]
    note = f"Against the SFT model by {name}, worst first."
    if len(rows) > MOST_CATEGORIES:
        note += f" The {MOST_CATEGORIES} worst of {len(rows)}."
    head = ["kind of prompt", "prompts", "win rate", "difference of means"]
    return Table("By kind of prompt", head, cells, note) if cells else None


def examples(stages: Stages, seed: int = 0) -> list[dict[str, Any]]:
    """Ten prompts side by side: five drawn by a seed, and the extremes."""
    if "evaluate" not in stages:
        return []
    rows = stages["evaluate"].samples
    key, name = main_measure(stages["evaluate"].summary)
    gain = [row[f"policy_{key}"] - row[f"reference_{key}"] for row in rows]
    by_gain = sorted(range(len(rows)), key=gain.__getitem__)
    by_kl = sorted(range(len(rows)), key=lambda i: rows[i]["kl"])
    wanted = [(i, f"largest gain in {name}") for i in by_gain[::-1][:2] if gain[i] > 0]
    wanted += [(i, f"largest loss of {name}") for i in by_gain[:2] if gain[i] < 0]
    wanted += [(by_kl[-1], "furthest from the SFT model")]
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    picked: dict[int, str] = {}
    for i, why in [(i, "drawn at random") for i in order[:5]] + wanted:
        picked.setdefault(i, why)
    for i in order[5:]:
        if len(picked) >= min(10, len(rows)):
            break
        picked.setdefault(i, "drawn at random")
    return [
        {**rows[i], "why": why, "prompt": short(rows[i]["prompt"]),
         **{who: short(rows[i][who]).strip() or "(empty)" for who in ("policy", "reference")}}
        for i, why in picked.items()
    ]  # fmt: skip
