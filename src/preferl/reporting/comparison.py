"""Several runs side by side: verdicts, frontiers, over-optimisation, signs of gaming, cost.

For `preferl report runs/a runs/b` and for the page of a sweep. A run is its finished stages by name; runs
that were not evaluated are left out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from preferl.reporting.evaluation import BEST_FIRST, NAMES, main_measure, with_interval
from preferl.reporting.hacking import (
    DISTANCE,
    TURNS,
    WATCHED,
    bound,
    course_of,
    fitted,
    root,
    trajectory,
)
from preferl.reporting.page import (
    BLUE,
    COLOURS,
    GREY,
    MARKERS,
    ORANGE,
    Plot,
    Section,
    Stages,
    Table,
    Verdict,
    draw,
    error_bars,
    metric,
    percent,
    section,
    series,
    short,
    signed,
    signed_percent,
    two,
)
from preferl.reporting.verdict import UNTRAINED, fallen_from_its_peak, untrained, verdict
from preferl.statistics import mean_interval
from preferl.statistics.frontier import MIN_EFFECTIVE_SAMPLES

Runs = Mapping[str, Stages]
Seeds = Mapping[str, Sequence[Stages]]  # every run with each of its seeds
USEFUL = 0.25  # of the best gain: below it a policy counts as safe but useless


def overall(runs: Runs) -> Verdict:
    """How many runs have which verdict, and which gained most."""
    shown = evaluated(runs)
    if not shown:
        return Verdict("Not evaluated", "plain", "None of these runs has a finished stage evaluate.")
    words = {name: verdict(stages).word for name, stages in shown.items()}
    counts = "; ".join(
        f"{word.lower()}: {' · '.join(name for name in words if words[name] == word)}"
        for word in dict.fromkeys(words.values())
    )
    key = common_measure(shown)
    gains = {name: summary_of(stages)["comparison"][key] for name, stages in shown.items()}
    best = max(gains, key=lambda name: gains[name]["difference"])
    worst = min(gains, key=lambda name: gains[name]["difference"])
    most, least = (with_interval(gains[name], "difference", signed) for name in (best, worst))
    text = f"{len(shown)} runs: {counts}."
    if not all(map(untrained, shown.values())):
        text += f" By {NAMES[key]} {best} gained most: {most}"
        text += f"; {worst} least: {least}." if worst != best else "."
        low = gains[best]["difference_low"]
        near = [name for name in gains if gains[name]["difference_high"] >= low and name != best]
        text += f" Its interval overlaps with that of {', '.join(near)}." if near else ""
    left_out = [name for name in runs if name not in shown]
    text += f" Not evaluated, and so left out: {', '.join(left_out)}." if left_out else ""
    word = f"{best} gained most" if gains[best]["difference_low"] > 0 else "No run gained"
    word = UNTRAINED if all(map(untrained, shown.values())) else word
    return Verdict(word, "plain", text)


def facts(runs: Runs) -> list[tuple[str, str, str]]:
    """The few numbers on top: name, value, what it is of."""
    shown = evaluated(runs)
    cards = [("runs", str(len(shown)), "side by side")]
    if not shown or all(map(untrained, shown.values())):
        return cards
    key = common_measure(shown)
    gains = {name: summary_of(stages)["comparison"][key]["difference"] for name, stages in shown.items()}
    best = max(gains, key=gains.__getitem__)
    cards.append((f"highest gain in {NAMES[key]}", signed(gains[best]), best))
    if key != "score":
        hacked = sum(verdict(stages).word == "Reward hacked" for stages in shown.values())
        cards.append(("reward hacked", f"{hacked} of {len(shown)}", "runs"))
    passes = [n for stages in shown.values() if (n := summary_of(stages)["cost"]["training_total"])]
    if passes:
        spread = f"{min(passes):,}" + f" to {max(passes):,}" * (max(passes) > min(passes))
        cards.append(("training a policy", spread, "forward passes"))
    return cards


def lines(runs: Seeds) -> list[str]:
    """A run in a line each, for the terminal: its verdict, and the gains that it rests on; of several seeds
    their mean, with an interval between them."""
    told = []
    for name, seeds in runs.items():
        found = [stages for stages in seeds if "evaluate" in stages]
        if not found:
            continue
        known = [key for key in NAMES if all(key in summary_of(s)["comparison"] for s in found)]
        gains = [f"{NAMES[key]} {with_interval(gain(found, key), 'difference', signed)}" for key in known]
        text = f"{name}: {verdicts(found)}; against the SFT model {', '.join(gains)}"
        told.append(text.replace("\u00a0", " "))
    return told


def verdicts(seeds: Sequence[Stages]) -> str:
    """The verdict of a run; of several seeds how many have which."""
    words = Counter(verdict(stages).word for stages in seeds)
    if len(seeds) == 1:
        return next(iter(words))
    return ", ".join(f"{word} with {count} of {len(seeds)} seeds" for word, count in words.most_common())


def gain(seeds: Sequence[Stages], key: str) -> dict[str, Any]:
    """A run's ``difference`` by a measure with its interval over the prompts; of several seeds their mean,
    with Student's interval between them."""
    rows = [summary_of(stages)["comparison"][key] for stages in seeds]
    if len(rows) == 1:
        return rows[0]
    return mean_interval([row["difference"] for row in rows]).named("difference")


def seeds_table(runs: Seeds) -> Table | None:
    """Every run over its seeds: verdicts, and means with Student's intervals between them."""
    found = {name: [stages for stages in seeds if "evaluate" in stages] for name, seeds in runs.items()}
    found = {name: seeds for name, seeds in found.items() if len(seeds) > 1}
    if not found:
        return None
    key = common_measure({f"{name} {i}": s for name, seeds in found.items() for i, s in enumerate(seeds)})
    measures = list(dict.fromkeys(("score", key)))
    rows = []
    for name, seeds in found.items():
        policies = [summary_of(stages)["policies"]["policy"] for stages in seeds]
        gains = [with_interval(gain(seeds, measure), "difference", signed) for measure in measures]
        each = [", ".join(f"{policy[what]:.1f}" for policy in policies) for what in ("kl", "length")]
        rows.append([name, verdicts(seeds), *gains, *each])
    head = ["run", "verdicts", *(f"gain in {NAMES[m]}" for m in measures), "KL of each (nats)",
            "length of each (tokens)"]  # fmt: skip
    note = "Gains are means over seeds with 95 % intervals between them: what another training would give."
    return Table("Over seeds", head, rows, note)


def sections(runs: Runs) -> list[Section]:
    """Everything that there is data for."""
    shown = evaluated(runs)
    if not shown:
        return []
    makers: dict[str, tuple[Any, ...]] = {
        "Did it work?": (gains_plot, side_by_side),
        "What the KL bought": (frontier_plot, trade_off_plot, prediction_table, adjusted_table),
        "Was the reward hacked?": (over_optimisation_plot, over_optimisation_table, signs_table),
        "What it cost": (cost_plot, cost_table),
        "How they were trained": (training_plots,),
    }
    return [section(title, make, shown) for title, make in makers.items()]


def evaluated(runs: Runs) -> dict[str, Stages]:
    return {name: stages for name, stages in runs.items() if "evaluate" in stages}


def summary_of(stages: Stages) -> dict[str, Any]:
    return stages["evaluate"].summary


def common_measure(runs: Runs) -> str:
    """What all runs can be judged by."""
    return next(
        key for key in BEST_FIRST if all(key in summary_of(stages)["comparison"] for stages in runs.values())
    )


def side_by_side(runs: Runs) -> Table:
    key = common_measure(runs)
    rows = []
    for name, stages in runs.items():
        summary = summary_of(stages)
        p, compared = summary["policies"]["policy"], summary["comparison"]
        rows.append(
            [
                name,
                verdict(stages).word,
                with_interval(compared["score"], "difference", signed),
                *([with_interval(compared[key], "difference", signed)] if key != "score" else []),
                with_interval(compared[key], "win_rate", percent),
                f"{p['kl']:.1f} ± {p['kl_se']:.1f}",
                f"{p['length']:.1f}",
                percent(p["eos_rate"]),
                percent(p["repetition"]),
            ]
        )
    main = [f"gain in {NAMES[key]}"] if key != "score" else []
    head = ["run", "verdict", "gain in its reward", *main, f"win rate by {NAMES[key]}", "KL (nats)",
            "length (tokens)", "ends by itself", "repeated trigrams"]  # fmt: skip
    note = "Against each run’s own SFT model, on held-out prompts; 95 % intervals over the prompts."
    return Table("Runs side by side", head, rows, note)


def gains_plot(runs: Runs) -> Plot:
    """Each run's gain by its own reward and by the common measure."""
    key, names = common_measure(runs), list(runs)
    measures = [("score", BLUE, "o")] + ([(key, ORANGE, "s")] if key != "score" else [])

    def paint(axes: Any) -> None:
        for i, (measure, colour, marker) in enumerate(measures):
            rows = [summary_of(runs[name])["comparison"][measure] for name in names]
            y = [-n + (0.12 if i else -0.12) * (len(measures) - 1) for n in range(len(names))]
            x = [row["difference"] for row in rows]
            ends = error_bars(rows, "difference")
            axes.errorbar(
                x, y, xerr=ends, color=colour, marker=marker, ls="none", ms=4, capsize=2, label=NAMES[measure]
            )
        axes.axvline(0, color=GREY, lw=0.8)
        axes.set_ylim(0.5 - len(names), 0.5)
        axes.set_yticks([-n for n in range(len(names))], [short(name) for name in names])

    found = {name: summary_of(runs[name])["comparison"][key] for name in names}
    worse = [name for name, row in found.items() if row["difference_high"] < 0]
    better = [name for name, row in found.items() if row["difference_low"] > 0]
    reading = f"By {NAMES[key]} {len(better)} of {len(names)} runs gained and {len(worse)} lost beyond noise"
    reading += f" ({', '.join(worse)})." if worse else "."
    height = max(2.9, 0.32 * len(names) + 0.9)
    svg = draw(paint, "gain over the SFT model (points)", "", height=height, legend_outside=True)
    return Plot("Reward and what it stands for", svg, reading)


def frontier_plot(runs: Runs) -> Plot:
    """All runs' ways from the SFT model; best-of-n and the optimum by the reward that most of them have."""
    key = common_measure(runs)
    metric = WATCHED.get(key, "")
    pools = {
        n: s["evaluate"].config.get("reward_model") for n, s in runs.items() if "frontier" in summary_of(s)
    }
    usual = Counter(pools.values()).most_common(1)
    owner = next((name for name, reward in pools.items() if reward == usual[0][0]), None)
    frontier = summary_of(runs[owner])["frontier"] if owner else {"best_of": [], "tilt": []}

    def paint(axes: Any) -> None:
        for (name, stages), (colour, marker) in zip(runs.items(), styles(len(runs)), strict=True):
            path = trajectory(stages, metric)
            if path:
                axes.plot(*zip(*path, strict=True), color=colour, lw=0.8, alpha=0.6)
            p = summary_of(stages)["policies"]["policy"]
            look = {"color": colour, "marker": marker, "ls": "none", "ms": 5}
            axes.plot([root(p["kl"])], [p[key]], label=short(name), **look)
        for rows, x_key, colour, style, label in (
            (frontier["best_of"], "kl_bound", "#000000", ":", "best-of-n"),
            ([r for r in frontier["tilt"] if r["effective_sample_size"] >= 2], "kl", GREY, "--", "optimum"),
        ):
            if rows:
                x, y = [root(row[x_key]) for row in rows], [row[key] for row in rows]
                axes.plot(x, y, color=colour, ls=style, lw=1.4, label=label)

    ends = {n: summary_of(s)["policies"]["policy"] for n, s in runs.items()}
    best = max(ends, key=lambda name: ends[name][key])
    far = max(ends, key=lambda name: ends[name]["kl"])
    reading = (
        f"{best} ends highest, {two(ends[best][key])} at {ends[best]['kl']:.1f} nats; {far} goes furthest, "
        f"{ends[far]['kl']:.1f} nats, for {two(ends[far][key])}."
    )
    if metric:
        reading += " The lines are measurements of training, on other held-out prompts."
    if owner:
        reading += f" Best-of-n and the reweighted optimum are by the reward of {owner}."
    return Plot(
        f"{NAMES[key].capitalize()} against √KL", draw(paint, DISTANCE, f"{NAMES[key]} (points)"), reading
    )


def styles(count: int) -> list[tuple[str, str]]:
    """Colour and marker of each of several runs; beyond eight the pairs differ, not the colours."""
    return [(COLOURS[i % 8], MARKERS[(i + i // 8) % 8]) for i in range(count)]


def coefficient(stages: Stages) -> float | None:
    """The KL coefficient of a run's policy, where it had a fixed one."""
    training = summary_of(stages).get("training", {})
    return training.get("kl_coef") if training.get("kl_controller") == "fixed" else None


def trade_off_plot(runs: Runs) -> Plot | None:
    """Gain, and how often answers hedge or refuse, by KL coefficient; where “safe but useless” begins."""
    known = sorted((c, name) for name, s in runs.items() if (c := coefficient(s)) is not None)
    at = [(c, name) for c, name in known if c > 0]  # the axis is logarithmic
    if len({c for c, _ in at}) < 3 or len(known) != len(runs):
        return None
    key = common_measure(runs)
    coefs = [c for c, _ in at]
    rows = [summary_of(runs[name])["comparison"][key] for _, name in at]
    careful = [careful_share(summary_of(runs[name]), "policy") for _, name in at]
    before = careful_share(summary_of(runs[at[0][1]]), "reference")

    def paint(axes: Any) -> None:
        gains = [r["difference"] for r in rows]
        look = {"color": BLUE, "marker": "o", "ms": 4, "capsize": 2}
        axes.errorbar(coefs, gains, yerr=error_bars(rows, "difference"), label="gain (points)", **look)
        if None not in careful:
            look = {"color": ORANGE, "marker": "s", "ms": 4, "ls": "--"}
            axes.plot(coefs, careful, label="hedges or refuses (share)", **look)
        axes.set_xscale("log")
        axes.set_xticks(coefs, [f"{c:g}" for c in coefs])
        axes.set_xticks([], minor=True)

    best = max(range(len(rows)), key=lambda i: rows[i]["difference"])
    most = rows[best]["difference"]
    reading = f"The gain in {NAMES[key]} is highest at {coefs[best]:g}: {signed(most)}. "
    useless = [i for i in range(best + 1, len(rows)) if rows[i]["difference"] < USEFUL * most]
    shares = ""
    if careful[-1] is not None and before is not None:
        shares = (
            f"; at {coefs[-1]:g} {percent(careful[-1])} of the answers hedge or refuse, {percent(before)} of "
            f"the SFT model’s"
        )
    if most <= 0:
        reading += "No coefficient gains anything."
    elif useless:
        i = useless[0]
        reading += (
            f"“Safe but useless” begins at {coefs[i]:g}: the gain is {signed(rows[i]['difference'])}, less "
            f"than a quarter of that{shares}."
        )
    else:
        reading += (
            f"“Safe but useless” does not begin in this range: at {coefs[-1]:g} the gain is still "
            f"{signed(rows[-1]['difference'])}{shares}."
        )
    for _, name in known[: len(known) - len(at)]:
        without = summary_of(runs[name])["comparison"][key]["difference"]
        reading += f" Without a penalty ({name}) the gain is {signed(without)}."
    svg = draw(
        paint, "KL coefficient β (reward per nat)", "gain (points); share of answers", legend_outside=True
    )
    return Plot("The trade-off", svg, reading)


def careful_share(summary: dict[str, Any], who: str) -> float | None:
    """Share of answers that hedge or refuse; None where an older preferl did not count it."""
    return next((row[who] for row in summary["signs"] if row["sign"] == "careful"), None)


def prediction_table(runs: Runs) -> Table | None:
    """Length, reward and KL: predicted by reweighting the SFT model's samples, and measured."""
    rows, below = [], []
    for name, stages in runs.items():
        summary = summary_of(stages)
        row, policy = summary.get("prediction"), summary["policies"]["policy"]
        if not row:
            continue
        off = policy["length"] / row["length"] - 1
        start = summary["policies"]["reference"]["score"]
        best, reached = (part["score"] - row["kl_coef"] * part["kl"] for part in (row, policy))
        below += [name] if reached < start else []
        size = row["effective_sample_size"]
        rows.append(
            [
                name,
                f"{row['kl_coef']:g}",
                f"{size:.0f} of {row['pool']}" + (" (too few)" if size < MIN_EFFECTIVE_SAMPLES else ""),
                with_interval(row, "length"),
                f"{with_interval(policy, 'length')} ({signed_percent(off)})",
                f"{two(row['score'])} → {two(policy['score'])}",
                f"{two(row['kl'])} → {two(policy['kl'])}",
                f"{two(best)} → {two(reached)}",
                two(start),
            ]
        )
    head = ["run", "β", "effective samples", "predicted length (tokens)", "measured length",
            "reward, predicted → measured", "KL (nats), predicted → measured",
            "reward − β·KL, predicted → measured", "of the SFT model"]  # fmt: skip
    note = (
        "Runs with a fixed KL coefficient β above 0, trained against the reward that is evaluated. "
        "Predicted: the optimum π_ref·e^(r/β), by reweighting samples of the SFT model. Where the effective "
        "samples are too few, reward and KL are bounds from below and the length may be off either way."
    )
    if below:
        note += f" By its own objective worse than the SFT model: {', '.join(below)}."
    return Table("What each KL coefficient should lead to", head, rows, note) if rows else None


def adjusted_table(runs: Runs) -> Table | None:
    """The reward less the KL's price of the same responses under every policy."""
    found = {n: summary_of(s).get("examples") or [] for n, s in runs.items() if coefficient(s) is not None}
    keys = {tuple((row["prompt"], row["response"]) for row in rows) for rows in found.values()}
    if len(found) < 2 or len(keys) != 1 or not next(iter(keys)):
        return None
    coefs = {name: coefficient(runs[name]) or 0.0 for name in found}
    rows = []
    for i, (prompt, response) in enumerate(next(iter(keys))):
        cells = []
        for name, examples in found.items():
            score, log_ratio = examples[i]["score"], examples[i]["log_ratio"]
            cells.append(f"{two(score - coefs[name] * log_ratio)} ({two(log_ratio)})")
        rows.append([short(prompt), short(response), *cells])
    head = ["prompt", "response of the SFT model", *(with_coefficient(name, coefs[name]) for name in found)]
    note = (
        "r − β·log π/π_ref, and in brackets log π/π_ref in nats, of five responses of the SFT model from the "
        "lowest to the highest reward, to five prompts. At the optimum the adjusted reward is the same for "
        "every response to one prompt: what the policy prefers, it has paid for."
    )
    return Table("Adjusted reward of five responses", head, rows, note)


def with_coefficient(name: str, coef: float) -> str:
    return name if name.endswith(f"= {coef:g}") else f"{name}, β {coef:g}"


def training_plots(runs: Runs) -> list[Plot]:
    """Reward, gold reward and KL of every run over its training, on held-out prompts."""
    found = []
    for title, key, label in (
        ("Reward over training", "held-out/reward", "reward (points)"),
        ("Gold reward over training", "held-out/gold", "gold reward (points)"),
        ("KL over training", "held-out/kl_exact", "KL (nats per response)"),
    ):
        curves = {name: series(stages["rl"], key) for name, stages in runs.items() if "rl" in stages}
        curves = {name: (step, value) for name, (step, value) in curves.items() if len(step) > 1}
        if len(curves) < 2:
            continue

        def paint(axes: Any, curves: Any = curves) -> None:
            for (name, (step, value)), (colour, marker) in zip(
                curves.items(), styles(len(curves)), strict=True
            ):
                axes.plot(step, value, color=colour, marker=marker, ms=3, lw=0.8, label=short(name))

        ends = {name: value[-1] for name, (_, value) in curves.items()}
        high, low = max(ends, key=ends.__getitem__), min(ends, key=ends.__getitem__)
        reading = f"{high} ends highest, at {two(ends[high])}; {low} lowest, at {two(ends[low])}."
        found.append(Plot(title, draw(paint, "iteration", label), reading))
    return found


def over_optimisation_plot(runs: Runs) -> Plot | None:
    """Gain in gold reward over training against √KL, with each run's fitted curve."""
    paths = {name: trajectory(stages, "held-out/gold") for name, stages in runs.items()}
    paths = {name: path for name, path in paths.items() if len(path) >= 4}
    if not paths:
        return None

    def paint(axes: Any) -> None:
        for (name, path), (colour, marker) in zip(paths.items(), styles(len(paths)), strict=True):
            x, y = [d for d, _ in path], [v - path[0][1] for _, v in path]
            axes.plot(x, y, color=colour, marker=marker, ms=3, lw=0.7, label=short(name))
        axes.axhline(0, color=GREY, lw=0.6)

    fell = [name for name in paths if fallen_from_its_peak(runs[name])]
    reading = f"In {len(fell)} of {len(paths)} runs the gold reward ended below its own peak beyond noise"
    reading += f": {', '.join(fell)}." if fell else "."
    svg = draw(paint, DISTANCE, "gain in gold reward (points)")
    return Plot("Over-optimisation in training", svg, reading)


def over_optimisation_table(runs: Runs) -> Table | None:
    """The published curve d (α − β log d), fitted to each run: where gold turns."""
    rows = []
    for name, stages in runs.items():
        path = trajectory(stages, "held-out/gold")
        fit = fitted(path, "rl")
        if fit is None:
            continue
        peak = max(path, key=lambda point: point[1])
        place = course_of(fit)
        if place == TURNS:
            place = f"{fit.turning_kl:.1f} [{bound(fit.turning_low)},\u00a0{bound(fit.turning_high)}]"
        rows.append(
            [
                name,
                f"{two(fit.alpha)} ± {two(fit.alpha_error)}",
                f"{two(fit.beta)} ± {two(fit.beta_error)}",
                two(fit.r_squared),
                place,
                f"{signed(peak[1] - path[0][1])} at {peak[0] ** 2:.1f} nats",
                f"{signed(path[-1][1] - path[0][1])} at {path[-1][0] ** 2:.1f} nats",
            ]
        )
    head = ["run", "α", "β", "R²", "turns at (nats)", "highest gain measured", "gain at the end"]
    note = (
        "Gold reward’s gain d(α − β log d) with d = √KL (Gao, Schulman & Hilton 2023), fitted to the "
        "measurements of one training each: they share its luck, and another seed may differ by more."
    )
    return Table("Over-optimisation, fitted", head, rows, note) if rows else None


def signs_table(runs: Runs) -> Table | None:
    """Share of the final responses that show each sign of gaming."""
    first = summary_of(next(iter(runs.values())))
    names = [row["sign"] for row in first.get("signs", [])]
    if not names:
        return None
    rows = []
    found = [("SFT model", first, "reference"), *((n, summary_of(s), "policy") for n, s in runs.items())]
    for name, summary, who in found:
        share = {row["sign"]: row[who] for row in summary["signs"]}
        length = summary["policies"][who]["length"]
        rows.append([name, *(percent(share[sign]) for sign in names), f"{length:.1f}"])
    note = "The SFT model’s are those of the first run."
    return Table("Signs of a gamed reward", ["run", *names, "verbosity (tokens)"], rows, note)


def cost_plot(runs: Runs) -> Plot | None:
    """What is reached for the same number of forward passes, over training."""
    key = WATCHED.get(common_measure(runs))
    curves = {}
    for name, stages in runs.items():
        if "rl" not in stages or key is None:
            continue
        own = metric(stages["rl"], key)
        known = [(row.get("forward_passes", 0), row[own]) for row in stages["rl"].metrics if own in row]
        if len(known) > 2 and known[-1][0]:
            curves[name] = known
    if len(curves) < 2:
        return None

    def paint(axes: Any) -> None:
        for (name, points), (colour, marker) in zip(curves.items(), styles(len(curves)), strict=True):
            x, y = [p / 1000 for p, _ in points], [v for _, v in points]
            axes.plot(x, y, color=colour, marker=marker, ms=3, lw=0.8, label=short(name))

    budget = min(points[-1][0] for points in curves.values())
    reached = {n: max((p, v) for p, v in points if p <= budget)[1] for n, points in curves.items()}
    best = max(reached, key=reached.__getitem__)
    name = NAMES[common_measure(runs)]
    reading = (
        f"At {budget:,} passes, where the shortest run ends, {best} has the highest {name} on training’s "
        f"held-out prompts: {two(reached[best])}."
    )
    svg = draw(paint, "forward passes of training (thousands)", f"{name} (points)")
    return Plot("At equal cost", svg, reading)


def cost_table(runs: Runs) -> Table:
    rows = []
    for name, stages in runs.items():
        summary = summary_of(stages)
        cost, key = summary["cost"], main_measure(summary)[0]
        seconds = cost["training_cpu_seconds"]
        last = summary["best_of"][-1] if summary["best_of"] else {}
        after = last.get("break_even_queries")
        rows.append(
            [
                name,
                with_interval(summary["policies"]["policy"], key),
                f"{cost['training_total']:,}" if cost["training_total"] else "–",
                f"{seconds:,.0f}" if seconds else "–",
                f"best-of-{last['n']}: {with_interval(last, key)}" if last else "–",
                f"{after:,.0f}" if after else "–",
            ]
        )
    head = ["run", "reached", "passes to train", "processor seconds", "beside it", "break-even (answers)"]
    note = "Break-even: from so many answers on, training once has cost fewer passes than that best-of-n."
    return Table("Cost side by side", head, rows, note)
