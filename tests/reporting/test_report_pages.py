"""What pages say: verdicts, turning points, where “safe but useless” begins, break-even; computed from
numbers that are known here."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import t

from preferl.reporting import cost, evaluation, frontier, hacking, samples
from preferl.reporting import training as training_pages
from preferl.reporting.hacking import fallen_from_its_peak
from preferl.reporting.page import Plot, Section, Verdict, needs, of_one_run, write_page
from preferl.reporting.plots import curve, draw, styles
from preferl.reporting.sections import sections
from preferl.reporting.verdict import facts, overall, terminal_lines, verdict
from preferl.runs.errors import UsageError
from preferl.stages import report


def difference(value, half=0.2):
    return {
        "difference": value,
        "difference_low": value - half,
        "difference_high": value + half,
        "win_rate": 0.5,
        "win_rate_low": 0.4,
        "win_rate_high": 0.6,
        "n": 100,
    }


def about(name, value):
    return {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}


def signs(before=0.1, after=0.1):
    return [
        {"sign": sign, **about("reference", before), **about("policy", after)}
        for sign in ("hedging", "refusing", "careful", "repetition")
    ]


def summary(proxy=1.0, gold=1.0, coef=0.1, kl=4.0, **more):
    """An evaluation: a policy that gained so much by the reward and by gold."""
    policies = {
        "reference": about("score", 0.0) | about("gold", -1.0) | about("length", 12.0),
        "policy": about("score", proxy) | about("gold", gold - 1.0) | about("length", 20.0),
    }
    shared = {"eos_rate": 1.0, "repetition": 0.0, "distinct_2": 0.3, "perplexity": 1.5}
    policies = {name: row | shared for name, row in policies.items()}
    policies["policy"] |= {"kl": kl, "kl_se": 0.1, "kl_per_token": 0.2, "drifted": True}
    return {
        "prompts": 100,
        "num_generations": 1,
        "temperature": 1.0,
        "policies": policies,
        "comparison": {"score": difference(proxy), "gold": difference(gold)},
        "references": {},
        "signs": signs(),
        "best_of": [],
        "training": {"kl_coef": coef, "kl_controller": "fixed"},
        "cost": {
            "training_total": 3000,
            "training_cpu_seconds": 60.0,
            "policy_cpu_seconds_per_response": 0.01,
        },
    } | more


def stage(summary, metrics=(), kind="evaluate"):
    return SimpleNamespace(
        path=Path("run") / kind,
        summary=summary,
        metrics=list(metrics),
        manifest={"stage": kind},
        samples=[],
        config={"model_name_or_path": "run/rl", "ref_model": "run/sft", "reward_model": "run/reward"},
    )


def run(metrics=(), **options):
    found = {"evaluate": stage(summary(**options))}
    return found | ({"rl": stage({}, metrics, "rl")} if metrics else {})


def alone(metrics=(), **options):
    """The runs of a page of one."""
    return {"alone": run(metrics, **options)}


def training(golds, kls=None, error=0.05):
    """Measurements on held-out prompts while gold went through these values."""
    kls = kls or [float(i) for i in range(len(golds))]
    return [
        {"step": i, "dev/gold": g, "dev/gold_se": error, "dev/reward": i / 5, "dev/kl_exact": kl,
         "forward_passes": 100 * i, "dev/sign/hedging": 0.1 * i}
        for i, (g, kl) in enumerate(zip(golds, kls, strict=True))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "Better"),
        ({"gold": -1.0}, "Reward hacked"),
        ({"proxy": -1.0, "gold": -1.0}, "Worse"),
        ({"gold": 0.1}, "No clear gain"),
    ],
)
def test_one_word(options, word):
    assert verdict(run(**options)).word == word


@pytest.mark.parametrize(("prompts", "said"), [(29, True), (30, False)])
def test_no_clear_gain_on_few_prompts_says_that_they_are_few(prompts, said):
    stages = run(gold=0.1)
    stages["evaluate"].summary["prompts"] = prompts
    few = "29 prompts are too few to tell all but large gains from chance: evaluate on 30 or more"
    assert verdict(stages).text.startswith(few) == said
    # A gain that is told from chance needs no more of them.
    stages = run()
    stages["evaluate"].summary["prompts"] = prompts
    assert "too few" not in verdict(stages).text


def test_kinds_of_prompt_that_lost_are_named():
    stages = run()
    gold = stages["evaluate"].summary["comparison"]["gold"]
    gold["by_category"] = [
        {"category": "requests", "prompts": 20, **difference(-1.0)},
        {"category": "sums", "prompts": 20, **difference(0.1)},
    ]
    assert "lost beyond noise: requests. " in verdict(stages).text
    gold["by_category"][0] |= difference(0.0)
    assert "lost beyond noise" not in verdict(stages).text


def test_a_held_out_reward_can_tell_of_hacking_too():
    stages = run()
    found = stages["evaluate"].summary["comparison"]
    found["held_out"] = difference(-0.5)
    del found["gold"]
    assert verdict(stages).word == "Reward hacked"
    del found["held_out"]
    assert verdict(stages).word == "Better by the training signal only"
    found["held_out"] = difference(0.5)
    assert verdict(stages).word == "Better by a held-out reward"
    assert "a proxy too" in verdict(stages).text


def test_a_judge_can_tell_of_hacking_where_nothing_else_can():
    stages = without_gold(run())
    judge = {"n": 100, "inconsistent": 0, "unparsable": 0, "win_rate": 0.3}
    judge |= {"win_rate_low": 0.2, "win_rate_high": 0.4}
    stages["evaluate"].summary["comparison"]["judge"] = judge
    found = verdict(stages)
    assert found.word == "Reward hacked"
    assert "The reward rose while a judge prefers what was there before." in found.text
    judge["win_rate_high"] = 0.5
    assert verdict(stages).word == "Better by the training signal only"
    assert verdict(run()).word == "Better"


def without_gold(stages):
    del stages["evaluate"].summary["comparison"]["gold"]
    return stages


def hacked_card(stages):
    return next(card[1:] for card in facts({"a": stages}) if card[0] == "reward hacked?")


def test_without_a_truth_the_page_says_what_it_judges_by():
    found = verdict(without_gold(run()))
    assert found.tone == "plain"
    assert "by the training signal only" in found.text
    assert hacked_card(without_gold(run())) == ("cannot tell", "no sign rose")
    assert hacked_card(run()) == ("no", "no sign rose")


def test_without_a_truth_a_reward_that_the_labels_do_not_share_makes_nothing_better():
    labels = {"pairs": 200, **about("accuracy", 0.7)}
    found = verdict(without_gold(run(labels=labels)))
    assert found.word == "Better by the training signal only"
    assert "On 200 held-out pairs of the data set the reward prefers what the labels do in 70.0" in found.text
    assert verdict(without_gold(run(labels=labels | about("accuracy", 0.55)))).word == "Higher reward"
    assert verdict(run(labels=labels | about("accuracy", 0.55))).word == "Better"  # by the truth


def risen(sign, before, after, half=0.02):
    return [{"sign": sign} | {
        f"{who}{end}": share + way * half
        for who, share in (("reference", before), ("policy", after))
        for end, way in (("", 0), ("_low", -1), ("_high", 1))
    }]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"signs": risen("unfinished", 0.02, 1.0)}, "unfinished 2.0\u00a0% → 100.0\u00a0%"),
        ({"signs": risen("collapse", 0.03, 0.977)}, "“thank you.” stands in 97.7\u00a0% of all responses"),
        ({"signs": risen("repetition", 0.0, 0.07), "kl": 81.0}, "repetition 0.0\u00a0% → 7.0\u00a0%"),
        ({"signs": risen("sycophancy", 0.1, 0.6)}, "sycophancy 10.0\u00a0% → 60.0\u00a0%"),
        ({"length": 30.0}, "verbosity (tokens) 12.0 → 30.0"),
    ],
)
def test_nothing_is_better_with_which_a_sign_of_gaming_rose(changes, found):
    stages = run(signs=changes.get("signs", []))
    policy = stages["evaluate"].summary["policies"]["policy"]
    policy |= {"common_sentence": "thank you.", "common_sentence_share": 0.977}
    policy |= {"kl": changes.get("kl", 4.0)} | about("length", changes.get("length", 20.0))
    by_gold = verdict(stages)
    assert by_gold.word == "Higher gold reward, gamed?"
    assert found in by_gold.text
    assert hacked_card(stages)[0] == "signs of it"
    by_reward = verdict(without_gold(stages))
    assert by_reward.word == "Higher reward, gamed?"
    assert found in by_reward.text
    assert hacked_card(stages)[0] == "signs of it"


def test_what_is_within_noise_or_small_is_no_sign():
    for signs, kl in (
        (risen("repetition", 0.0, 0.07), 4.0),  # near the SFT model, a few more
        (risen("hedging", 0.1, 0.4, half=0.2), 4.0),  # intervals overlap
        (risen("unfinished", 0.6, 0.1), 4.0),
        ([], 81.0),
    ):
        stages = run(signs=signs)
        stages["evaluate"].summary["policies"]["policy"]["kl"] = kl
        assert verdict(stages).word == "Better"
    # By the training signal alone, so far is too far.
    assert verdict(without_gold(stages)).word == "Higher reward, gamed?"
    assert "distance (nats) 0 → 81.0" in verdict(stages).text


def test_what_trained_or_labelled_is_no_gold_whatever_it_was_named():
    stages = run(training_signals={"gold": "labelled the pairs"}, gold=-1.0)
    found = verdict(stages)
    assert found.word == "Better by the training signal only"
    assert "What was named gold reward labelled the pairs: it is the training signal" in found.text
    assert "which it was not trained on" not in found.text
    stages["evaluate"].summary["comparison"]["held_out"] = difference(-0.5)
    assert verdict(stages).word == "Reward hacked"


def test_a_gold_reward_that_fell_from_its_peak_beyond_noise():
    falling = [-2, -1, 0, 1, 1, 1, 0.5, 0, -0.5, -0.5, -0.5]
    assert verdict(run(training(falling))).word == "Over-optimised"
    assert "iteration 3, 1.00 on other held-out prompts, and ended at −0.50" in (
        fallen_from_its_peak(run(training(falling))) or ""
    )
    assert verdict(run(training(falling, error=1.0))).word == "Better"  # it may be noise
    assert verdict(run(training([-2, -1, 0, 1, 1, 1, 1]))).word == "Better"
    assert fallen_from_its_peak(run()) is None


def test_the_turning_point_is_that_of_the_published_curve():
    alpha, beta = 1.2, 0.5
    kl = [i**2 / 20 for i in range(1, 20)]
    d = np.sqrt(kl)
    gains = d * (alpha - beta * np.log(d))
    golds = [-1.0, *(gains - 1.0).tolist()]
    plot = hacking.over_optimisation_plot(alone(training(golds, [0.0, *kl]), gold=gains[-1], kl=kl[-1]))
    expected = np.exp(alpha / beta - 1) ** 2
    assert expected > kl[-1] / 2
    assert f"turns at {expected:.1f} [" in plot.reading
    assert "α 1.20, β 0.50" in plot.reading
    rising = hacking.over_optimisation_plot(alone(training([0, 1, 2, 3, 4, 5], [0, 1, 4, 9, 16, 25])))
    assert "no turning point to be named" in rising.reading
    assert "the fitted curve only rises" in rising.reading
    falling = hacking.over_optimisation_plot(
        alone(training([0, -1, -3, -4, -6, -7], [0, 1, 4, 9, 16, 25]), gold=-7.5, kl=27.0)
    )
    assert "the fitted curve only falls" in falling.reading
    wild = hacking.over_optimisation_plot(alone(training([0, 3, -2, 3, -2, 3], [0, 1, 4, 9, 16, 25])))
    assert "the curve does not fit" in wild.reading
    assert hacking.over_optimisation_plot(alone()) is None


def test_a_curve_that_was_measured_too_late_has_not_only_fallen():
    """It rises and turns before the first measurement, where nobody looked."""
    alpha, beta = 1.4, 1.0
    kl = [9.0, 16.0, 25.0, 36.0, 49.0, 64.0]
    golds = [float(d * (alpha - beta * np.log(d))) for d in np.sqrt(kl)]
    plot = hacking.over_optimisation_plot(alone(training([0.0, *golds], [0.0, *kl]), gold=golds[-1], kl=64.0))
    assert "before the first measurement, below 9.0 nats" in plot.reading
    runs = {name: run(training([0.0, *golds], [0.0, *kl]), gold=golds[-1], kl=64.0) for name in "ab"}
    for row in hacking.over_optimisation_table(runs).rows:
        assert row[1].startswith("1.40 ±")
        assert "before the first measurement" in row[4]


def swept(golds_by_coef, kl, reward="run/reward"):
    """Runs of one reward over β, each with its measurements in training and its end."""
    runs = {}
    for number, (coef, golds) in enumerate(golds_by_coef.items()):
        stages = run(training([0.0, *golds], [0.0, *kl]), gold=golds[-1], coef=coef, kl=kl[-1])
        stages["rl"].config["reward_model"] = reward
        stages["evaluate"].samples = [
            {"prompt": f"p{i}", "policy": f"{coef} says {i}", "reference": "before", "kl": float(number),
             "policy_score": 1.0, "reference_score": 0.0, "policy_gold": 2.0, "reference_gold": 0.5,
             "policy_finished": i % 2 == 0, "reference_finished": True}
            for i in range(6)
        ]  # fmt: skip
        runs[f"kl_coef = {coef}"] = stages
    return runs


def test_runs_over_beta_have_one_turning_point_from_all_that_was_measured():
    rng, alpha, beta = np.random.default_rng(0), 1.2, 0.5
    kl = [i**2 / 10 for i in range(1, 20)]
    d = np.sqrt(kl)
    golds = {c: (d * (alpha - beta * np.log(d)) + 0.05 * rng.normal(size=19)).tolist() for c in (0.1, 0.2, 1)}
    runs = swept(golds, kl)
    plot = hacking.shared_turning_plot(runs)
    assert "60 measurements of 3 runs against the same reward" in plot.reading  # 19 in training, and the end
    found = re.search(
        r"turns at ([\d.]+) \[([\d.]+), ([\d.]+)\] nats by the scatter of these runs", plot.reading
    )
    point, low, high = map(float, found.groups())
    assert low < float(np.exp(alpha / beta - 1) ** 2) < high
    assert low < point < high
    names = {title: [part.title for part in (*s.plots, *s.tables)]
             for title, s in ((s.title, s) for s in sections(runs))}  # fmt: skip
    assert "Where gold turns" in names["Was the reward hacked?"]
    # Of different rewards, or of fewer than three runs, no common curve is drawn.
    other = swept({5.0: golds[1]}, kl, reward="another")
    assert hacking.shared_turning_plot(runs | other) is None
    assert hacking.shared_turning_plot(dict(list(runs.items())[:2])) is None


def test_several_runs_show_their_responses_to_the_same_prompts():
    runs = swept({c: [0.5, 1.0, 1.2] for c in (0.1, 0.2)}, [1.0, 2.0, 3.0])
    table = evaluation.responses_table(runs)
    assert table.head == ["prompt", "run", "response", "reward", "gold reward", "log π/π_ref"]
    assert len(table.rows) == 4 * 3
    for start in range(0, 12, 3):
        sft, first, second = table.rows[start : start + 3]
        prompt = sft[0]
        assert sft[1:] == ["SFT model", "before", "0.00", "0.50", ""]
        number = prompt[1:]
        cut = "" if int(number) % 2 == 0 else " ⋯"
        assert first[1:] == ["kl_coef = 0.1", f"0.1 says {number}{cut}", "1.00", "2.00", "0.00"]
        assert second[:3] == ["", "kl_coef = 0.2", f"0.2 says {number}{cut}"]


def test_what_an_older_evaluation_did_not_count_is_not_made_up():
    runs = {f"kl_coef = {c}": run(gold=1.0, coef=c) for c in (0.01, 0.1, 1.0)}
    for stages in runs.values():
        stages["evaluate"].summary["signs"] = []
    assert "hedge or refuse" not in frontier.trade_off_plot(runs).reading


def test_a_cheaper_policy_is_no_bargain_where_best_of_n_is_better():
    row = {"n": 4, "forward_passes_per_response": {"policy": 4, "reward": 4}, "break_even_queries": 400.0}
    row |= about("gold", 0.2) | about("lead_gold", -1.5)
    assert "has cost less, and is worse by 1.50." in cost.break_even_plot(alone(best_of=[row])).reading
    row |= about("lead_gold", 1.5)
    assert "worse" not in cost.break_even_plot(alone(best_of=[row])).reading


def test_extremes_are_by_what_the_policy_is_judged_by():
    rows = [
        {"prompt": f"p{i}", "policy": text, "reference": "b", "kl": 0.1 * i, "policy_score": -i,
         "reference_score": 0, "policy_gold": i - 3.0, "reference_gold": 0.0}
        for i, text in enumerate(["a", "a", " ", "a", "a", "a", "a"])
    ]  # fmt: skip
    stages = run()
    stages["evaluate"].samples = rows
    found = {row["prompt"]: row for row in samples.examples(stages)}
    said = {name: row["responses"][1]["text"] for name, row in found.items()}
    assert said == {name: "(empty)" if name == "p2" else "a" for name in found}
    ordered = [row["why"] for row in samples.examples(stages)]
    assert ordered[:5] == ["drawn at random"] * 5
    for name, row in found.items():
        if row["why"].startswith("largest gain"):
            assert row["why"] == "largest gain in gold reward"
            assert name in ("p6", "p5")
        if row["why"].startswith("largest loss"):
            assert row["why"] == "largest loss of gold reward"
            assert name in ("p0", "p1")


def test_the_reward_models_accuracy_is_told_where_the_policy_was_trained_against_it():
    reward = stage({"eval/accuracy": 0.7, "eval/accuracy_low": 0.6, "eval/accuracy_high": 0.8}, (), "reward")
    reward.path = Path("/runs/a/reward")
    for name, shown in (
        ("tokens", False),
        ("/runs/a/reward", True),
        ("0.7*runs/a/reward + 0.3*concise", True),
    ):
        rl = stage({}, training([0, 1, 2]), "rl")
        rl.config = {"reward_model": name}
        cards = [card[0] for card in facts({"a": run() | {"reward": reward, "rl": rl}})]
        assert ("reward model accuracy" in cards) == shown


def test_the_kl_of_training_first_highest_and_last():
    kls = [0.0, 0.6, 3.0, 2.0]
    rows = [
        {"step": i + 1, "train/kl": kl, "train/kl_se": 0.1, "train/kl_per_token": kl / 10,
         "train/kl_k3": kl, "train/kl_k3_se": 0.1, "train/kl_exact": kl, "train/kl_exact_se": 0.1,
         "kl_coef": 0.1}
        for i, kl in enumerate(kls)
    ]  # fmt: skip
    runs = {"a": {"rl": stage({}, rows, "rl")}}
    reading = training_pages.rl_kl_plot(runs).reading
    assert "began 0.00 nats away" in reading
    assert "furthest at iteration 3, 3.00 (0.30 per token)" in reading
    assert "ended at 2.00 ± 0.10 (0.20 per token" in reading
    assert "a significant drift: from iteration 3 on" in reading
    rows[2]["train/kl_per_token"] = 0.05
    assert "drift: from iteration 4 on" in training_pages.rl_kl_plot(runs).reading
    rows[1]["train/kl_per_token"] = 0.3
    assert "drift: at times" in training_pages.rl_kl_plot(runs).reading
    for row in rows:
        row["train/kl_per_token"] = 0.01
    assert "drift" not in training_pages.rl_kl_plot(runs).reading


def test_where_safe_but_useless_begins():
    gains = {0.01: 1.0, 0.1: 2.0, 0.5: 0.6, 1.0: 0.3}
    runs = {f"kl_coef = {c}": run(gold=g, coef=c) for c, g in gains.items()}
    reading = frontier.trade_off_plot(runs).reading
    assert "highest at 0.1: +2.00" in reading
    assert "begins at 1: the gain is +0.30" in reading
    assert "at 1 10.0\u00a0% of the answers hedge or refuse" in reading
    runs["kl_coef = 1.0"] = run(gold=1.5, coef=1.0)
    assert "does not begin in this range" in frontier.trade_off_plot(runs).reading
    runs["off"] = run(gold=-3.0, coef=0.0)
    assert "Without a penalty (off) the gain is −3.00." in frontier.trade_off_plot(runs).reading
    assert frontier.trade_off_plot({"a": run(), "b": run()}) is None


def test_the_adjusted_reward_subtracts_the_price_of_the_kl():
    def rows(log_ratio):
        return [{"prompt": "q", "response": "a", "score": 2.0, "log_ratio": log_ratio}]

    runs = {"low": run(coef=0.1, examples=rows(3.0)), "high": run(coef=1.0, examples=rows(0.5))}
    table = frontier.adjusted_table(runs)
    assert table.rows == [["q", "a", "1.70 (3.00)", "1.50 (0.50)"]]
    assert frontier.adjusted_table({"low": runs["low"]}).rows[0][-1] == "1.70"
    other = [{"prompt": "q", "response": "b", "score": 2.0, "log_ratio": 1.0}]
    assert frontier.adjusted_table({"low": runs["low"], "high": run(examples=other)}) is None


def test_predictions_stand_beside_what_was_measured():
    row = {"kl_coef": 0.1, "pool": 64, "prompts": 9, "effective_sample_size": 12.0}
    row |= about("length", 16.0) | about("score", 1.0) | about("kl", 2.0)
    table = frontier.prediction_table(alone(prediction=row))
    assert ["length (tokens)", "12.00 [11.90,\u00a012.10]", "16.00 [15.90,\u00a016.10]",
            "20.00 [19.90,\u00a020.10]"] in table.rows  # fmt: skip
    assert "too few" in table.note
    table = frontier.prediction_table({"a": run(prediction=row), "b": run()})
    assert len(table.rows) == 1
    assert "(+25.0\u00a0%)" in table.rows[0][4]
    assert table.rows[0][-2:] == ["0.80 → 0.60", "0.00"]  # 1 - 0.1 * 2 and 1 - 0.1 * 4


def test_when_training_pays():
    best = [{"n": 4, "forward_passes_per_response": {"policy": 4, "reward": 4}, "prompts": 50,
             "kl_bound": 0.6, "break_even_queries": 3000 / 7, "break_even_queries_cpu": None,
             "cpu_seconds_per_response": 0.02, **about("score", 0.5), **about("gold", 0.2),
             **about("lead_gold", -0.2), **about("length", 9.0)}]  # fmt: skip
    runs = alone(best_of=best)
    assert "after 429 answers the trained policy has cost less" in cost.break_even_plot(runs).reading
    table = cost.equal_cost_table(runs)
    assert table.rows[1][-2:] == ["429", "–"]
    assert table.rows[0][2:7] == ["3,000", "60", "", "1", "10.0"]
    assert table.rows[1][4] == "−0.20 [−0.30,\u00a0−0.10]"
    assert cost.break_even_plot(alone()) is None
    assert cost.equal_cost_table(alone()) is None
    several = cost.equal_cost_table(runs | {"b": run(best_of=[{**best[0], "n": 2}, *best])})
    assert [row[0] for row in several.rows] == ["alone", "alone: best-of-4", "b", "b: best-of-4"]
    assert several.rows[1][1:] == table.rows[1][1:]


def test_runs_side_by_side_name_the_best_and_the_worst():
    runs = {"good": run(gold=2.0), "bad": run(gold=-1.0)}
    found = overall(runs)
    assert found.word == "good gained most"
    assert "better: good; reward hacked: bad" in found.text
    assert ("reward hacked", "1 of 2", "runs") in facts(runs)
    table = evaluation.side_by_side(runs)
    assert [row[:2] for row in table.rows] == [["good", "Better"], ["bad", "Reward hacked"]]
    assert "1 of 2 runs gained and 1 lost beyond noise (bad)" in evaluation.gains_plot(runs).reading
    assert "left out: other" in overall(runs | {"other": {}}).text
    # Where one has no gold reward, gold ranks nothing.
    del runs["bad"]["evaluate"].summary["comparison"]["gold"]
    assert overall(runs).text.count("By reward") == 1
    assert overall({"a": {}, "b": {}}).word == "Not evaluated"
    assert not any(part.plots or part.tables for part in sections({"a": {}, "b": {}}))


def test_where_only_rewards_are_studied_no_policy_has_a_verdict():
    stages = run(gold=0.0)
    stages["evaluate"].config["model_name_or_path"] = "run/sft"
    assert verdict(stages).word == "Nothing was trained"
    found = overall({"a": stages, "b": stages})
    assert found.word == "Nothing was trained"
    assert "gained" not in found.text
    assert overall({"a": stages, "b": run(gold=2.0)}).word == "b gained most"


def test_several_seeds_have_their_verdicts_counted_and_an_interval_between_them():
    golds = [2.0, 1.0, -1.0]
    runs = {"a": [run(gold=g) for g in golds], "b": [run(gold=2.0), {}], "c": [{}]}
    half = t.ppf(0.975, 2) * np.std(golds, ddof=1) / 3**0.5
    mean = np.mean(golds)
    expected = f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]".replace("-", "−")
    first, second = terminal_lines(runs)
    assert first.startswith("a: Better with 2 of 3 seeds, Reward hacked with 1 of 3 seeds; against")
    assert f"gold reward {expected}" in first
    assert second.startswith("b: Better; against the SFT model reward +1.00 [+0.80, +1.20]")  # over prompts
    (row,) = evaluation.seeds_table(runs).rows
    assert row[0] == "a"
    assert row[3].replace("\u00a0", " ") == expected
    assert evaluation.seeds_table({"b": runs["b"]}) is None


def test_at_equal_passes_the_best_so_far_is_named():
    slow, quick = training([0, 1, 2, 3, 4, 5]), training([0, 3, 4, 4])
    reading = cost.equal_cost_plot({"slow": run(slow), "quick": run(quick)}).reading
    assert reading.startswith("At 300 passes, where the shortest run ends, quick has the highest")


def test_a_maker_says_what_it_needs_and_of_how_many_runs():
    trained = run(training([0, 1, 2]))
    assert needs("rl")(len)({"a": run(), "b": trained}) == 2  # all runs, where one of them has it
    assert needs("rl")(len)({"a": run(), "b": run()}) is None
    assert needs("rl", at_least=2)(len)({"a": trained}) is None
    assert of_one_run("rl")(list)({"a": trained}) == ["evaluate", "rl"]  # its stages
    assert of_one_run("rl")(list)(alone()) is None
    assert of_one_run("rl")(list)({"a": trained, "b": trained}) is None


def test_signs_of_several_runs_are_a_run_a_row():
    runs = {"a": run(signs=signs(0.1, 0.6)), "b": run()}
    table = hacking.signs_table(runs)
    assert table.head == ["run", "hedging", "refusing", "careful", "repetition", "verbosity (tokens)"]
    assert [row[0] for row in table.rows] == ["SFT model", "a", "b"]
    assert [row[1] for row in table.rows] == ["10.0\u00a0%", "60.0\u00a0%", "10.0\u00a0%"]
    assert hacking.signs_table({"a": runs["a"]}).rows[0][-1] == "more"


def test_measurements_that_were_no_numbers_have_a_table():
    metrics = [{"step": i, "train/reward": 1.0, "train/kl": "nan" if i > 2 else 0.1} for i in range(5)]
    metrics.append({"step": 5, "train/loss": None, "train/reward": "inf"})
    table = training_pages.bad_numbers_table({"a": {"rl": stage({}, metrics, "rl")}})
    assert table.rows == [
        ["rl", "train/kl", "nan", "2", "3"],
        ["rl", "train/loss", "missing", "1", "5"],
        ["rl", "train/reward", "inf", "1", "5"],
    ]
    assert training_pages.bad_numbers_table({"a": {"rl": stage({}, metrics[:2], "rl")}}) is None


def test_axes_fit_what_was_measured():
    """Lengths near 40 and shares near 0 would be lines at an edge of axes from 0 to all."""
    rows = [{"step": i, "train/length": 40.0 + i % 2, "train/eos_rate": 1.0, "dev/sign/hedging": 0.01 * i}
            for i in range(8)]  # fmt: skip
    runs = {"a": {"rl": stage({}, rows, "rl")}}
    ticks = {
        name: [float(text) for text in re.findall(r">([\d.]+)</text>", make(runs).svg)]
        for name, make in (("length", training_pages.rl_length_plot), ("signs", hacking.signs_plot))
    }
    assert 40.0 in ticks["length"]
    assert not {10.0, 20.0, 30.0} & set(ticks["length"])
    assert max(value for value in ticks["signs"] if value < 1) < 0.2


def test_ten_runs_have_ten_looks():
    assert len(set(styles(10))) == 10


def test_every_measure_of_a_policy_is_a_column():
    table = evaluation.policies_table(alone())
    assert len(table.head) == len(table.rows[0])
    assert {len(row) for row in table.rows} == {len(table.head)}
    assert evaluation.win_rates_table(alone()).rows[0][:2] == ["SFT model", "reward"]


def test_empty_sections_are_left_out_and_all_is_escaped(tmp_path):
    attack = "<script>alert(1)</script>"
    plot = Plot(attack, draw([curve([0, 1], [0, 1], attack)], "x (s)", "y (m)"), attack)
    path = write_page(
        tmp_path / "page.html", attack, Verdict(attack, "plain", attack), [(attack, attack, attack)],
        [Section("Nothing"), Section(attack, [plot])], [(attack, attack)], [attack], notes=[attack],
    )  # fmt: skip
    text = path.read_text()
    assert "Nothing" not in text
    assert "<script" not in text
    assert text.count("&lt;script") >= 8


def test_comparing_wants_different_runs(tmp_path):
    with pytest.raises(UsageError, match="named twice"):
        report.compare([tmp_path / "a", tmp_path / "b" / ".." / "a"])
    with pytest.raises(UsageError, match="not a directory"):
        report.compare([tmp_path / "a", Path("absent")])
