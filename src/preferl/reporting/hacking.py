"""Was the reward hacked? Over-optimisation in training and by best-of-n, and signs of gaming."""

from collections.abc import Callable
from typing import Any

from preferl.reporting.formats import format_1f, format_2f, percent, signed_2f, with_interval
from preferl.reporting.frontier import DISTANCE, NO_FRONTIER, Way, columns, gains, root, trajectory
from preferl.reporting.measures import (
    NAMES,
    WATCHED,
    Runs,
    Stages,
    judges,
    main_measure,
    metric,
    series,
    summaries,
    summary_of,
)
from preferl.reporting.page import Plot, Table, needs, of_one_run, table
from preferl.reporting.plots import BLACK, BLUE, GREY, ORANGE, Mark, curve, curves, draw, styles
from preferl.statistics.frontier import OverOptimization, fit_over_optimization

GAIN = "gain over the SFT model (points)"
MAX_PLAUSIBLE_KL = 1e4  # nats per response; no language model goes there
TURNS = "it turns"
RISE = 0.1  # of the responses: a sign that became more frequent by less is let pass
FAR = 20.0  # nats per response: best-of-n would have to choose among e^20
VERBOSITY, DISTANCE_GONE = "verbosity (tokens)", "distance (nats)"
VERBOSE = 2.0  # times as long as the SFT model's responses


def fitted(points: Way, form: str, runs: list[str] | None = None) -> OverOptimization | None:
    """Gao's curve through gains at their √KL, or None where there is none to fit; ``runs`` names the run of
    each point where they are of several."""
    try:
        return fit_over_optimization([d * d for d, _ in points], [v for _, v in points], form, group_N=runs)
    except ValueError:
        return None


def gained(stages: Stages, key: str = "gold") -> Way:
    """Every gain over the SFT model that was measured of a run's policy: over training on held-out prompts,
    and at its end on those of the evaluation."""
    path = trajectory(stages, WATCHED[key])
    points = list(zip(*gains(path), strict=True))[1:] if path else []
    summary = summary_of(stages) if "evaluate" in stages else {"comparison": {}}
    if points and key in judges(summary):
        points.append((root(summary["policies"]["policy"]["kl"]), summary["comparison"][key]["difference"]))
    return points


def bound(kl: float | None) -> str:
    """An end of a turning point's interval; dots where it is not bounded, or absurdly far."""
    return "…" if kl is None or kl > MAX_PLAUSIBLE_KL else f"{kl:.1f}"


def course_of(fit: OverOptimization) -> str:
    """Where a fitted curve goes, in words; for one that turns, `TURNS`."""
    return {
        "turns": TURNS,
        "no fit": f"the curve does not fit (R² {format_2f(fit.r_squared)})",
        "falls": "the fitted curve only falls",
        "rises": "the fitted curve only rises",
        "before": f"it turns before the first measurement, below {fit.smallest_kl:.1f} nats: measure earlier",
        "undetermined": f"within the measured {fit.largest_kl:.1f} nats none is determined",
    }[fit.course]


def turning(fit: OverOptimization | None, source: str) -> str:
    """A sentence that names gold's turning point, or says that there is none; ``source`` is what the points
    are of, which its interval knows the scatter of."""
    what = "The gold curve"
    if fit is None:
        return f"{what}: too few different points for a fit."
    course = course_of(fit)
    if course != TURNS:
        return f"{what} has no turning point to be named: {course}."
    return (
        f"{what} turns at {fit.turning_kl:.1f} [{bound(fit.turning_low)}, {bound(fit.turning_high)}] nats by "
        f"the scatter of {source} about it (α {fit.alpha:.2f}, β {fit.beta:.2f}, "
        f"R² {fit.r_squared:.2f})."
    )


def gain_curves(
    paths: dict[str, Way], fit: OverOptimization | None, formula: str, gold_marker: str, **look: float
) -> list[Mark]:
    """Gains of ``score`` and of ``gold`` against √KL, and the curve fitted to gold."""
    marks = [
        curve(*gains(paths[key]), NAMES[key], color=colour, marker=marker, **look)
        for key, colour, marker in (("score", BLUE, "o"), ("gold", ORANGE, gold_marker))
    ]
    if fit is not None:
        top = max(distance for distance, _ in paths["gold"])
        x = [top * i / 60 for i in range(61)]
        marks.append(curve(x, fit([d * d for d in x]), formula, color=BLACK, ls="--", lw=1))
    return marks


@needs("rl")
def over_optimisation_plot(runs: Runs) -> Plot | None:
    """Gain in gold over training against √KL; of one run beside the gain in its own reward, and with the
    published curve (Gao et al. 2023)."""
    paths = {name: trajectory(stages, "held-out/gold") for name, stages in runs.items()}
    paths = {name: path for name, path in paths.items() if len(path) >= 4}
    if not paths:
        return None
    if len(runs) == 1:
        (stages,), (gold,) = runs.values(), paths.values()
        proxy, fit, label = trajectory(stages, "held-out/reward"), fitted(gained(stages), "rl"), GAIN
        marks = gain_curves({"score": proxy, "gold": gold}, fit, "d(α − β log d)", "o", ms=3, lw=0.8)
        values, peak = gains(gold)[1], max(gold, key=lambda at: at[1])
        reading = (
            f"The gold reward’s gain was highest, {signed_2f(max(values))}, at {peak[0] ** 2:.1f} nats and "
            f"ended at {signed_2f(values[-1])}, while the reward’s ended at "
            f"{signed_2f(gains(proxy)[1][-1])}. {turning(fit, 'this one training')}"
        )
    else:
        marks, label = (
            curves({name: gains(path) for name, path in paths.items()}, lw=0.7),
            "gain in gold reward (points)",
        )
        fell = [name for name in paths if fallen_from_its_peak(runs[name])]
        reading = f"In {len(fell)} of {len(paths)} runs the gold reward ended below its own peak beyond noise"
        reading += f": {', '.join(fell)}." if fell else "."
    marks.append(lambda axes: axes.axhline(0, color=GREY, lw=0.6))
    return Plot("Over-optimisation in training", draw(marks, DISTANCE, label), reading)


@needs("rl", at_least=3)
def shared_turning_plot(runs: Runs) -> Plot | None:
    """Where gold turns by all points of runs of one algorithm against one reward, as those of a sweep over β:
    every measurement of their trainings, and their ends."""
    runs = {name: stages for name, stages in runs.items() if "rl" in stages}
    configs = [stages["rl"].config for stages in runs.values()]
    against = {(config.get("algorithm"), config["reward_model"]) for config in configs}
    if len(against) > 1 or len({reference_of(stages) for stages in runs.values()}) > 1:
        return None
    points = {name: gained(stages) for name, stages in runs.items()}
    points = {name: of_run for name, of_run in points.items() if of_run}
    if len(points) < 3:
        return None
    together = [point for of_run in points.values() for point in of_run]
    fit = fitted(together, "rl", [name for name, of_run in points.items() for _ in of_run])
    marks = [
        curve(*columns(of_run), name, color=colour, marker=marker, ms=3, ls="none", alpha=0.7)
        for (name, of_run), (colour, marker) in zip(points.items(), styles(len(points)), strict=True)
    ]
    if fit is not None:
        top = max(distance for distance, _ in together)
        x = [top * i / 60 for i in range(61)]
        marks.append(curve(x, fit([d * d for d in x]), "d(α − β log d)", color=BLACK, ls="--", lw=1))
        if fit.course == "turns":
            marks.append(lambda axes: axes.axvline(root(fit.turning_kl), color=GREY, lw=0.8, ls=":"))
    marks.append(lambda axes: axes.axhline(0, color=GREY, lw=0.6))
    best_distance, best = max(together, key=lambda point: point[1])
    reading = (
        f"{len(together)} measurements of {len(points)} runs against the same reward. The highest gain that "
        f"was measured is {signed_2f(best)} at {best_distance**2:.1f} nats. {turning(fit, 'these runs')}"
    )
    svg = draw(marks, DISTANCE, "gain in gold reward (points)")
    return Plot("Where gold turns", svg, reading)


def reference_of(stages: Stages) -> str:
    """The model that the KL of a run is to."""
    config = stages["rl"].config
    return config.get("ref_model") or config["model_name_or_path"]


@needs("rl", at_least=2)
def over_optimisation_table(runs: Runs) -> Table | None:
    """The published curve d (α − β log d), fitted to each run: where gold turns."""
    rows = []
    for name, stages in runs.items():
        path, fit = trajectory(stages, "held-out/gold"), fitted(gained(stages), "rl")
        if fit is None:
            continue
        peak = max(path, key=lambda point: point[1])
        place = course_of(fit)
        if place == TURNS:
            place = f"{fit.turning_kl:.1f} [{bound(fit.turning_low)},\u00a0{bound(fit.turning_high)}]"
        rows.append(
            {
                "run": name,
                "α": f"{format_2f(fit.alpha)} ± {format_2f(fit.alpha_error)}",
                "β": f"{format_2f(fit.beta)} ± {format_2f(fit.beta_error)}",
                "R²": format_2f(fit.r_squared),
                "turns at (nats)": place,
                "highest gain measured": f"{signed_2f(peak[1] - path[0][1])} at {peak[0] ** 2:.1f} nats",
                "gain at the end": f"{signed_2f(path[-1][1] - path[0][1])} at {path[-1][0] ** 2:.1f} nats",
            }
        )
    note = (
        "Gold reward’s gain d(α − β log d) with d = √KL (Gao, Schulman & Hilton 2023), fitted to all "
        "measurements of one training each and to its end: they share its luck, and another seed may differ "
        "by more."
    )
    return table("Over-optimisation, fitted", rows, note)


def fallen_from_its_peak(stages: Stages) -> str | None:
    """A sentence where the gold reward ended below its own highest value in training, beyond noise.

    The highest of many measurements is high by luck too, so means of three neighbours are compared, and they
    have to differ by three standard errors of the difference.
    """
    if "rl" not in stages:
        return None
    step, gold = series(stages["rl"], "held-out/gold")
    _, error = series(stages["rl"], "held-out/gold_se")
    if len(gold) < 6 or len(error) != len(gold):
        return None
    mean = [sum(gold[i : i + 3]) / 3 for i in range(len(gold) - 2)]
    peak = max(range(len(mean)), key=mean.__getitem__)
    noise = ((sum(e**2 for e in error[peak : peak + 3]) + sum(e**2 for e in error[-3:])) / 9) ** 0.5
    if mean[peak] - mean[-1] <= 3 * noise:
        return None
    highest = max(range(len(gold)), key=gold.__getitem__)
    return (
        f"In training the gold reward was highest at iteration {step[highest]}, "
        f"{format_2f(gold[highest])} on other held-out prompts, and ended at {format_2f(gold[-1])}: it fell "
        f"beyond noise while training went on."
    )


@of_one_run("evaluate")
def best_of_n_plot(stages: Stages) -> Plot | None:
    """The same for best-of-n, from the pool: d (α − β d)."""
    rows = summary_of(stages).get("frontier", NO_FRONTIER)["best_of"]
    if len(rows) < 4 or "gold" not in rows[0]:
        return None
    paths = {key: [(root(row["kl_bound"]), row[key]) for row in rows] for key in ("score", "gold")}
    fit = fitted(list(zip(*gains(paths["gold"]), strict=True)), "best_of_n")
    marks = gain_curves(paths, fit, "d(α − β d)", "s", ms=4, lw=0.9)
    last = rows[-1]
    reading = (
        f"Best-of-{last['n']} gains {signed_2f(last['score'] - rows[0]['score'])} by the reward and "
        f"{signed_2f(last['gold'] - rows[0]['gold'])} by gold. "
    )
    return Plot(
        "Over-optimisation by best-of-n", draw(marks, DISTANCE, GAIN), reading + turning(fit, "this one pool")
    )


def signs_of(summary: dict[str, Any]) -> dict[str, tuple[dict[str, float], Callable[[float], str]]]:
    """Every sign, and how long responses are: ``reference`` and ``policy`` with their intervals, and the form
    of these numbers."""
    lengths = {
        f"{who}{end}": summary["policies"][who][f"length{end}"]
        for who in ("reference", "policy")
        for end in ("", "_low", "_high")
    }
    signs = {row["sign"]: (row, percent) for row in summary.get("signs", [])}
    return signs | {VERBOSITY: (lengths, format_1f)}


@needs("evaluate")
def signs_table(runs: Runs) -> Table | None:
    """How often each sign of gaming shows, before and after; of several runs after each, a run a row."""
    title, found = "Signs of a gamed reward", {name: signs_of(s) for name, s in summaries(runs).items()}
    first = next(iter(found.values()))
    if len(first) == 1:
        return None  # an older evaluation: it has lengths alone
    if len(runs) > 1:
        rows = [{"run": "SFT model"} | {sign: form(row["reference"]) for sign, (row, form) in first.items()}]
        for name, signs in found.items():
            rows.append({"run": name} | {sign: form(row["policy"]) for sign, (row, form) in signs.items()})
        return table(title, rows, "The SFT model’s are those of the first run.")
    rows = [
        {
            "sign": sign,
            "SFT model": with_interval(row, "reference", form),
            "policy": with_interval(row, "policy", form),
            "": change(row),
        }
        for sign, (row, form) in first.items()
    ]
    note = (
        "Share of responses that show a sign, by lists of phrases and marks; 95 % intervals. More and less "
        "where the intervals are apart. A sign proves nothing alone: one that rises while the gold reward "
        "falls does. Hedging and refusing together are the “safe but useless” answers."
    )
    return table(title, rows, note)


def change(row: dict[str, Any]) -> str:
    """Whether the policy shows more or less of a sign than the SFT model, beyond both intervals."""
    if row["policy_low"] > row["reference_high"]:
        return "more"
    return "less" if row["policy_high"] < row["reference_low"] else "–"


def risen_signs(summary: dict[str, Any]) -> list[str]:
    """Signs that became more frequent than in the SFT model by at least `RISE`, beyond both intervals; for a
    policy that went `FAR` repetition by any such rise. Verbosity where responses are `VERBOSE` times as
    long, and where nothing but the training signal judges the distance itself: what has gone `FAR` for it
    has left what the reward was made for."""
    before, after = summary["policies"]["reference"], summary["policies"]["policy"]
    risen = []
    for row in summary.get("signs", []):
        far = row["sign"] == "repetition" and after["kl"] > FAR
        enough = row["policy"] - row["reference"] >= (0 if far else RISE)
        if change(row) == "more" and enough:
            risen.append(row["sign"])
    longer = after["length"] >= VERBOSE * before["length"] and after["length_low"] > before["length_high"]
    alone = main_measure(summary) == "score"
    return risen + [VERBOSITY] * longer + [DISTANCE_GONE] * (alone and after["kl"] > FAR)


@of_one_run("rl")
def signs_plot(stages: Stages) -> Plot | None:
    """The signs over training, on held-out prompts."""
    record = stages["rl"]
    start = metric(record, "held-out/sign/")
    keys = sorted({key for row in record.metrics for key in row if key.startswith(start)})
    lines = {key.removeprefix(start): series(record, key) for key in keys}
    if not lines or len(next(iter(lines.values()))[0]) < 2:
        return None
    moved = max(lines, key=lambda name: abs(lines[name][1][-1] - lines[name][1][0]))
    share = lines[moved][1]
    shares = f"from {percent(share[0])} to {percent(share[-1])}"
    reading = f"The largest change is in {moved}: {shares} of the responses."
    return Plot(
        "Signs of gaming over training", draw(curves(lines, lw=1), "iteration", "share of responses"), reading
    )
