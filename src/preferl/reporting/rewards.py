"""How good the reward model is: its curves, its audit, what it likes."""

from typing import Any

from preferl.reporting.formats import cut_text, estimate, format_2f, percent, signed_percent, with_interval
from preferl.reporting.measures import Stages, series, summary_of
from preferl.reporting.page import Plot, Table, of_one_run, table
from preferl.reporting.plots import BLUE, GREEN, GREY, curve, draw, error_bars


@of_one_run("reward")
def reward_plot(stages: Stages) -> Plot | None:
    record = stages["reward"]
    step, accuracy = series(record, "dev/accuracy")
    if not step:
        return None  # an ensemble: its members have the curves
    bayes = record.summary.get("eval/bayes_accuracy")
    length = record.summary["eval/length_baseline_accuracy"]
    marks = [curve(step, accuracy, "reward model, dev pairs", color=BLUE, marker="o", markersize=3)]
    if bayes:
        marks.append(lambda axes: axes.axhline(bayes, label="best possible", color=GREEN, linestyle="--"))
    marks.append(lambda axes: axes.axhline(length, label="length alone", color=GREY, linestyle=":"))
    final, best_update = record.summary["eval/accuracy"], record.summary["best_update"]
    reading = (
        f"With the weights of update {best_update} it agrees with {percent(final)} of the eval labels; "
        f"length alone reaches {percent(length)}"
    )
    if bayes:
        reading += f", and nothing could expect more than {percent(bayes)}"
    return Plot("Reward model: held-out accuracy", draw(marks, "update", "accuracy"), reading + ".")


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
    rows = [
        [
            "agreement with held-out labels",
            f"{percent(r['eval/accuracy'])} [{percent(r['eval/accuracy_low'])}, "
            f"{percent(r['eval/accuracy_high'])}]",
        ],
        ["length alone", percent(r["eval/length_baseline_accuracy"])],
    ]
    if "eval/bayes_accuracy" in r:
        rows += [
            ["expected accuracy against r*", percent(r["eval/expected_accuracy"])],
            ["best possible, E[max(p, 1 − p)]", percent(r["eval/bayes_accuracy"])],
            ["fraction of the best possible", percent(r["eval/fraction_of_bayes"])],
        ]
    rows += [
        ["log-loss (nats; 0.693 is chance)", f"{r['eval/loss']:.3f}"],
        ["expected calibration error", f"{r['eval/ece']:.3f}"],
        ["pairs: trained on / reported on", f"{r['train_pairs']:,} / {r['eval/pairs']:,}"],
    ]
    return Table("Reward model", ["", ""], rows)


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
    rows = [
        accuracy_row(f"{name} pairs", found["calibration"][part])
        for name, part in (("held-out", "unseen"), ("training", "seen"))
        if found["calibration"][part] is not None
    ]
    rows += [
        {"pairs": f"held-out, {category}", "accuracy": accuracy, MARGIN: margin}
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
            label = f"held-out, {name} ({group['pairs']:,} pairs)"
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
