"""report: one self-contained HTML file from a run's files: what was gained, what it cost, was it hacked.

Reads ``summary.json``, ``metrics.jsonl`` and ``samples.jsonl`` of the stages that are there; sections appear
when their data exists. Plots are inline SVG, everything shown is escaped, and nothing is fetched.
"""

import io
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from preferl import __version__
from preferl.runs.directory import StageRecord, stage_records, write_atomically
from preferl.runs.errors import UsageError

# Okabe and Ito's palette: told apart with every kind of colour vision, and in print.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
MAX_TEXT = 1200  # characters of a response that a table shows


@dataclass(frozen=True)
class Plot:
    """An inline SVG with its title and a sentence that reads it, computed from the data."""

    title: str
    svg: Markup
    reading: str


@dataclass(frozen=True)
class Table:
    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """``word`` in one or two words, ``tone`` good, plain or bad, ``text`` one paragraph."""

    word: str
    tone: str
    text: str


def write(run: Path) -> Path:
    """Writes ``report.html`` into a run's directory and returns its path.

    Raises:
        UsageError: the directory holds no finished stage.
    """
    if not run.is_dir():
        raise UsageError(f"{run} is not a directory; give the directory of a run, such as runs/demo")
    stages = latest_round({name: record for name, record in stage_records(run) if record.done})
    if not stages:
        raise UsageError(f"{run} holds no finished stage; run `preferl run` or `preferl demo` first")
    environment = Environment(loader=PackageLoader("preferl.stages", "."), autoescape=True)
    text = environment.get_template("report.html").render(
        name=run.name,
        version=__version__,
        verdict=verdict(stages),
        facts=facts(stages),
        plots=[plot for make in PLOTS if (plot := make(stages))],
        tables=[table for make in TABLES if (table := make(stages))],
        examples=examples(stages),
        notes=notes(stages),
        configs=[
            (stage, yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True))
            for stage, record in stages.items()
        ],
        stage_names=list(stages),
    )
    path = run / "report.html"
    write_atomically(path, text)
    return path


Stages = dict[str, StageRecord]


ROUND = re.compile(r"(collect|reward|rl)(?:-(\d+))?")


def latest_round(stages: Stages) -> Stages:
    """The last of a run's rounds under the plain names, those before it as "rl, round 1" and so on."""
    rounds = {name: (match[1], int(match[2] or 1)) for name in stages if (match := ROUND.fullmatch(name))}
    last = dict(sorted(rounds.values()))
    named: Stages = {}
    for name, record in stages.items():
        kind, number = rounds.get(name, (name, 0))
        named[kind if number == last.get(kind, 0) else f"{kind}, round {number}"] = record
    return named


def verdict(stages: Stages) -> Verdict:
    """Did it work, and was the reward hacked? Read off the paired intervals alone."""
    if "evaluate" not in stages:
        done = ", ".join(stages)
        if all(record.manifest["stage"] == "audit" for record in stages.values()):
            found = []
            for name, r in ((name, record.summary) for name, record in stages.items()):
                ends = f"[{r['eval_accuracy_low']:.1%}, {r['eval_accuracy_high']:.1%}]"
                share = f"{r['eval_accuracy']:.1%} {ends} of {r['eval_pairs']:,} pairs"
                found.append(f"{name}: {share} are scored as labelled by {r['reward']}.")
            return Verdict("Audited", "plain", " ".join(found))
        return Verdict("Not evaluated", "plain", f"Finished stages: {done}. Run `evaluate` for a verdict.")
    summary = stages["evaluate"].summary
    proxy, gold = summary["comparison"]["score"], summary["comparison"].get("gold")
    after, before = summary["policies"]["policy"], summary["policies"]["reference"]
    text = (
        f"On {summary['prompts']} held-out prompts training moved the reward by "
        f"{signed(proxy['difference'])} {interval(proxy, 'difference', signed)} against the SFT model "
        f"(from {two(before['score'])} to {two(after['score'])}, in standard deviations of the reward), "
    )
    if gold:
        text += (
            f"and the gold reward, which it was not trained on, moved by {signed(gold['difference'])} "
            f"{interval(gold, 'difference', signed)}. It wins {percent(gold['win_rate'])} "
            f"{interval(gold, 'win_rate', percent)} of the comparisons by gold reward. "
        )
    else:
        text += (
            f"and it wins {percent(proxy['win_rate'])} {interval(proxy, 'win_rate', percent)} of the "
            f"comparisons by that reward. No gold reward is known here, so hacking cannot be ruled out. "
        )
    judge = summary["comparison"].get("judge")
    if judge:
        text += (
            f"A language model that judged {judge['n']} pairs in both orders prefers it in "
            f"{percent(judge['win_rate'])} {interval(judge, 'win_rate', percent)} ({judge['inconsistent']} "
            f"verdicts changed with the order, {judge['unparsable']} were unreadable). "
        )
    text += (
        f"This moved it {after['kl']:.1f} ± {after['kl_se']:.1f} nats per response away from the SFT model; "
        f"{percent(after['eos_rate'])} of its responses end by themselves, "
        f"{after['length']:.0f} tokens long on average (before: {before['length']:.0f})."
    )
    judged = gold or proxy
    if gold and gold["difference_high"] < 0 and proxy["difference_low"] > 0:
        return Verdict("Reward hacked", "bad", "The reward rose while what it stands for fell. " + text)
    if judged["difference_low"] > 0:
        return Verdict("Better" if gold else "Higher reward", "good", text)
    if judged["difference_high"] < 0:
        return Verdict("Worse", "bad", text)
    return Verdict("No clear gain", "plain", text)


def facts(stages: Stages) -> list[tuple[str, str, str]]:
    """The few numbers on top: name, value, interval or unit."""
    cards = []
    if "evaluate" in stages:
        summary = stages["evaluate"].summary
        key = "gold" if "gold" in summary["comparison"] else "score"
        name = "gold reward" if key == "gold" else "reward"
        c, policy = summary["comparison"][key], summary["policies"]["policy"]
        cards.append((f"gain in {name}", signed(c["difference"]), interval(c, "difference", signed)))
        cards.append((f"win rate by {name}", percent(c["win_rate"]), interval(c, "win_rate", percent)))
        cards.append(("KL to the SFT model", f"{policy['kl']:.1f}", "nats per response"))
    if "reward" in stages:
        r = stages["reward"].summary
        cards.append(
            (
                "reward model accuracy",
                percent(r["eval_accuracy"]),
                f"[{percent(r['eval_accuracy_low'])}, {percent(r['eval_accuracy_high'])}]",
            )
        )
    seconds = sum(record.summary.get("seconds", 0) for record in stages.values())
    cards.append(("all stages", f"{seconds / 60:.1f}", "minutes"))
    return cards


# ------------------------------------------------------------------------------------------------- plots


def draw(paint: Callable[[Any], None], x_label: str, y_label: str) -> Markup:
    """One small chart as SVG; text stays text."""
    import matplotlib
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "preferl",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#999999",
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.8, 2.9), layout="constrained")
        axes = figure.subplots()
        paint(axes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :].replace("<svg ", '<svg role="img" ', 1))


def series(record: StageRecord, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have ``key`` as a finite number."""
    rows = [(row["step"], row[key]) for row in record.metrics if isinstance(row.get(key), int | float)]
    return [step for step, _ in rows], [value for _, value in rows]


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, its start corrected."""
    out, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + 1 - weight
        out.append(total / norm)
    return out


def sft_plot(stages: Stages) -> Plot | None:
    if "sft" not in stages:
        return None
    record = stages["sft"]
    step, loss = series(record, "loss")
    eval_step, eval_loss = series(record, "eval_loss")

    def paint(axes: Any) -> None:
        axes.plot(step, loss, color=BLUE, alpha=0.25, linewidth=0.8)
        axes.plot(step, smooth(loss), color=BLUE, label="training")
        if eval_loss:
            axes.plot(eval_step, eval_loss, color=ORANGE, marker="o", markersize=3, label="held out")

    svg = draw(paint, "update", "loss (nats per token)")
    reading = f"The training loss fell from {loss[0]:.2f} to {smooth(loss)[-1]:.2f} nats per token"
    if eval_loss:
        best = min(range(len(eval_loss)), key=eval_loss.__getitem__)
        reading += f"; the held-out loss ended at {eval_loss[-1]:.2f}"
        late = best < len(eval_loss) - 1 and eval_loss[-1] > eval_loss[best] + 0.01
        reading += (
            f", above its lowest value {eval_loss[best]:.2f} (update {eval_step[best]})" if late else ""
        )
    return Plot("SFT loss", svg, reading + ".")


def reward_plot(stages: Stages) -> Plot | None:
    if "reward" not in stages:
        return None
    record = stages["reward"]
    step, accuracy = series(record, "eval_accuracy")
    if not step:
        return None  # an ensemble: its members have the curves
    bayes = record.summary.get("bayes_accuracy")
    length = record.summary["length_baseline_accuracy"]

    def paint(axes: Any) -> None:
        axes.plot(step, accuracy, color=BLUE, marker="o", markersize=3, label="reward model, dev pairs")
        if bayes:
            axes.axhline(bayes, color=GREEN, linestyle="--", label="best possible")
        axes.axhline(length, color=GREY, linestyle=":", label="length alone")

    final, best_update = record.summary["eval_accuracy"], record.summary["best_update"]
    reading = (
        f"With the weights of update {best_update} it agrees with {percent(final)} of the eval labels; "
        f"length alone reaches {percent(length)}"
    )
    if bayes:
        reading += f", and nothing could expect more than {percent(bayes)}"
    return Plot("Reward model: held-out accuracy", draw(paint, "update", "accuracy"), reading + ".")


def audit_in(stages: Stages) -> dict[str, Any] | None:
    """The reward stage's audit, or else that of an audit stage."""
    found = [stages["reward"].audit] if "reward" in stages else []
    return next((audit for audit in (*found, *benchmarks_in(stages).values()) if audit), None)


def benchmarks_in(stages: Stages) -> dict[str, dict[str, Any]]:
    """The audits on other data sets, by stage."""
    return {
        name: record.audit
        for name, record in stages.items()
        if record.manifest["stage"] == "audit" and record.audit
    }


def estimate(row: dict[str, Any] | None, form: Callable[[float], str]) -> str:
    """An audit's estimate with its interval, or a dash."""
    if row is None or row["value"] is None:
        return "–"
    ends = [form(row[end]) if row[end] is not None else "…" for end in ("low", "high")]
    return f"{form(row['value'])} [{ends[0]}, {ends[1]}]"


def calibration_plot(stages: Stages) -> Plot | None:
    found = audit_in(stages)
    if found is None:
        return None
    calibration = found["calibration"]
    bins = [b for b in calibration["reliability"] if b["count"]]
    said, seen = [b["mean_probability"] for b in bins], [b["observed"] for b in bins]
    below = [b["observed"] - b["observed_low"] for b in bins]
    above = [b["observed_high"] - b["observed"] for b in bins]

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="perfect")
        axes.errorbar(
            said, seen, yerr=[below, above], color=BLUE, marker="o", ms=4, lw=1.4, label="reward model"
        )
        axes.legend()

    slope = calibration["slope"]
    reading = (
        f"The expected calibration error is {calibration['ece']:.3f}; a perfect model would show about "
        f"{calibration['ece_floor']:.3f} on so many pairs."
    )
    if slope["value"] is not None:
        tone = "overconfident" if slope["value"] < 1 else "underconfident"
        sure = (
            slope["low"] is not None and slope["high"] is not None and not slope["low"] <= 1 <= slope["high"]
        )
        reading += f" The slope is {estimate(slope, two)}: " + (
            f"it is {tone}." if sure else "1 lies within it."
        )
    return Plot(
        "Reward model: calibration",
        draw(paint, "predicted P(first is preferred)", "share that was"),
        reading,
    )


def dpo_plot(stages: Stages) -> Plot | None:
    if "dpo" not in stages:
        return None
    record = stages["dpo"]
    step, train = series(record, "accuracy")
    eval_step, held_out = series(record, "eval_accuracy")
    _, loss = series(record, "eval_loss")

    def paint(axes: Any) -> None:
        axes.plot(step, train, color=BLUE, alpha=0.25, linewidth=0.8)
        axes.plot(step, smooth(train), color=BLUE, label="training pairs")
        if held_out:
            axes.plot(eval_step, held_out, color=ORANGE, marker="o", markersize=3, label="held-out pairs")

    reading = f"The implicit reward orders {percent(smooth(train)[-1])} of the training pairs as labelled"
    if held_out:
        reading += (
            f" and {percent(held_out[-1])} of the held-out ones; the held-out loss went from "
            f"{loss[0]:.3f} to {loss[-1]:.3f}"
        )
    return Plot("DPO: pairs ordered as labelled", draw(paint, "update", "accuracy"), reading + ".")


def rl_reward_plot(stages: Stages) -> Plot | None:
    if "rl" not in stages:
        return None
    record = stages["rl"]
    step, train = series(record, "reward")
    eval_step, held_out = series(record, "eval_reward")
    gold_step, gold = series(record, "eval_gold")
    if not gold:
        gold_step, gold = series(record, "gold")

    def paint(axes: Any) -> None:
        axes.plot(step, train, color=BLUE, alpha=0.35, linewidth=0.9, label="reward, training batch")
        if held_out:
            axes.plot(eval_step, held_out, color=BLUE, label="reward, held-out prompts")
        if gold:
            axes.plot(gold_step, gold, color=ORANGE, label="gold reward (never trained on)")

    shown = held_out or train
    reading = f"The reward went from {two(shown[0])} to {two(shown[-1])}"
    reading += f" and the gold reward from {two(gold[0])} to {two(gold[-1])}" if gold else ""
    return Plot("RL: reward", draw(paint, "iteration", "mean reward"), reading + ".")


def rl_kl_plot(stages: Stages) -> Plot | None:
    if "rl" not in stages:
        return None
    record = stages["rl"]
    step, kl = series(record, "kl")
    _, error = series(record, "kl_se")
    eval_step, eval_kl = series(record, "eval_kl")

    def paint(axes: Any) -> None:
        low = [k - 2 * e for k, e in zip(kl, error, strict=True)]
        high = [k + 2 * e for k, e in zip(kl, error, strict=True)]
        axes.fill_between(step, low, high, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(step, kl, color=BLUE, label="training batch ± 2 standard errors")
        if eval_kl:
            axes.plot(eval_step, eval_kl, color=ORANGE, linewidth=0.9, label="held-out prompts")

    last = record.metrics[-1]
    reading = (
        f"After {step[-1]} iterations a response is {kl[-1]:.1f} ± {error[-1]:.1f} nats away from the SFT "
        f"model, {two(last['kl_per_token'])} per token (by k3 {last['kl_k3']:.1f} ± {last['kl_k3_se']:.1f}, "
        f"exactly over the vocabulary {last['kl_exact']:.1f} ± {last['kl_exact_se']:.1f}; KL coefficient "
        f"{last['kl_coef']:.3g})."
    )
    return Plot("RL: KL to the SFT model", draw(paint, "iteration", "KL (nats per response)"), reading)


def rl_length_plot(stages: Stages) -> Plot | None:
    if "rl" not in stages:
        return None
    step, length = series(stages["rl"], "length")
    _, eos = series(stages["rl"], "eos_rate")

    def paint(axes: Any) -> None:
        axes.plot(step, length, color=BLUE, label="mean length")
        axes.set_ylim(bottom=0)

    reading = (
        f"Responses went from {length[0]:.0f} to {length[-1]:.0f} tokens; the share that ends by itself "
        f"from {percent(eos[0])} to {percent(eos[-1])}."
    )
    return Plot("RL: length of responses", draw(paint, "iteration", "tokens"), reading)


def rl_health_plot(stages: Stages) -> Plot | None:
    if "rl" not in stages:
        return None
    record = stages["rl"]

    def paint(axes: Any) -> None:
        for key, label, colour in (
            ("entropy", "entropy (nats per token)", BLUE),
            ("clip_fraction", "clipped share", ORANGE),
            ("explained_variance", "explained variance of the critic", GREEN),
        ):
            steps, values = series(record, key)
            if values:
                axes.plot(steps, values, color=colour, label=label)
        axes.set_ylim(bottom=max(axes.get_ylim()[0], -1))

    _, entropy = series(record, "entropy")
    _, clipped = series(record, "clip_fraction")
    reading = (
        f"Entropy went from {entropy[0]:.2f} to {entropy[-1]:.2f} nats per token; at most "
        f"{percent(max(clipped))} of the ratios were outside the clip range."
    )
    return Plot("RL: health of the optimisation", draw(paint, "iteration", "value"), reading)


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


PLOTS = (
    rl_reward_plot,
    rl_kl_plot,
    frontier_plot,
    rl_length_plot,
    rl_health_plot,
    dpo_plot,
    reward_plot,
    calibration_plot,
    sft_plot,
)


# ------------------------------------------------------------------------------------------------ tables


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


def reward_table(stages: Stages) -> Table | None:
    if "reward" not in stages:
        return None
    r = stages["reward"].summary
    rows = [
        [
            "agreement with held-out labels",
            f"{percent(r['eval_accuracy'])} [{percent(r['eval_accuracy_low'])}, "
            f"{percent(r['eval_accuracy_high'])}]",
        ],
        ["length alone", percent(r["length_baseline_accuracy"])],
    ]
    if "bayes_accuracy" in r:
        rows += [
            ["expected accuracy against r*", percent(r["expected_accuracy"])],
            ["best possible, E[max(p, 1 − p)]", percent(r["bayes_accuracy"])],
            ["fraction of the best possible", percent(r["fraction_of_bayes"])],
        ]
    rows += [
        ["log-loss (nats; 0.693 is chance)", f"{r['eval_loss']:.3f}"],
        ["expected calibration error", f"{r['ece']:.3f}"],
        ["pairs: trained on / reported on", f"{r['train_pairs']:,} / {r['eval_pairs']:,}"],
    ]
    return Table("Reward model", ["", ""], rows)


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


def alarms_table(stages: Stages) -> Table | None:
    """What RL raised an alarm about."""
    found = [
        [name, str(alarm["first"]), f"{alarm['count']} of {record.summary['iterations']}", alarm["text"]]
        for name, record in stages.items()
        for alarm in record.summary.get("alarms", {}).values()
    ]
    head = ["stage", "first at iteration", "iterations", "what was wrong then"]
    return Table("Alarms", head, found) if found else None


def rounds_table(stages: Stages) -> Table | None:
    """What each round of collect, reward and rl brought."""
    names = [name for name in stages if name == "rl" or name.startswith("rl, round ")]
    if len(names) < 2:
        return None
    rows = []
    for name in names:
        reward = stages[name.replace("rl", "reward", 1)].summary
        record = stages[name]
        agreed = series(record, "reward_accuracy")[1]
        gold, kl = series(record, "eval_gold")[1], series(record, "eval_kl_exact")[1]
        rows.append(
            [
                name.partition(", ")[2] or f"round {len(names)}",
                f"{reward['train_pairs']:,}",
                f"{percent(reward['eval_accuracy'])} {interval(reward, 'eval_accuracy', percent)}",
                f"{percent(agreed[0])} → {percent(agreed[-1])}" if agreed else "–",
                f"{two(gold[0])} → {two(gold[-1])}" if gold else "–",
                two(kl[-1]) if kl else "–",
            ]
        )
    head = ["", "training pairs", "reward model: held-out pairs", "on fresh samples", "gold reward", "KL"]
    note = "On fresh samples: how often the reward model prefers what the annotator prefers, first and last."
    return Table("Rounds", head, rows, note)


def checks_table(stages: Stages) -> Table | None:
    trained = [name for name in ("dpo", "rl") if name in stages]
    rows = [[name, check] for name in trained for check in stages[name].summary["checks"]]
    sft = stages["sft"].summary if "sft" in stages else {}
    if "well_formed_rate" in sft:
        share = percent(sft["well_formed_rate"])
        rows.insert(0, ["sft", f"{share} of {sft['samples']} samples parse as well-formed and end with EOS"])
    return Table("Checked in the run itself", ["stage", "what held"], rows) if rows else None


def audit_table(stages: Stages) -> Table | None:
    """Intervals over prompts, seen against unseen pairs, and what simple rules reach."""
    found = audit_in(stages)
    if found is None:
        return None
    unseen, seen = found["calibration"]["unseen"], found["calibration"]["seen"]
    rows = [
        ["held-out pairs", estimate(unseen["accuracy"], percent), estimate(unseen["mean_margin"], two), ""]
    ]
    if seen is not None:
        rows.append(
            ["training pairs", estimate(seen["accuracy"], percent), estimate(seen["mean_margin"], two), ""]
        )
    rows += [[f"held-out, {row[0]}", *row[1:], ""] for row in category_rows(found)]
    rows += [
        [
            f"baseline: {row['baseline']}",
            estimate(row["accuracy"], percent),
            "",
            estimate(row["model_minus_baseline"], signed_percent),
        ]
        for row in (found.get("baselines") or {"rows": []})["rows"]
    ]
    members = found.get("members")
    if members is not None:
        for name, part in (("all members agree", "unanimous"), ("members differ", "divided")):
            group = members[part]
            label = f"held-out, {name} ({group['pairs']:,} pairs)"
            rows.append([label, estimate(group["accuracy"], percent), "", ""])
    for name, part in (("its six demonstration pairs", "seen"), ("four more", "unseen")):
        summary = found["demonstration"][part]
        if summary is not None:
            rows.append(
                [
                    f"preferl's own: {name}",
                    estimate(summary["accuracy"], percent),
                    estimate(summary["mean_margin"], two),
                    "",
                ]
            )
    return Table(
        "Reward model, audited",
        ["pairs", "accuracy", "mean margin (log-odds)", "model minus baseline"],
        rows,
        "95 % intervals, over prompts where a prompt has several pairs.",
    )


def category_rows(found: dict[str, Any]) -> list[list[str]]:
    """Accuracy and mean margin by category, by style and by section."""
    rows = [*(found.get("by_category") or {"rows": []})["rows"], *found.get("by_style", [])]
    shown = [[row["category"], estimate(row["accuracy"], percent), two(row["mean_margin"])] for row in rows]
    return shown + [[row["section"], percent(row["accuracy"]), ""] for row in found.get("by_section", [])]


def benchmark_table(stages: Stages) -> Table | None:
    """Accuracy on other data sets than the reward model's own."""
    rows = []
    for name, found in benchmarks_in(stages).items():
        if found is audit_in(stages):
            continue
        total = found["calibration"]["unseen"]
        everything = ["all pairs", estimate(total["accuracy"], percent), estimate(total["mean_margin"], two)]
        rows += [[name, *row] for row in (everything, *category_rows(found))]
    head = ["audit", "category", "accuracy", "mean margin"]
    return Table("Reward model on other pairs", head, rows) if rows else None


def bias_table(stages: Stages) -> Table | None:
    """What the reward model prefers beyond what the labels say."""
    found = audit_in(stages)
    if found is None:
        return None
    rows = [
        [
            row["feature"],
            f"{row['differing']:,}",
            estimate(row["given_label"], two),
            estimate(row["model_prefers_more"], percent),
            estimate(row["labels_prefer_more"], percent),
            row["verdict"] or "–",
        ]
        for row in found["bias"]["features"]
        if row["verdict"] is not None
    ]
    accused = found["bias"]["over_rewarded"]
    note = (
        f"Partial correlation of the score with more of a feature, given the {found['bias']['control']}; how "
        f"often the model, and the labels, prefer the response with more of it. "
        + (f"Over-rewarded: {', '.join(accused)}." if accused else "Nothing is over-rewarded.")
    )
    head = [
        "feature",
        "pairs that differ",
        "partial correlation",
        "model prefers more",
        "labels prefer more",
        "",
    ]
    return Table("Reward model: what it likes", head, rows, note) if rows else None


def disagreement_table(stages: Stages) -> Table | None:
    """The pairs on which reward model and label disagree most."""
    found = audit_in(stages)
    if found is None or not found["disagreements"]:
        return None
    rows = [
        [
            short(row["prompt"]),
            short(row["chosen"]),
            short(row["rejected"]),
            two(row["score_rejected"] - row["score_chosen"]),
        ]
        for row in found["disagreements"][:8]
    ]
    head = ["prompt", "the label prefers", "the model prefers", "by (log-odds)"]
    return Table("Where reward model and label disagree most", head, rows)


TABLES = (
    policies_table,
    alarms_table,
    rounds_table,
    reward_table,
    audit_table,
    benchmark_table,
    bias_table,
    disagreement_table,
    cost_table,
    memory_table,
    checks_table,
)


# ---------------------------------------------------------------------------------------------- examples


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


def short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " …"


def notes(stages: Stages) -> list[str]:
    """What the stages said about their data, each sentence once."""
    seen: dict[str, None] = {}
    for record in stages.values():
        for note in record.summary.get("notes", []):
            seen.setdefault(note)
    return list(seen)


def percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def signed_percent(value: float) -> str:
    return f"{100 * value:+.1f} %".replace("-", "−")


def two(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def interval(row: dict[str, Any], key: str, form: Callable[[float], str]) -> str:
    """[low, high] of a 95 % interval."""
    return f"[{form(row[key + '_low'])}, {form(row[key + '_high'])}]"
