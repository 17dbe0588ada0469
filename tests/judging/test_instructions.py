"""The truth of real models: each instruction right, wrong and at its border, and the price of nonsense."""

import json

import pytest
import torch

from preferl.data.records import UserTurn
from preferl.judging.annotators import Annotator
from preferl.judging.instructions import (
    KINDS,
    PARTS,
    InstructionUtility,
    Task,
    gold,
    read,
    tasks_of,
)
from preferl.judging.scorers import check_prompts, load_scorer, scored
from preferl.runs.errors import UsageError

QUESTION = "What is a good way to store potatoes?"
GOOD = "Keep potatoes in a cool, dark cupboard."
JSON = '{"answer": "..."}'
# Kind, argument, response, whether it does what the instruction says.
CASES = [
    ("words", "10", "Keep potatoes in a cool, dark and quite dry place.", True),  # ten
    ("words", "10", "Keep all potatoes in a cool, dark and quite dry place.", False),  # eleven
    ("words", "10", "Keep them cool.", True),
    ("words", "10", "In cellars.", False),  # two
    ("words", "10", "", False),
    ("words", "10", "- - - . . . ! ! !", False),  # marks are no words
    (
        "words",
        "10",
        "It's a well-known trick: don't wash potatoes before you store.",
        True,
    ),  # ten, two joined
    ("words", "10", "它 是 a b c d e f g h", True),  # words of any script
    ("sentences", "one sentence", GOOD, True),
    ("sentences", "one sentence", "Keep potatoes in a cool, dark cupboard", False),  # has no end
    ("sentences", "one sentence", "Keep them at 7.5 degrees.", True),  # a decimal point ends nothing
    ("sentences", "one sentence", GOOD + " Do not wash them.", False),
    ("sentences", "one sentence", "Keep them cool.\n", True),
    ("sentences", "one sentence", "Keep them\ncool.", False),  # a line of its own is a sentence of its own
    ("sentences", "two sentences", GOOD + " Do not wash them.", True),
    ("sentences", "two sentences", '"Keep them cool." And "dry!"', True),  # ends inside quotation marks
    ("sentences", "two sentences", GOOD, False),
    ("sentences", "two sentences", "One. Two. Three.", False),
    ("sentences", "two sentences", "Keep them cool. ...", False),  # dots without words are none
    ("list", "two things", "- a cool cellar\n- a dark cupboard", True),
    ("list", "two things", "- a cool cellar\n\n  - a dark cupboard\n", True),
    ("list", "two things", "– cellar\n— cupboard", True),  # typographic dashes
    ("list", "two things", "-cellar\n-cupboard", True),
    ("list", "two things", "- a cool cellar\n- a dark cupboard\n- a box", False),
    ("list", "three things", "- a cool cellar\n- a dark cupboard\n- a box", True),
    ("list", "two things", "Here you are:\n- a cellar\n- a cupboard", False),
    ("list", "two things", "1. a cellar\n2. a cupboard", False),
    ("list", "two things", "- \n- ", False),  # nothing on the lines
    ("use", "time", "Take your TIME.", True),
    ("use", "time", "Sometimes, at times, in the meantime.", False),
    ("use", "time", "", False),
    ("avoid", "the", "Other theories are there, then.", True),
    ("avoid", "the", "Keep them in The cellar.", False),
    ("avoid", "the", "", False),
    ("avoid", "is", "It's cool.", True),  # a word of its own
    ("begin", "In short", "In short, keep them cool.", True),
    ("begin", "In short", "in short keep them cool", True),
    ("begin", "In short", '"In short": cool.', True),
    ("begin", "In short", "Well, in short, keep them cool.", False),
    ("begin", "In short", "In shorter words, cool.", False),
    ("begin", "In short", "In", False),
    ("end", "Good luck", "Keep them cool. Good luck!", True),
    ("end", "Good luck", "Keep them cool.\n\nGOOD LUCK.", True),
    ("end", "Good luck", "Good luck with your potatoes.", False),
    ("end", "Good luck", "luck", False),
    ("json", JSON, '{"answer": "Keep them cool."}', True),
    ("json", JSON, '  {"answer":\n "Keep them cool."}\n', True),
    ("json", JSON, '{"answer": "..."}', False),  # the example itself
    ("json", JSON, '{"answer": "Keep them cool."} I hope this helps.', False),
    ("json", JSON, '```json\n{"answer": "Keep them cool."}\n```', False),
    ("json", JSON, "{'answer': 'Keep them cool.'}", False),
    ("json", JSON, '{"answer": "Keep them cool.", "more": 1}', False),
    ("json", JSON, '{"Answer": "Keep them cool."}', False),
    ("json", JSON, '{"answer": ["Keep", "them", "cool"]}', False),
    ("json", JSON, '["answer"]', False),
    ("json", JSON, '{"answer": "Keep them', False),
    ("json", JSON, "[" * 100_000, False),  # deeper than Python reads
]


@pytest.mark.parametrize(("kind", "argument", "response", "right"), CASES)
def test_what_an_instruction_decides(kind, argument, response, right):
    assert PARTS["fulfilled"](Task(QUESTION, kind, argument), response, True) == right


def test_every_kind_has_right_and_wrong_cases():
    assert {(kind, right) for kind, _, _, right in CASES} == {(k, r) for k in KINDS for r in (True, False)}


@pytest.mark.parametrize(
    ("response", "finished", "off"),
    [
        (GOOD, True, ()),
        ("Store your spuds... potato cellars, cupboards.", True, ()),  # "potato" is "potatoes"
        ("Sleep early, exercise and drink water.", True, ("off_topic",)),
        ("What is a good way to store potatoes?", True, ("nothing_new",)),
        ("A good way to store potatoes is this way.", True, ("nothing_new",)),
        ("Potatoes.", True, ("nothing_new",)),
        ("Yes.", True, ("off_topic", "nothing_new")),
        ("", True, ("off_topic", "nothing_new")),
        ("Potatoes cellar cupboard potatoes cellar cupboard", True, ("repeats",)),
        ("potatoes like the cellar, the dark, the cold", True, ()),  # two of eight said before
        (GOOD, False, ("cut_off",)),
    ],
)
def test_the_price_of_nonsense(response, finished, off):
    task = Task(QUESTION, "words", "20")
    assert {name for name in PARTS if name != "fulfilled" and PARTS[name](task, response, finished)} == set(
        off
    )
    obeyed = PARTS["fulfilled"](task, response, finished)
    assert gold(task, response, finished) == 2 * obeyed - len(off)


def test_what_it_cannot_see():
    """A limit that docs/real-models.md names: words of the right kinds make no sentence, and count."""
    assert gold(Task(QUESTION, "words", "10"), "Potatoes zebra lamp.") == 2


def test_words_of_the_instruction_are_no_news():
    task = Task(QUESTION, "end", "I hope this helps")
    assert PARTS["nothing_new"](task, "Store potatoes. I hope this helps", True)
    assert not PARTS["nothing_new"](task, "Store potatoes in dark cupboards. I hope this helps", True)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_prompt_says_what_is_asked(kind):
    for argument in KINDS[kind].arguments:
        task = Task(QUESTION, kind, argument)
        for prompt in (
            task.prompt,
            UserTurn(task.prompt),
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": task.prompt}],
        ):
            assert read(prompt) == task
        with pytest.raises(UsageError, match="instruction_prompts"):
            read(task.prompt + " Please.")


def test_of_two_instructions_the_last_one_counts():
    first = Task(QUESTION, "words", "10").prompt
    assert read(Task(first, "avoid", "the").prompt) == Task(first, "avoid", "the")


def test_one_reward_by_name_everywhere():
    prompts = [Task(QUESTION, "words", "10").prompt, Task(QUESTION, "use", "time").prompt]
    scorer = load_scorer("instructions", torch.device("cpu"))
    assert scored(scorer, prompts, [GOOD, GOOD]).tolist() == [2, 0]
    assert scored(scorer, prompts, [GOOD, GOOD], finished=[False, True]).tolist() == [1, 0]
    mixed = load_scorer("1*instructions:fulfilled + -0.5*instructions:cut_off", torch.device("cpu"))
    assert scored(mixed, prompts, [GOOD, GOOD], finished=[False, True]).tolist() == [0.5, 0]
    labels = Annotator("instructions", InstructionUtility(), "deterministic")
    assert labels.utilities(prompts, [GOOD, GOOD], [True, False]).tolist() == [2, -1]
    with pytest.raises(UsageError, match=r"nonsense is unknown.*fulfilled, off_topic"):
        load_scorer("instructions:nonsense", torch.device("cpu"))


def test_other_prompts_are_refused_before_anything_is_sampled():
    scorer = load_scorer("0.5*instructions + 1*length", torch.device("cpu"))
    check_prompts([scorer], [Task(QUESTION, "words", "10").prompt])
    with pytest.raises(UsageError, match=r"What is 2 .* does not: make prompts with"):
        check_prompts([scorer], [Task(QUESTION, "words", "10").prompt, "What is 2 + 2?"])


def test_tasks_are_of_single_questions_once_and_do_not_depend_on_their_neighbours():
    others = [
        "What  is a good\nway to store potatoes?",  # the same after normalising
        "Hello. How are potatoes stored?",  # two sentences
        "How do potatoes grow? And beans?",
        "Tell me about potatoes.",
        "Why so?",
        "What do you do with it and with that then?",  # about nothing
        "How do I " + "very " * 20 + "well store potatoes?",
    ]
    (task,) = tasks_of([QUESTION, *others])
    assert task.question == QUESTION
    assert tasks_of([*others[1:], "Who was Ada Lovelace?", QUESTION])[1] == task
    three = tasks_of([QUESTION], per_question=3)
    assert len({one.kind for one in three}) == 3
    assert {t.kind for t in tasks_of([f"How are {i} potatoes stored?" for i in range(200)])} == set(KINDS)
    assert tasks_of([QUESTION], seed=1, per_question=8) != tasks_of([QUESTION], seed=2, per_question=8)
    assert {task.kind for task in tasks_of([QUESTION], 2, kinds=("use", "json"))} == {"use", "json"}
    with pytest.raises(UsageError, match="'letters' is no kind of instruction; there are words, "):
        tasks_of([QUESTION], kinds=("use", "letters"))
    with pytest.raises(UsageError, match="per_question is 9"):
        tasks_of([QUESTION], per_question=9)


def test_prompts_are_made_by_a_command(tmp_path, monkeypatch, capsys):
    import instruction_prompts

    rows = [
        {
            "prompt": [{"role": "user", "content": f"How are {i} potatoes stored?"}],
            "chosen": "a",
            "rejected": "b",
        }
        for i in range(200)
    ]
    questions, out = tmp_path / "questions.jsonl", tmp_path / "prompts.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["x", "--questions", str(questions), "--most", "150", "--out", str(out)])
    instruction_prompts.main()
    made = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(made) == 150
    assert {row["split"] for row in made} == {"train", "dev", "eval"}
    assert all(read(row["prompt"]).kind == row["category"] for row in made)
    assert {row["category"] for row in made} == {"words", "sentences"}
    assert "150 prompts" in capsys.readouterr().out
