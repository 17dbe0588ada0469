"""Which stages are one run: by their manifests, wherever they lie and whatever they are called."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from preferl.reporting.gather import finished_stages, gather
from preferl.reporting.measures import series
from preferl.reporting.rounds import Rounds, one_by_one, rounds_of
from preferl.reporting.sections import sections
from preferl.reporting.training import rl_reward_plot, rounds_table
from preferl.reporting.verdict import facts, overall
from preferl.runs.errors import UsageError
from preferl.runs.mark import claim
from preferl.statistics.intervals import Estimate

CLOCK = [1_700_000_000]


def content(path: Path) -> str:
    """What a manifest says about a stage here: its ``content``, which is made up."""
    return (path / "content").read_text()


def make(path, kind, reads=None, metrics=(), summary=None, done=True, **config) -> Path:
    """A stage's directory; ``reads`` are the stages that its manifest names as parents."""
    path.mkdir(parents=True)
    claim(path, "stage", kind)
    (path / "content").write_text(str(path))
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    parents = {
        role: {"path": os.path.relpath(parent, path), "hash": content(parent)}
        for role, parent in (reads or {}).items()
    }
    (path / "manifest.json").write_text(json.dumps({"stage": kind, "parents": parents}))
    (path / "summary.json").write_text(json.dumps(summary or {"seconds": 60.0}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    names = ["manifest.json"]
    if done:
        (path / "DONE").write_text("")
        names.append("DONE")
    for name in names:  # each begins after the one before was finished
        CLOCK[0] += 1
        os.utime(path / name, (CLOCK[0], CLOCK[0]))
    return path


def names(stages):
    return {name: record.path.name for name, record in stages.items()}


@pytest.fixture
def run(tmp_path):
    """A run whose stages are called by names of their own."""
    root = tmp_path / "run"
    first = make(root / "first", "sft")
    pairs = make(root / "labels", "collect", {"policy": first})
    judge = make(root / "taste", "reward", {"model": first, "preferences": pairs})
    policy = make(root / "tuned", "rl", {"policy": first, "reference": first, "reward": judge})
    make(root / "seen", "evaluate", {"policy": policy, "reference": first, "reward": judge})
    return root


def test_stages_of_any_name_are_known_by_their_kind(run):
    assert names(finished_stages(run)) == {
        "sft": "first", "collect": "labels", "reward": "taste", "rl": "tuned", "evaluate": "seen"
    }  # fmt: skip
    shown = [name for name, _ in one_by_one(finished_stages(run))]
    assert shown == ["sft (first)", "collect (labels)", "reward (taste)", "rl (tuned)", "evaluate (seen)"]


def test_stages_beside_the_runs_own_keep_their_names(run):
    make(run / "again", "sft", {"model": run / "first"})
    make(run / "other", "reward", {"model": run / "first", "preferences": run / "labels"})
    make(run / "mine", "audit", {"reward": run / "taste"})
    found = names(finished_stages(run))
    # The newest of a kind is not what the run is about where the policy was trained against another.
    assert found["sft"] == "first"
    assert found["reward"] == "taste"
    assert {"again", "other", "mine"} <= found.keys()


def test_the_sft_model_is_the_one_that_all_start_from(tmp_path):
    first = make(tmp_path / "run" / "first", "sft")
    again = make(tmp_path / "run" / "again", "sft", {"model": first})
    make(tmp_path / "run" / "rl", "rl", {"policy": again, "reference": first})
    assert names(finished_stages(tmp_path / "run")) == {"sft": "first", "again": "again", "rl": "rl"}


def test_a_stage_alone_is_a_run(run):
    found = gather([run / "taste"])
    assert {name: list(stages) for name, stages in found.runs.items()} == {"run/taste": ["reward"]}
    assert not found.notes


def test_stages_anywhere_that_were_made_from_each_other_are_one_run(tmp_path):
    first = make(tmp_path / "a" / "x", "sft")
    judge = make(tmp_path / "b" / "y", "reward", {"model": first})
    policy = make(tmp_path / "c" / "z", "rl", {"policy": first, "reward": judge})
    found = gather([policy, first, judge])
    assert [list(stages) for stages in found.runs.values()] == [["sft", "reward", "rl"]]
    assert not found.notes
    # What links two of them need not be given itself.
    assert len(gather([first, policy]).runs) == 1


def test_what_no_link_connects_is_not_mixed(tmp_path):
    one = make(tmp_path / "one" / "reward", "reward")
    other = make(tmp_path / "other" / "rl", "rl")
    found = gather([one, other])
    assert {name: list(stages) for name, stages in found.runs.items()} == {
        "one/reward": ["reward"], "other/rl": ["rl"]
    }  # fmt: skip
    (note,) = found.notes
    assert "runs of their own: one/reward; other/rl" in note


def test_a_stage_that_was_made_from_a_run_joins_it(run, tmp_path):
    measured = make(tmp_path / "later" / "audit", "audit", {"reward": run / "taste"})
    found = gather([run, measured])
    assert list(found.runs) == ["run"]
    assert found.runs["run"]["audit"].path == measured.resolve()
    stranger = make(tmp_path / "stranger", "audit")
    found = gather([run, stranger])
    assert len(found.runs) == 2
    assert "runs of their own" in found.notes[0]


def test_several_evaluations_are_several_runs_with_what_they_share(run):
    other = make(run / "other", "dpo", {"policy": run / "first", "preferences": run / "labels"})
    make(run / "seen-2", "evaluate", {"policy": other, "reference": run / "first"})
    make(run / "mine", "audit", {"reward": run / "taste"})
    make(run / "unused", "best_of", {"policy": run / "first"})
    found = gather([run])
    assert {name: list(stages) for name, stages in found.runs.items()} == {
        "run/seen": ["sft", "collect", "reward", "rl", "evaluate", "mine"],
        "run/seen-2": ["sft", "collect", "dpo", "evaluate"],
    }
    (note,) = found.notes
    assert note.startswith("What is shown was not made from these, and they are left out: ")
    assert note.endswith("unused.")


def test_rewards_of_the_same_pairs_stand_side_by_side(run, tmp_path):
    rivals = [make(tmp_path / p, "reward", {"preferences": run / "labels"}) for p in ("last", "mean")]
    found = gather([run / "labels", *rivals])
    assert {tuple(stages) for stages in found.runs.values()} == {("collect", "reward")}
    assert len(found.runs) == 2
    measured = {"pairs": 4, "loss": 0.5, "ece": 0.1, "length_baseline_accuracy": 0.5}
    for i, stages in enumerate(found.runs.values()):
        summary = {f"eval/{key}": value for key, value in measured.items()}
        stages["reward"].summary |= summary | Estimate(0.5 + i / 4, 0.25, 1.0).named("eval/accuracy")
    assert overall(found.runs).word == "Rewards side by side"
    assert facts(found.runs) == [("runs", "2", "side by side")]
    (section,) = [part for part in sections(found.runs) if part.title == "Rewards side by side"]
    (table,) = section.tables
    assert [row[1] for row in table.rows] == [
        f"{value}.0\u00a0% [25.0\u00a0%,\u00a0100.0\u00a0%]" for value in (50, 75)
    ]


def test_a_mixture_names_the_rewards_that_were_read(run, tmp_path):
    second = make(tmp_path / "elsewhere" / "kind", "reward")
    text = f"0.7*{run / 'taste'} + 0.3*{second}"
    policy = make(tmp_path / "mixed", "rl", {"policy": run / "first"}, reward_model=text)
    assert len(gather([policy, run / "taste", second]).runs) == 1
    # Given from another directory the text is relative to that one; the last two parts tell.
    relative = make(tmp_path / "mixed-2", "rl", reward_model="0.5*absent/elsewhere/kind + 0.5*concise")
    assert len(gather([relative, second]).runs) == 1


def test_a_stage_that_was_moved_is_known_by_its_content(tmp_path):
    first = make(tmp_path / "a" / "sft", "sft")
    judge = make(tmp_path / "b" / "reward", "reward", {"model": first})
    shutil.move(first, tmp_path / "moved")
    assert len(gather([tmp_path / "moved", judge], content).runs) == 1
    (tmp_path / "moved" / "content").write_text("other")
    assert len(gather([tmp_path / "moved", judge], content).runs) == 2


def test_what_was_made_again_since_is_said(run):
    assert not gather([run], content).notes
    CLOCK[0] += 1
    os.utime(run / "taste" / "DONE", (CLOCK[0], CLOCK[0]))
    assert not gather([run], content).notes  # it was touched, or copied, and is the same
    (run / "taste" / "content").write_text("new")
    notes = gather([run], content).notes
    assert len(notes) == 2  # rl and evaluate read it
    assert all("taste was made again after" in note for note in notes)


def test_what_is_unfinished_is_said_and_left_out(run):
    (run / "seen" / "DONE").unlink()
    found = gather([run])
    assert list(found.runs["run"]) == ["sft", "collect", "reward", "rl"]
    (note,) = found.notes
    assert note.startswith("Unfinished, and so not in here")
    assert str(run / "seen") in note
    alone = gather([run / "seen"])
    assert not alone.runs
    assert "Unfinished" in alone.notes[0]


def test_what_holds_no_stage_is_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "config.yaml").write_text("sweep: {grid: {}}")
    for directories, words in (
        ([tmp_path / "absent"], "is not a directory"),
        ([tmp_path / "empty"], "holds no stage"),
        ([run, tmp_path / "a" / ".." / "run"], "named twice"),
        ([run, sweep], "is a sweep: its page is made of it alone"),
    ):
        with pytest.raises(UsageError, match=words):
            gather(directories)


# ---------------------------------------------------------------------------------------------- rounds


def training(rewards, **more):
    return [
        {"step": i, "forward_passes": 10 * i, "train/reward": r, "dev/gold": r - 1, "dev/kl_exact": float(i)}
        | more
        for i, r in enumerate(rewards)
    ]


@pytest.fixture
def in_rounds(tmp_path):
    """Two rounds, called as nobody would guess."""
    root = tmp_path / "rounds"
    first = make(root / "sft", "sft")
    pairs = make(root / "pairs", "collect", {"policy": first})
    measured = {"train_pairs": 100, "eval/accuracy": 0.7, "eval/accuracy_low": 0.6, "eval/accuracy_high": 0.8}
    judge = make(root / "judge", "reward", {"preferences": pairs}, summary={"seconds": 1, **measured})
    costs = {"seconds": 60.0, "iterations": 2, "forward_passes": {"policy": 20, "reward": 5}}
    alarm = {"first": 1, "count": 1, "text": "it drifts"}
    policy = make(
        root / "policy", "rl", {"policy": first, "reward": judge}, training([0.0, 1.0, 2.0]),
        costs | {"alarms": {"drift": alarm}},
    )  # fmt: skip
    more = make(root / "more-pairs", "collect", {"policy": policy, "added to": pairs})
    later = make(root / "fresh-judge", "reward", {"preferences": more}, summary={"seconds": 2, **measured})
    make(
        root / "last", "rl", {"policy": policy, "reference": first, "reward": later}, training([1.0, 3.0]),
        {"seconds": 30.0, "iterations": 1, "forward_passes": {"policy": 10, "critic": 4}},
    )  # fmt: skip
    return root


def test_curves_go_on_over_rounds_and_costs_add_up(in_rounds):
    stages = finished_stages(in_rounds)
    assert list(stages) == ["sft", "collect", "reward", "rl"]
    record = stages["rl"]
    assert isinstance(record, Rounds)
    assert series(record, "train/reward") == ([0, 1, 2, 2, 3], [0.0, 1.0, 2.0, 1.0, 3.0])
    assert [row["forward_passes"] for row in record.metrics] == [0, 10, 20, 20, 30]
    assert record.starts == [2]
    assert record.summary["seconds"] == 90
    assert record.summary["iterations"] == 3
    assert record.summary["forward_passes"] == {"policy": 30, "reward": 5, "critic": 4}
    assert record.summary["alarms"] == {"drift": {"first": 1, "count": 1, "text": "it drifts"}}
    assert [one.path.name for one in rounds_of(stages, "rl")] == ["policy", "last"]
    assert [name for name, _ in one_by_one(stages)] == [
        "sft", "collect, round 1", "collect, round 2", "reward, round 1", "reward, round 2",
        "rl, round 1", "rl, round 2",
    ]  # fmt: skip


def test_the_page_says_where_a_round_begins(in_rounds):
    stages = finished_stages(in_rounds)
    stages["rl"].config["eval_prompts"] = 4
    assert "Dotted: after 2 another round begins" in rl_reward_plot({"a": stages}).reading
    table = rounds_table({"a": stages})
    assert [row[0] for row in table.rows] == ["round 1", "round 2"]
    assert [row[4] for row in table.rows] == ["−1.00 → 1.00", "0.00 → 2.00"]
