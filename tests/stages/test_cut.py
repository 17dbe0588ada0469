"""What does not fit is cut in a fixed order, counted and said."""

import json
import re

import torch

from preferl.data.records import Demonstration, UserTurn
from preferl.judging.annotators import Annotator
from preferl.judging.scorers import Mixture, what_was_cut
from preferl.learning import comparisons
from preferl.models import load
from preferl.models.load import max_positions
from preferl.models.reward import RewardModel, load_reward_model
from preferl.sampling.policy import Policy
from preferl.stages import collect, sft

LONG = "Once upon a time there was a little dog. " * 10


def test_sft_counts_prompts_and_responses_that_lose_something(tokenizer):
    rows = [
        Demonstration("Name two colours.", " Red and blue.", {}),
        Demonstration(LONG, " The dog.", {}),
        Demonstration("Once", LONG, {}),
    ]
    encoded = sft.encode(tokenizer, rows, 40)
    assert encoded.counts == {"cut_prompts": 1, "cut_responses": 1, "without_response": 0}
    assert [len(ids) for ids, _ in encoded.rows][1:] == [40, 40]
    assert encoded.rows[1][0][-1] == tokenizer.eos_token_id
    assert encoded.rows[2][0][-1] != tokenizer.eos_token_id
    notes = sft.cut_notes(encoded.counts, len(encoded.rows), 40)
    assert "1 of 3 prompts were cut" in notes[0]
    assert "1 of 3 responses were cut" in notes[1]
    assert sft.cut_notes(sft.encode(tokenizer, rows[:1], 40).counts, 1, 40) == []


def test_policies_and_reward_models_count_what_they_cut(policy_directory):
    policy = Policy.load(str(policy_directory), "cpu")
    torch.manual_seed(0)
    model = RewardModel(*load_reward_model(str(policy_directory), torch.device("cpu"), True), max_length=40)
    assert what_was_cut([policy], [model]) == ({}, [])
    policy.respond(["Once", LONG], response_length=8)
    model(["Once", LONG, LONG], [" a time."] * 3)
    cut, notes = what_was_cut([policy], [])
    assert cut == {"cut_by_model": {policy.model.name_or_path: 1}}
    assert "1 of 2 prompts were cut" in notes[0]
    cut, notes = what_was_cut([], [Mixture({"part": (1.0, model)})])
    assert cut == {"cut_by_model": {model.name: 2}}
    assert "2 of 3 responses cut" in notes[0]
    assert what_was_cut([], [Annotator("own", model)]) == (cut, notes)


def test_collect_says_what_its_annotator_has_cut(policy_directory, tmp_path, capsys):
    torch.manual_seed(0)
    model, tokenizer = load_reward_model(str(policy_directory), torch.device("cpu"), True)
    load.save(model, tokenizer, tmp_path / "rm")
    longer = LONG * (max_positions(model) // 100)
    row = {"prompt": "Once", "responses": [longer, " a dog."]}
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    found = collect.run(
        collect.CollectConfig(
            output_dir=str(tmp_path / "out"),
            responses_file=str(tmp_path / "r.jsonl"),
            annotator=str(tmp_path / "rm"),
            device="cpu",
        )
    )
    cut, read = map(int, re.search(r"read (\d+) of (\d+) responses cut", capsys.readouterr().out).groups())
    assert 2 * cut == read > 0
    assert json.loads((found / "summary.json").read_text())["cut_by_model"] == {str(tmp_path / "rm"): cut}


def test_a_comparison_that_cutting_has_made_equal_teaches_nothing():
    assert not comparisons.Encoded([[5, 6], [5, 6]], [1, 2], None).differs
    assert comparisons.Encoded([[5, 6], [5, 7]], [1, 2], None).differs
    assert comparisons.Encoded([[5, 6], [5, 6]], [1, 1], None).differs  # a tie is what it says


def test_a_turn_that_another_models_template_made_is_read_as_the_data_set_has_it(policy_directory):
    model = RewardModel(*load_reward_model(str(policy_directory), torch.device("cpu"), True))
    asked = UserTurn("Once", by_template=True)
    assert model.encode(asked, " a dog.") == model.encode("Once", " a dog.")
    assert model.encode(UserTurn("Once"), " a dog.") != model.encode("Once", " a dog.")
