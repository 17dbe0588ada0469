"""What the evaluation found: policies side by side, the frontier, the cost, examples."""

import random
from typing import Any

from preferl.reporting.page import (
    BLUE,
    GREY,
    ORANGE,
    Plot,
    Stages,
    Table,
    draw,
    interval,
    percent,
    short,
    two,
)


def frontier_plot(stages: Stages) -> Plot | None:
    """Reward against KL: the SFT model, the policy, best-of-N at its KL bound."""
    if "evaluate" not in stages:
        return None
    summary = stages["evaluate"].summary
    key = "gold" if "gold" in summary["comparison"] else "score"
    name = "gold reward" if key == "gold" else "reward"
    policy, reference = summary["policies"]["policy"], summary["policies"]["reference"]
    best = [row for row in summary["best_of"] if key in row]

    def paint(axes: Any) -> None:
        axes.scatter([0], [reference[key]], color=GREY, label="SFT model", zorder=3)
        axes.scatter([policy["kl"]], [policy[key]], color=BLUE, label="policy", zorder=3)
        if best:
            x, y = [r["kl_bound"] for r in best], [r[key] for r in best]
            axes.plot(x, y, color=ORANGE, marker="s", linestyle=":", label="best-of-N")
            for row in best:
                axes.annotate(
                    f"N={row['n']}",
                    (row["kl_bound"], row[key]),
                    xytext=(5, -10),
                    textcoords="offset points",
                    fontsize=8,
                )

    reading = f"The policy reaches {two(policy[key])} at {policy['kl']:.1f} nats"
    if best:
        row = best[-1]
        reading += (
            f"; best-of-{row['n']} reaches {two(row[key])} at no more than {row['kl_bound']:.1f} nats, "
            f"but draws {row['n']} responses for each answer"
        )
    return Plot(f"What the KL bought: {name}", draw(paint, "KL (nats per response)", name), reading + ".")


def policies_table(stages: Stages) -> Table | None:
    if "evaluate" not in stages:
        return None
    summary = stages["evaluate"].summary
    gold = "gold" in summary["comparison"]
    head = ["", "reward", *(["gold reward"] if gold else []), "win rate against SFT", "KL", "length", "ends",
            "repeated trigrams", "passes per answer"]  # fmt: skip
    rows = []
    judged = summary["comparison"]["gold" if gold else "score"]
    for key, name in (("reference", "SFT model"), ("policy", "policy")):
        p = summary["policies"][key]
        wins = (
            ""
            if key == "reference"
            else f"{percent(judged['win_rate'])} {interval(judged, 'win_rate', percent)}"
        )
        rows.append(
            [
                name,
                f"{two(p['score'])} {interval(p, 'score', two)}",
                *([f"{two(p['gold'])} {interval(p, 'gold', two)}"] if gold else []),
                wins,
                f"{p['kl']:.2f} ± {p['kl_se']:.2f}" if "kl" in p else "0",
                f"{p['length']:.1f}",
                percent(p["eos_rate"]),
                percent(p["repetition"]),
                "1",
            ]
        )
    for row in summary["best_of"]:
        wins = f"{percent(row['win_rate'])} {interval(row, 'win_rate', percent)}" if "win_rate" in row else ""
        passes = row["forward_passes_per_response"]
        rows.append(
            [
                f"best-of-{row['n']} ({row['prompts']} prompts)",
                two(row["score"]),
                *([f"{two(row['gold'])} {interval(row, 'gold', two)}"] if gold else []),
                wins,
                f"≤ {row['kl_bound']:.2f}",
                "",
                "",
                "",
                f"{passes['policy']} + {passes['reward']} of the reward model",
            ]
        )
    note = (
        f"{summary['prompts']} prompts of the eval split, temperature {summary['temperature']}, one response "
        f"each; 95 % intervals; a tie is half a win. KL in nats per response, length in tokens; “ends” is "
        f"the share that stops by EOS. A pass is one sequence through one language model."
    )
    return Table("Policies side by side", head, rows, note)


def cost_table(stages: Stages) -> Table | None:
    rows = []
    for name, record in stages.items():
        s = record.summary
        memory = f"{s['peak_memory_mib']:,.0f}" if "peak_memory_mib" in s else ""
        rows.append([name, f"{s.get('seconds', 0):.0f}", memory, work_of(record.manifest["stage"], s)])
    note = "Seconds of wall time; memory is the peak of the process up to that stage, in MiB. "
    if "evaluate" in stages and (cost := stages["evaluate"].summary["cost"])["training_total"]:
        note += (
            f"Training the policy took {cost['training_total']:,} forward passes of one sequence through one "
            f"language model (a backward pass counts two)."
        )
    return Table("What it cost", ["stage", "seconds", "memory (MiB)", "work"], rows, note)


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


def examples(stages: Stages, seed: int = 0) -> list[dict[str, Any]]:
    """Ten prompts side by side: five drawn by a seed, and the extremes."""
    if "evaluate" not in stages:
        return []
    rows = stages["evaluate"].samples
    gain = [row["policy_score"] - row["reference_score"] for row in rows]
    by_gain = sorted(range(len(rows)), key=gain.__getitem__)
    by_kl = sorted(range(len(rows)), key=lambda i: rows[i]["kl"])
    wanted = [(i, "largest gain") for i in by_gain[::-1][:2]] + [(i, "largest loss") for i in by_gain[:2]]
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
        {**rows[i], "why": why, "policy": short(rows[i]["policy"]), "reference": short(rows[i]["reference"]),
         "prompt": short(rows[i]["prompt"])}
        for i, why in picked.items()
    ]  # fmt: skip
