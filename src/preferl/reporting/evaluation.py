"""Did it work? Policies side by side, win rates by every measure and category, responses to read."""

import random
from typing import Any

from preferl.reporting.formats import cut_text, format_2f, percent, signed_2f, with_error, with_interval
from preferl.reporting.measures import MEASURES, NAMES, Runs, Stages, main_measure, summaries, summary_of
from preferl.reporting.page import Plot, Table, needs, of_one_run
from preferl.reporting.plots import BLUE, GREY, ORANGE, curve, draw, error_bars, limits
from preferl.reporting.verdict import Seeds, evaluated_seeds, gain, verdict, verdicts

MOST_CATEGORIES = 16


@of_one_run("evaluate")
def policies_table(stages: Stages) -> Table:
    summary = summary_of(stages)
    measures = [m for m in NAMES if m in summary["policies"]["policy"]]
    head = ["", *(NAMES[m] for m in measures), "KL (nats)", "length (tokens)", "ends by itself",
            "repeated trigrams", "distinct bigrams", "perplexity", "passes per answer"]  # fmt: skip
    rows = []
    for key, name in (("reference", "SFT model"), ("policy", "policy")):
        p = summary["policies"][key]
        rows.append(
            [
                name,
                *(with_interval(p, m) for m in measures),
                with_error(p, "kl") if "kl" in p else "0",
                f"{p['length']:.1f}",
                percent(p["eos_rate"]),
                percent(p["repetition"]),
                format_2f(p["distinct_2"]),
                f"{p['perplexity']:.2f}",
                "1",
            ]
        )
    for row in summary["best_of"]:
        passes = row["forward_passes_per_response"]
        cells = [with_interval(row, m) for m in measures]
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


@of_one_run("evaluate")
def win_rates_table(stages: Stages) -> Table:
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
                [
                    against,
                    name,
                    with_interval(row, "win_rate", percent),
                    equal,
                    with_interval(row, "difference", signed_2f),
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


@of_one_run("evaluate")
def categories_table(stages: Stages) -> Table | None:
    """The win rate against the SFT model by kind of prompt."""
    summary = summary_of(stages)
    key = main_measure(summary)
    rows = sorted(summary["comparison"][key].get("by_category", []), key=lambda row: row["win_rate"])
    cells = [
        [
            row["category"],
            f"{row['prompts']}",
            with_interval(row, "win_rate", percent),
            with_interval(row, "difference", signed_2f),
        ]
        for row in rows[:MOST_CATEGORIES]
    ]
    note = f"Against the SFT model by {NAMES[key]}, worst first."
    if len(rows) > MOST_CATEGORIES:
        note += f" The {MOST_CATEGORIES} worst of {len(rows)}."
    head = ["kind of prompt", "prompts", "win rate", "difference of means"]
    return Table("By kind of prompt", head, cells, note) if cells else None


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
        limits(0.5 - len(runs), 0.5),
        lambda axes: axes.set_yticks([-n for n in range(len(runs))], list(runs)),
    ]
    judged = {name: row[key] for name, row in zip(runs, compared, strict=True)}
    worse = [name for name, row in judged.items() if row["difference_high"] < 0]
    better = [name for name, row in judged.items() if row["difference_low"] > 0]
    reading = f"By {NAMES[key]} {len(better)} of {len(runs)} runs gained and {len(worse)} lost beyond noise"
    reading += f" ({', '.join(worse)})." if worse else "."
    height = max(2.9, 0.32 * len(runs) + 0.9)
    svg = draw(marks, "gain over the SFT model (points)", "", height=height, legend_outside=True)
    return Plot("Reward and what it stands for", svg, reading)


@needs("evaluate", at_least=2)
def side_by_side(runs: Runs) -> Table:
    key = main_measure(*summaries(runs).values())
    rows = []
    for name, stages in runs.items():
        summary = summary_of(stages)
        p, compared = summary["policies"]["policy"], summary["comparison"]
        rows.append(
            [
                name,
                verdict(stages).word,
                with_interval(compared["score"], "difference", signed_2f),
                *([with_interval(compared[key], "difference", signed_2f)] if key != "score" else []),
                with_interval(compared[key], "win_rate", percent),
                f"{p['kl']:.1f} ± {p['kl_se']:.1f}",
                f"{p['length']:.1f}",
                percent(p["eos_rate"]),
                percent(p["repetition"]),
            ]
        )
    main = [f"gain in {NAMES[key]}"] if key != "score" else []
    head = ["run", "verdict", "gain in its reward", *main, f"win rate by {NAMES[key]}", "KL (nats)",
            "length (tokens)", "ends by itself", "repeated trigrams"]  # fmt: skip
    note = "Against each run’s own SFT model, on held-out prompts; 95 % intervals over the prompts."
    return Table("Runs side by side", head, rows, note)


def seeds_table(runs: Seeds) -> Table | None:
    """Every run over its seeds: verdicts, and means with Student's intervals between them."""
    found = {name: seeds for name, seeds in evaluated_seeds(runs).items() if len(seeds) > 1}
    if not found:
        return None
    key = main_measure(*(summary_of(stages) for seeds in found.values() for stages in seeds))
    measures = list(dict.fromkeys(("score", key)))
    rows = []
    for name, seeds in found.items():
        policies = [summary_of(stages)["policies"]["policy"] for stages in seeds]
        gains = [with_interval(gain(seeds, measure), "difference", signed_2f) for measure in measures]
        each = [", ".join(f"{policy[what]:.1f}" for policy in policies) for what in ("kl", "length")]
        rows.append([name, verdicts(seeds), *gains, *each])
    head = ["run", "verdicts", *(f"gain in {NAMES[m]}" for m in measures), "KL of each (nats)",
            "length of each (tokens)"]  # fmt: skip
    note = "Gains are means over seeds with 95 % intervals between them: what another training would give."
    return Table("Over seeds", head, rows, note)


def examples(stages: Stages, seed: int = 0) -> list[dict[str, Any]]:
    """Ten prompts side by side: five drawn by a seed, and the extremes."""
    if "evaluate" not in stages:
        return []
    rows = stages["evaluate"].samples
    key = main_measure(summary_of(stages))
    name = NAMES[key]
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
        {**rows[i], "why": why, "prompt": cut_text(rows[i]["prompt"]),
         **{who: cut_text(rows[i][who]).strip() or "(empty)" for who in ("policy", "reference")}}
        for i, why in picked.items()
    ]  # fmt: skip
