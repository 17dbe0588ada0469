"""How the policy was trained: curves of sft, dpo and rl, alarms, rounds, checks, memory."""

from typing import Any

from preferl.evaluation.comparison import KL_DRIFT_PER_TOKEN
from preferl.reporting.page import (
    BLUE,
    GREEN,
    ORANGE,
    Plot,
    Stages,
    Table,
    brackets,
    draw,
    percent,
    series,
    smooth,
    two,
)


def sft_plot(stages: Stages) -> Plot | None:
    if "sft" not in stages:
        return None
    record = stages["sft"]
    step, loss = series(record, "train/loss")
    eval_step, eval_loss = series(record, "dev/loss")

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


def dpo_plot(stages: Stages) -> Plot | None:
    if "dpo" not in stages:
        return None
    record = stages["dpo"]
    step, train = series(record, "train/accuracy")
    eval_step, held_out = series(record, "dev/accuracy")
    _, loss = series(record, "dev/loss")

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
    step, train = series(record, "train/reward")
    eval_step, held_out = series(record, "held-out/reward")
    gold_step, gold = series(record, "held-out/gold")
    if not gold:
        gold_step, gold = series(record, "train/gold")

    def paint(axes: Any) -> None:
        axes.plot(step, train, color=BLUE, alpha=0.35, linewidth=0.9, label="reward, training batch")
        if held_out:
            axes.plot(eval_step, held_out, color=BLUE, label="reward, held-out prompts")
        if gold:
            axes.plot(gold_step, gold, color=ORANGE, label="gold reward (never trained on)")

    shown = held_out or train
    reading = "On {eval_prompts} prompts of the split {eval_split}" if held_out else "In the training batches"
    reading = reading.format(**{key: record.config.get(key) for key in ("eval_prompts", "eval_split")})
    reading += f" the reward went from {two(shown[0])} to {two(shown[-1])}"
    reading += f" and the gold reward from {two(gold[0])} to {two(gold[-1])}" if gold else ""
    return Plot("RL: reward", draw(paint, "iteration", "mean reward (points)"), reading + ".")


def rl_kl_plot(stages: Stages) -> Plot | None:
    if "rl" not in stages:
        return None
    record = stages["rl"]
    step, kl = series(record, "train/kl")
    _, error = series(record, "train/kl_se")
    eval_step, eval_kl = series(record, "held-out/kl")

    def paint(axes: Any) -> None:
        low = [k - 2 * e for k, e in zip(kl, error, strict=True)]
        high = [k + 2 * e for k, e in zip(kl, error, strict=True)]
        axes.fill_between(step, low, high, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(step, kl, color=BLUE, label="training batch ± 2 standard errors")
        if eval_kl:
            axes.plot(eval_step, eval_kl, color=ORANGE, linewidth=0.9, label="held-out prompts")

    last, (_, per_token) = record.metrics[-1], series(record, "train/kl_per_token")
    top = max(range(len(kl)), key=kl.__getitem__)
    beyond = [at for at, value in zip(step, per_token, strict=True) if value > KL_DRIFT_PER_TOKEN]
    drift = f"from iteration {beyond[0]} on" if beyond == step[-len(beyond) :] else "at times"
    reading = (
        f"A response began {two(kl[0])} nats away from the SFT model, was furthest at iteration {step[top]}, "
        f"{two(kl[top])} ({two(per_token[top])} per token), and ended at {two(kl[-1])} ± {two(error[-1])} "
        f"({two(per_token[-1])} per token; by k3 {last['train/kl_k3']:.1f} ± "
        f"{last['train/kl_k3_se']:.1f}, exactly over the vocabulary {last['train/kl_exact']:.1f} ± "
        f"{last['train/kl_exact_se']:.1f}), with a KL coefficient of "
        f"{last['kl_coef']:.3g}. "
        + (
            f"More than {KL_DRIFT_PER_TOKEN:g} nats per token, a significant drift: {drift}."
            if beyond
            else ""
        )
    )
    return Plot("RL: KL to the SFT model", draw(paint, "iteration", "KL (nats per response)"), reading)


def rl_length_plot(stages: Stages) -> Plot | None:
    if "rl" not in stages:
        return None
    step, length = series(stages["rl"], "train/length")
    _, eos = series(stages["rl"], "train/eos_rate")

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
            ("train/entropy", "entropy (nats per token)", BLUE),
            ("train/clip_fraction", "clipped share", ORANGE),
            ("train/explained_variance", "explained variance of the critic", GREEN),
        ):
            steps, values = series(record, key)
            if values:
                axes.plot(steps, values, color=colour, label=label)
        axes.set_ylim(bottom=max(axes.get_ylim()[0], -1))

    _, entropy = series(record, "train/entropy")
    _, clipped = series(record, "train/clip_fraction")
    reading = (
        f"Entropy went from {entropy[0]:.2f} to {entropy[-1]:.2f} nats per token; at most "
        f"{percent(max(clipped))} of the ratios were outside the clip range."
    )
    return Plot(
        "RL: health of the optimisation", draw(paint, "iteration", "nats per token, or share"), reading
    )


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
        agreed = series(record, "held-out/reward_accuracy")[1]
        gold, kl = series(record, "held-out/gold")[1], series(record, "held-out/kl_exact")[1]
        rows.append(
            [
                name.partition(", ")[2] or f"round {len(names)}",
                f"{reward['train_pairs']:,}",
                f"{percent(reward['eval/accuracy'])} {brackets(reward, 'eval/accuracy', percent)}",
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
    if "dev/well_formed_rate" in sft:
        share = percent(sft["dev/well_formed_rate"])
        rows.insert(
            0, ["sft", f"{share} of {sft['dev/samples']} samples parse as well-formed and end with EOS"]
        )
    return Table("Checked in the run itself", ["stage", "what held"], rows) if rows else None
