"""Every stage, killed once after its first checkpoint or part, goes on from there to the same bytes."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from equal_runs import equal_runs, metrics_of
from judge_server import Body, parts_of, reply, serving
from preferl import cli
from preferl.data.records import SPLITS
from preferl.judging import backends
from preferl.learning import fit as loop
from preferl.learning import learner
from preferl.models import load
from preferl.options.collect import CollectConfig, PairCounts
from preferl.runs import checkpoint
from preferl.runs.stage import Stage
from preferl.sampling.policy import Policy
from preferl.stages import audit, best_of, collect, dpo, evaluate, reward, rl, sft

NOUNS = ("apple", "river", "house", "stone", "cloud", "table")


def row(number: int) -> dict:
    """A prompt with a demonstration and a pair, in one of the four splits."""
    noun = NOUNS[number % len(NOUNS)]
    return {
        "prompt": f"Tell me of {noun} {number}." + " Take your time." * (number % 3),
        "chosen": f"Thanks, the {noun} is nice." + " Yes." * (number % 2),
        "rejected": f"Shut up! The {noun} is bad.",
        "split": SPLITS[number % len(SPLITS)],
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory, policy_directory) -> Iterator[dict[str, str]]:
    """Files of pairs and of demonstrations, and the models."""
    place = tmp_path_factory.mktemp("data")
    pairs = [row(i) for i in range(96)]
    texts = [{"prompt": p["prompt"], "completion": p["chosen"], "split": p["split"]} for p in pairs]
    ratings = [text | {"ratings": {"kind": i // 4 % 3, "brief": i // 4 % 2}} for i, text in enumerate(texts)]
    for name, rows in (("pairs", pairs), ("texts", texts), ("ratings", ratings)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, tokenizer = load.load_policy(str(policy_directory), torch.device("cpu"))
    model.config.max_position_embeddings = 2048  # a judge reads more than a policy
    load.save(model, tokenizer, place / "judge")
    files = {name: str(place / f"{name}.jsonl") for name in ("pairs", "texts", "ratings")}
    with pytest.MonkeyPatch.context() as patch, serving(length_judge) as server:
        patch.setenv("no_proxy", "*")
        endpoint = f"judge:{server.url}#m?unparsable=skip&max_unusable=1"
        yield files | {
            "policy": str(policy_directory),
            "judge": str(place / "judge"),
            "endpoint": endpoint,
        }


def length_judge(body: Body, n: int) -> Any:
    """Prefers what is long, and says nothing readable about one response of five."""
    parts = parts_of(body["messages"][0]["content"])
    if "RESPONSE B" in parts:
        return reply(f"VERDICT: {'A' if len(parts['RESPONSE A']) > len(parts['RESPONSE B']) else 'B'}")
    length = len(parts["RESPONSE"])
    return reply(f"SCORE: {1 + length % 10}" if length % 5 else "Hm.", usage={"completion_tokens": length})


SMALL = {"num_threads": 1, "device": "cpu"}
TRAINING = {"max_steps": 9, "save_every": 2, "num_evals": 4, "train_batch_size": 8, **SMALL}
SAMPLING = {"response_length": 6, "sampling_batch_size": 8, **SMALL}
LORA = {"lora_r": 2, "lora_dropout": 0.2}
RL = {"num_iterations": 5, "save_every": 1, "batch_size": 8, "eval_prompts": 4, "missing_eos_penalty": 0.0}
FEW = PairCounts(train=12, dev=4, rl=4, eval=4)
ONE_SPLIT = PairCounts(train=24, dev=0, rl=0, eval=0)  # in several parts, whose generator goes on

JUDGE = "judge:{judge}?mode=logprob&criteria=it is short"

# Name -> the stage, its data, and other options.
CASES = {
    "sft": (sft, "texts", {"hidden_size": 32, "num_heads": 4, "vocab_size": 300, "check_samples": 4}),
    "reward": (reward, "pairs", {"weight_average": 0.5}),
    "reward with LoRA": (reward, "pairs", LORA),
    "reward, an ensemble": (reward, "pairs", {"num_members": 2, "member_share": 0.7, "audit": False}),
    "reward of ratings": (reward, "ratings", {"weight_average": 0.5, "reward_mixture": "1*kind - 1*brief"}),
    "dpo": (dpo, "pairs", {"check_samples": 4, "response_length": 6}),
    "dpo with LoRA": (dpo, "pairs", {"lora_r": 2, "check_samples": 4, "response_length": 6}),
    "dpo, 8-bit AdamW": (dpo, "pairs", {"optim": "adamw_8bit", "check_samples": 0}),
    "sft with QLoRA": (
        sft,
        "texts",
        {"model_name_or_path": "{policy}", "lora_r": 2, "load_in_4bit": True, "check_samples": 4},
    ),
    "dpo, kto": (dpo, "pairs", {"loss_type": "kto", "check_samples": 4, "response_length": 6}),
    "rl, ppo": (rl, "pairs", {**RL, "kl_controller": "adaptive", "num_mini_batches": 2}),
    "rl, grpo with LoRA": (rl, "pairs", {**RL, "algorithm": "grpo", "lora_r": 2}),
    "rl, ppo with LoRA": (rl, "pairs", {**RL, "lora_r": 2}),
    "collect": (collect, "pairs", {"pairs": ONE_SPLIT, "sampling_batch_size": 2}),
    "collect, rankings": (collect, "pairs", {"pairs": FEW, "layout": "rankings", "num_generations": 3}),
    "collect, by a judge": (collect, "pairs", {"pairs": FEW, "annotator": JUDGE}),
    "collect, rankings by a judge": (
        collect,
        "pairs",
        {"pairs": FEW, "annotator": JUDGE, "layout": "rankings", "num_generations": 3},
    ),
    "evaluate, by a judge": (evaluate, "pairs", {"best_of": [], "max_eval_prompts": 8, "judge": JUDGE}),
    "collect, by an endpoint": (collect, "pairs", {"pairs": FEW, "annotator": "{endpoint}"}),
    "rl, by an endpoint": (rl, "pairs", {**RL, "reward_model": "{endpoint}", "algorithm": "rloo"}),
    "best_of, by an endpoint": (
        best_of,
        "pairs",
        {"num_generations": 4, "dev_prompts": 6, "reward_model": "{endpoint}"},
    ),
    "evaluate, by an endpoint": (
        evaluate,
        "pairs",
        {"best_of": [], "max_eval_prompts": 8, "judge": "{endpoint}", "reward_model": "{endpoint}"},
    ),
    "collect, adversarial": (collect, "pairs", {"pairs": FEW, "adversarial": "length", "num_generations": 4}),
    "best_of": (best_of, "pairs", {"num_generations": 4, "gold": "concise", "dev_prompts": 6}),
    "evaluate": (evaluate, "pairs", {"best_of": [2], "best_of_prompts": 6, "gold": "concise"}),
    "audit": (audit, "pairs", {"split": "all"}),
}
CONFIGS = {
    sft: sft.SftConfig,
    reward: reward.RewardConfig,
    dpo: dpo.DpoConfig,
    rl: rl.RlConfig,
    collect: CollectConfig,
    best_of: best_of.BestOfConfig,
    evaluate: evaluate.EvaluateConfig,
    audit: audit.AuditConfig,
}
# What a stage does again and again, and whose results it keeps.
UPDATES, PARTS = ("clip_and_step",), ("respond", "choice_logprobs")
WORK = {sft: UPDATES, reward: UPDATES, dpo: UPDATES, rl: ("iterate",), audit: ("scores_of",)}


def config_of(case: str, data: dict[str, str], output_dir: Path):
    """The options of a case."""
    stage, kind, options = CASES[case]
    options = {k: v.format(**data) if isinstance(v, str) else v for k, v in options.items()}
    usual = dict(SAMPLING if stage in (collect, best_of, evaluate) else SMALL if stage is audit else TRAINING)
    if stage is rl:
        usual = SAMPLING | {"micro_batch_size": 5}
    parts = {"reward_model": "length"} if stage in (rl, best_of, evaluate, audit) else {}
    if stage is not audit and case != "sft":
        parts["model_name_or_path"] = data["policy"]
    if stage is evaluate:
        parts["ref_model"] = data["policy"]
    if stage is collect:
        parts["annotator"] = "concise"
    return CONFIGS[stage](output_dir=str(output_dir), dataset_name=data[kind], **usual | parts | options)


class Killed(BaseException):
    """No ``Exception``: nothing may catch it and go on."""


# What a kill may come before: an update, a write, a rename, a deletion.
DOORS = (
    (loop, "clip_and_step"),
    (learner, "clip_and_step"),
    (rl.Trainer, "iterate"),
    (Policy, "respond"),
    (backends.LocalBackend, "choice_logprobs"),
    (audit, "scores_of"),
    (Stage, "_append"),
    (Stage, "write_json"),
    (load, "save"),
    (checkpoint, "_write"),
    (checkpoint, "save_file"),
    (checkpoint, "remove"),
    (os, "replace"),
)


class Run:
    """One process's run of a stage: what it passed, in order; killed before number ``at`` of it."""

    def __init__(self, config, at: int | None = None):
        self.config, self.at, self.path = config, at, Path(config.output_dir)
        self.passed: list[str] = []
        self.first: int | None = None  # when there was something to go on from

    def __call__(self, stage) -> None:
        self.through(lambda: stage.run(self.config))

    def through(self, work: Callable[[], object]) -> None:
        """Does a piece of work whose doors are watched."""
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in DOORS:
                patch.setattr(owner, name, self.door(name, getattr(owner, name)))
            work()

    def door(self, name, function):
        def call(*arguments, **options):
            if self.first is None and ready(self.path):
                self.first = len(self.passed)
            if len(self.passed) == self.at:
                raise Killed
            self.passed.append(name)
            return function(*arguments, **options)

        return call


def ready(path: Path) -> int:
    """Updates, iterations or parts that need not be done again; a finished member of an ensemble is."""
    found = 0
    for stage in sorted(path.glob("member-*")) or [path]:
        names = [inside.name for inside in (stage / "state").glob("*")]
        steps = [int(name.removeprefix("step_")) for name in names if name.startswith("step_")]
        parts = sum(name.startswith("part_") for name in names)
        done = len(metrics_of(stage)) if stage != path and (stage / "DONE").exists() else 0
        found += done or max(steps, default=0) + parts
    return found


def leave_behind(path: Path) -> None:
    """What a kill in the middle of a write would have left: half a line, half a checkpoint."""
    for name in ("metrics.jsonl", "samples.jsonl"):
        if (path / name).exists():
            with open(path / name, "a") as file:
                file.write('{"step": 3, "tra')
    for name in (".step_4.tmp", ".part_0.tmp"):
        half = path / "state" / name
        half.mkdir(parents=True, exist_ok=True)
        (half / "tensors.safetensors").write_bytes(b"half")


@pytest.mark.parametrize("case", list(CASES))
def test_killed_once_it_goes_on_to_the_same_bytes(case, data, tmp_path, monkeypatch, capsys):
    """At a random instant between its first checkpoint and its last update (or part), and at one after it."""
    stage = CASES[case][0]
    monkeypatch.setattr(audit, "PART", 25)
    monkeypatch.setattr(backends, "KEPT_AT_ONCE", 9)
    whole = Run(config_of(case, data, tmp_path / "whole"))
    whole(stage)
    assert whole.first is not None
    middle = last_of(whole, *WORK.get(stage, PARTS))
    last = last_of(whole, "replace")  # DONE appears
    rng = random.Random(case)
    for at in (rng.randint(whole.first, middle), rng.randint(middle + 1, last)):
        config = dataclasses.replace(whole.config, output_dir=str(tmp_path / f"killed-{at}"))
        killed(stage, config, at)
        done = ready(Path(config.output_dir))
        assert done > 0
        capsys.readouterr()
        second = Run(config)
        second(stage)
        equal_runs(second.path, whole.path)
        assert not (second.path / "state").exists()
        assert worked(second, case) == worked(whole, case) - done
        said = capsys.readouterr().out
        assert "goes on after" in said or "finished before" in said  # a member of the ensemble


def worked(run: Run, case: str) -> int:
    """How often a run did what its stage does again and again."""
    return sum(name in WORK.get(CASES[case][0], PARTS) for name in run.passed)


def last_of(run: Run, *names: str) -> int:
    """When a run passed one of these doors for the last time."""
    return max(at for at, name in enumerate(run.passed) if name in names)


def killed(stage, config, at: int) -> None:
    """Runs a stage until number ``at`` of what it passes."""
    run = Run(config, at)
    with pytest.raises(Killed):
        run(stage)
    assert not (run.path / "DONE").exists()
    leave_behind(run.path)


def damage(path: Path, file: str) -> None:
    """What a power cut may leave of a file that had been written."""
    content = (path / file).read_bytes()
    (path / file).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damaged", "goes_on"),
    [({}, 8), ({8: "tensors.safetensors"}, 6), ({8: "values.json"}, 6), ({8: "values.json", 6: None}, 0)],
    ids=["none", "tensors", "values", "both"],
)
def test_a_damaged_checkpoint_is_passed_over(damaged, goes_on, data, tmp_path, capsys):
    whole = Run(config_of("sft", data, tmp_path / "whole"))
    whole(sft)
    config = dataclasses.replace(whole.config, output_dir=str(tmp_path / "sft"))
    killed(sft, config, last_of(whole, "clip_and_step"))
    state = tmp_path / "sft" / "state"
    for step, file in damaged.items():
        if file is None:
            (state / f"step_{step}" / "tensors.safetensors").unlink()
        else:
            damage(state / f"step_{step}", file)
    capsys.readouterr()
    second = Run(config, last_of(whole, "clip_and_step") - 2 if goes_on else None)
    with contextlib.suppress(Killed):
        second(sft)
    said = capsys.readouterr().out
    assert said.count("is passed over, and made again") == len(damaged)
    assert ("goes on after" in said) == bool(goes_on)
    assert not goes_on or f"goes on after step {goes_on}" in said
    Run(config)(sft)
    equal_runs(tmp_path / "sft", whole.path)


def test_a_damaged_part_is_made_again(data, tmp_path, capsys):
    whole = Run(config_of("best_of", data, tmp_path / "whole"))
    whole(best_of)
    config = dataclasses.replace(whole.config, output_dir=str(tmp_path / "best_of"))
    killed(best_of, config, last_of(whole, "respond"))
    parts = sorted((tmp_path / "best_of" / "state").glob("part_*"))
    damage(parts[1], "values.json")
    second = Run(config)
    second(best_of)
    assert "part_train-16 is passed over, and made again" in capsys.readouterr().out
    equal_runs(second.path, whole.path)
    assert worked(second, "best_of") == 2


# ------------------------------------------------------------------------------------------- by the system


def command(config) -> list[str]:
    """The flags of a configuration."""
    path = Path(config.output_dir).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(dataclasses.asdict(config)))
    return ["--config", str(path)]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dpo", "collect"])
def test_a_process_that_the_system_kills_goes_on(case, data, tmp_path):
    """SIGKILL, at a random moment after the first checkpoint or part is there."""
    stage = CASES[case][0]
    config = config_of(case, data, tmp_path / "killed")
    if stage is dpo:
        config = dataclasses.replace(config, max_steps=40, save_every=3, check_samples=0)
    else:
        config = dataclasses.replace(config, pairs=PairCounts(train=120, dev=4, rl=4, eval=4))
    process = subprocess.Popen(
        [sys.executable, "-m", "preferl", case, *command(config)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not ready(tmp_path / "killed"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.3 * random.Random(case).random())
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = ready(tmp_path / "killed")
    again = Run(config)
    again.through(lambda: cli.main([case, *command(config)]))
    whole = Run(dataclasses.replace(config, output_dir=str(tmp_path / "whole")))
    whole(stage)
    equal_runs(again.path, whole.path)
    assert 0 < worked(again, case) == worked(whole, case) - done
