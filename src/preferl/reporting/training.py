"""How the policy was trained: curves of sft, dpo and rl, alarms, rounds, checks."""

from preferl.evaluation.comparison import KL_DRIFT_PER_TOKEN
from preferl.reporting.formats import format_2f, percent, with_interval
from preferl.reporting.measures import Runs, Stages, series, smooth
from preferl.reporting.page import Plot, Table, needs, of_one_run, table
from preferl.reporting.plots import BLUE, GREEN, ORANGE, curve, curves, draw
from preferl.reporting.rounds import one_by_one, rounds_of, rounds_text, starts_of
from preferl.runs.files import NOT_FINITE


@of_one_run("sft")
def sft_plot(stages: Stages) -> Plot:
    record = stages["sft"]
    step, loss = series(record, "train/loss")
    eval_step, eval_loss = series(record, "dev/loss")
    marks = [
        curve(step, loss, color=BLUE, alpha=0.25, linewidth=0.8),
        curve(step, smooth(loss), "training", color=BLUE),
        curve(eval_step, eval_loss, "held out", color=ORANGE, marker="o", markersize=3),
    ]
    reading = f"The training loss fell from {loss[0]:.2f} to {smooth(loss)[-1]:.2f} nats per token"
    if eval_loss:
        best = min(range(len(eval_loss)), key=eval_loss.__getitem__)
        reading += f"; the held-out loss ended at {eval_loss[-1]:.2f}"
        if best < len(eval_loss) - 1 and eval_loss[-1] > eval_loss[best] + 0.01:
            reading += f", above its lowest value {eval_loss[best]:.2f} (update {eval_step[best]})"
    return Plot("SFT loss", draw(marks, "update", "loss (nats per token)"), reading + ".")


@of_one_run("dpo")
def dpo_plot(stages: Stages) -> Plot:
    record = stages["dpo"]
    step, train = series(record, "train/accuracy")
    eval_step, held_out = series(record, "dev/accuracy")
    _, loss = series(record, "dev/loss")
    kto = record.config.get("loss_type") == "kto"
    rows = "responses" if kto else "pairs"
    marks = [
        curve(step, train, color=BLUE, alpha=0.25, linewidth=0.8),
        curve(step, smooth(train), f"training {rows}", color=BLUE),
        curve(eval_step, held_out, f"held-out {rows}", color=ORANGE, marker="o", markersize=3),
    ]
    share = percent(smooth(train)[-1])
    reading = f"The implicit reward orders {share} of the training pairs as labelled"
    if kto:
        reading = f"{share} of the training responses lie on their label’s side of the reference point"
    if held_out:
        reading += (
            f" and {percent(held_out[-1])} of the held-out ones; the held-out loss went from "
            f"{loss[0]:.3f} to {loss[-1]:.3f}"
        )
    title = "KTO: responses on their label’s side" if kto else "DPO: pairs ordered as labelled"
    return Plot(title, draw(marks, "update", "accuracy"), reading + ".")


@of_one_run("rl")
def rl_reward_plot(stages: Stages) -> Plot:
    record = stages["rl"]
    step, train = series(record, "train/reward")
    eval_step, held_out = series(record, "held-out/reward")
    gold_step, gold = series(record, "held-out/gold")
    if not gold:
        gold_step, gold = series(record, "train/gold")
    marks = [
        curve(step, train, "reward, training batch", color=BLUE, alpha=0.35, linewidth=0.9),
        curve(eval_step, held_out, "reward, held-out prompts", color=BLUE),
        curve(gold_step, gold, "gold reward", color=ORANGE),
        *starts_of(record),
    ]
    where = "In the training batches"
    if held_out:
        config = record.config
        where = f"On at most {config.get('eval_prompts')} prompts of the split {config.get('eval_split')}"
    reward = held_out or train
    reading = f"{where} the reward went from {format_2f(reward[0])} to {format_2f(reward[-1])}"
    reading += f" and the gold reward from {format_2f(gold[0])} to {format_2f(gold[-1])}" if gold else ""
    reading += f".{rounds_text(record)}"
    return Plot("RL: reward", draw(marks, "iteration", "mean reward (points)"), reading)


@of_one_run("rl")
def rl_kl_plot(stages: Stages) -> Plot:
    record = stages["rl"]
    step, kl = series(record, "train/kl")
    _, error = series(record, "train/kl_se")
    low = [k - 2 * e for k, e in zip(kl, error, strict=True)]
    high = [k + 2 * e for k, e in zip(kl, error, strict=True)]
    marks = [
        lambda axes: axes.fill_between(step, low, high, color=BLUE, alpha=0.2, linewidth=0),
        curve(step, kl, "training batch ± 2 standard errors", color=BLUE),
        curve(*series(record, "held-out/kl"), "held-out prompts", color=ORANGE, linewidth=0.9),
        *starts_of(record),
    ]
    last, (_, per_token) = record.metrics[-1], series(record, "train/kl_per_token")
    top = max(range(len(kl)), key=kl.__getitem__)
    beyond = [at for at, value in zip(step, per_token, strict=True) if value > KL_DRIFT_PER_TOKEN]
    reading = (
        f"A response began {format_2f(kl[0])} nats away from the SFT model, was furthest at iteration "
        f"{step[top]}, {format_2f(kl[top])} ({format_2f(per_token[top])} per token), and ended at "
        f"{format_2f(kl[-1])} ± {format_2f(error[-1])} ({format_2f(per_token[-1])} per token; by k3 "
        f"{last['train/kl_k3']:.1f} ± {last['train/kl_k3_se']:.1f}, exactly over the vocabulary "
        f"{last['train/kl_exact']:.1f} ± {last['train/kl_exact_se']:.1f}), with a KL coefficient of "
        f"{last['kl_coef']:.3g}. "
    )
    if beyond:
        drift = f"from iteration {beyond[0]} on" if beyond == step[-len(beyond) :] else "at times"
        reading += f"More than {KL_DRIFT_PER_TOKEN:g} nats per token, a significant drift: {drift}."
    return Plot("RL: KL to the SFT model", draw(marks, "iteration", "KL (nats per response)"), reading)


@of_one_run("rl")
def rl_length_plot(stages: Stages) -> Plot:
    step, length = series(stages["rl"], "train/length")
    _, eos = series(stages["rl"], "train/eos_rate")
    marks = [
        curve(step, length, "mean length", color=BLUE),
        *starts_of(stages["rl"]),
    ]
    reading = (
        f"Responses went from {length[0]:.0f} to {length[-1]:.0f} tokens; the share that ends by itself "
        f"from {percent(eos[0])} to {percent(eos[-1])}."
    )
    return Plot("RL: length of responses", draw(marks, "iteration", "tokens"), reading)


@of_one_run("rl")
def rl_health_plot(stages: Stages) -> Plot:
    entropy, clipped, explained = (
        series(stages["rl"], f"train/{key}") for key in ("entropy", "clip_fraction", "explained_variance")
    )
    marks = [
        curve(*entropy, "entropy (nats per token)", color=BLUE),
        curve(*clipped, "clipped share", color=ORANGE),
        curve(*explained, "explained variance of the critic", color=GREEN),
        lambda axes: axes.set_ylim(bottom=max(axes.get_ylim()[0], -1)),
        *starts_of(stages["rl"]),
    ]
    reading = (
        f"Entropy went from {entropy[1][0]:.2f} to {entropy[1][-1]:.2f} nats per token; at most "
        f"{percent(max(clipped[1]))} of the ratios were outside the clip range."
    )
    svg = draw(marks, "iteration", "nats per token, or share")
    return Plot("RL: health of the optimisation", svg, reading)


@needs("rl", at_least=2)
def training_plots(runs: Runs) -> list[Plot]:
    """Reward, gold reward and KL of several runs over their training, on held-out prompts."""
    found = []
    for title, key, label in (
        ("Reward over training", "held-out/reward", "reward (points)"),
        ("Gold reward over training", "held-out/gold", "gold reward (points)"),
        ("KL over training", "held-out/kl_exact", "KL (nats per response)"),
    ):
        lines = {name: series(stages["rl"], key) for name, stages in runs.items() if "rl" in stages}
        lines = {name: line for name, line in lines.items() if len(line[0]) > 1}
        if len(lines) < 2:
            continue
        ends = {name: value[-1] for name, (_, value) in lines.items()}
        high, low = max(ends, key=ends.__getitem__), min(ends, key=ends.__getitem__)
        reading = f"{high} ends highest, at {format_2f(ends[high])}; {low} lowest, at {format_2f(ends[low])}."
        found.append(Plot(title, draw(curves(lines, lw=0.8), "iteration", label), reading))
    return found


@of_one_run()
def alarms_table(stages: Stages) -> Table | None:
    """What RL raised an alarm about."""
    rows = [
        {
            "stage": name,
            "first at iteration": str(alarm["first"]),
            "iterations": f"{alarm['count']} of {record.summary['iterations']}",
            "what was wrong then": alarm["text"],
        }
        for name, record in one_by_one(stages)
        for alarm in record.summary.get("alarms", {}).values()
    ]
    return table("Alarms", rows)


@of_one_run("rl")
def rounds_table(stages: Stages) -> Table | None:
    """What each round of collect, reward and rl brought."""
    trained, rewards = rounds_of(stages, "rl"), rounds_of(stages, "reward")
    if len(trained) < 2:
        return None
    rows = []
    for number, record in enumerate(trained, 1):
        # Where the reward model stayed the same all rounds have the one.
        reward = rewards[min(number, len(rewards)) - 1].summary if rewards else {}
        agreed = series(record, "held-out/reward_accuracy")[1]
        gold, kl = series(record, "held-out/gold")[1], series(record, "held-out/kl_exact")[1]
        rows.append(
            {
                "": f"round {number}",
                "training pairs": f"{reward['train_pairs']:,}" if reward else "–",
                "reward model: held-out pairs": with_interval(reward, "eval/accuracy", percent),
                "on fresh samples": f"{percent(agreed[0])} → {percent(agreed[-1])}" if agreed else "–",
                "gold reward": f"{format_2f(gold[0])} → {format_2f(gold[-1])}" if gold else "–",
                "KL": format_2f(kl[-1]) if kl else "–",
            }
        )
    note = "On fresh samples: how often the reward model prefers what the annotator prefers, first and last."
    return table("Rounds", rows, note)


@of_one_run()
def bad_numbers_table(stages: Stages) -> Table | None:
    """Measurements that were no numbers: curves have no point there."""
    rows = []
    for name, record in one_by_one(stages):
        places: dict[str, list[tuple[str, str]]] = {}
        for row in record.metrics:
            step = str(row.get("step", "–"))
            for key, value in row.items():
                if value is None or str(value) in NOT_FINITE:
                    places.setdefault(key, []).append((step, "missing" if value is None else str(value)))
        rows += [
            {
                "stage": name,
                "measurement": key,
                "what it was": ", ".join(sorted({value for _, value in found})),
                "how often": str(len(found)),
                "first at": found[0][0],
            }
            for key, found in places.items()
        ]
    note = "Curves have no point there, and nothing else on this page counts them."
    return table("Numbers that are none", rows, note)


@of_one_run()
def checks_table(stages: Stages) -> Table | None:
    rows = []
    for name, record in one_by_one(stages):
        summary = record.summary
        if "dev/well_formed_rate" in summary:
            share = f"{percent(summary['dev/well_formed_rate'])} of {summary['dev/samples']} samples"
            rows.append({"stage": name, "what held": f"{share} parse as well-formed and end with EOS"})
        rows += [{"stage": name, "what held": check} for check in summary.get("checks", [])]
    return table("Checked in the run itself", rows)
