"""``preferl chat``: talk with a policy, or let two of them answer the same, with the reward of each answer.

A model is sampled here as preferl's evaluation samples it: by the same engine, with the temperature and the
length of its run, the same banned tokens, ends and chat template, so that one sees what was trained. Answers
go to standard output, all else to standard error. ``/better a`` and ``/better b`` add what a person prefers
to a file of pairs, from which ``preferl reward`` and ``preferl dpo`` learn.
"""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from preferl.data.records import DataError, Messages, Prompt, UserTurn
from preferl.data.templates import MARK
from preferl.data.tokens import coder_of, prompt_ids
from preferl.data.types import Scorer
from preferl.judging.scorers import columns_wanted, load_scorer, score_responses, what_was_cut
from preferl.models import load
from preferl.options.chat import ChatConfig
from preferl.options.judging import JudgeConfig
from preferl.options.shared import SamplingOptions
from preferl.runs import devices
from preferl.runs.errors import DivergedError, UsageError
from preferl.runs.pair_files import append_pair
from preferl.runs.policies import FoundPolicy
from preferl.runs.progress import on_stderr, printable, say
from preferl.sampling.cached import CachedEngine
from preferl.sampling.policy import Policy, Responses
from preferl.sampling.streaming import TextStream

RESPONSE_LENGTH = 256  # of a model that no stage of preferl has sampled
LETTERS = ("a", "b")
ERRORS = (UsageError, DataError, DivergedError)  # about one prompt, which end no dialogue
HELP = """\
/better a, /better b   adds the pair of the last two answers to {file}; the dialogue goes on with the better
/again                 answers the last prompt again
/reset                 forgets the dialogue
/help                  shows this
/quit, or Ctrl+D       ends; Ctrl+C stops an answer"""

Show = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """What a model said. ``finished``: whether it ended by itself."""

    text: str
    finished: bool


class Speaker:
    """A policy with the options with which it is sampled.

    Args:
        found: which model.
        config: the options of the dialogue; those that were given take precedence over the model's own.
    """

    def __init__(self, found: FoundPolicy, config: ChatConfig):
        self.found, self.name = found, found.path
        self.policy = Policy.load(found.path, config.device, config.dtype, config.chat_template_kwargs)
        given = {"temperature": config.temperature, "response_length": config.response_length}
        options = {"response_length": RESPONSE_LENGTH} | found.sampling
        options |= {name: value for name, value in given.items() if value is not None}
        self.options = SamplingOptions(**options, sampling_batch_size=1)
        self.sampling = self.policy.sampling(self.options)
        pad_id = self.policy.tokenizer.pad_token_id
        self.engine = self.policy.engine = CachedEngine(self.policy.model, pad_id, 1, self.policy.dtype)
        # The same for both of two models: what they answer differs by what they are.
        self.generator = devices.generator(config.seed, "chat")

    @property
    def keeps_turns(self) -> bool:
        """Whether its chat template writes a dialogue of several turns."""
        turns = [{"role": role, "content": MARK} for role in ("user", "assistant", "user")]
        try:
            return coder_of(self.policy.tokenizer).template.write(turns).count(MARK) == len(turns)
        except DataError:
            return False

    def lines(self) -> list[str]:
        """What a person should know of it."""
        found, options = self.found, self.options
        lines = [f"{found.given}: {found.why} ({found.path})"] if found.why else []
        as_there = all(getattr(options, name) == value for name, value in found.sampling.items())
        origin = f", as in {found.sampled_in}" if found.sampling and as_there else ""
        lines.append(
            f"{self.name}: temperature {options.temperature:g}, at most {options.response_length} "
            f"tokens{origin}"
        )
        return [*lines, *(f"{self.name}: {note}" for note in self.policy.notes)]


class Dialogue:
    """A dialogue with one or two policies.

    The next turn goes on from the answer that was called better, else from the last one, and of two policies
    from the first's.

    Args:
        speakers: who answers.
        scorers: what scores each answer, by name.
        config: system message and the file of pairs.
        show: takes the pieces of an answer's text.
        as_drawn: whether they are shown as they are drawn, or the answer as a whole.

    Raises:
        UsageError: there is a system message, and a model without a chat template.
    """

    def __init__(
        self,
        speakers: Sequence[Speaker],
        scorers: Mapping[str, Scorer],
        config: ChatConfig,
        show: Show,
        as_drawn: bool = True,
    ):
        self.speakers, self.scorers = list(speakers), scorers
        self.show, self.as_drawn = show, as_drawn
        self.system, self.pairs = config.system, Path(config.preferences)
        tokenizers = [speaker.policy.tokenizer for speaker in speakers]
        # As in an evaluation: a plain prompt is a user's turn where all have a chat template of their own.
        plain = [s.name for s in speakers if not load.reads_dialogue(s.policy.tokenizer)]
        self.is_dialogue = not plain
        self.keeps_turns = self.is_dialogue and all(speaker.keeps_turns for speaker in speakers)
        if plain and self.system is not None:
            raise UsageError(
                f"'{plain[0]}' has no chat template of its own, in which --system could stand; leave it out"
            )
        self.notes = []
        if plain:
            self.notes.append(
                f"'{plain[0]}' has no chat template of its own: a prompt is plain text, and stands alone"
            )
        elif not self.keeps_turns:
            self.notes.append("the chat template writes no several turns: each prompt stands alone")
        if self.system is not None and not all(coder_of(t).template.takes_system for t in tokenizers):
            self.notes.append(
                "the chat template takes no system message: its text is put into the user's turn"
            )
        self.unscored: list[Exception] = []  # why the last answers have not all of their rewards
        self.reset()

    def reset(self) -> None:
        """Forgets all turns."""
        self.turns: Messages = []
        self.prompt: Prompt | None = None
        self.answers: list[Answer] = []  # at most the last two, to one prompt
        self.kept: Answer | None = None  # from which the next turn goes on

    def ask(self, text: str) -> None:
        """Lets everybody answer a user's next turn."""
        user = {"role": "user", "content": text}
        if self.keeps_turns and self.kept is not None:
            turns = [*self.turns, {"role": "assistant", "content": self.kept.text}, user]
        elif self.system is not None:
            turns = [{"role": "system", "content": self.system}, user]
        else:
            turns = [user]
        prompt: Prompt = turns
        if not self.is_dialogue:
            prompt = text
        elif len(turns) == 1:
            prompt = UserTurn(text, by_template=True)
        answers = self._answers(prompt, [])
        # Only now: a turn that failed or was stopped never was.
        self.turns, self.prompt, self.answers, self.kept = turns, prompt, answers, answers[0]

    def again(self) -> None:
        """Lets everybody answer the last turn once more.

        Raises:
            UsageError: there was none.
        """
        if self.prompt is None:
            raise UsageError("there is no prompt yet to answer again")
        self.answers = self._answers(self.prompt, self.answers)
        self.kept = self.answers[0] if len(self.speakers) > 1 else self.answers[-1]

    def better(self, letter: str) -> None:
        """Adds the pair of the last two answers to the file, and goes on with the better one.

        Raises:
            UsageError: there are no two different answers.
        """
        if letter not in LETTERS:
            raise UsageError("say which of the two is better: /better a or /better b")
        if self.prompt is None or len(self.answers) < len(LETTERS):
            raise UsageError("there are no two answers to compare; /again draws another")
        chosen = self.answers[LETTERS.index(letter)]
        rejected = self.answers[1 - LETTERS.index(letter)]
        if chosen.text == rejected.text:
            raise UsageError("both answers are the same, which says nothing; /again draws another")
        if not (chosen.text.strip() and rejected.text.strip()):
            raise UsageError("one of the answers is empty, and no pair is read of such; /again draws another")
        asked = self.prompt.text if isinstance(self.prompt, UserTurn) else self.prompt
        row = {"prompt": asked, "chosen": chosen.text, "rejected": rejected.text}
        ended = {"finished_chosen": chosen.finished, "finished_rejected": rejected.finished}
        append_pair(self.pairs, row | ended)
        # So that the same is not added twice; another answer can be compared with this one.
        self.kept, self.answers = chosen, [chosen]
        say(f"{letter} is better: added to {self.pairs}")

    def _answers(self, prompt: Prompt, before: Sequence[Answer]) -> list[Answer]:
        """The last two answers to a prompt, some of them new."""
        self.unscored = []
        if len(self.speakers) == 1:
            if before:
                say("b  (the one before is a)")
            return [*before[-1:], self._answer(self.speakers[0], prompt)]
        answers = []
        for letter, speaker in zip(LETTERS, self.speakers, strict=True):
            say(f"{letter}  {speaker.name}")
            answers.append(self._answer(speaker, prompt))
        return answers

    def _answer(self, speaker: Speaker, prompt: Prompt) -> Answer:
        """Samples an answer, shows it as it is drawn, then its rewards."""
        policy = speaker.policy
        cut_before, _ = what_was_cut([policy], self.scorers.values())
        last = prompt_ids(policy.tokenizer, prompt)[-1]
        show = self.show if self.as_drawn else unseen
        stream = speaker.engine.watch = TextStream(policy.tokenizer, speaker.sampling, last, show)
        try:
            made = policy.respond([prompt], 1, speaker.generator, speaker.options)
            stream.end(made.completions[0])
            if not self.as_drawn:
                self.show(made.completions[0])
        finally:
            self.show("\n")
        if not made.finished[0]:
            say(f"   cut off after {made.lengths[0]} tokens (--response_length)")
        for name, scorer in self.scorers.items():
            try:
                self._say_reward(name, scorer, made)
            except ERRORS as error:  # the answer is there all the same
                self.unscored.append(error)
        cut, notes = what_was_cut([policy], self.scorers.values())
        for note in notes if cut != cut_before else []:
            say(f"   {note}")
        return Answer(made.completions[0], made.finished[0])

    def _say_reward(self, name: str, scorer: Scorer, made: Responses) -> None:
        """Says what a scorer gives an answer, and what its parts do where it has such."""
        score = score_responses(scorer, made)[0]
        parts = {part: scores[0] for part, scores in getattr(scorer, "last_parts", {}).items()}
        inside = ", ".join(f"{part} {value:.3f}" for part, value in parts.items() if value is not None)
        say(f"   reward {score:.3f}  {name}" + (f" ({inside})" if inside else ""))


def run(found: Sequence[FoundPolicy], config: ChatConfig, text: str | None) -> int:
    """Loads the models and answers a text, or holds a dialogue; returns the exit code.

    Args:
        found: one model, or two that are compared.
        config: the options.
        text: the one prompt; None for a dialogue in the terminal.

    Raises:
        UsageError, DataError, DivergedError: a model cannot be loaded or sampled, or an answer not scored.
    """
    prepared = devices.prepared(config.seed, config.device, config.dtype, config.num_threads)
    with on_stderr(), prepared as (device, _):
        how = JudgeConfig(seed=config.seed)
        if config.reward_model:
            scorers = {config.reward_model: load_scorer(config.reward_model, device, how)}
        else:
            scorers = scorers_of(found, device, how)
        speakers = [Speaker(model, config) for model in found]
        for line in (line for speaker in speakers for line in speaker.lines()):
            say(line)
        on_terminal = sys.stdout.isatty()
        show = write_safely if on_terminal else write
        dialogue = Dialogue(speakers, scorers, config, show, as_drawn=on_terminal)
        for note in dialogue.notes:
            say(note)
        if text is not None:
            dialogue.ask(text)
            for error in dialogue.unscored:
                if config.reward_model:  # it was asked for
                    raise error
                say(f"   no reward: {error}")
            return 0
        say(f"/help lists the commands; /better adds to {config.preferences}")
        with contextlib.suppress(ImportError):  # where there is one, lines can be edited and come again
            import readline  # noqa: F401
        return converse(dialogue, input)


def scorers_of(found: Sequence[FoundPolicy], device: torch.device, how: JudgeConfig) -> dict[str, Scorer]:
    """What scored in the runs of some models, by name, as far as it can score a dialogue; what cannot is
    said: nobody asked for it."""
    scorers: dict[str, Scorer] = {}
    for name in dict.fromkeys(model.reward for model in found if model.reward):
        try:
            scorer = load_scorer(name, device, how)
        except UsageError as error:
            say(f"no rewards by {name}: {error}")
            continue
        wanted = columns_wanted(scorer)
        if wanted:
            say(f"no rewards by {name}: it asks for {', '.join(wanted)}, which a dialogue does not have")
        else:
            scorers[name] = scorer
    return scorers


def write(text: str) -> None:
    """A piece of an answer, as it is: into a file or a pipe."""
    sys.stdout.write(text)
    sys.stdout.flush()


def unseen(text: str) -> None:
    """A piece of an answer that is shown later."""


def write_safely(text: str) -> None:
    """A piece of an answer for a terminal, to which it can do nothing."""
    write(printable(text, keep="\n\t"))


def converse(dialogue: Dialogue, read: Callable[[str], str]) -> int:
    """Reads prompts and commands until there are no more; returns the exit code. What goes wrong with one of
    them is said, and ends nothing."""
    while True:
        try:
            line = read("> ")
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return 0
        if line.split() == ["/quit"]:
            return 0
        try:
            obey(dialogue, line)
            for error in dialogue.unscored:
                say(f"   no reward: {error}")
            dialogue.unscored = []
        except KeyboardInterrupt:
            say("stopped; this answer is not kept")
        except ERRORS as error:
            say(str(error))


def obey(dialogue: Dialogue, line: str) -> None:
    """Does what a line asks for."""
    match line.split():
        case []:
            return
        case ["/help"]:
            say(HELP.format(file=dialogue.pairs))
        case ["/again"]:
            dialogue.again()
        case ["/reset"]:
            dialogue.reset()
            say("the dialogue is forgotten")
        case ["/better", *letters]:
            dialogue.better(" ".join(letters))
        case [command, *_] if line.startswith("/"):
            raise UsageError(f"{command} is no command; /help lists them (a prompt may begin with a space)")
        case _:
            dialogue.ask(line.strip())
