"""Was the reward hacked? Reward against KL, over-optimisation, the optimum's prediction, signs of gaming."""

from collections.abc import Sequence
from typing import Any

from preferl.reporting.evaluation import NAMES, main_measure, with_interval
from preferl.reporting.page import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    MARKERS,
    ORANGE,
    Plot,
    Stages,
    Table,
    brackets,
    draw,
    metric,
    percent,
    series,
    short,
    signed,
    two,
)
from preferl.statistics.frontier import MIN_EFFECTIVE_SAMPLES, OverOptimization, fit_over_optimization

DISTANCE = "√KL to the SFT model (√nats per response)"
MAX_PLAUSIBLE_KL = 1e4  # nats per response; no language model goes there
FITS = 0.5  # R² below which a curve says nothing about where gold turns
WATCHED = {"score": "held-out/reward", "gold": "held-out/gold"}  # a measure -> its metric over training


def root(kl: float) -> float:
    """sqrt(KL); an estimate below 0 counts as 0."""
    return max(kl, 0.0) ** 0.5


def frontier_plots(stages: Stages) -> list[Plot]:
    """Reward against √KL, by the proxy and by what the policy is judged by."""
    if "evaluate" not in stages:
        return []
    key = main_measure(stages["evaluate"].summary)[0]
    return [frontier_plot(stages, measure) for measure in dict.fromkeys((key, "score"))]


def frontier_plot(stages: Stages, key: str) -> Plot:
    """The SFT model, the policy and its way there, best-of-n, and the optimum by reweighting."""
    summary, name = stages["evaluate"].summary, NAMES[key]
    policy, reference = summary["policies"]["policy"], summary["policies"]["reference"]
    frontier = summary.get("frontier", {"best_of": [], "tilt": [], "pool": 0})
    best = [row for row in frontier["best_of"] if row["n"] > 1]
    tilt = [row for row in frontier["tilt"] if row["effective_sample_size"] >= 2]
    path = trajectory(stages, WATCHED.get(key, ""))

    def paint(axes: Any) -> None:
        if path:
            axes.plot(*zip(*path, strict=True), color=BLUE, lw=0.9, alpha=0.6, label="during training")
        if tilt:
            x, y = [root(row["kl"]) for row in tilt], [row[key] for row in tilt]
            axes.plot(x, y, color=GREEN, ls="--", marker="^", ms=4, label="optimum, reweighted")
        if best:
            x, y = [root(row["kl_bound"]) for row in best], [row[key] for row in best]
            axes.plot(x, y, color=ORANGE, ls=":", marker="s", ms=4, label="best-of-n")
        axes.scatter([0], [reference[key]], color=GREY, label="SFT model", zorder=3)
        axes.scatter([root(policy["kl"])], [policy[key]], color=BLUE, label="policy", zorder=3)

    reading = f"The policy reaches {two(policy[key])} at {policy['kl']:.1f} nats"
    if best:
        row = best[-1]
        reading += (
            f"; best-of-{row['n']} reaches {two(row[key])} at no more than {row['kl_bound']:.1f} nats, "
            f"but draws {row['n']} responses for each answer"
        )
    own = summary["training"].get("kl_coef")
    if tilt and own:
        row = min(tilt, key=lambda row: abs(row["kl_coef"] - own))
        reading += (
            f". The optimum of KL coefficient {row['kl_coef']:g} would have {two(row[key])} at "
            f"{row['kl']:.1f} nats ({row['effective_sample_size']:.0f} effective samples of {row['pool']}"
            + (": too few)" if row["effective_sample_size"] < MIN_EFFECTIVE_SAMPLES else ")")
        )
    return Plot(f"What the KL bought: {name}", draw(paint, DISTANCE, f"{name} (points)"), reading + ".")


def trajectory(stages: Stages, key: str) -> list[tuple[float, float]]:
    """(√KL, value) on held-out prompts over the training of rl."""
    if "rl" not in stages:
        return []
    name, kl = metric(stages["rl"], key), metric(stages["rl"], "held-out/kl_exact")
    rows = [row for row in stages["rl"].metrics if name in row and kl in row]
    return [(root(row[kl]), row[name]) for row in rows]


def fitted(points: Sequence[tuple[float, float]], form: str) -> OverOptimization | None:
    """Gao's curve through gains over the first point, or None where there is none to fit."""
    if not points:
        return None
    try:
        kl, gain = [d * d for d, _ in points[1:]], [v - points[0][1] for _, v in points[1:]]
        return fit_over_optimization(kl, gain, form)
    except ValueError:
        return None


def bound(kl: float | None) -> str:
    """An end of a turning point's interval; dots where it is not bounded, or absurdly far."""
    return "…" if kl is None or kl > MAX_PLAUSIBLE_KL else f"{kl:.1f}"


TURNS = "it turns"


def course_of(fit: OverOptimization) -> str:
    """`TURNS` where a fitted curve has a turning point that the measurements determine, else why not."""
    if fit.r_squared < FITS:
        return f"the curve does not fit (R² {two(fit.r_squared)})"
    if fit.turning_kl is None or fit.turning_kl < fit.smallest_kl:
        falls = fit.turning_kl is not None or fit([fit.largest_kl])[0] < 0
        return "the fitted curve only falls" if falls else "the fitted curve only rises"
    if fit.observed and fit.turning_high is not None and fit.turning_high < MAX_PLAUSIBLE_KL:
        return TURNS
    return f"within the measured {fit.largest_kl:.1f} nats none is determined"


def turning(fit: OverOptimization | None, source: str) -> str:
    """A sentence that names gold's turning point, or says that there is none; the interval knows of one
    ``source`` of points only, which share its luck."""
    what = "The gold curve"
    if fit is None:
        return f"{what}: too few different points for a fit."
    course = course_of(fit)
    if course != TURNS:
        return f"{what} has no turning point to be named: {course}."
    return (
        f"{what} turns at {fit.turning_kl:.1f} [{bound(fit.turning_low)}, {bound(fit.turning_high)}] nats by "
        f"the scatter of this one {source} about it (α {fit.alpha:.2f}, β {fit.beta:.2f}, "
        f"R² {fit.r_squared:.2f})."
    )


def paint_gains(
    axes: Any,
    points: dict[str, list[tuple[float, float]]],
    fit: OverOptimization | None,
    formula: str,
    gold_marker: str,
    **look: float,
) -> None:
    """Gains over the first point of ``score`` and of ``gold`` against √KL, and the curve fitted to gold."""
    for key, colour, marker in (("score", BLUE, "o"), ("gold", ORANGE, gold_marker)):
        x, y = [d for d, _ in points[key]], [v - points[key][0][1] for _, v in points[key]]
        axes.plot(x, y, color=colour, marker=marker, label=NAMES[key], **look)
    if fit is not None:
        top = max(d for d, _ in points["gold"])
        x = [top * i / 60 for i in range(61)]
        axes.plot(x, fit([d * d for d in x]), color="#000000", ls="--", lw=1, label=formula)


def over_optimisation_plot(stages: Stages) -> Plot | None:
    """Gain of proxy and gold over training against √KL, with the published curve (Gao et al. 2023)."""
    gold, proxy = trajectory(stages, "held-out/gold"), trajectory(stages, "held-out/reward")
    if len(gold) < 4:
        return None
    fit = fitted(gold, "rl")

    def paint(axes: Any) -> None:
        paint_gains(axes, {"score": proxy, "gold": gold}, fit, "d(α − β log d)", "o", ms=3, lw=0.8)
        axes.axhline(0, color=GREY, lw=0.6)

    gains = [value - gold[0][1] for _, value in gold]
    peak = max(range(len(gains)), key=gains.__getitem__)
    reading = (
        f"The gold reward’s gain was highest, {signed(gains[peak])}, at {gold[peak][0] ** 2:.1f} nats and "
        f"ended at {signed(gains[-1])}, while the reward’s ended at {signed(proxy[-1][1] - proxy[0][1])}. "
    )
    svg = draw(paint, DISTANCE, "gain over the SFT model (points)")
    return Plot("Over-optimisation in training", svg, reading + turning(fit, "training"))


def best_of_n_plot(stages: Stages) -> Plot | None:
    """The same for best-of-n, from the pool: d (α − β d)."""
    summary = stages["evaluate"].summary if "evaluate" in stages else {}
    rows = summary.get("frontier", {}).get("best_of", [])
    if len(rows) < 4 or "gold" not in rows[0]:
        return None
    points = {key: [(root(row["kl_bound"]), row[key]) for row in rows] for key in ("score", "gold")}
    fit = fitted(points["gold"], "best_of_n")

    def paint(axes: Any) -> None:
        paint_gains(axes, points, fit, "d(α − β d)", "s", ms=4, lw=0.9)

    last = rows[-1]
    reading = (
        f"Best-of-{last['n']} gains {signed(last['score'] - rows[0]['score'])} by the reward and "
        f"{signed(last['gold'] - rows[0]['gold'])} by gold. "
    )
    svg = draw(paint, DISTANCE, "gain over the SFT model (points)")
    return Plot("Over-optimisation by best-of-n", svg, reading + turning(fit, "pool"))


def prediction_table(stages: Stages) -> Table | None:
    """The optimum of the run's own objective, from the SFT model's samples alone, beside what was reached."""
    summary = stages["evaluate"].summary if "evaluate" in stages else {}
    row = summary.get("prediction")
    if not row:
        return None
    policy, reference = summary["policies"]["policy"], summary["policies"]["reference"]
    rows = []
    for key, name in (*NAMES.items(), ("length", "length (tokens)"), ("kl", "KL (nats per response)")):
        if key == "kl":
            rows.append([name, "0", with_interval(row, key), f"{two(policy[key])} ± {two(policy['kl_se'])}"])
        elif key in row:
            rows.append([name, *(with_interval(part, key) for part in (reference, row, policy))])
    coef = row["kl_coef"]
    reached, best = policy["score"] - coef * policy["kl"], row["score"] - coef * row["kl"]
    rows.append([f"reward − {coef:g}·KL", two(reference["score"]), two(best), two(reached)])
    size = row["effective_sample_size"]
    note = (
        f"π_ref·e^(r/{row['kl_coef']:g}) from {row['pool']} samples of the SFT model to each of "
        f"{row['prompts']} prompts, {size:.0f} effective ones on average"
        + (
            ": too few; reward and KL are bounds from below, the rest may be off."
            if size < MIN_EFFECTIVE_SAMPLES
            else "."
        )
    )
    head = ["", "SFT model", "predicted optimum", "measured"]
    return Table("What this KL coefficient should lead to", head, rows, note)


def adjusted_table(stages: Stages) -> Table | None:
    """Five of the SFT model's responses with their reward less the KL's price under the trained policy."""
    summary = stages["evaluate"].summary if "evaluate" in stages else {}
    coef = summary.get("training", {}).get("kl_coef")
    if not coef or not summary.get("examples"):
        return None
    rows = [
        [
            short(row["prompt"]),
            short(row["response"]),
            two(row["score"]),
            *([two(row["gold"])] if "gold" in row else []),
            two(row["log_ratio"]),
            two(row["score"] - coef * row["log_ratio"]),
        ]
        for row in summary["examples"]
    ]
    gold = ["gold"] if "gold" in summary["examples"][0] else []
    head = ["prompt", "response of the SFT model", "reward", *gold, "log π/π_ref (nats)", "adjusted reward"]
    note = (
        f"Adjusted reward: r − {coef:g}·log π/π_ref. At the optimum it is the same for every response to one "
        f"prompt; these are answers to five prompts."
    )
    return Table("Adjusted reward of five responses", head, rows, note)


def signs_table(stages: Stages) -> Table | None:
    """How often each sign of gaming shows, before and after."""
    summary = stages["evaluate"].summary if "evaluate" in stages else {}
    if not summary.get("signs"):
        return None
    rows = [
        [
            row["sign"],
            with_interval(row, "reference", percent),
            with_interval(row, "policy", percent),
            change(row, "reference", row, "policy"),
        ]
        for row in summary["signs"]
    ]
    before, after = (summary["policies"][name] for name in ("reference", "policy"))
    rows.append(
        [
            "verbosity (tokens)",
            f"{before['length']:.1f} {brackets(before, 'length', lambda x: f'{x:.1f}')}",
            f"{after['length']:.1f} {brackets(after, 'length', lambda x: f'{x:.1f}')}",
            change(before, "length", after, "length"),
        ]
    )
    note = (
        "Share of responses that show a sign, by lists of phrases and marks; 95 % intervals. More and less "
        "where the intervals are apart. A sign proves nothing alone: one that rises while the gold reward "
        "falls does. Hedging and refusing together are the “safe but useless” answers."
    )
    return Table("Signs of a gamed reward", ["sign", "SFT model", "policy", ""], rows, note)


def change(before: dict[str, Any], key: str, after: dict[str, Any], other: str) -> str:
    """Whether ``after[other]`` is more or less than ``before[key]`` beyond both intervals."""
    if after[f"{other}_low"] > before[f"{key}_high"]:
        return "more"
    return "less" if after[f"{other}_high"] < before[f"{key}_low"] else "–"


def risen_signs(summary: dict[str, Any]) -> list[str]:
    """Signs that became more frequent by at least ten points, beyond both intervals."""
    rows = summary.get("signs", [])
    risen = [row for row in rows if change(row, "reference", row, "policy") == "more"]
    return [row["sign"] for row in risen if row["policy"] - row["reference"] >= 0.1]


def signs_plot(stages: Stages) -> Plot | None:
    """The signs over training, on held-out prompts."""
    if "rl" not in stages:
        return None
    record = stages["rl"]
    start = metric(record, "held-out/sign/")
    keys = sorted({key for row in record.metrics for key in row if key.startswith(start)})
    curves = {key.removeprefix(start): series(record, key) for key in keys}
    if not curves or len(next(iter(curves.values()))[0]) < 2:
        return None

    def paint(axes: Any) -> None:
        for (name, (step, share)), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
            axes.plot(step, share, color=colour, marker=marker, ms=3, lw=1, label=name)
        axes.set_ylim(-0.03, 1.03)

    moved = max(curves, key=lambda name: abs(curves[name][1][-1] - curves[name][1][0]))
    share = curves[moved][1]
    shares = f"from {percent(share[0])} to {percent(share[-1])}"
    reading = f"The largest change is in {moved}: {shares} of the responses."
    return Plot("Signs of gaming over training", draw(paint, "iteration", "share of responses"), reading)


def verification_table(stages: Stages) -> Table | None:
    """Judging against generating on the same prompts."""
    summary = stages["evaluate"].summary if "evaluate" in stages else {}
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
