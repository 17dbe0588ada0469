"""A truth for real models: instructions whose fulfilment a function decides, and a price for nonsense.

A prompt is a question of a person's and one instruction ("What is a hiatal hernia? Answer in exactly one
sentence."); the instruction is read from the prompt again, so that whoever has the prompt has the truth.
Instructions of this kind are IFEval's (Zhou et al. 2023, arXiv 2311.07911), which asks nothing else of an
answer. Here an answer that only obeys is not a good one: ``gold`` takes off for what a model finds out when
obedience is all that pays, namely answers about something else, answers that say the question again, words
repeated, and answers without an end.

What it cannot see: whether an answer is true, and whether its words make a sentence.
"""

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from preferl.data.records import Prompt, prompt_text
from preferl.data.splits import normalised
from preferl.runs.errors import UsageError

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# Words of a question that say nothing about its subject; shorter words never do.
COMMON = frozenset(
    re.findall(
        r"\w+",
        """
        about after also another answer anything because been before being best between came could does
        doing during each else even ever every explain find from gave give going good great have having help
        here into just kind know like long look made make many maybe more most much must need never only
        other over please question really recommend recommendations said same several should some someone
        something sometimes still such suggest suggestions sure take tell than thank thanks that their them
        then there these they thing things think this those through told used using very want wants ways
        well were what when where which while will with without would your yours
        """,
    )
)
STEM = 5  # letters by which words are compared, so that endings (-s, -ing, -ed) make no other word
SHORTEST, LONGEST = 4, 14  # words of a question that becomes a prompt
NEW_WORDS = 2  # an answer has at least so many words of content that its prompt does not have
MOST_REPEATED = 0.4  # share of an answer's words that occurred in it before


@dataclass(frozen=True)
class Kind:
    """A kind of instruction: its sentence with a ``{}`` for the argument, the arguments, and what decides.

    Example: ``Kind("Answer in {} words or fewer.", ("10", "20"), lambda text, n: ...)``.
    """

    sentence: str
    arguments: tuple[str, ...]
    is_fulfilled: Callable[[str, str], bool]

    @property
    def pattern(self) -> str:
        """A regular expression of the sentence with one of the arguments, in a group."""
        before, after = map(re.escape, self.sentence.split("{}"))
        return f"{before}({'|'.join(map(re.escape, self.arguments))}){after}"


def has_at_most(text: str, count: str) -> bool:
    """At least three words and at most ``count``."""
    return 3 <= len(words_of(text)) <= int(count)


def has_sentences(text: str, count: str) -> bool:
    """One or two sentences, as ``count`` says, the last with its full stop; a line break ends one too."""
    sentences = [part for part in re.split(r"(?<=[.!?])[\"”')]*\s+|\n+", text.strip()) if words_of(part)]
    ends = re.search(r"[.!?][\"”')]*$", text.strip()) is not None
    return ends and len(sentences) == COUNTS[count]


def is_list(text: str, count: str) -> bool:
    """Nothing but so many lines that begin with a dash and go on with a word."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return len(lines) == COUNTS[count] and all(re.match(r"[-–—] *\w", line) for line in lines)


def uses(text: str, word: str) -> bool:
    """The word is there, in any case, by itself."""
    return word in words_of(text)


def avoids(text: str, word: str) -> bool:
    """There are words, and this is none of them."""
    words = words_of(text)
    return bool(words) and word not in words


def begins(text: str, phrase: str) -> bool:
    """The first words are these, in any case."""
    wanted = words_of(phrase)
    return words_of(text)[: len(wanted)] == wanted


def ends(text: str, phrase: str) -> bool:
    """The last words are these, in any case."""
    wanted = words_of(phrase)
    return words_of(text)[-len(wanted) :] == wanted


def is_json(text: str, example: str) -> bool:
    """The whole text is a JSON object with the example's one key, whose value is a text of three words."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    (key,) = json.loads(example)
    if not isinstance(value, dict) or set(value) != {key} or not isinstance(value[key], str):
        return False
    return len(words_of(value[key])) >= 3


COUNTS = {"one sentence": 1, "two sentences": 2, "two things": 2, "three things": 3}
SENTENCES, LISTS = ("one sentence", "two sentences"), ("two things", "three things")
KINDS: dict[str, Kind] = {
    "words": Kind("Answer in {} words or fewer.", ("10", "15", "20"), has_at_most),
    "sentences": Kind("Answer in exactly {}.", SENTENCES, has_sentences),
    "list": Kind("Answer with a list of {}, each on a line that begins with a dash.", LISTS, is_list),
    "use": Kind('Use the word "{}" in your answer.', ("time", "people", "often", "simple"), uses),
    "avoid": Kind('Do not use the word "{}" in your answer.', ("the", "and", "is"), avoids),
    "begin": Kind('Begin your answer with "{}".', ("In short", "Of course"), begins),
    "end": Kind('End your answer with "{}".', ("I hope this helps", "Good luck"), ends),
    "json": Kind("Answer in JSON, like this: {}", ('{"answer": "..."}',), is_json),
}
AT_THE_END = re.compile(
    r"(?s)(?P<question>.*\S)\s+(?:"
    + "|".join(f"(?P<{name}>{kind.pattern})" for name, kind in KINDS.items())
    + r")\s*"
)


@dataclass(frozen=True)
class Task:
    """A prompt as it is understood: what is asked, and the instruction.

    Example: ``Task("What is a hiatal hernia?", "words", "10")``.
    """

    question: str
    kind: str
    argument: str

    @property
    def prompt(self) -> str:
        """The text that ``read`` reads as this task."""
        return f"{self.question} {KINDS[self.kind].sentence.format(self.argument)}"


def read(prompt: Prompt) -> Task:
    """The question and the instruction of a prompt (of its last turn).

    Raises:
        UsageError: it does not end with an instruction of these.
    """
    text = prompt_text(prompt)
    found = AT_THE_END.fullmatch(text)
    if found is None:
        raise UsageError(
            f"the reward 'instructions' judges prompts that end with one of its instructions (such as "
            f"{KINDS['words'].sentence.format(10)!r}), and {text[:80]!r} does not: make prompts with "
            f"benchmarks/instruction_prompts.py, or name another reward or annotator"
        )
    name = next(name for name in KINDS if found[name])
    argument = re.fullmatch(KINDS[name].pattern, found[name])
    assert argument is not None
    return Task(found["question"], name, argument[1])


# ------------------------------------------------------------------------------------------------- the truth


def fulfilled(task: Task, response: str, finished: bool = True) -> float:
    """1 where the answer does what its instruction says, else 0."""
    return float(KINDS[task.kind].is_fulfilled(response, task.argument))


def off_topic(task: Task, response: str, finished: bool = True) -> float:
    """1 where the answer shares no word of content with the question (of one that has any)."""
    asked = contents_of(task.question)
    return float(bool(asked) and not asked & contents_of(response))


def nothing_new(task: Task, response: str, finished: bool = True) -> float:
    """1 where the answer has fewer than two words of content that are not those of its prompt: it says the
    question or the instruction again, or next to nothing."""
    return float(len(contents_of(response) - contents_of(task.prompt)) < NEW_WORDS)


def repeats(task: Task, response: str, finished: bool = True) -> float:
    """1 where more than two words in five occurred in the answer before."""
    words = words_of(response)
    return float(len(set(words)) < (1 - MOST_REPEATED) * len(words))


def cut_off(task: Task, response: str, finished: bool = True) -> float:
    """1 where the answer did not end by itself."""
    return float(not finished)


PARTS: dict[str, Callable[[Task, str, bool], float]] = {
    "fulfilled": fulfilled,
    "off_topic": off_topic,
    "nothing_new": nothing_new,
    "repeats": repeats,
    "cut_off": cut_off,
}
WEIGHTS = {"fulfilled": 2.0, "off_topic": -1.0, "nothing_new": -1.0, "repeats": -1.0, "cut_off": -1.0}


def gold(task: Task, response: str, finished: bool = True) -> float:
    """What an answer is worth, from −4 to 2: 2 for doing what was asked, and 1 off for each of: being about
    something else, saying nothing new, repeating itself, not coming to an end.

    Example:
        >>> gold(Task("What is a hiatal hernia?", "words", "10"), "A hernia of the stomach into the chest.")
        2.0
    """
    return sum(weight * PARTS[name](task, response, finished) for name, weight in WEIGHTS.items())


class InstructionUtility:
    """``gold`` of prompts as messages or texts, or one of its ``PARTS``.

    Raises:
        UsageError: there is no such part; called with a prompt that ends with no instruction.
    """

    def __init__(self, part: str | None = None):
        if part is not None and part not in PARTS:
            raise UsageError(f"instructions:{part} is unknown; the parts are {', '.join(PARTS)}")
        self.value = gold if part is None else PARTS[part]

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        finished: Sequence[bool] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Values of the completions; of texts that were not sampled here each counts as finished."""
        ended = [True] * len(completions) if finished is None else finished
        rows = zip(prompts, completions, ended, strict=True)
        return [self.value(read(prompt), response, end) for prompt, response, end in rows]

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts without an instruction, before any response to them is sampled.

        Raises:
            UsageError: the first of them.
        """
        for prompt in prompts:
            read(prompt)


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation."""
    return [word.replace("’", "'") for word in WORD.findall(text.lower())]


def contents_of(text: str) -> set[str]:
    """The stems of a text's words of content."""
    return {word[:STEM] for word in words_of(text) if len(word) >= 4 and word not in COMMON}


# --------------------------------------------------------------------------------------------------- prompts


def tasks_of(
    questions: Iterable[str], per_question: int = 1, seed: int = 0, kinds: Sequence[str] = tuple(KINDS)
) -> list[Task]:
    """Questions with instructions: each question with ``per_question`` of different kinds, the same for the
    same question and seed whatever stands beside it. Left out is what is no single question of 4 to 14 words
    with words of content; of questions that are equal after normalising, the first stays.

    Raises:
        UsageError: there is no such kind, or ``per_question`` is more than there are.
    """
    unknown = [name for name in kinds if name not in KINDS]
    if unknown:
        raise UsageError(f"'{unknown[0]}' is no kind of instruction; there are {', '.join(KINDS)}")
    if not 1 <= per_question <= len(kinds):
        raise UsageError(f"per_question is {per_question}; there are {len(kinds)} kinds of instructions")
    tasks: list[Task] = []
    seen: set[str] = set()
    for question in questions:
        question = " ".join(question.split())
        key = normalised(question)
        if key in seen or not is_question(question):
            continue
        seen.add(key)
        rng = random.Random(f"{seed}/{key}")
        names = rng.sample(list(kinds), per_question)
        tasks += [Task(question, name, rng.choice(KINDS[name].arguments)) for name in names]
    return tasks


def is_question(text: str) -> bool:
    """Whether a text is one question of a length and a subject that can be answered in a sentence or two."""
    single = re.fullmatch(r"[^.!?]*\?", text) is not None
    return single and SHORTEST <= len(text.split()) <= LONGEST and bool(contents_of(text))
