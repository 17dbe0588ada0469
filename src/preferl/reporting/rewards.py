"""How good the reward model is: its curves, its audit, what it likes."""

from typing import Any

from preferl.reporting.page import (
    BLUE,
    GREEN,
    GREY,
    Plot,
    Stages,
    Table,
    draw,
    error_bars,
    estimate,
    percent,
    series,
    short,
    signed_percent,
    two,
)


def reward_plot(stages: Stages) -> Plot | None:
    if "reward" not in stages:
        return None
    record = stages["reward"]
    step, accuracy = series(record, "dev/accuracy")
    if not step:
        return None  # an ensemble: its members have the curves
    bayes = record.summary.get("eval/bayes_accuracy")
    length = record.summary["eval/length_baseline_accuracy"]

    def paint(axes: Any) -> None:
        axes.plot(step, accuracy, color=BLUE, marker="o", markersize=3, label="reward model, dev pairs")
        if bayes:
            axes.axhline(bayes, color=GREEN, linestyle="--", label="best possible")
        axes.axhline(length, color=GREY, linestyle=":", label="length alone")

    final, best_update = record.summary["eval/accuracy"], record.summary["best_update"]
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


def calibration_plot(stages: Stages) -> Plot | None:
    found = audit_in(stages)
    if found is None:
        return None
    calibration = found["calibration"]
    bins = [b for b in calibration["reliability"] if b["count"]]
    said, seen = [b["mean_probability"] for b in bins], [b["observed"] for b in bins]

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="perfect")
        axes.errorbar(
            said,
            seen,
            yerr=error_bars(bins, "observed"),
            color=BLUE,
            marker="o",
            ms=4,
            lw=1.4,
            label="reward model",
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


def reward_table(stages: Stages) -> Table | None:
    if "reward" not in stages:
        return None
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
            estimate(row["excess"], signed_percent),
            row["verdict"] or "–",
        ]
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
    head = [
        "feature",
        "pairs that differ",
        "partial correlation",
        "model prefers more",
        "labels prefer more",
        "excess",
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
