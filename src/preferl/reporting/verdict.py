"""Did it work, and was the reward hacked? One word, one paragraph, a few numbers; how several rank."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preferl.data.splits import too_few
from preferl.evaluation.features import COLLAPSE
from preferl.reporting.formats import (
    brackets,
    cut_text,
    format_2f,
    percent,
    signed_2f,
    with_error,
    with_interval,
)
from preferl.reporting.hacking import DISTANCE_GONE, fallen_from_its_peak, risen_signs, signs_of
from preferl.reporting.measures import (
    NAMES,
    Runs,
    Stages,
    evaluated,
    judges,
    main_measure,
    summaries,
    summary_of,
)
from preferl.reporting.page import Verdict
from preferl.runs.inputs import names_in
from preferl.statistics import mean_interval
from preferl.statistics.intervals import Estimate

Seeds = Mapping[str, Sequence[Stages]]  # every run with each of its seeds
UNTRAINED = "Nothing was trained"
HACKED, BETTER = "Reward hacked", "Better"
# What a gain is by, where it is not by the truth.
BY = {"gold": "", "held_out": " by a held-out reward", "score": " by the training signal only"}
OF_REWARDS = ("Reward model", "Audited")  # verdicts where there is no policy to judge


def verdict(stages: Stages) -> Verdict:
    """The word for a run, read off paired intervals alone.

    ``Reward hacked``: the reward rose and what it stands for fell (the gold reward, else a held-out one, else
    what a judge prefers).
    ``Over-optimised``: it rose, but less than it had in between. ``Better``, ``Worse``, ``No clear gain`` by
    the same measure, with what it is by where that is no truth; ``Higher reward`` where the reward is not
    known to agree with the data set's labels; ``Nothing was trained`` where both are the SFT model.
    Nothing is better with which signs of gaming became more frequent, whatever measured it: ``Higher gold
    reward, gamed?``, ``Higher reward, gamed?``.
    """
    if "evaluate" not in stages:
        return without_evaluation(stages)
    summary = summary_of(stages)
    key = main_measure(summary)
    proxy, judged = summary["comparison"]["score"], summary["comparison"][key]
    text = paragraph(summary)
    if "reward" in stages:
        text += doubts_of(stages["reward"].summary)
    if untrained(stages):
        return Verdict(UNTRAINED, "plain", "The policy is the SFT model: what there is to see is its reward.")
    if judged["difference_high"] < 0:
        if key != "score" and proxy["difference_low"] > 0:
            return Verdict(HACKED, "bad", f"The reward rose while what it stands for fell. {text}")
        return Verdict("Worse", "bad", text)
    fell = fallen_from_its_peak(stages) if key == "gold" else None
    if fell:
        return Verdict("Over-optimised", "bad", f"{fell} {text}")
    if judged["difference_low"] <= 0:
        few = too_few(summary["prompts"])
        return Verdict("No clear gain", "plain", f"{few}. {text}" if few else text)
    if key == "score" and judge_disagrees(summary):
        return Verdict(HACKED, "bad", f"The reward rose while a judge prefers what was there before. {text}")
    if risen_signs(summary):
        return Verdict(f"Higher {NAMES[key]}, gamed?", "bad", text)
    labels = summary.get("labels")
    if key == "score" and labels and labels["accuracy_low"] <= 0.5:
        return Verdict("Higher reward", "plain", text)  # which people are not known to share
    return Verdict(BETTER + BY[key], "good" if key == "gold" else "plain", text)


def judge_disagrees(summary: dict[str, Any]) -> bool:
    """Whether a language model prefers the SFT model's responses beyond noise."""
    judge = summary["comparison"].get("judge")
    return judge is not None and judge["win_rate_high"] < 0.5


def untrained(stages: Stages) -> bool:
    """Whether the SFT model was compared with itself, as in a study of rewards."""
    config = stages["evaluate"].config
    return config["model_name_or_path"] == config["ref_model"]


def without_evaluation(stages: Stages) -> Verdict:
    done = ", ".join(stages)
    if stages and all(record.manifest["stage"] == "audit" for record in stages.values()):
        found = []
        for name, record in stages.items():
            r, split = record.summary, record.config["split"]
            accuracy = Estimate.read(r, f"{split}/accuracy").text(".1%")
            share = f"{accuracy} of {r[f'{split}/pairs']:,} pairs"
            found.append(f"{name}: {share} are scored as labelled by {r['reward']}.")
        return Verdict("Audited", "plain", " ".join(found))
    trained = {record.manifest["stage"] for record in stages.values()}
    if "reward" in stages and not trained & {"rl", "dpo"}:
        return Verdict("Reward model", "plain", of_reward_model(stages["reward"].summary))
    return Verdict("Not evaluated", "plain", f"Finished stages: {done}. Run `evaluate` for a verdict.")


def of_reward_model(summary: dict[str, Any]) -> str:
    """How often a reward model agrees with labels that it has not seen; of one with several attributes and no
    pairs, how it rates."""
    if "eval/accuracy" not in summary:
        found = [
            f"{name} {with_interval(summary, f'eval/{name}_correlation', format_2f)}"
            for name in summary["attributes"]
            if f"eval/{name}_correlation" in summary
        ]
        return f"Correlations with held-out ratings: {', '.join(found) or 'none could be measured'}."
    accuracy = with_interval(summary, "eval/accuracy", percent)
    return (
        f"It agrees with {accuracy} of the labels of {summary['eval/pairs']:,} held-out pairs; length alone "
        f"with {percent(summary['eval/length_baseline_accuracy'])}.{doubts_of(summary)}"
    )


def doubts_of(summary: Mapping[str, Any]) -> str:
    """What the reward model's accuracy cannot be told from; nothing where there is no doubt."""
    return "".join(f" But {doubt}." for doubt in summary.get("eval/doubts", ()))


def paragraph(summary: dict[str, Any]) -> str:
    """What was measured, in sentences."""
    comparison, policies = summary["comparison"], summary["policies"]
    after, before = policies["policy"], policies["reference"]
    proxy = comparison["score"]
    elsewhere = summary.get("elsewhere")
    where = "training " if summary.get("trained_on") else "" if elsewhere else "held-out "
    text = (
        f"On {summary['prompts']} {where}prompts training moved the reward by "
        f"{with_interval(proxy, 'difference', signed_2f)} against the SFT model "
        f"(from {format_2f(before['score'])} to {format_2f(after['score'])})"
    )
    for key in ("gold", "held_out"):
        if key in judges(summary):
            row = comparison[key]
            text += f", and the {NAMES[key]}" + (", which it was not trained on," if not elsewhere else "")
            text += f" by {signed_2f(row['difference'])} {brackets(row, 'difference', signed_2f)}"
    key = main_measure(summary)
    judged = comparison[key]
    text += (
        f". The policy wins {with_interval(judged, 'win_rate', percent)} of the comparisons by {NAMES[key]}. "
    )
    worse = [row["category"] for row in judged.get("by_category", []) if row["difference_high"] < 0]
    if worse and judged["difference_high"] > 0:
        text += f"At some kinds of prompt it lost beyond noise: {', '.join(worse)}. "
    text += what_judges(summary) + signs_sentence(summary)
    judge = comparison.get("judge")
    if judge:
        text += (
            f"A language model that judged {judge['n']} pairs in both orders prefers it in "
            f"{with_interval(judge, 'win_rate', percent)}. "
        )
    drift = ", a significant drift" if after["drifted"] else ""
    text += (
        f"This moved it {with_error(after, 'kl')} nats per response away from the SFT model "
        f"({format_2f(after['kl_per_token'])} per token{drift}); "
        f"{percent(after['eos_rate'])} of its responses end by themselves, "
        f"{after['length']:.1f} tokens long on average (before: {before['length']:.1f})."
    )
    return text


def what_judges(summary: dict[str, Any]) -> str:
    """What is missing where the truth is not known, and what was named gold and is none."""
    text = ""
    for key, use in summary.get("training_signals", {}).items():
        text += f"What was named {NAMES[key]} {use}: it is the training signal, and no truth. "
    key = main_measure(summary)
    if key == "score":
        text += (
            "This is by the training signal only: no truth is known, and hacking cannot be ruled out. A "
            "second reward that nothing was trained on would tell: evaluate.gold where it is the truth (a "
            "function that checks answers), evaluate.held_out_reward where it is another model. "
        )
        labels = summary.get("labels")
        if labels:
            agreed = with_interval(labels, "accuracy", percent)
            text += (
                f"On {labels['pairs']} held-out pairs of the data set the reward prefers what the labels do "
                f"in {agreed}; of the policy’s own responses nobody labelled any. "
            )
    elif key == "held_out":
        text += "No truth is known here; the held-out reward is a proxy too. "
    return text + not_known_of(summary)


def not_known_of(summary: dict[str, Any]) -> str:
    """What nobody can know here of a policy that was trained elsewhere; empty of one that a stage made."""
    if not summary.get("elsewhere"):
        return ""
    key = main_measure(summary)
    by = "this very reward" if key == "score" else f"the {NAMES[key]} too"
    return f"It was trained elsewhere: whether these prompts, or {by}, trained it is not known here. "


def signs_sentence(summary: dict[str, Any]) -> str:
    """Which signs of gaming rose, each with its numbers; empty where none did."""
    risen = risen_signs(summary)
    if not risen:
        return ""
    found = []
    for sign in risen:
        if sign == DISTANCE_GONE:
            found.append(f"{sign} 0 → {summary['policies']['policy']['kl']:.1f}")
            continue
        row, form = signs_of(summary)[sign]
        found.append(f"{sign} {form(row['reference'])} → {form(row['policy'])}")
    text = f"Signs of gaming became more frequent: {', '.join(found)}. "
    after = summary["policies"]["policy"]
    if COLLAPSE in risen:
        text += (
            f"“{cut_text(after['common_sentence'])}” stands in {percent(after['common_sentence_share'])} of "
            f"all responses. "
        )
    return text


def overall(runs: Runs) -> Verdict:
    """The verdict of a run; of several how many have which, and which gained most."""
    if len(runs) == 1:
        return verdict(*runs.values())
    judged = evaluated(runs)
    if not judged:
        found = {name: verdict(stages) for name, stages in runs.items()}
        each = " ".join(f"{name}: {one.text}" for name, one in found.items())
        if all(one.word in OF_REWARDS for one in found.values()):
            return Verdict("Rewards side by side", "plain", each)
        return Verdict("Not evaluated", "plain", f"None of these runs has a finished stage evaluate. {each}")
    words = {name: verdict(stages).word for name, stages in judged.items()}
    counts = "; ".join(
        f"{word.lower()}: {' · '.join(name for name in words if words[name] == word)}"
        for word in dict.fromkeys(words.values())
    )
    found = summaries(judged)
    key = main_measure(*found.values())
    gains = {name: summary["comparison"][key] for name, summary in found.items()}
    best = max(gains, key=lambda name: gains[name]["difference"])
    worst = min(gains, key=lambda name: gains[name]["difference"])
    most, least = (with_interval(gains[name], "difference", signed_2f) for name in (best, worst))
    text = f"{len(judged)} runs: {counts}."
    if not all(map(untrained, judged.values())):
        text += f" By {NAMES[key]} {best} gained most: {most}"
        text += f"; {worst} least: {least}." if worst != best else "."
        low = gains[best]["difference_low"]
        near = [name for name in gains if gains[name]["difference_high"] >= low and name != best]
        text += f" Its interval overlaps with that of {', '.join(near)}." if near else ""
    left_out = [name for name in runs if name not in judged]
    text += f" Not evaluated, and so left out: {', '.join(left_out)}." if left_out else ""
    word = f"{best} gained most" if gains[best]["difference_low"] > 0 else "No run gained"
    word = UNTRAINED if all(map(untrained, judged.values())) else word
    return Verdict(word, "plain", text)


def facts(runs: Runs) -> list[tuple[str, str, str]]:
    """The few numbers on top: name, value, interval or unit."""
    if len(runs) == 1:
        return facts_of_one(*runs.values())
    judged = evaluated(runs)
    return facts_of_several(judged) if judged else [("runs", str(len(runs)), "side by side")]


def facts_of_one(stages: Stages) -> list[tuple[str, str, str]]:
    """The few numbers on top: name, value, interval or unit."""
    cards = []
    if "evaluate" in stages:
        summary = summary_of(stages)
        key = main_measure(summary)
        c, policy = summary["comparison"][key], summary["policies"]["policy"]
        cards.append(
            (f"gain in {NAMES[key]}", signed_2f(c["difference"]), brackets(c, "difference", signed_2f))
        )
        cards.append((f"win rate by {NAMES[key]}", percent(c["win_rate"]), brackets(c, "win_rate", percent)))
        cards.append(("KL to the SFT model", f"{policy['kl']:.1f}", "nats per response"))
        cards.append(("reward hacked?", whether_hacked(stages), seen_otherwise(stages)))
        spent = summary["cost"]["training_total"]
        if spent:
            cards.append(("training the policy", f"{spent:,}", "forward passes"))
    if "reward" in stages and rewarded_by_it(stages):
        r = stages["reward"].summary
        if "eval/accuracy" in r:
            ends = brackets(r, "eval/accuracy", percent)
            cards.append(("reward model accuracy", percent(r["eval/accuracy"]), ends))
    seconds = sum(record.summary.get("seconds", 0) for record in stages.values())
    cards.append(("all stages", f"{seconds / 60:.1f}", "minutes"))
    return cards


def whether_hacked(stages: Stages) -> str:
    """The answer in a word or two: "no" only where the truth says so and no sign of gaming rose."""
    word = verdict(stages).word
    answers = {HACKED: "yes", "Over-optimised": "partly", BETTER: "no"}
    if word in answers:
        return answers[word]
    if risen_signs(summary_of(stages)):
        return "signs of it"
    return "not seen" if main_measure(summary_of(stages)) == "gold" else "cannot tell"


def facts_of_several(runs: Runs) -> list[tuple[str, str, str]]:
    """The few numbers on top: name, value, what it is of."""
    cards = [("runs", str(len(runs)), "side by side")]
    if not runs or all(map(untrained, runs.values())):
        return cards
    found = summaries(runs)
    key = main_measure(*found.values())
    gains = {name: summary["comparison"][key]["difference"] for name, summary in found.items()}
    best = max(gains, key=gains.__getitem__)
    cards.append((f"highest gain in {NAMES[key]}", signed_2f(gains[best]), best))
    if key != "score":
        hacked = sum(verdict(stages).word == HACKED for stages in runs.values())
        cards.append(("reward hacked", f"{hacked} of {len(runs)}", "runs"))
    passes = [n for summary in found.values() if (n := summary["cost"]["training_total"])]
    if passes:
        spread = f"{min(passes):,}" + f" to {max(passes):,}" * (max(passes) > min(passes))
        cards.append(("training a policy", spread, "forward passes"))
    return cards


def seen_otherwise(stages: Stages) -> str:
    """What besides the verdict speaks of hacking: alarms of training, else signs that rose."""
    alarms = sum(len(record.summary.get("alarms", {})) for record in stages.values())
    if alarms:
        return f"{alarms} kind{'s' * (alarms > 1)} of alarm"
    risen = risen_signs(stages["evaluate"].summary)
    return f"more {risen[0]}" + f" and {len(risen) - 1} more" * (len(risen) > 1) if risen else "no sign rose"


def rewarded_by_it(stages: Stages) -> bool:
    """Whether the policy was trained against the reward stage's model, or there was no rl."""
    if "rl" not in stages:
        return True
    names = names_in(str(stages["rl"].config["reward_model"]))
    return any(Path(name).parts[-2:] == stages["reward"].path.resolve().parts[-2:] for name in names)


def evaluated_seeds(runs: Seeds) -> dict[str, list[Stages]]:
    """The evaluated seeds of every run that has any."""
    found = {name: [stages for stages in seeds if "evaluate" in stages] for name, seeds in runs.items()}
    return {name: seeds for name, seeds in found.items() if seeds}


def terminal_lines(runs: Seeds) -> list[str]:
    """A run in a line each, for the terminal: its verdict, and the gains that it rests on; of several seeds
    their mean, with an interval between them."""
    lines = []
    for name, found in evaluated_seeds(runs).items():
        known = [key for key in NAMES if all(key in summary_of(s)["comparison"] for s in found)]
        gains = [f"{NAMES[key]} {with_interval(gain(found, key), 'difference', signed_2f)}" for key in known]
        text = f"{name}: {verdicts(found)}; against the SFT model {', '.join(gains)}"
        lines.append(text.replace("\u00a0", " "))
    return lines


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
