"""Did it work? Policies side by side, win rates by every measure and category, responses to read."""

import random

from preferl.reporting.formats import (
    cut_text,
    format_1f,
    format_2f,
    percent,
    signed_2f,
    with_error,
    with_interval,
)
from preferl.reporting.measures import MEASURES, NAMES, Runs, Stages, main_measure, summaries, summary_of
from preferl.reporting.page import Plot, Table, needs, of_one_run, table
from preferl.reporting.plots import BLUE, GREY, ORANGE, curve, draw, error_bars
from preferl.reporting.samples import numbers_of
from preferl.reporting.verdict import Seeds, evaluated_seeds, gain, verdict, verdicts

MOST_CATEGORIES = 16
SAME_PROMPTS = 4  # of a page of several runs


@of_one_run("evaluate")
def policies_table(stages: Stages) -> Table | None:
    summary = summary_of(stages)
    measures = [m for m in NAMES if m in summary["policies"]["policy"]]
    rows = []
    for key, name in (("reference", "SFT model"), ("policy", "policy")):
        p = summary["policies"][key]
        rows.append(
            {
                "": name,
                **{NAMES[m]: with_interval(p, m) for m in measures},
                "KL (nats)": with_error(p, "kl") if "kl" in p else "0",
                "length (tokens)": f"{p['length']:.1f}",
                "ends by itself": percent(p["eos_rate"]),
                "repeated trigrams": percent(p["repetition"]),
                "distinct bigrams": format_2f(p["distinct_2"]),
                "perplexity": f"{p['perplexity']:.2f}",
                "passes per answer": "1",
            }
        )
    unknown = dict.fromkeys(("ends by itself", "repeated trigrams", "distinct bigrams", "perplexity"), "–")
    for row in summary["best_of"]:
        passes = row["forward_passes_per_response"]
        rows.append(
            {
                "": f"best-of-{row['n']} ({row['prompts']} prompts)",
                **{NAMES[m]: with_interval(row, m) for m in measures},
                "KL (nats)": f"≤ {row['kl_bound']:.2f}",
                "length (tokens)": f"{row['length']:.1f}",
                **unknown,
                "passes per answer": f"{passes['policy']} + {passes['reward']} of the reward model",
            }
        )
    note = (
        f"{summary['prompts']} prompts of {split_of(stages)}, temperature {summary['temperature']}, "
        f"{summary['num_generations']} response{'s' * (summary['num_generations'] > 1)} each; 95 % "
        f"intervals. KL in nats per response ± a standard error, perplexity under the SFT model. A pass is "
        f"one sequence through one language model."
    )
    return table("Policies side by side", rows, note)


def split_of(stages: Stages) -> str:
    """The rows that an evaluation measured on, in words."""
    split = stages["evaluate"].config.get("split") or "eval"
    return "all splits" if split == "all" else f"the split {split}"


@of_one_run("evaluate")
def win_rates_table(stages: Stages) -> Table | None:
    """The policy against the SFT model and against the data set's responses, by everything that can judge."""
    summary = summary_of(stages)
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
                {
                    "against": against,
                    "by": name,
                    "win rate": with_interval(row, "win_rate", percent),
                    "at equal length": equal,
                    "difference of means": with_interval(row, "difference", signed_2f),
                    "comparisons": f"{row['n']:,}",
                }
            )
    reasons = {row.get("length_control_left_out") for row in summary["comparison"].values()} - {None}
    note = (
        "A tie is half a win; 95 % intervals: Wilson’s and the paired bootstrap’s with one response to a "
        "prompt, else both levels resampled; of fewer than 30 prompts Wilson’s and Student’s. “At equal "
        "length” is a logistic regression on the difference of lengths, read at 0 (Dubois et al. 2024)"
    )
    note += f"; left out where {' or '.join(sorted(reasons))}." if reasons else "."
    if "judge" in summary["comparison"]:
        j = summary["comparison"]["judge"]
        note += f" {j['inconsistent']} verdicts of the judge changed with the order, "
        note += f"{j['unparsable']} were unreadable."
    return table("Win rates", rows, note)


@of_one_run("evaluate")
def categories_table(stages: Stages) -> Table | None:
    """The win rate against the SFT model by kind of prompt."""
    summary = summary_of(stages)
    key = main_measure(summary)
    rows = sorted(summary["comparison"][key].get("by_category", []), key=lambda row: row["win_rate"])
    cells = [
        {
            "kind of prompt": row["category"],
            "prompts": f"{row['prompts']}",
            "win rate": with_interval(row, "win_rate", percent),
            "difference of means": with_interval(row, "difference", signed_2f),
        }
        for row in rows[:MOST_CATEGORIES]
    ]
    note = f"Against the SFT model by {NAMES[key]}, worst first."
    if len(rows) > MOST_CATEGORIES:
        note += f" The {MOST_CATEGORIES} worst of {len(rows)}."
    return table("By kind of prompt", cells, note)


@needs("evaluate", at_least=2)
def gains_plot(runs: Runs) -> Plot:
    """Each run's gain by its own reward and by the common measure."""
    compared = [summary["comparison"] for summary in summaries(runs).values()]
    key = main_measure(*summaries(runs).values())
    looks = [("score", BLUE, "o")] + ([(key, ORANGE, "s")] if key != "score" else [])
    marks = []
    for i, (measure, colour, marker) in enumerate(looks):
        rows = [row[measure] for row in compared]
        dodge_y = (i - (len(looks) - 1) / 2) * 0.24  # so that bars do not hide each other
        x, y = [row["difference"] for row in rows], [dodge_y - n for n in range(len(rows))]
        ends = error_bars(rows, "difference")
        marks.append(
            curve(x, y, NAMES[measure], xerr=ends, color=colour, marker=marker, ls="none", ms=4, capsize=2)
        )
    marks += [
        lambda axes: axes.axvline(0, color=GREY, lw=0.8),
        lambda axes: axes.set_ylim(0.5 - len(runs), 0.5),
        lambda axes: axes.set_yticks([-n for n in range(len(runs))], list(runs)),
    ]
    judged = {name: row[key] for name, row in zip(runs, compared, strict=True)}
    worse = [name for name, row in judged.items() if row["difference_high"] < 0]
    better = [name for name, row in judged.items() if row["difference_low"] > 0]
    reading = f"By {NAMES[key]} {len(better)} of {len(runs)} runs gained and {len(worse)} lost beyond noise"
    reading += f" ({', '.join(worse)})." if worse else "."
    height = max(2.9, 0.32 * len(runs) + 0.9)
    svg = draw(marks, "gain over the SFT model (points)", "", height=height)
    return Plot("Reward and what it stands for", svg, reading)


@needs("evaluate", at_least=2)
def side_by_side(runs: Runs) -> Table | None:
    key = main_measure(*summaries(runs).values())
    rows = []
    for name, stages in runs.items():
        p, compared = summary_of(stages)["policies"]["policy"], summary_of(stages)["comparison"]
        row = {
            "run": name,
            "verdict": verdict(stages).word,
            "gain in its reward": with_interval(compared["score"], "difference", signed_2f),
        }
        if key != "score":
            row[f"gain in {NAMES[key]}"] = with_interval(compared[key], "difference", signed_2f)
        row |= {
            f"win rate by {NAMES[key]}": with_interval(compared[key], "win_rate", percent),
            "KL (nats)": f"{format_1f(p['kl'])} ± {format_1f(p['kl_se'])}",
            "length (tokens)": f"{p['length']:.1f}",
            "ends by itself": percent(p["eos_rate"]),
            "repeated trigrams": percent(p["repetition"]),
        }
        rows.append(row)
    note = "Against each run’s own SFT model, on held-out prompts; 95 % intervals over the prompts."
    return table("Runs side by side", rows, note)


@needs("evaluate", at_least=2)
def responses_table(runs: Runs, seed: int = 0) -> Table | None:
    """The first response of every run to the same few prompts, below that of the SFT model."""
    samples = {name: {row["prompt"]: row for row in s["evaluate"].samples} for name, s in runs.items()}
    first = next(iter(samples.values()))
    prompts = sorted(prompt for prompt in first if all(prompt in of_run for of_run in samples.values()))
    random.Random(seed).shuffle(prompts)
    rows = []
    for prompt in prompts[:SAME_PROMPTS]:
        said = [("SFT model", "reference", first[prompt])]
        said += [(name, "policy", of_run[prompt]) for name, of_run in samples.items()]
        for name, who, row in said:
            cells = {"prompt": cut_text(prompt) if who == "reference" else "", "run": name}
            cells["response"] = cut_text(row[who]).strip() or "(empty)"
            cells["response"] += "" if row[f"{who}_finished"] else " ⋯"
            cells |= {name: value for name, value, _ in numbers_of(row, who)}
            rows.append(cells)
    note = (
        "Prompts drawn at random, the same for all; rewards are each run’s own, the SFT model’s that of the "
        "first; log π/π_ref is that of the one response, in nats. ⋯ marks a response that was cut off at the "
        "length limit."
    )
    return table("The same prompts", rows, note)


def seeds_table(runs: Seeds) -> Table | None:
    """Every run over its seeds: verdicts, and means with Student's intervals between them."""
    found = {name: seeds for name, seeds in evaluated_seeds(runs).items() if len(seeds) > 1}
    key = main_measure(*(summary_of(stages) for seeds in found.values() for stages in seeds))
    rows = []
    for name, seeds in found.items():
        policies = [summary_of(stages)["policies"]["policy"] for stages in seeds]
        gains = {m: with_interval(gain(seeds, m), "difference", signed_2f) for m in ("score", key)}
        rows.append(
            {
                "run": name,
                "verdicts": verdicts(seeds),
                **{f"gain in {NAMES[m]}": text for m, text in gains.items()},
                "KL of each (nats)": ", ".join(f"{policy['kl']:.1f}" for policy in policies),
                "length of each (tokens)": ", ".join(f"{policy['length']:.1f}" for policy in policies),
            }
        )
    note = "Gains are means over seeds with 95 % intervals between them: what another training would give."
    return table("Over seeds", rows, note)
