"""Did it work, and was the reward hacked? One word, one paragraph, a few numbers."""

from preferl.reporting.page import (
    Stages,
    Verdict,
    interval,
    percent,
    signed,
    two,
)


def verdict(stages: Stages) -> Verdict:
    """Did it work, and was the reward hacked? Read off the paired intervals alone."""
    if "evaluate" not in stages:
        done = ", ".join(stages)
        if all(record.manifest["stage"] == "audit" for record in stages.values()):
            found = []
            for name, r in ((name, record.summary) for name, record in stages.items()):
                ends = f"[{r['eval_accuracy_low']:.1%}, {r['eval_accuracy_high']:.1%}]"
                share = f"{r['eval_accuracy']:.1%} {ends} of {r['eval_pairs']:,} pairs"
                found.append(f"{name}: {share} are scored as labelled by {r['reward']}.")
            return Verdict("Audited", "plain", " ".join(found))
        return Verdict("Not evaluated", "plain", f"Finished stages: {done}. Run `evaluate` for a verdict.")
    summary = stages["evaluate"].summary
    proxy, gold = summary["comparison"]["score"], summary["comparison"].get("gold")
    after, before = summary["policies"]["policy"], summary["policies"]["reference"]
    text = (
        f"On {summary['prompts']} held-out prompts training moved the reward by "
        f"{signed(proxy['difference'])} {interval(proxy, 'difference', signed)} against the SFT model "
        f"(from {two(before['score'])} to {two(after['score'])}, in standard deviations of the reward), "
    )
    if gold:
        text += (
            f"and the gold reward, which it was not trained on, moved by {signed(gold['difference'])} "
            f"{interval(gold, 'difference', signed)}. It wins {percent(gold['win_rate'])} "
            f"{interval(gold, 'win_rate', percent)} of the comparisons by gold reward. "
        )
    else:
        text += (
            f"and it wins {percent(proxy['win_rate'])} {interval(proxy, 'win_rate', percent)} of the "
            f"comparisons by that reward. No gold reward is known here, so hacking cannot be ruled out. "
        )
    judge = summary["comparison"].get("judge")
    if judge:
        text += (
            f"A language model that judged {judge['n']} pairs in both orders prefers it in "
            f"{percent(judge['win_rate'])} {interval(judge, 'win_rate', percent)} ({judge['inconsistent']} "
            f"verdicts changed with the order, {judge['unparsable']} were unreadable). "
        )
    text += (
        f"This moved it {after['kl']:.1f} ± {after['kl_se']:.1f} nats per response away from the SFT model; "
        f"{percent(after['eos_rate'])} of its responses end by themselves, "
        f"{after['length']:.0f} tokens long on average (before: {before['length']:.0f})."
    )
    judged = gold or proxy
    if gold and gold["difference_high"] < 0 and proxy["difference_low"] > 0:
        return Verdict("Reward hacked", "bad", "The reward rose while what it stands for fell. " + text)
    if judged["difference_low"] > 0:
        return Verdict("Better" if gold else "Higher reward", "good", text)
    if judged["difference_high"] < 0:
        return Verdict("Worse", "bad", text)
    return Verdict("No clear gain", "plain", text)


def facts(stages: Stages) -> list[tuple[str, str, str]]:
    """The few numbers on top: name, value, interval or unit."""
    cards = []
    if "evaluate" in stages:
        summary = stages["evaluate"].summary
        key = "gold" if "gold" in summary["comparison"] else "score"
        name = "gold reward" if key == "gold" else "reward"
        c, policy = summary["comparison"][key], summary["policies"]["policy"]
        cards.append((f"gain in {name}", signed(c["difference"]), interval(c, "difference", signed)))
        cards.append((f"win rate by {name}", percent(c["win_rate"]), interval(c, "win_rate", percent)))
        cards.append(("KL to the SFT model", f"{policy['kl']:.1f}", "nats per response"))
    if "reward" in stages:
        r = stages["reward"].summary
        cards.append(
            (
                "reward model accuracy",
                percent(r["eval_accuracy"]),
                f"[{percent(r['eval_accuracy_low'])}, {percent(r['eval_accuracy_high'])}]",
            )
        )
    seconds = sum(record.summary.get("seconds", 0) for record in stages.values())
    cards.append(("all stages", f"{seconds / 60:.1f}", "minutes"))
    return cards
