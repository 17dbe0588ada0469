"""How good the reward model is: its curves, its audit, what it likes."""

from collections.abc import Sequence
from typing import Any

from preferl.reporting.formats import cut_text, estimate, format_2f, percent, signed_percent, with_interval
from preferl.reporting.measures import Stages, series, smooth, summary_of
from preferl.reporting.page import Plot, Table, of_one_run, table
from preferl.reporting.plots import BLUE, GREEN, GREY, ORANGE, Mark, curve, draw, error_bars, styles
from preferl.runs.record import StageRecord


def trained_in(stages: Stages) -> dict[str, StageRecord]:
    """What was trained: the reward stage, or the members of an ensemble, by name."""
    record = stages["reward"]
    count = record.summary.get("members", 0)
    members = {f"member {m}": record.path / f"member-{m}" for m in range(count)}
    found = {name: StageRecord(path) for name, path in members.items() if path.is_dir()}
    return found or {"reward model": record}


@of_one_run("reward")
def reward_plot(stages: Stages) -> Plot | None:
    record, trained = stages["reward"], trained_in(stages)
    if not any(series(part, "dev/accuracy")[1] for part in trained.values()):
        return None  # trained on ratings: there are no dev pairs
    marks: list[Mark] = []
    for (name, part), (colour, marker) in zip(trained.items(), styles(len(trained)), strict=True):
        look = {"color": colour, "marker": marker, "markersize": 3}
        marks.append(curve(*series(part, "dev/accuracy"), f"{name}, dev pairs", **look))
    r = record.summary
    bayes, length, words = (
        r.get(f"eval/{name}")
        for name in ("bayes_accuracy", "length_baseline_accuracy", "bag_of_words_baseline_accuracy")
    )
    for level, name, colour, style in (
        (bayes, "best possible", GREEN, "--"),
        (words, "bag of words", GREY, "-."),
        (length, "length alone", GREY, ":"),
    ):
        if level is not None:
            marks.append(level_at(level, name, colour, style))
    weights = f"With the weights of update {r['best_update']} it" if "best_update" in r else "Together they"
    agree = "agrees" if "best_update" in r else "agree"
    reading = f"{weights} {agree} with {percent(r['eval/accuracy'])} of the eval labels; "
    reading += f"length alone reaches {percent(length)}"
    reading += f", a bag of words {percent(words)}" if words is not None else ""
    reading += f", and nothing could expect more than {percent(bayes)}" if bayes else ""
    return Plot(
        f"Reward model: accuracy on {unseen(record, 'dev')} pairs",
        draw(marks, "update", "accuracy"),
        reading + ".",
    )


def level_at(y: float, name: str, colour: str, style: str) -> Mark:
    """A horizontal line."""
    return lambda axes: axes.axhline(y, label=name, color=colour, linestyle=style)


def unseen(record: StageRecord, split: str) -> str:
    """What to call the pairs of a split: a data set that is too small to divide holds none out."""
    return "its training" if record.summary.get(f"{split}/share_trained_on") == 1 else "held-out"


@of_one_run("reward")
def reward_loss_plot(stages: Stages) -> Plot | None:
    """Training and held-out loss over the updates: where the second rises, the labels are being learnt by
    heart."""
    trained, where = trained_in(stages), unseen(stages["reward"], "dev")
    loss_name = next(iter(trained.values())).summary.get("loss_name", "bradley_terry")
    rows = "ratings" if loss_name == "regression" else "pairs"
    marks: list[Mark] = []
    readings = []
    for (name, part), (colour, marker) in zip(trained.items(), styles(len(trained)), strict=True):
        step, loss = series(part, "train/loss")
        dev_step, dev_loss = series(part, "dev/loss")
        if not dev_loss:
            return None
        one = len(trained) == 1
        held_out = ORANGE if one else colour
        marks += [
            curve(step, loss, color=colour, alpha=0.25, linewidth=0.8),
            curve(
                step,
                smooth(loss),
                "training batches" if one else None,
                color=colour,
                linewidth=1,
                marker=dot(step),
            ),
            curve(
                dev_step,
                dev_loss,
                f"{where} {rows}" if one else f"{name}, {where} {rows}",
                color=held_out,
                marker=marker,
                markersize=3,
                linestyle="-" if one else "--",
            ),
        ]
        at = min(range(len(dev_loss)), key=dev_loss.__getitem__)
        readings.append(
            f"{'The' if one else name + ': the'} training loss went from {loss[0]:.3f} to "
            f"{smooth(loss)[-1]:.3f}; the loss on {where} {rows} was lowest, {dev_loss[at]:.3f}, at update "
            f"{dev_step[at]}, whose weights are kept, and ended at {dev_loss[-1]:.3f}{last_accuracy(part)}."
        )
    unit = "loss (nats)"
    if loss_name == "regression":
        unit = "mean squared error"
        readings.append("Ratings are standardised: 1 is the error of who always says the mean.")
    elif loss_name != "bradley_terry":
        readings.append(f"The training loss is {loss_name}, the other Bradley–Terry’s of every pair.")
    return Plot("Reward model: loss", draw(marks, "update", unit), " ".join(readings))


def dot(step: Sequence[float]) -> str | None:
    """The marker of a line, without which a single point could not be seen."""
    return "x" if len(step) == 1 else None


def last_accuracy(record: StageRecord) -> str:
    """What the last weights would have been worth, where that was measured."""
    _, accuracy = series(record, "dev/accuracy")
    best = record.summary.get("dev/accuracy")
    if best is None or not accuracy:
        return ""
    return f" (accuracy {percent(best)} with the kept weights, {percent(accuracy[-1])} with the last)"


@of_one_run("reward")
def reward_scores_plot(stages: Stages) -> Plot | None:
    """Mean scores of preferred and of rejected responses over the updates, of training and of held-out
    pairs."""
    trained, where = trained_in(stages), unseen(stages["reward"], "dev")
    marks: list[Mark] = []
    readings = []
    for name, part in trained.items():
        ends = []
        for side, word, colour in (("chosen", "preferred", BLUE), ("rejected", "rejected", ORANGE)):
            step, seen = series(part, f"train/score_{side}")
            dev_step, measured = series(part, f"dev/score_{side}")
            if not (seen and measured):
                return None
            label = f"{word}, " if not readings else None
            marks += [
                curve(
                    step,
                    smooth(seen),
                    label and f"{label}training batches",
                    color=colour,
                    linestyle=":",
                    marker=dot(step),
                ),
                curve(dev_step, measured, label and f"{label}{where} pairs", color=colour, marker="o", ms=3),
            ]
            ends.append((smooth(seen)[-1], measured[-1]))
        (chosen, dev_chosen), (rejected, dev_rejected) = ends
        readings.append(
            f"{'At the end' if len(trained) == 1 else name + ': at the end'} preferred responses score "
            f"{format_2f(dev_chosen)} and rejected ones {format_2f(dev_rejected)} on {where} pairs, a margin "
            f"of {format_2f(dev_chosen - dev_rejected)}; on training batches it is "
            f"{format_2f(chosen - rejected)}."
        )
    readings.append("Scores are as trained, before they are normalised.")
    svg = draw(marks, "update", "mean score (log-odds)")
    return Plot("Reward model: preferred and rejected", svg, " ".join(readings))


def audit_in(stages: Stages) -> dict[str, Any] | None:
    """The reward stage's audit, or else that of an audit stage."""
    found = [stages["reward"].audit] if "reward" in stages else []
    audits = (*found, *benchmarks_in(stages).values())
    # Of ratings without pairs only the attributes were audited.
    return next((audit for audit in audits if audit and "accuracy" in audit), None)


def benchmarks_in(stages: Stages) -> dict[str, dict[str, Any]]:
    """The audits on other data sets, by stage."""
    return {
        name: record.audit
        for name, record in stages.items()
        if record.manifest["stage"] == "audit" and record.audit
    }


@of_one_run()
def calibration_plot(stages: Stages) -> Plot | None:
    found = audit_in(stages)
    if found is None:
        return None
    calibration = found["calibration"]
    bins = [b for b in calibration["reliability"] if b["count"]]
    predicted, observed = ([row[key] for row in bins] for key in ("mean_probability", "observed"))
    look = {"color": BLUE, "marker": "o", "ms": 4, "lw": 1.4}
    marks = [
        curve([0, 1], [0, 1], "perfect", color=GREY, lw=1, ls=":"),
        curve(predicted, observed, "reward model", yerr=error_bars(bins, "observed"), **look),
    ]
    slope = calibration["slope"]
    reading = (
        f"The expected calibration error is {calibration['ece']:.3f}; a perfect model would show about "
        f"{calibration['ece_floor']:.3f} on so many pairs."
    )
    if slope["value"] is not None:
        tone = "overconfident" if slope["value"] < 1 else "underconfident"
        ends = (slope["low"], slope["high"])
        sure = None not in ends and not ends[0] <= 1 <= ends[1]
        reading += f" The slope is {estimate(slope, format_2f)}: "
        reading += f"it is {tone}." if sure else "1 lies within it."
    svg = draw(marks, "predicted P(first is preferred)", "share that was")
    return Plot("Reward model: calibration", svg, reading)


@of_one_run("reward")
def reward_table(stages: Stages) -> Table | None:
    r = stages["reward"].summary
    if "eval/accuracy" not in r:
        return None
    where = unseen(stages["reward"], "eval")
    rows = [[f"agreement with {where} labels", with_interval(r, "eval/accuracy", percent)]]
    for name, key in (("length alone", "length"), ("a bag of words", "bag_of_words")):
        found = f"eval/{key}_baseline_accuracy"
        if f"{found}_low" in r:
            rows.append([name, with_interval(r, found, percent)])
        elif found in r:  # of a stage from before baselines had intervals
            rows.append([name, percent(r[found])])
    note = ""
    if "eval/bayes_accuracy" in r:
        rows += [
            ["expected accuracy against r*", percent(r["eval/expected_accuracy"])],
            ["best possible, E[max(p, 1 − p)]", percent(r["eval/bayes_accuracy"])],
            ["fraction of the best possible", percent(r["eval/fraction_of_bayes"])],
        ]
        note = (
            "p is the probability of a label given the two responses: the annotator’s utility r*, with its "
            "errors, its bias for a place and its ties counted."
        )
    rows += [
        ["log-loss (nats; 0.693 is chance)", f"{r['eval/loss']:.3f}"],
        ["expected calibration error", f"{r['eval/ece']:.3f}"],
        ["pairs: trained on / reported on", f"{r['train_pairs']:,} / {r['eval/pairs']:,}"],
    ]
    return Table("Reward model", ["", ""], rows, note)


@of_one_run("evaluate")
def verification_table(stages: Stages) -> Table | None:
    """Judging against generating on the same prompts."""
    summary = summary_of(stages)
    row = summary.get("verification")
    if not row:
        return None
    rows = [
        [f"prefers the better of two: {name}", with_interval(row, f"accuracy_{key}", percent)]
        for key, name in (
            ("reward", "the reward"),
            ("likelihood", "the SFT model’s own likelihood"),
            ("likelihood_per_token", "the same per token"),
        )
    ]
    pool = summary["frontier"]["pool"]
    rows += [
        ["gold reward of one sample", with_interval(row, "one_sample")],
        [f"of the best of {pool} by the reward", with_interval(row, "chosen_by_reward")],
        [f"of the best of {pool} there is", with_interval(row, "best_there")],
    ]
    if row["closed"] is not None:
        rows.append(["share of that gap closed by choosing", percent(row["closed"])])
    note = (
        f"{row['pairs']:,} pairs of unequal gold reward among the SFT model’s responses to {row['prompts']} "
        f"prompts. What can be judged better than it is written is what preferences can teach."
    )
    return Table("Judging against generating", ["", ""], rows, note)


@of_one_run()
def audit_table(stages: Stages) -> Table | None:
    """Intervals over prompts, seen against unseen pairs, and what simple rules reach."""
    found = audit_in(stages)
    if found is None:
        return None
    record = stages.get("reward")
    where = unseen(record, "eval") if record is not None else "held-out"
    parts = {f"{where} pairs": "unseen", "training pairs": "seen"}
    rows = [
        accuracy_row(name, found["calibration"][part])
        for name, part in parts.items()
        if found["calibration"][part] is not None
    ]
    rows += [
        {"pairs": f"{where}, {category}", "accuracy": accuracy, MARGIN: margin}
        for category, accuracy, margin in category_rows(found)
    ]
    rows += [
        {
            "pairs": f"baseline: {row['baseline']}",
            "accuracy": estimate(row["accuracy"], percent),
            "model minus baseline": estimate(row["model_minus_baseline"], signed_percent),
        }
        for row in (found.get("baselines") or {"rows": []})["rows"]
    ]
    members = found.get("members")
    if members is not None:
        for name, part in (("all members agree", "unanimous"), ("members differ", "divided")):
            group = members[part]
            label = f"{where}, {name} ({group['pairs']:,} pairs)"
            rows.append({"pairs": label, "accuracy": estimate(group["accuracy"], percent)})
    for name, part in (("its six demonstration pairs", "seen"), ("four more", "unseen")):
        if found["demonstration"][part] is not None:
            rows.append(accuracy_row(f"preferl's own: {name}", found["demonstration"][part]))
    note = "95 % intervals, over prompts where a prompt has several pairs."
    return table("Reward model, audited", rows, note)


MARGIN = "mean margin (log-odds)"


def accuracy_row(name: str, part: dict[str, Any]) -> dict[str, str]:
    accuracy, margin = estimate(part["accuracy"], percent), estimate(part["mean_margin"], format_2f)
    return {"pairs": name, "accuracy": accuracy, MARGIN: margin, "model minus baseline": ""}


def category_rows(found: dict[str, Any]) -> list[list[str]]:
    """Accuracy and mean margin by category, by style and by section."""
    rows = [*(found.get("by_category") or {"rows": []})["rows"], *found.get("by_style", [])]
    measured = [
        [row["category"], estimate(row["accuracy"], percent), format_2f(row["mean_margin"])] for row in rows
    ]
    return measured + [[row["section"], percent(row["accuracy"]), ""] for row in found.get("by_section", [])]


@of_one_run()
def analysis_table(stages: Stages) -> Table | None:
    """preferl's own pairs about helpfulness, safety and accuracy, and the four unseen ones, one by one."""
    found = audit_in(stages)
    if found is None:
        return None
    pairs = found["analysis"]["rows"]
    rows = [
        {
            "about": row["category"],
            "prompt": cut_text(row["prompt"]),
            "better": f"{cut_text(row['chosen'])} ({format_2f(row['score_chosen'])})",
            "worse": f"{cut_text(row['rejected'])} ({format_2f(row['score_rejected'])})",
            "margin": format_2f(row["score_chosen"] - row["score_rejected"]),
        }
        for row in pairs
    ]
    ten, four = found["analysis"]["seen"]["accuracy"], found["analysis"]["unseen"]["accuracy"]
    shares = [
        f"{row['category']} {percent(row['accuracy']['value'])} of {row['pairs']}"
        for row in found["analysis"]["by_category"]["rows"]
    ]
    trained = sum(row.get("trained_on", False) for row in pairs)
    note = (
        f"In brackets the scores. In order: {estimate(ten, percent)} of the ten about helpfulness, safety "
        f"and accuracy, {estimate(four, percent)} of the four others ({', '.join(shares)}). "
        f"Of these pairs {trained or 'none'} {'was' if trained < 2 else 'were'} trained on."
    )
    return table("Reward model on pairs of preferl’s own", rows, note)


@of_one_run()
def benchmark_table(stages: Stages) -> Table | None:
    """Accuracy on other data sets than the reward model's own."""
    rows = []
    for name, found in benchmarks_in(stages).items():
        if found is audit_in(stages):
            continue
        total = accuracy_row("all pairs", found["calibration"]["unseen"])
        everything = (total["pairs"], total["accuracy"], total[MARGIN])
        rows += [
            {"audit": name, "category": category, "accuracy": accuracy, "mean margin": margin}
            for category, accuracy, margin in (everything, *category_rows(found))
        ]
    return table("Reward model on other pairs", rows)


@of_one_run()
def bias_table(stages: Stages) -> Table | None:
    """What the reward model prefers beyond what the labels say."""
    found = audit_in(stages)
    if found is None:
        return None
    rows = [
        {
            "feature": row["feature"],
            "pairs that differ": f"{row['differing']:,}",
            "partial correlation": estimate(row["given_label"], format_2f),
            "model prefers more": estimate(row["model_prefers_more"], percent),
            "labels prefer more": estimate(row["labels_prefer_more"], percent),
            "excess": estimate(row["excess"], signed_percent),
            "": row["verdict"] or "–",
        }
        for row in found["bias"]["features"]
        if row["verdict"] is not None
    ]
    accused = found["bias"]["over_rewarded"]
    note = (
        f"Partial correlation of the score with more of a feature, given the {found['bias']['control']}; how "
        f"often the model, and the labels, prefer the response with more of it; the excess is how much more "
        f"probability the model puts on it than the labels bear out, in points; it decides the verdict, "
        f"after Holm's correction over the features. "
        + (f"Over-rewarded: {', '.join(accused)}." if accused else "Nothing is over-rewarded.")
    )
    return table("Reward model: what it likes", rows, note)


@of_one_run()
def disagreement_table(stages: Stages) -> Table | None:
    """The pairs on which reward model and label disagree most."""
    found = audit_in(stages)
    if found is None:
        return None
    rows = [
        {
            "prompt": cut_text(row["prompt"]),
            "the label prefers": cut_text(row["chosen"]),
            "the model prefers": cut_text(row["rejected"]),
            "by (log-odds)": format_2f(row["score_rejected"] - row["score_chosen"]),
        }
        for row in found["disagreements"][:8]
    ]
    return table("Where reward model and label disagree most", rows)
