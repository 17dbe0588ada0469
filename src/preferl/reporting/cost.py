"""What it cost: forward passes of language models, processor time, memory, and when training pays."""

from typing import Any

from preferl.reporting.formats import format_2f, signed_2f, with_interval
from preferl.reporting.measures import (
    NAMES,
    WATCHED,
    Runs,
    Stages,
    main_measure,
    metric,
    summaries,
    summary_of,
)
from preferl.reporting.page import Plot, Table, needs, of_one_run, table
from preferl.reporting.plots import BLUE, COLOURS, curve, curves, draw
from preferl.reporting.rounds import one_by_one
from preferl.reporting.verdict import untrained


@of_one_run("evaluate")
def break_even_plot(stages: Stages) -> Plot | None:
    """Forward passes of training once and answering, against best-of-n, over the number of answers."""
    summary = summary_of(stages)
    spent = summary["cost"]["training_total"]
    if not (spent and summary["best_of"]):
        return None
    key = main_measure(summary)
    ends = [row["break_even_queries"] for row in summary["best_of"] if row.get("break_even_queries")]
    answers = [max(1.0, min([*ends, 100.0]) / 30) * 10 ** (i / 10) for i in range(36)]
    marks = [curve(answers, [spent + q for q in answers], "the trained policy", color=BLUE)]
    for row, colour in zip(summary["best_of"], COLOURS[1:], strict=False):
        passes = [passes_each(row) * q for q in answers]
        marks.append(curve(answers, passes, f"best-of-{row['n']}", color=colour, ls="--"))
    marks.append(lambda axes: axes.set(xscale="log", yscale="log"))
    policy = summary["policies"]["policy"]
    reading = [f"Training took {spent:,} passes; the policy’s {NAMES[key]} is {format_2f(policy[key])}."]
    for row in summary["best_of"]:
        after, less = row.get("break_even_queries"), "it never costs more"
        if after:
            less = f"after {after:,.0f} answers the trained policy has cost less"
        reading.append(
            f"Best-of-{row['n']} reaches {format_2f(row[key])} with {passes_each(row)} passes for each "
            f"answer: {less}{caveat(row, key)}."
        )
    svg = draw(marks, "answers given", "forward passes in all")
    return Plot("When training pays", svg, " ".join(reading))


def caveat(row: dict[str, Any], key: str) -> str:
    """That a cheaper policy is no bargain where best-of-n is better beyond noise on the same prompts."""
    if row.get(f"lead_{key}_high") is None or row[f"lead_{key}_high"] >= 0:
        return ""
    return f", and is worse by {format_2f(-row[f'lead_{key}'])}"


@needs("rl", "evaluate", at_least=2)
def equal_cost_plot(runs: Runs) -> Plot | None:
    """What is reached for the same number of forward passes, over training."""
    key = main_measure(*summaries(runs).values())
    name, watched = NAMES[key], WATCHED.get(key)
    lines = {}
    for run, stages in runs.items():
        if "rl" not in stages or watched is None:
            continue
        own = metric(stages["rl"], watched)
        known = [(row.get("forward_passes", 0), row[own]) for row in stages["rl"].metrics if own in row]
        if len(known) > 2 and known[-1][0]:
            lines[run] = known
    if len(lines) < 2:
        return None
    thousands = {run: ([p / 1000 for p, _ in known], [v for _, v in known]) for run, known in lines.items()}
    budget = min(points[-1][0] for points in lines.values())
    reached = {n: max((p, v) for p, v in points if p <= budget)[1] for n, points in lines.items()}
    best = max(reached, key=reached.__getitem__)
    reading = (
        f"At {budget:,} passes, where the shortest run ends, {best} has the highest {name} on training’s "
        f"held-out prompts: {format_2f(reached[best])}."
    )
    svg = draw(curves(thousands, lw=0.8), "forward passes of training (thousands)", f"{name} (points)")
    return Plot("At equal cost", svg, reading)


@needs("evaluate")
def equal_cost_table(runs: Runs) -> Table | None:
    """Every policy beside best-of-n, of several runs beside the largest: quality, passes, processor time,
    break-even."""
    found, alone = summaries(runs), len(runs) == 1
    paired = [row["prompts"] for summary in found.values() for row in summary["best_of"][:1]]
    if alone and not paired:
        return None
    key = main_measure(*found.values())
    rows = []
    for name, summary in found.items():
        rows.append(policy_cells("policy" if alone else name, summary, key, untrained(runs[name])))
        beside = summary["best_of"] if alone else summary["best_of"][-1:]
        whose = "" if alone else f"{name}: "
        rows += [best_of_cells(f"{whose}best-of-{row['n']}", row, key) for row in beside]
    note = f"The policy’s lead is on the {paired[0]} prompts of best-of-n, paired. " if paired else ""
    note += (
        "Break-even: from so many answers on, training the policy once has cost less than best-of-n. Passes "
        "are counted, one sequence through one language model, a backward pass as two; the reward model’s "
        "own training and the SFT model are common to all and not in it."
    )
    return table("Best-of-n against the trained policy", rows, note)


def policy_cells(name: str, summary: dict[str, Any], key: str, no_training: bool) -> dict[str, str]:
    cost = summary["cost"]
    passes, seconds = cost["training_total"], cost["training_cpu_seconds"]
    return {
        "": name,
        NAMES[key]: with_interval(summary["policies"]["policy"], key),
        "passes to train": f"{passes:,}" if passes or no_training else "not known",
        "processor seconds to train": "0" if no_training else f"{seconds:,.0f}" if seconds else "not known",
        "the policy’s lead": "",
        "passes per answer": "1",
        "processor time per answer (ms)": milliseconds(cost["policy_cpu_seconds_per_response"]),
        "break-even (answers), by passes": "",
        "break-even, by time": "",
    }


def best_of_cells(name: str, row: dict[str, Any], key: str) -> dict[str, str]:
    after, after_cpu = row.get("break_even_queries"), row.get("break_even_queries_cpu")
    return {
        "": name,
        NAMES[key]: with_interval(row, key),
        "passes to train": "0",
        "processor seconds to train": "0",
        "the policy’s lead": with_interval(row, f"lead_{key}", signed_2f),
        "passes per answer": f"{passes_each(row)}",
        "processor time per answer (ms)": milliseconds(row["cpu_seconds_per_response"]),
        "break-even (answers), by passes": f"{after:,.0f}" if after else "–",
        "break-even, by time": f"{after_cpu:,.0f}" if after_cpu else "–",
    }


def passes_each(row: dict[str, Any]) -> int:
    """Forward passes that one answer by best-of-n takes."""
    return sum(row["forward_passes_per_response"].values())


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


@of_one_run()
def stages_table(stages: Stages) -> Table | None:
    rows = []
    for name, record in one_by_one(stages):
        s = record.summary
        rows.append(
            {
                "stage": name,
                "seconds": f"{s.get('seconds', 0):.0f}",
                "processor seconds": f"{s['cpu_seconds']:.0f}" if "cpu_seconds" in s else "",
                "memory (MiB)": f"{s['peak_memory_mib']:,.0f}" if "peak_memory_mib" in s else "",
                "work": work_of(record.manifest["stage"], s),
            }
        )
    note = (
        "Seconds by the clock and of the processor (all threads); memory is the peak of the process up to "
        "that stage, in MiB."
    )
    return table("Stage by stage", rows, note)


def work_of(kind: str, s: dict[str, Any]) -> str:
    """What a stage did, in words."""
    if kind == "sft":
        size, rows = s["parameters"], s["demonstrations"]
        return f"{size:,} parameters, {rows:,} demonstrations, {s['updates']:,} updates"
    if kind == "collect":
        counts = ", ".join(f"{row['pairs']:,} {split}" for split, row in s["splits"].items())
        return f"pairs by {s['annotator']}: {counts}"
    if kind == "reward":
        made = f"{s['updates']:,} updates" if "updates" in s else f"{s['members']} members"
        if "rated_responses" in s:
            return f"{s['rated_responses']:,} rated responses, {made}"
        return f"{s['train_pairs']:,} pairs, {made}"
    if kind == "dpo":
        rows = f"{s['pairs']:,} pairs" if "pairs" in s else f"{s['responses']:,} labelled responses"
        return f"{rows}, {s['updates']:,} updates"
    if kind == "rl":
        return f"{s['algorithm']}, {s['iterations']} iterations, {s['episodes']:,} episodes"
    if kind == "evaluate":
        return f"{s['prompts']} prompts"
    if kind == "best_of":
        return f"{s['forward_passes']['policy']:,} responses, {s['num_generations']} to each prompt"
    return ""


@of_one_run("rl")
def memory_table(stages: Stages) -> Table | None:
    """What the models of RL took, by the part they play."""
    used = stages["rl"].summary.get("memory")
    if used is None:
        return None
    rows = [[role, f"{m['weights_mib']:.1f}", f"{m['training_mib']:.1f}"] for role, m in used.items()]
    total = [sum(m[key] for m in used.values()) for key in ("weights_mib", "training_mib")]
    rows.append(["together", *(f"{value:.1f}" for value in total)])
    note = (
        "Weights, and gradients with AdamW's two moments of what is trained, without activations. "
        "What several parts share counts once, as the policy's. 0 for a reference that is the policy "
        "without its LoRA weights, and for a reward that is no model."
    )
    return Table("Memory of the models", ["", "weights (MiB)", "gradients and moments (MiB)"], rows, note)
