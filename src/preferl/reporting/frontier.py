"""What the KL bought: reward against KL, the trade-off over coefficients, the optimum, its price."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from preferl.reporting.formats import (
    cut_text,
    format_2f,
    percent,
    signed_2f,
    signed_percent,
    with_error,
    with_interval,
)
from preferl.reporting.measures import (
    NAMES,
    WATCHED,
    Runs,
    Stages,
    main_measure,
    metric,
    summaries,
    summary_of,
)
from preferl.reporting.page import Plot, Table, needs, table
from preferl.reporting.plots import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    Mark,
    curve,
    draw,
    error_bars,
    styles,
    ticks,
)
from preferl.statistics.frontier import MIN_EFFECTIVE_SAMPLES

DISTANCE = "√KL to the SFT model (√nats per response)"
NO_FRONTIER: dict[str, list[Any]] = {"best_of": [], "tilt": []}  # of an evaluation without a pool
USEFUL = 0.25  # of the best gain: below it a policy counts as safe but useless

Way = list[tuple[float, float]]  # (√KL, value) on the way from the SFT model


def root(kl: float) -> float:
    """sqrt(KL); an estimate below 0 counts as 0."""
    return max(kl, 0.0) ** 0.5


def columns(path: Way) -> tuple[list[float], list[float]]:
    return [distance for distance, _ in path], [value for _, value in path]


def gains(path: Way) -> tuple[list[float], list[float]]:
    """The columns of a path, its values over the first one."""
    return [distance for distance, _ in path], [value - path[0][1] for _, value in path]


def trajectory(stages: Stages, key: str) -> Way:
    """A metric on held-out prompts over the training of rl."""
    if "rl" not in stages:
        return []
    name, kl = metric(stages["rl"], key), metric(stages["rl"], "held-out/kl_exact")
    rows = [row for row in stages["rl"].metrics if name in row and kl in row]
    return [(root(row[kl]), row[name]) for row in rows]


@needs("evaluate")
def frontier_plots(runs: Runs) -> list[Plot]:
    """Reward against √KL by what the policies are judged by; of one run by its own reward too, which several
    need not share."""
    key = main_measure(*summaries(runs).values())
    measures = dict.fromkeys((key, "score") if len(runs) == 1 else (key,))
    return [frontier_plot(runs, measure) for measure in measures]


def frontier_plot(runs: Runs, key: str) -> Plot:
    """Every policy and its way from the SFT model; best-of-n and the optimum, by reweighting, of the reward
    that most runs have."""
    found, alone = summaries(runs), len(runs) == 1
    owner = with_usual_reward(runs)
    pool = found[owner].get("frontier", NO_FRONTIER)
    best = [row for row in pool["best_of"] if row["n"] > 1]
    tilt = [row for row in pool["tilt"] if row["effective_sample_size"] >= 2]
    ways, ends = [], []
    for (name, stages), (colour, marker) in zip(runs.items(), styles(len(runs)), strict=True):
        way = columns(trajectory(stages, WATCHED.get(key, "")))
        ways.append(curve(*way, "during training" if alone else None, color=colour, lw=0.9, alpha=0.6))
        policy = found[name]["policies"]["policy"]
        look = {"color": colour, "marker": marker, "label": "policy" if alone else name}
        ends.append(point(root(policy["kl"]), policy[key], **look))
    tilted = columns([(root(row["kl"]), row[key]) for row in tilt])
    chosen = columns([(root(row["kl_bound"]), row[key]) for row in best])
    tilt_colour, best_colour = (GREEN, ORANGE) if alone else (GREY, BLACK)  # several runs have the others
    marks = [
        *ways,
        curve(*tilted, "optimum, reweighted", color=tilt_colour, ls="--", marker="^", ms=4),
        curve(*chosen, "best-of-n", color=best_colour, ls=":", marker="s", ms=4),
        point(0, found[owner]["policies"]["reference"][key], color=GREY, label="SFT model"),
        *ends,
    ]
    reading = frontier_reading(found[owner], key, best, tilt) if alone else ends_reading(runs, key, owner)
    return Plot(f"What the KL bought: {NAMES[key]}", draw(marks, DISTANCE, f"{NAMES[key]} (points)"), reading)


def point(x: float, y: float, **look: Any) -> Mark:
    return lambda axes: axes.scatter([x], [y], zorder=3, **look)


def with_usual_reward(runs: Runs) -> str:
    """The first run whose pool is scored by the reward that most runs have; without any pool the first."""
    rewards = {
        name: stages["evaluate"].config.get("reward_model")
        for name, stages in runs.items()
        if "frontier" in summary_of(stages)
    }
    usual = Counter(rewards.values()).most_common(1)
    return next((name for name in rewards if rewards[name] == usual[0][0]), next(iter(runs)))


def frontier_reading(summary: dict[str, Any], key: str, best: list[Any], tilt: list[Any]) -> str:
    """Where a policy ended, beside best-of-n and the optimum of its own KL coefficient."""
    policy = summary["policies"]["policy"]
    reading = f"The policy reaches {format_2f(policy[key])} at {policy['kl']:.1f} nats"
    if best:
        row = best[-1]
        reading += (
            f"; best-of-{row['n']} reaches {format_2f(row[key])} at no more than {row['kl_bound']:.1f} nats, "
            f"but draws {row['n']} responses for each answer"
        )
    own = summary["training"].get("kl_coef")
    if tilt and own:
        row = min(tilt, key=lambda row: abs(row["kl_coef"] - own))
        size = row["effective_sample_size"]
        few = ": too few" if size < MIN_EFFECTIVE_SAMPLES else ""
        reading += (
            f". The optimum of KL coefficient {row['kl_coef']:g} would have {format_2f(row[key])} at "
            f"{row['kl']:.1f} nats ({size:.0f} effective samples of {row['pool']}{few})"
        )
    return reading + "."


def ends_reading(runs: Runs, key: str, owner: str) -> str:
    """Which of several runs ends highest, and which furthest."""
    ends = {name: summary["policies"]["policy"] for name, summary in summaries(runs).items()}
    best = max(ends, key=lambda name: ends[name][key])
    far = max(ends, key=lambda name: ends[name]["kl"])
    reading = (
        f"{best} ends highest, {format_2f(ends[best][key])} at {ends[best]['kl']:.1f} nats; {far} goes "
        f"furthest, {ends[far]['kl']:.1f} nats, for {format_2f(ends[far][key])}."
    )
    if key in WATCHED:
        reading += " The lines are measurements of training, on other held-out prompts."
    if "frontier" in summary_of(runs[owner]):
        reading += f" Best-of-n and the reweighted optimum are by the reward of {owner}."
    return reading


def coefficient(stages: Stages) -> float | None:
    """The KL coefficient of a run's policy, where it had a fixed one."""
    training = summary_of(stages).get("training", {})
    return training.get("kl_coef") if training.get("kl_controller") == "fixed" else None


@needs("evaluate")
def trade_off_plot(runs: Runs) -> Plot | None:
    """Gain, and how often answers hedge or refuse, by KL coefficient; where “safe but useless” begins."""
    known = sorted((c, name) for name, s in runs.items() if (c := coefficient(s)) is not None)
    at = [(c, name) for c, name in known if c > 0]  # the axis is logarithmic
    if len({c for c, _ in at}) < 3 or len(known) != len(runs):
        return None
    found = summaries(runs)
    key = main_measure(*found.values())
    coefs = [c for c, _ in at]
    rows = [found[name]["comparison"][key] for _, name in at]
    careful = [careful_share(found[name], "policy") for _, name in at]
    before = careful_share(found[at[0][1]], "reference")
    look = {"color": BLUE, "marker": "o", "ms": 4, "capsize": 2}
    gained = [row["difference"] for row in rows]
    marks = [curve(coefs, gained, "gain (points)", yerr=error_bars(rows, "difference"), **look)]
    if None not in careful:
        look = {"color": ORANGE, "marker": "s", "ms": 4, "ls": "--"}
        marks.append(curve(coefs, careful, "hedges or refuses (share)", **look))
    marks.append(lambda axes: axes.set_xscale("log"))
    marks.append(ticks(coefs, [f"{c:g}" for c in coefs]))
    best = max(range(len(rows)), key=gained.__getitem__)
    most = gained[best]
    reading = f"The gain in {NAMES[key]} is highest at {coefs[best]:g}: {signed_2f(most)}. "
    useless = [i for i in range(best + 1, len(rows)) if gained[i] < USEFUL * most]
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
            f"“Safe but useless” begins at {coefs[i]:g}: the gain is {signed_2f(gained[i])}, less "
            f"than a quarter of that{shares}."
        )
    else:
        reading += (
            f"“Safe but useless” does not begin in this range: at {coefs[-1]:g} the gain is still "
            f"{signed_2f(gained[-1])}{shares}."
        )
    for _, name in known[: len(known) - len(at)]:
        without = found[name]["comparison"][key]["difference"]
        reading += f" Without a penalty ({name}) the gain is {signed_2f(without)}."
    x_label, y_label = "KL coefficient β (reward per nat)", "gain (points); share of answers"
    svg = draw(marks, x_label, y_label)
    return Plot("The trade-off", svg, reading)


def careful_share(summary: dict[str, Any], who: str) -> float | None:
    """Share of answers that hedge or refuse; None where an older preferl did not count it."""
    return next((row[who] for row in summary["signs"] if row["sign"] == "careful"), None)


def objective(row: dict[str, Any], coef: float) -> float:
    """What RL maximises: the reward less the KL's price."""
    return row["score"] - coef * row["kl"]


@needs("evaluate")
def prediction_table(runs: Runs) -> Table | None:
    """The optimum of a run's own objective, from the SFT model's samples alone, beside what was reached."""
    found = {name: summary for name, summary in summaries(runs).items() if summary.get("prediction")}
    if not found:
        return None
    return prediction_of_one(*found.values()) if len(runs) == 1 else predictions_of_several(found)


def prediction_of_one(summary: dict[str, Any]) -> Table:
    """A quantity a row, with intervals."""
    row = summary["prediction"]
    policy, reference = summary["policies"]["policy"], summary["policies"]["reference"]
    rows = []
    for key, name in (*NAMES.items(), ("length", "length (tokens)"), ("kl", "KL (nats per response)")):
        if key == "kl":
            rows.append([name, "0", with_interval(row, key), with_error(policy, key)])
        elif key in row:
            rows.append([name, *(with_interval(part, key) for part in (reference, row, policy))])
    coef = row["kl_coef"]
    best, reached = (format_2f(objective(part, coef)) for part in (row, policy))
    rows.append([f"reward − {coef:g}·KL", format_2f(reference["score"]), best, reached])
    size = row["effective_sample_size"]
    note = (
        f"π_ref·e^(r/{coef:g}) from {row['pool']} samples of the SFT model to each of {row['prompts']} "
        f"prompts, {size:.0f} effective ones on average"
    )
    few = size < MIN_EFFECTIVE_SAMPLES
    note += ": too few; reward and KL are bounds from below, the rest may be off." if few else "."
    head = ["", "SFT model", "predicted optimum", "measured"]
    return Table("What this KL coefficient should lead to", head, rows, note)


def predictions_of_several(found: Mapping[str, dict[str, Any]]) -> Table | None:
    """A run a row: its coefficient, and length, reward, KL and objective, predicted and measured."""
    rows, below = [], []
    for name, summary in found.items():
        row, policy = summary["prediction"], summary["policies"]["policy"]
        off = policy["length"] / row["length"] - 1
        start = summary["policies"]["reference"]["score"]
        best, reached = (objective(part, row["kl_coef"]) for part in (row, policy))
        below += [name] if reached < start else []
        size = row["effective_sample_size"]
        few = " (too few)" if size < MIN_EFFECTIVE_SAMPLES else ""
        rows.append(
            {
                "run": name,
                "β": f"{row['kl_coef']:g}",
                "effective samples": f"{size:.0f} of {row['pool']}{few}",
                "predicted length (tokens)": with_interval(row, "length"),
                "measured length": f"{with_interval(policy, 'length')} ({signed_percent(off)})",
                "reward, predicted → measured": f"{format_2f(row['score'])} → {format_2f(policy['score'])}",
                "KL (nats), predicted → measured": f"{format_2f(row['kl'])} → {format_2f(policy['kl'])}",
                "reward − β·KL, predicted → measured": f"{format_2f(best)} → {format_2f(reached)}",
                "of the SFT model": format_2f(start),
            }
        )
    note = (
        "Runs with a fixed KL coefficient β above 0, trained against the reward that is evaluated. "
        "Predicted: the optimum π_ref·e^(r/β), by reweighting samples of the SFT model. Where the effective "
        "samples are too few, reward and KL are bounds from below and the length may be off either way."
    )
    if below:
        note += f" By its own objective worse than the SFT model: {', '.join(below)}."
    return table("What each KL coefficient should lead to", rows, note)


def adjusted(row: dict[str, Any], coef: float) -> float:
    return row["score"] - coef * row["log_ratio"]


@needs("evaluate")
def adjusted_table(runs: Runs) -> Table | None:
    """The reward less the KL's price, of the same five responses of the SFT model under every policy."""
    coefs = {name: coef for name, stages in runs.items() if (coef := coefficient(stages)) is not None}
    examples = {name: summary_of(runs[name]).get("examples") or [] for name in coefs}
    responses = {tuple((row["prompt"], row["response"]) for row in rows) for rows in examples.values()}
    if len(responses) != 1 or not any(responses) or not any(coefs.values()) or len(coefs) < min(len(runs), 2):
        return None
    if len(runs) == 1:
        ((name, rows),) = examples.items()
        gold = ["gold"] if "gold" in rows[0] else []
        head = ["reward", *gold, "log π/π_ref (nats)", "adjusted reward"]
        cells = [
            [
                *(format_2f(row[key]) for key in ("score", *gold, "log_ratio")),
                format_2f(adjusted(row, coefs[name])),
            ]
            for row in rows
        ]
        note = (
            f"Adjusted reward: r − {coefs[name]:g}·log π/π_ref. At the optimum it is the same for every "
            f"response to one prompt; these are answers to five prompts."
        )
    else:
        head = [with_coefficient(name, coef) for name, coef in coefs.items()]
        by_run = [
            [f"{format_2f(adjusted(row, coefs[name]))} ({format_2f(row['log_ratio'])})" for row in rows]
            for name, rows in examples.items()
        ]
        cells = list(zip(*by_run, strict=True))
        note = (
            "r − β·log π/π_ref, and in brackets log π/π_ref in nats, of five responses of the SFT model from "
            "the lowest to the highest reward, to five prompts. At the optimum the adjusted reward is the "
            "same for every response to one prompt: what the policy prefers, it has paid for."
        )
    (pairs,) = responses
    body = [[*map(cut_text, pair), *cell] for pair, cell in zip(pairs, cells, strict=True)]
    return Table(
        "Adjusted reward of five responses", ["prompt", "response of the SFT model", *head], body, note
    )


def with_coefficient(name: str, coef: float) -> str:
    return name if name.endswith(f"= {coef:g}") else f"{name}, β {coef:g}"
