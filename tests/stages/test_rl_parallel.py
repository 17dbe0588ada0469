"""Several processes under torchrun are one: the same samples, numbers and weights; and where one fails, all
stop and the reason is said once. Processes on the CPU (gloo)."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from parallel import assert_same, forked, metrics_of, samples_of, torchrun
from preferl.judging.scorers import Ensemble, ShardedScorer
from preferl.runs import distributed
from preferl.runs.errors import StoppedElsewhere, UsageError
from preferl.stages import rl

REWARDS = """
import os

def vowels(prompts, completions, **columns):
    return [sum(c in "aeiou" for c in t) / 5 for t in completions]

def asked_once(prompts, completions, **columns):
    with open(f"asked-{os.environ.get('RANK')}.txt", "a") as file:
        file.writelines(repr(text) + "\\n" for text in completions)
    return [len(t) / 30 for t in completions]

def fails_in_the_second(prompts, completions, **columns):
    return vowels(prompts, completions)[os.environ.get("RANK") == "1" :]

def one_huge(prompts, completions, **columns):
    return [3e38] * (os.environ.get("RANK") == "1") + fails_in_the_second(prompts, completions)

def breaks_down_in_the_second(prompts, completions, **columns):
    with open("calls.txt", "a") as file:
        file.write("x")
    if os.environ.get("RANK") == "1" and os.path.getsize("calls.txt") > 12 and not os.path.exists("mended"):
        raise RuntimeError("the judge does not answer")
    return vowels(prompts, completions)
"""


@pytest.fixture
def config(tmp_path, policy_directory, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    rows = [{"prompt": f"What is thing {i}? {'Tell me more. ' * (i % 4)}"} for i in range(60)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rl.RlConfig(
        output_dir="one",
        model_name_or_path=str(policy_directory),
        reward_model="my_rewards:vowels",
        dataset_name="prompts.jsonl",
        num_iterations=3,
        batch_size=16,
        response_length=10,
        stop_sequences=["e", "i"],
        learning_rate=1e-3,
        missing_eos_penalty=0.0,
        eval_prompts=5,
        num_threads=1,
        device="cpu",
    )


CASES = {
    # A minibatch of a single row, of which the second process has none; two parts of a reward.
    "ppo": (
        2,
        {
            "batch_size": 13,
            "reward_model": "1*my_rewards:vowels + 0.5*my_rewards:asked_once",
            "gold": "length",
            "check_reward_every": 2,
            "check_reward_pairs": 7,
        },
    ),
    # Two groups in a minibatch and two held-out prompts for three processes.
    # A higher learning rate makes rounding grow.
    "rebel": (
        3,
        {
            "batch_size": 15,
            "num_generations": 3,
            "num_mini_batches": 2,
            "eval_prompts": 2,
            "learning_rate": 1e-4,
        },
    ),
    "grpo": (
        2,
        {
            "kl_in": "loss",
            "kl_estimator": "exact",
            "kl_coef": 0.5,
            "target_kl": 1e-4,
            "num_ppo_epochs": 4,
            "lora_r": 4,
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", list(CASES))
def test_several_processes_train_as_one(config, algorithm, tmp_path, policy_directory, capsys):
    processes, options = CASES[algorithm]
    config = dataclasses.replace(config, algorithm=algorithm, **options)
    one = rl.run(config)
    launch = torchrun if algorithm == "ppo" else forked
    done = launch("rl", processes, dataclasses.replace(config, output_dir="several", micro_batch_size=3))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "several"
    assert done.stdout.count("rl: ") == capsys.readouterr().out.count("rl: ")
    assert "arning" not in done.stderr, done.stderr
    several = tmp_path / "several"
    assert_same(one, several)
    assert [row["reward"] for row in samples_of(several)] == [row["reward"] for row in samples_of(one)]
    assert json.loads((several / "summary.json").read_text())["processes"] == processes
    start = load_file(policy_directory / "model.safetensors")
    moved = load_file(several / "model" / "model.safetensors")
    assert max(float((start[key] - moved[key]).abs().max()) for key in start) > 1e-4
    if algorithm == "ppo":
        asked = [sorted((tmp_path / f"asked-{rank}.txt").read_text().splitlines()) for rank in (None, 0, 1)]
        assert sorted(asked[1] + asked[2]) == asked[0]
        assert abs(len(asked[1]) - len(asked[2])) < 0.2 * len(asked[0])
    if algorithm == "grpo":
        updates = [row["updates"] for row in metrics_of(several) if row["step"]]
        assert min(updates) < 4


@pytest.mark.slow
def test_what_differs_is_only_the_rounding_of_other_batches(config, tmp_path, monkeypatch):
    """One process that computes in the batches of two takes the same steps, where rounding would grow."""
    config = dataclasses.replace(
        config, algorithm="rebel", num_iterations=6, eval_every=0, sampling_batch_size=8, micro_batch_size=8
    )
    done = forked("rl", 2, dataclasses.replace(config, output_dir="several"))
    assert done.returncode == 0, done.stderr

    def of_both(rows, unit=1):
        if isinstance(rows, torch.Tensor):
            rows = rows.reshape(-1, unit)
            return torch.cat([rows[0::2], rows[1::2]]).flatten()
        return rows if isinstance(rows, range) else rows[0::2] + rows[1::2]

    monkeypatch.setattr(distributed, "shard", of_both)
    assert_same(rl.run(config), tmp_path / "several", limit=1e-6)


@pytest.mark.slow
def test_what_several_processes_began_one_goes_on_with(config, tmp_path):
    """The reward breaks down in the second process: all stop, and one says why, once."""
    config = dataclasses.replace(config, algorithm="rloo", save_every=1, reward_model="my_rewards:vowels")
    one = rl.run(config)
    broken = dataclasses.replace(
        config, output_dir="several", reward_model="my_rewards:breaks_down_in_the_second"
    )
    done = torchrun("rl", 2, broken)
    assert done.returncode != 0
    assert done.stderr.count("RuntimeError: the judge does not answer") == 1
    assert done.stderr.count("preferl: error") == 1, done.stderr
    several = tmp_path / "several"
    assert sorted(path.name for path in (several / "state").iterdir()) == ["step_1", "step_2"]
    Path("mended").touch()
    assert rl.run(broken).samefile(several)
    assert_same(one, several)


ERRORS = {
    "in the second process": (
        {"reward_model": "my_rewards:fails_in_the_second"},
        (),
        "my_rewards:fails_in_the_second' returned ",
    ),
    # With reinforce the others' losses stay finite.
    "in an update of the second": (
        {
            "reward_model": "my_rewards:one_huge",
            "algorithm": "reinforce",
            "reward_clip": 0.0,
            "eval_every": 0,
        },
        (),
        "policy loss is not finite",
    ),
    "in all of them": ({"algorithm": "pqo"}, (), "algorithm 'pqo' is unknown"),
    "before they meet": (
        {},
        ("--batch_sise", "3"),
        "unknown option 'batch_sise'; did you mean 'batch_size'?",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", list(ERRORS))
def test_an_error_ends_all_processes_and_is_said_once(config, where):
    options, flags, message = ERRORS[where]
    done = torchrun("rl", 2, dataclasses.replace(config, **options), *flags)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert message in done.stderr
    assert not Path("one/DONE").exists()


def test_alone_everything_is_mine():
    rows = torch.arange(6)
    assert distributed.shard(rows) is rows
    assert distributed.gather_rows([1, 2]) == [1, 2]
    assert distributed.all_gather("x") == ["x"]
    tensor = torch.ones(3)
    assert distributed.all_reduce(tensor) is tensor
    assert tensor.tolist() == [1, 1, 1]
    with pytest.raises(UsageError), distributed.sync_errors():
        raise UsageError("here")


def test_where_one_fails_the_others_hear_of_it(monkeypatch):
    told = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather", lambda well: told.append(well) or [well, len(told) == 1])
    with distributed.sync_errors():
        pass
    with pytest.raises(UsageError), distributed.sync_errors():
        raise UsageError("here")
    assert told == [True, False]
    with pytest.raises(StoppedElsewhere), distributed.sync_errors():
        pass


@pytest.mark.parametrize("size", [2, 3, 5])
def test_shares_make_the_whole(monkeypatch, size):
    monkeypatch.setattr(distributed, "world_size", lambda: size)
    shares, groups, lists = [], [], []
    for rank in range(size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.shard(torch.arange(7)))
        groups.append(distributed.shard(torch.arange(12), 3))
        lists.append(distributed.shard(list("abcdefg")))
    assert sorted(torch.cat(shares).tolist()) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert sorted(torch.cat(groups).tolist()) == list(range(12))
    assert all(len(rows) % 3 == 0 and (rows.diff()[::3] == 1).all() for rows in groups if len(rows))
    monkeypatch.setattr(distributed, "all_gather", lambda own: lists)
    assert distributed.gather_rows(lists[0]) == list("abcdefg")


def test_gradients_are_added_up_and_those_that_are_nowhere_stay_away(monkeypatch):
    """Another process has the same gradients and one more."""
    here, there, nowhere = (torch.nn.Parameter(torch.ones(2, i)) for i in (1, 2, 3))
    optimizer = torch.optim.AdamW([here, there, nowhere], weight_decay=0.5)
    here.grad = torch.tensor([[1.0], [2.0]])
    theirs = torch.cat(
        [torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 2.0]), torch.full((4,), 5.0), torch.zeros(6)]
    )
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: tensor + theirs)
    distributed.all_reduce_gradients(optimizer)
    assert here.grad.tolist() == [[2.0], [4.0]]
    assert there.grad.tolist() == [[5.0, 5.0], [5.0, 5.0]]
    assert nowhere.grad is None


def test_a_scorer_that_is_shared_out_is_the_scorer():
    first, second = (lambda p, c, k=k, **_: [k * len(t) for t in c] for k in (1.0, 3.0))
    scorer = ShardedScorer(Ensemble({"first": first, "second": second}))
    assert scorer(["p", "p"], ["a", "abc"], finished=[True, False]) == [2.0, 6.0]
    assert scorer.last_parts == {"first": [1.0, 3.0], "second": [3.0, 9.0]}
    with pytest.raises(UsageError, match="returned 1 scores for 2 responses"):
        ShardedScorer(lambda p, c, **_: [0.0])(["p", "p"], ["a", "b"])
