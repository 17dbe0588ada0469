"""From prompts and responses to token ids and back: what a model reads, response masks, padding, batches.

A prompt is plain text or a list of messages. Messages go through the tokenizer's chat template
(``templates.py``), and so does the response to them: what is learnt is what the template writes behind the
prompt, up to the token that ends the turn. Plain text is tokenised as it is, with what the tokenizer puts in
front of a text (BOS) and without what it puts behind, and ends with EOS.

A response that was cut off has no end.
"""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from tokenizers import AddedToken, Tokenizer

from preferl.data.records import DataError, Messages, Prompt
from preferl.data.templates import KWARGS, ChatTemplate, alike, texts_in, with_texts

# A character that stands for nothing encloses the number of a token for which it stands; the first of these
# that no text here holds.
ENCLOSING = [chr(code) for code in range(0xE000, 0xE020)]
BROKEN = "\ufffd"  # how decoders write bytes that are no character
MOST_BYTES = 3  # of a character whose last byte is missing


class Coder:
    """Texts to token ids, for one tokenizer.

    ``special`` are the tokens that only a template may write: those that the tokenizer calls special, and
    those that the template puts around contents. Written in a text they become ordinary characters.
    """

    def __init__(self, tokenizer: Any):
        self.template = ChatTemplate(tokenizer)
        self._copies: dict[str, Tokenizer] = {}

    @property
    def tokenizer(self) -> Any:
        return self.template.tokenizer

    @cached_property
    def special(self) -> dict[str, int]:
        added = {
            token.content: (i, token.special) for i, token in self.tokenizer.added_tokens_decoder.items()
        }
        named = set(self.tokenizer.all_special_tokens)
        found = {}
        for text, (i, special) in added.items():
            if special or text in named or text in self.template.shell:
                found[text] = i
        return found

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return alternatives(self.special)

    @cached_property
    def _assistant_pattern(self) -> re.Pattern[str]:
        """What an assistant's text may not hold. Marks that the template looks for in it, as ``</think>``,
        are its own speech, and so is what the tokenizer does not call special, if it ends no turn."""
        named = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        named |= {*self.tokenizer.all_special_tokens, self.end_token}
        return alternatives((named & set(self.special)) - self.template.searched)

    def plain(self, text: str) -> list[int]:
        """Ids of a text in which every special token counts as one; nothing is put around it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def spelt(self, text: str, assistant: bool = False) -> list[int]:
        """Ids of a text in which special tokens are ordinary characters."""
        pattern = self._assistant_pattern if assistant else self._special_pattern
        if not pattern.search(text):
            return self.plain(text)
        mark = unused(text)
        return self.of_written(self._hidden(text, pattern, mark), mark)

    def _hidden(self, text: str, pattern: re.Pattern[str], mark: str) -> str:
        """A text in which each special token that ``pattern`` finds is a number between marks."""
        numbers = {token: i for i, token in enumerate(self.special)}
        return pattern.sub(lambda found: f"{mark}{numbers[found[0]]}{mark}", text)

    def of_written(self, text: str, mark: str) -> list[int]:
        """Ids of what a template wrote: a special token is one where the template wrote it, and ordinary
        characters where a content holds it (``mark``, see ``_hidden``)."""
        if mark not in text:
            return self.plain(text)
        tokens = list(self.special)
        # Every token that counts gets a stand-in of another name, then the others their own texts back. A
        # copy of the tokenizer knows the stand-ins and takes what is called special for characters: so what
        # lies between is tokenised as it always is, with whatever stands before and behind it.
        outer = unused(text)
        text = self._special_pattern.sub(lambda found: f"{outer}{tokens.index(found[0])}{outer}", text)
        text = re.sub(f"{mark}(\\d+){mark}", lambda found: tokens[int(found[1])], text)
        if mark in text:
            raise DataError(
                f"the chat template of '{self.tokenizer.name_or_path}' cuts through the text of a message in "
                f"which a special token is written out; mend chat_template, or that row"
            )
        copy = self._copy(outer)
        stand_ins = {f"{outer}{i}{outer}": self.special[token] for i, token in enumerate(tokens)}
        added = {token.content: i for i, token in self.tokenizer.added_tokens_decoder.items()}
        own = {copy.token_to_id(token): i for token, i in (added | stand_ins).items()}
        return [own.get(i, i) for i in copy.encode(text, add_special_tokens=False).ids]

    def _copy(self, mark: str) -> Tokenizer:
        """The tokenizer with a stand-in for every special token, and special tokens as characters."""
        if mark not in self._copies:
            written = json.loads(self.tokenizer.backend_tokenizer.to_str())
            for token in written["added_tokens"]:
                token["special"] = token["content"] in self.special
            # A model that looks whole words up (Unigram, WordLevel) would find them in its vocabulary.
            vocabulary, unknown = written["model"]["vocab"], self.tokenizer.unk_token
            hidden = {token: f"{mark}{token}" for token in self.special if token != unknown}
            if isinstance(vocabulary, dict):
                written["model"]["vocab"] = {hidden.get(word, word): i for word, i in vocabulary.items()}
            else:
                written["model"]["vocab"] = [[hidden.get(word, word), score] for word, score in vocabulary]
            copy = Tokenizer.from_str(json.dumps(written))
            copy.no_padding()
            copy.no_truncation()
            known = self.tokenizer.added_tokens_decoder
            copy.add_tokens(
                [
                    AddedToken(f"{mark}{i}{mark}", lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)
                    for i, token in enumerate(known[place] for place in self.special.values())
                ]
            )
            copy.encode_special_tokens = True
            self._copies[mark] = copy
        return self._copies[mark]

    @cached_property
    def front(self) -> list[int]:
        """What the tokenizer puts in front of a text: BOS, where it has one."""
        if not self.knows_letters:
            return []
        around, bare = list(self.tokenizer("a")["input_ids"]), self.plain("a")
        for start in range(len(around) - len(bare) + 1):
            if around[start : start + len(bare)] == bare:
                return around[:start]
        return []

    @cached_property
    def puts_space(self) -> bool:
        """Whether a space is put in front of every text that is read (SentencePiece's way)."""
        if not self.knows_letters:
            return False
        return self.spelt("\na")[len(self.spelt("\n")) :] != self.spelt("a")

    @cached_property
    def knows_letters(self) -> bool:
        """A vocabulary of words without an unknown one cannot be asked what it does to a letter."""
        try:
            return bool(self.plain("\na"))
        except Exception:  # noqa: BLE001 (tokenizers raises nothing narrower)
            return False

    @cached_property
    def takes_space(self) -> bool:
        """Whether the space in front of a text is taken away when it is written."""
        return self.puts_space and self.tokenizer.decode(self.continuation(" a")) != " a"

    @cached_property
    def puts_space_after_special(self) -> bool:
        """Whether that space is also put behind a special token, as older tokenizers do."""
        token = next(iter(self.special), None)
        return token is not None and self.plain(f"{token}a")[1:] == self.spelt("a")

    def continuation(self, text: str, assistant: bool = False) -> list[int]:
        """Ids of a text that goes on another one: without the space that is put in front of a whole one."""
        if not self.puts_space or not text:
            return self.spelt(text, assistant)
        for before in ("\n", "x", ".", ":"):
            start = self.spelt(before)
            whole = self.spelt(before + text, assistant)
            if whole[: len(start)] == start:
                return whole[len(start) :]
        return self.spelt(text, assistant)

    @cached_property
    def end(self) -> tuple[str, int]:
        """What the template writes between an answer and the token that ends its turn, and that token: the
        first special one behind an answer, or EOS where there is none."""
        found = self._special_pattern.search(self.template.ending)
        if not found:
            return "", self.tokenizer.eos_token_id
        return self.template.ending[: found.start()], self.special[found[0]]

    @property
    def end_token(self) -> str:
        return self.tokenizer.convert_ids_to_tokens(self.end[1]) if self.end[1] is not None else ""

    @property
    def end_id(self) -> int:
        """The token that ends an assistant's turn."""
        return self.end[1]

    def write(self, prompt: Messages, response: str | None = None) -> "Written":
        """A dialogue as the template writes it for generation, and as a whole with its response."""
        messages = self.template.readable(prompt)
        if response is None:
            safe, mark = self._safe(messages)
            return Written(self.template.write(safe), "", "", mark)
        messages = alike(messages, [*messages, {"role": "assistant", "content": response}])
        safe, mark = self._safe(messages)
        return Written(
            prompt=self.template.write(alike(safe, safe[:-1])),
            whole=self.template.write(safe, answered=True),
            response=safe[-1]["content"],
            mark=mark,
        )

    def _safe(self, messages: Messages) -> tuple[Messages, str]:
        """Messages whose texts hold no special token, but numbers between marks."""
        tools = getattr(messages, "tools", None)
        texts = [text for message in messages for text in texts_in(message)]
        texts += texts_in(tools)
        if not any(self._special_pattern.search(text) for text in texts):
            return messages, ENCLOSING[0]
        mark = unused("".join(texts))
        safe = []
        for message in messages:
            assistant = message["role"] == "assistant"
            pattern = self._assistant_pattern if assistant else self._special_pattern

            def hide(text: str, pattern: re.Pattern[str] = pattern) -> str:
                return self._hidden(text, pattern, mark)

            safe.append({k: v if k == "role" else with_texts(v, hide) for k, v in message.items()})
        if tools is not None:
            tools = with_texts(tools, lambda text: self._hidden(text, self._special_pattern, mark))
        return alike(messages, safe, tools), mark


@dataclass(frozen=True)
class Written:
    """A dialogue as text: its ``prompt`` as it is written for generation, the ``whole`` with its
    ``response``. Special tokens that contents hold are numbers between ``mark``."""

    prompt: str
    whole: str
    response: str
    mark: str

    def goes_on(self, ending: str, opened: str = "") -> bool:
        """Whether the whole is the prompt, then all of the response but white space, then how a turn ends.
        ``opened``: the mark of the response that stands in the prompt."""
        if not (self.whole.startswith(self.prompt) and self.whole.endswith(ending)):
            return False
        response = self.response
        if opened:
            response = re.sub(rf"^\s*({re.escape(opened)}|{self.mark}\d+{self.mark})", "", response)
        behind = self.whole[len(self.prompt) :]
        return "".join(response.split()) in "".join(behind.split())


_coders: "WeakKeyDictionary[Any, tuple[Any, Coder]]" = WeakKeyDictionary()


def coder_of(tokenizer: Any) -> Coder:
    """The tokenizer's coder; the same object until its template, options or tokens change."""
    state = (
        tokenizer.chat_template,
        tokenizer.init_kwargs.get(KWARGS),
        len(tokenizer),
        tokenizer.eos_token,
        tokenizer.bos_token,
    )
    known = _coders.get(tokenizer)
    if known is None or known[0] != state:
        known = _coders[tokenizer] = (state, Coder(tokenizer))
    return known[1]


def alternatives(texts: Mapping[str, Any] | set[str]) -> re.Pattern[str]:
    """What finds any of some texts, the longest first; nothing where there are none."""
    words = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words)) or r"(?!)")


def unused(text: str) -> str:
    """A character of ``ENCLOSING`` that a text does not hold."""
    return next(mark for mark in ENCLOSING if mark not in text)


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt, ready for a response to follow: exactly what the chat template writes, BOS and a
    plain text.

    Special tokens typed inside a message (``<|assistant|>`` in a user's text) are spelt out as ordinary
    characters: a person's text never opens another role's turn.

    Raises:
        DataError: the chat template fails on it.
    """
    coder = coder_of(tokenizer)
    if isinstance(prompt, str):
        return [*coder.front, *coder.spelt(prompt)]
    written = coder.write(prompt)
    return coder.of_written(written.prompt, written.mark)


def response_ids(tokenizer: Any, response: str, finished: bool = True) -> list[int]:
    """Token ids of a text that goes on a plain-text prompt, EOS included unless it was cut off."""
    ids = coder_of(tokenizer).continuation(response, assistant=True)
    return [*ids, tokenizer.eos_token_id] if finished else list(ids)


def example_ids(
    tokenizer: Any, prompt: Prompt, response: str, finished: bool = True
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of a response to it, as a policy learns them.

    The prompt's are those of ``prompt_ids``: what is there when the policy begins to write. The response's
    are those that follow where prompt and response are tokenised as one text, up to the end of the turn. To
    messages the response is what the chat template writes behind the prompt. Where its rendering of the whole
    dialogue does not begin with the prompt, or leaves something of the response out (DeepSeek-R1 opens a
    thought for generation, and drops thoughts from a dialogue), the response's own text follows the prompt,
    as it does in sampling. A thought that the prompt has opened is not opened again by the response.

    Raises:
        DataError: the chat template fails on it.
    """
    coder = coder_of(tokenizer)
    if isinstance(prompt, str):
        first = prompt_ids(tokenizer, prompt)
        whole = [*coder.front, *coder.spelt(prompt + response)]
        if whole[: len(first)] == first and len(response):
            return first, whole[len(first) :] + [tokenizer.eos_token_id] * finished
        return first, response_ids(tokenizer, response, finished)
    written, ending = coder.write(prompt, response), coder.template.ending
    first, (before_end, end_id) = coder.of_written(written.prompt, written.mark), coder.end
    opened = opened_by(written.prompt, response)
    if opened:
        blank = written.prompt[len(written.prompt.rstrip()) :]
        response = response.lstrip().removeprefix(opened).removeprefix(blank)
    if not written.goes_on(ending, opened):
        coder.template.counts["unlike_generation"] += 1
        return first, coder.continuation(response, assistant=True) + [end_id] * finished
    body = written.whole.removesuffix(ending) + (before_end if finished else "")
    whole = coder.of_written(body, written.mark)
    if whole[: len(first)] == first:
        return first, whole[len(first) :] + [end_id] * finished
    # A token lies over the border, as two line breaks that are one: sampling could not write it.
    if coder.puts_space:
        ids = coder.continuation(response, assistant=True)
    else:
        ids = coder.of_written(body[len(written.prompt) :], written.mark)
    return first, ids + [end_id] * finished


def opened_by(prompt: str, response: str) -> str:
    """The mark with which a response begins where the prompt, as it is written, ends with it already; else
    nothing.

    Example:
        >>> opened_by("<|Assistant|><think>\\n", "<think>\\nLet me see.</think>4.")
        '<think>'
    """
    found = re.match(r"\s*(<[^<>\s/]+>)", response)
    return found[1] if found and prompt.rstrip().endswith(found[1]) else ""


def scored_parts(
    tokenizer: Any, prompt: Prompt, response: str, finished: bool
) -> tuple[list[int], list[int]]:
    """Token ids of (prompt, response) as a decoder with a scalar head reads them, in two parts: of messages
    all that the chat template writes of the whole dialogue, to its last token; of texts prompt, response,
    EOS. A response that was cut off has nothing behind it."""
    if isinstance(prompt, str):
        return example_ids(tokenizer, prompt, response, finished)
    coder = coder_of(tokenizer)
    written = coder.write(prompt, response)
    text = written.whole if finished else written.whole.removesuffix(coder.template.ending)
    first, whole = (coder.of_written(part, written.mark) for part in (written.prompt, text))
    same = next((i for i, (a, b) in enumerate(zip(first, whole, strict=False)) if a != b), len(first))
    return whole[:same], whole[same:]


def reads_segments(tokenizer: Any) -> bool:
    """Whether it is an encoder's tokenizer, which has CLS and SEP."""
    return tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None


def scored_ids(
    tokenizer: Any, prompt: Prompt, response: str, finished: bool, max_length: int | None
) -> list[int]:
    """Token ids of (prompt, response) as a reward model reads them.

    Decoders read the whole dialogue as the chat template writes it, or prompt, response, EOS of plain texts;
    encoders (tokenizers with CLS and SEP) a pair of segments. Over ``max_length`` the prompt loses its oldest
    tokens, then the response its last, or its first where the tokenizer truncates on the left.
    """
    if reads_segments(tokenizer):
        first, second = (
            prompt_ids_plain(tokenizer, prompt),
            response_ids(tokenizer, response, False),
        )
        front, between, behind = segment_frame(tokenizer)
        framing = len(front) + len(between) + len(behind)
        room = None if max_length is None else max(max_length - framing - len(second), 0)
        first = first if room is None else first[len(first) - min(room, len(first)) :]
        ids = [*front, *first, *between, *second]
        limit = len(ids) if max_length is None else max_length - len(behind)
        return [*ids[:limit], *behind]
    first, second = scored_parts(tokenizer, prompt, response, finished)
    if max_length is None or len(first) + len(second) <= max_length:
        return first + second
    if tokenizer.truncation_side == "left":  # as the model was trained: all but BOS may go
        begins = isinstance(prompt, str) and first[:1] == [tokenizer.bos_token_id]
        return first[:begins] + last_tokens(tokenizer, first[begins:] + second, max_length - begins)
    first = last_tokens(tokenizer, first, max(max_length - len(second), 0))
    return first + first_tokens(tokenizer, second, max_length - len(first))


def segment_frame(tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """What an encoder's tokenizer puts in front of a pair of texts, between them and behind them: CLS, SEP
    and SEP, or as many of each as its family has (RoBERTa's two between)."""
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "b"))
    whole = tokenizer("a", "b")["input_ids"]
    starts = range(len(whole) - len(first) - len(second) + 1)
    start = next((i for i in starts if whole[i : i + len(first)] == first), None)
    if start is not None:
        rest = whole[start + len(first) :]
        after = next((i for i in range(len(rest)) if rest[i : i + len(second)] == second), None)
        if after is not None:
            return whole[:start], rest[:after], rest[after + len(second) :]
    return [tokenizer.cls_token_id], [tokenizer.sep_token_id], [tokenizer.sep_token_id]


def prompt_ids_plain(tokenizer: Any, prompt: Prompt) -> list[int]:
    """A prompt's ids without special tokens, for encoders."""
    if isinstance(prompt, str):
        text = prompt
    else:
        text = "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
    return coder_of(tokenizer).spelt(text)


def rendering_notes(tokenizer: Any) -> list[str]:
    """What a chat template made of the responses that were tokenised so far, where it is not what a person
    would expect, in sentences."""
    unlike = coder_of(tokenizer).template.counts["unlike_generation"]
    if not unlike:
        return []
    return [
        f"of {unlike:,} responses the chat template's rendering does not begin with the prompt as it is "
        f"written for generation, or leaves a part out: their own text follows that prompt, as it does in "
        f"sampling (a response to a prompt that opens a thought should hold its end; --{KWARGS} has a "
        f"template's switches)"
    ]


# ------------------------------------------------------------------------------------------------- limits


def first_tokens(tokenizer: Any, ids: list[int], count: int) -> list[int]:
    """At most ``count`` tokens from the front; a character whose last bytes would be missing goes whole."""
    if len(ids) <= count:
        return ids
    kept = ids[:count]
    for shorter in range(len(kept), max(len(kept) - MOST_BYTES - 1, 0), -1):
        if not tokenizer.decode(kept[:shorter]).endswith(BROKEN):
            return kept[:shorter]
    return kept


def last_tokens(tokenizer: Any, ids: list[int], count: int) -> list[int]:
    """At most ``count`` tokens from the end; a character whose first bytes would be missing goes whole."""
    if len(ids) <= count:
        return ids
    kept = ids[len(ids) - count :]
    for start in range(min(MOST_BYTES + 1, len(kept))):
        if not tokenizer.decode(kept[start:]).startswith(BROKEN):
            return kept[start:]
    return kept


def cut_to_fit(
    tokenizer: Any, prompt: list[int], responses: Sequence[list[int]], max_length: int
) -> tuple[list[int], list[list[int]]]:
    """A prompt and responses to it of at most ``max_length`` tokens together: the prompt loses its oldest
    tokens, half of the room at most, then each response its last ones.

    All of them follow the same prompt, or their log-ratios would not be of one question.
    """
    longest = max(map(len, responses))
    kept = last_tokens(tokenizer, prompt, max(max_length - longest, max_length // 2))
    room = max_length - len(kept)
    return kept, [first_tokens(tokenizer, response, room) for response in responses]


def written_text(tokenizer: Any, ids: list[int], before: int | None = None, finished: bool = True) -> str:
    """The text of a response.

    A space with which it begins stays, also where the tokenizer takes the first space of a text away; a
    character that the length limit has cut off in the middle is left out.

    Args:
        tokenizer: whose ids they are.
        ids: the response's, without its end.
        before: the last token of the prompt.
        finished: whether it ended by itself.
    """
    coder = coder_of(tokenizer)
    start: list[int] = []
    if coder.takes_space and not (coder.puts_space_after_special and before in coder.special.values()):
        start = coder.spelt("x")

    def decoded(ids: list[int]) -> str:
        return tokenizer.decode([*start, *ids]).removeprefix(tokenizer.decode(start) if start else "")

    text = decoded(ids)
    if finished or not text.endswith(BROKEN):
        return text
    own = coder.continuation(BROKEN)
    if ids[len(ids) - len(own) :] == own:  # it was written as such
        return text
    # A token may hold a space and the first byte of a character, so the text is cut; some decoders call a
    # whole row of bytes broken for the last of them, so tokens are. The longer text is what was whole.
    shorter = (decoded(ids[:-count]) for count in range(1, MOST_BYTES + 1))
    whole = next((each for each in shorter if not each.endswith(BROKEN)), "")
    bare = text.rstrip(BROKEN)
    if len(text) - len(bare) > MOST_BYTES and not whole:
        return text
    return max(whole, bare, key=len)


# ------------------------------------------------------------------------------------------------ batches


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as ``ids_BS`` (int64) and ``mask_BS`` (int64, 1 on real tokens), padded on ``side``."""
    width = max(len(row) for row in rows)
    ids_BS = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask_BS = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids_BS[i, place] = torch.tensor(row, dtype=torch.long)
        mask_BS[i, place] = 1
    return ids_BS, mask_BS


@dataclass(frozen=True)
class Extent:
    """What one row of a batch is in a pass: its sequences, and the tokens of each of their parts that are
    padded apart (prompt and response; or one text)."""

    widths: tuple[int, ...]
    sequences: int = 1


def parts_that_fit(
    extents: Sequence[Extent], most_rows: int | None = None, most_tokens: int | None = None
) -> list[slice]:
    """Where rows, in this order, are cut so that each part is one pass: of at most so many rows and padded
    tokens, and of one row at least.

    Example:
        >>> parts_that_fit([Extent((2,)), Extent((3,)), Extent((8,)), Extent((9,))], None, 18)
        [slice(0, 2, None), slice(2, 4, None)]
    """
    parts: list[slice] = []
    start, sequences, widths = 0, 0, ()
    for i, extent in enumerate(extents):
        more = sequences + extent.sequences
        wider = tuple(map(max, widths, extent.widths)) if widths else extent.widths
        full = most_rows is not None and i - start >= most_rows
        if i > start and (full or (most_tokens is not None and more * sum(wider) > most_tokens)):
            parts.append(slice(start, i))
            start, more, wider = i, extent.sequences, extent.widths
        sequences, widths = more, wider
    if len(extents) > start:
        parts.append(slice(start, len(extents)))
    return parts


def positions(mask_BS: torch.Tensor) -> torch.Tensor:
    """Position of every real token in its row; pads get 0 (absolute embeddings refuse -1)."""
    return (mask_BS.cumsum(-1) - 1).clamp(min=0)


def length_buckets(
    lengths: Sequence[int], batch_size: int, rng: random.Random, window: int = 16
) -> Iterator[list[int]]:
    """Shuffled batches of row numbers whose lengths are close, so that little is padded.

    Rows are shuffled, sorted by length inside windows of ``window`` batches, and the batches shuffled
    again: every epoch sees every row once.
    """
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), batch_size * window):
        part = sorted(order[start : start + batch_size * window], key=lambda i: lengths[i])
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    rng.shuffle(batches)
    yield from batches


def endless_buckets(lengths: Sequence[int], batch_size: int, rng: random.Random) -> Iterator[list[int]]:
    """``length_buckets``, epoch after epoch, each in an order of its own."""
    while True:
        yield from length_buckets(lengths, batch_size, rng)
