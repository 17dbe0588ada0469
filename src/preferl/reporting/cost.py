"""What it cost: forward passes of language models, processor time, memory, and when training pays."""

from typing import Any

from preferl.reporting.evaluation import main_measure, with_interval
from preferl.reporting.page import BLUE, COLOURS, Plot, Stages, Table, draw, signed, two


def cost_plot(stages: Stages) -> Plot | None:
    """Forward passes of training once and answering, against best-of-n, over the number of answers."""
    if "evaluate" not in stages:
        return None
    summary = stages["evaluate"].summary
    spent = summary["cost"]["training_total"]
    if not (spent and summary["best_of"]):
        return None
    key, name = main_measure(summary)
    ends = [row["break_even_queries"] for row in summary["best_of"] if row.get("break_even_queries")]
    answers = [max(1.0, min([*ends, 100.0]) / 30) * 10 ** (i / 10) for i in range(36)]

    def paint(axes: Any) -> None:
        axes.plot(answers, [spent + q for q in answers], color=BLUE, label="the trained policy")
        for row, colour in zip(summary["best_of"], COLOURS[1:], strict=False):
            each = sum(row["forward_passes_per_response"].values())
            axes.plot(
                answers, [each * q for q in answers], color=colour, ls="--", label=f"best-of-{row['n']}"
            )
        axes.set_xscale("log")
        axes.set_yscale("log")

    policy = summary["policies"]["policy"]
    reading = [f"Training took {spent:,} passes; the policy’s {name} is {two(policy[key])}."]
    for row in summary["best_of"]:
        each = sum(row["forward_passes_per_response"].values())
        after = row.get("break_even_queries")
        less = (
            f"after {after:,.0f} answers the trained policy has cost less" if after else "it never costs more"
        )
        reading.append(
            f"Best-of-{row['n']} reaches {two(row[key])} with {each} passes for each answer: {less}"
            f"{but(row, key)}."
        )
    svg = draw(paint, "answers given", "forward passes in all")
    return Plot("When training pays", svg, " ".join(reading))


def but(row: dict[str, Any], key: str) -> str:
    """That a cheaper policy is no bargain where best-of-n is better beyond noise on the same prompts."""
    if row.get(f"lead_{key}_high") is None or row[f"lead_{key}_high"] >= 0:
        return ""
    return f", and is worse by {two(-row[f'lead_{key}'])}"


def equal_cost_table(stages: Stages) -> Table | None:
    """The policy beside best-of-n: quality, passes, processor time, break-even."""
    if "evaluate" not in stages:
        return None
    summary = stages["evaluate"].summary
    if not summary["best_of"]:
        return None
    key, name = main_measure(summary)
    cost = summary["cost"]
    seconds = cost["training_cpu_seconds"]
    rows = [
        [
            "policy",
            with_interval(summary["policies"]["policy"], key),
            f"{cost['training_total']:,}" if cost["training_total"] else "not known",
            f"{seconds:,.0f}" if seconds else "not known",
            "",
            "1",
            milliseconds(cost["policy_cpu_seconds_per_response"]),
            "",
            "",
        ]
    ]
    for row in summary["best_of"]:
        after, after_cpu = row.get("break_even_queries"), row.get("break_even_queries_cpu")
        rows.append(
            [
                f"best-of-{row['n']}",
                with_interval(row, key),
                "0",
                "0",
                with_interval(row, f"lead_{key}", signed),
                f"{sum(row['forward_passes_per_response'].values())}",
                milliseconds(row["cpu_seconds_per_response"]),
                f"{after:,.0f}" if after else "–",
                f"{after_cpu:,.0f}" if after_cpu else "–",
            ]
        )
    head = ["", name, "passes to train", "processor seconds to train", "the policy’s lead",
            "passes per answer", "processor time per answer (ms)", "break-even (answers), by passes",
            "break-even, by time"]  # fmt: skip
    note = (
        f"The policy’s lead is on the {summary['best_of'][0]['prompts']} prompts of best-of-n, paired. "
        "Break-even: from so many answers on, training the policy once has cost less than best-of-n. Passes "
        "are counted, one sequence through one language model, a backward pass as two; the reward model’s "
        "own training and the SFT model are common to all and not in it."
    )
    return Table("Best-of-n against the trained policy", head, rows, note)


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def stages_table(stages: Stages) -> Table | None:
    rows = []
    for name, record in stages.items():
        s = record.summary
        memory = f"{s['peak_memory_mib']:,.0f}" if "peak_memory_mib" in s else ""
        cpu = f"{s['cpu_seconds']:.0f}" if "cpu_seconds" in s else ""
        row = [name, f"{s.get('seconds', 0):.0f}", cpu, memory, work_of(record.manifest["stage"], s)]
        rows.append(row)
    note = (
        "Seconds by the clock and of the processor (all threads); memory is the peak of the process up to "
        "that stage, in MiB."
    )
    head = ["stage", "seconds", "processor seconds", "memory (MiB)", "work"]
    return Table("Stage by stage", head, rows, note)


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
        return f"{s['train_pairs']:,} pairs, {made}"
    if kind == "dpo":
        return f"{s['pairs']:,} pairs, {s['updates']:,} updates"
    if kind == "rl":
        return f"{s['algorithm']}, {s['iterations']} iterations, {s['episodes']:,} episodes"
    if kind == "evaluate":
        return f"{s['prompts']} prompts"
    if kind == "best_of":
        return f"{s['forward_passes']['policy']:,} responses, {s['num_generations']} to each prompt"
    return ""


def memory_table(stages: Stages) -> Table | None:
    """What the models of RL took, by the part they play."""
    if "rl" not in stages or "memory" not in stages["rl"].summary:
        return None
    used = stages["rl"].summary["memory"]
    rows = [[role, f"{m['weights_mib']:.1f}", f"{m['training_mib']:.1f}"] for role, m in used.items()]
    total = [sum(m[key] for m in used.values()) for key in ("weights_mib", "training_mib")]
    rows.append(["together", *(f"{value:.1f}" for value in total)])
    note = (
        "Weights, and gradients with AdamW's two moments of what is trained, without activations. "
        "What several parts share counts once, as the policy's. 0 for a reference that is the policy "
        "without its LoRA weights, and for a reward that is no model."
    )
    return Table("Memory of the models", ["", "weights (MiB)", "gradients and moments (MiB)"], rows, note)
