"""Reward models go both ways between preferl and TRL, offline, and score the same there and here.

TRL's RLOOTrainer scores text, not token ids: it decodes a completion without special tokens, puts it behind
its prompt and tokenises both again for the reward model. So a reward model does not see there whether a
response ended or was cut off. A plain prompt and its response are always read without EOS; a chat is read
through the template of the reward model's tokenizer, always with what the template writes after an
assistant's turn (EOS, for the template here). preferl knows whether a response ended and reads EOS only then;
its scores below are those of ``finished=False`` and ``finished=True`` throughout.
"""

import json
import socket

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from preferl.data.records import prompt_text
from preferl.judging.scorers import load_scorer
from preferl.stages import reward, rl

trl = pytest.importorskip("trl")
from datasets import Dataset  # noqa: E402

# TRL's configurations and trainers use options of transformers by their old names.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")
CPU = torch.device("cpu")
NOUNS = ("apple", "river", "house", "stone", "cloud", "table")
TRAINING = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "seed": 0,
    "max_steps": 2,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Whoever opens a connection fails."""

    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def pair_rows(count: int, as_chat: bool) -> list[dict]:
    """Explicit prompts; a plain one ends with a colon, which this tokenizer merges with nothing."""
    rows = []
    for i in range(count):
        noun = NOUNS[i % len(NOUNS)]
        texts = {"chosen": f"Thanks, the {noun} is nice.", "rejected": f"No! The {noun} is bad."}
        if as_chat:
            turns = {side: [{"role": "assistant", "content": text}] for side, text in texts.items()}
            rows.append({"prompt": chat(f"Tell me of {noun} {i}."), **turns})
        else:
            rows.append({"prompt": f"Tell me of {noun} {i}:", **texts})
    return rows


@pytest.fixture(scope="module")
def preferl_stage(tmp_path_factory, policy_directory):
    """A reward stage of preferl whose scores have a mean to subtract."""
    folder = tmp_path_factory.mktemp("preferl")
    splits = ["train"] * 64 + ["dev"] * 8 + ["eval"] * 8
    rows = [row | {"split": split} for row, split in zip(pair_rows(80, True), splits, strict=True)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return reward.run(
        reward.RewardConfig(
            output_dir=str(folder / "reward"),
            model_name_or_path=str(policy_directory),
            dataset_name=str(folder / "pairs.jsonl"),
            audit=False,
            num_evals=1,
            num_threads=1,
            device="cpu",
        )
    )


@pytest.mark.parametrize("as_chat", [False, True], ids=["plain prompts", "chats"])
def test_trl_scores_its_samples_as_preferl_does(
    preferl_stage, policy_directory, tmp_path, tokenizer, as_chat
):
    model_directory = preferl_stage / "model"
    mean = json.loads((model_directory / "config.json").read_text())["reward_mean"]
    assert abs(mean) > 1e-3
    samples, scores = [], []

    def watch(prompts, completions, completion_ids, **_):
        """A second reward function, of weight 0, is told what was sampled."""
        samples.extend(zip(prompts, completions, completion_ids, strict=True))
        return [0.0] * len(prompts)

    prompts = [chat(f"Tell me of {n}.") if as_chat else f"Tell me of {n}:" for n in NOUNS]
    trainer = trl.RLOOTrainer(
        model=str(policy_directory),
        reward_funcs=[str(model_directory), watch],
        args=trl.RLOOConfig(
            output_dir=str(tmp_path / "rloo"),
            per_device_train_batch_size=12,
            num_generations=2,
            max_completion_length=8,
            reward_weights=[1.0, 0.0],
            # Untrained, the policy hardly ever ends.
            generation_kwargs={"sequence_bias": [[[tokenizer.eos_token_id], 4.0]]},
            **TRAINING,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
    )
    trainer.reward_funcs[0].register_forward_hook(lambda *call: scores.extend(call[-1].logits[:, 0].tolist()))
    trainer.train()
    assert len(scores) == len(samples) == 24
    ended = [ids[-1] == tokenizer.eos_token_id for _, _, ids in samples]
    assert any(ended)
    assert not all(ended)

    texts = [completion[0]["content"] if as_chat else completion for _, completion, _ in samples]
    scorer = load_scorer(str(preferl_stage), CPU)
    ours = scorer([prompt for prompt, _, _ in samples], texts, finished=[as_chat] * len(samples))
    assert scores == pytest.approx([score + mean for score in ours], abs=1e-5)
    # What TRL learns from are these very scores.
    logged = [row["rewards/model/mean"] for row in trainer.state.log_history if "rewards/model/mean" in row]
    assert logged == pytest.approx([sum(part) / 12 for part in (scores[:12], scores[12:])], abs=1e-5)
    told = scorer([prompt for prompt, _, _ in samples], texts, finished=ended)
    differ = [abs(one - other) > 1e-4 for one, other in zip(told, ours, strict=True)]
    assert differ == [end is not as_chat for end in ended]


@pytest.mark.parametrize("as_chat", [False, True], ids=["plain prompts", "chats"])
def test_a_reward_model_of_trl_serves_the_rl_stage(policy_directory, tmp_path, tokenizer, as_chat):
    rows = pair_rows(12, as_chat)
    directory = tmp_path / "trl-reward"
    trainer = trl.RewardTrainer(
        model=str(policy_directory),
        args=trl.RewardConfig(
            output_dir=str(directory), per_device_train_batch_size=4, max_length=64, **TRAINING
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()

    # TRL's own token ids of the pairs, through transformers' own class.
    theirs = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    scorer = load_scorer(str(directory), CPU)
    for side in ("chosen", "rejected"):
        with torch.no_grad():
            expected = [
                theirs(input_ids=torch.tensor([ids])).logits[0, 0].item()
                for ids in trainer.train_dataset[f"{side}_ids"]
            ]
        responses = [row[side][0]["content"] if as_chat else row[side] for row in rows]
        assert scorer([row["prompt"] for row in rows], responses) == pytest.approx(expected, abs=1e-5)
        assert max(expected) - min(expected) > 1e-3

    prompts = [{"prompt": row["prompt"]} for row in pair_rows(60, as_chat)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    stage = rl.run(
        rl.RlConfig(
            output_dir=str(tmp_path / "rl"),
            model_name_or_path=str(policy_directory),
            reward_model=str(directory),
            dataset_name=str(tmp_path / "prompts.jsonl"),
            num_iterations=2,
            batch_size=8,
            num_mini_batches=1,
            response_length=8,
            eval_prompts=4,
            num_threads=1,
            device="cpu",
        )
    )
    made = [json.loads(line) for line in (stage / "samples.jsonl").read_text().splitlines()]
    assert len(made) == 16
    prompt_of = {prompt_text(row["prompt"]): row["prompt"] for row in prompts}
    for row in made:
        text = prompt = prompt_of[row["prompt"]]
        if as_chat:
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        # A role marker that the policy sampled is ordinary text by now.
        response = tokenizer(row["response"], split_special_tokens=True)["input_ids"]
        ids = tokenizer(text)["input_ids"] + response + [tokenizer.eos_token_id] * row["finished"]
        with torch.no_grad():
            expected = theirs(input_ids=torch.tensor([ids])).logits[0, 0].item()
        assert row["reward"] == pytest.approx(expected, abs=1e-5)
