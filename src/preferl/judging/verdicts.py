"""Verdicts and scores in what judges write: read from the end of a reply, never from the reasoning before it.

A judge is asked for a last line of a fixed form, and writes it in bold, in brackets, in a code fence, as JSON
or in a tag, in other case, with a full stop or a check mark. All that is taken off; what is left must be the
whole last line.
"""

import json
import re
import unicodedata
from typing import Any

THOUGHTS = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
OPEN_THOUGHT = re.compile(r"<(think|thinking|reasoning)>", re.IGNORECASE)
NAMES = "verdict|winner|answer|decision|choice|preference|preferred|better|best|judgment|judgement|result"
SCORE_NAMES = "score|rating|grade|verdict|answer|result"
TAG = re.compile(r"<([a-z_]+)>\s*([^<>]*?)\s*</\1>\W*$", re.IGNORECASE)
# What a model's template or a page puts around a text.
MARKUP = re.compile(
    r"</?(?:b|i|em|strong|p|span|br|s|u)\s*/?>|<\|?(?:im_end|eot_id|end|end_of_turn|endoftext)\|?>"
)
FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
# What only decorates: emphasis, code, headings, quotes, brackets, a list's dash, TeX's box, final marks.
DECORATION = re.compile(r"\\boxed|\\text|[*_`#$\[\](){}\"'“”‘’|]+")
SIDE = r"(?:the )?(?:(?:response|assistant|answer|option|model|candidate|completion|output) )?([ab])"
TIE = (
    "(?:it is |it s )?(?:a )?(?:tie|tied|draw)(?: both ?(?:good|bad))?|equal|equally good|both|both good|"
    "both bad|neither|the same|same|no preference"
)
LEAD = rf"(?:my |the |so |thus |therefore |hence )*(?:final |overall )*(?:{NAMES})(?: response| answer)?"
BETWEEN = r"\s*(?:\s(?:is|goes to)\b\s*:?|:|=|-|–|—)\s*"
LABELLED = re.compile(rf"{LEAD}{BETWEEN}(.+)", re.IGNORECASE)
WINS = re.compile(rf"{SIDE}(?: (?:is (?:the )?(?:better|best|winner)(?: response| one| answer)?|wins))?")
RELATION = re.compile(r"a ?(>{1,2}|<{1,2}|=) ?b|b ?(>{1,2}|<{1,2}) ?a")
SCORE = re.compile(
    rf"(?:(?:my |the )*(?:final |overall )*(?P<name>{SCORE_NAMES})(?: is)?\s*[:=]?\s*)?"
    r"(?P<score>-?[0-9]{1,9}(?:\.[0-9]{1,9})?)(?:\s*(?:/|out of)\s*(?P<most>[0-9]{1,9}))?",
    re.IGNORECASE | re.ASCII,
)


def last_line(reply: str) -> str:
    return reply.rstrip().rsplit("\n", 1)[-1]


def parse_verdict(reply: str) -> float | None:
    """1 for A, 0 for B, 0.5 for a tie, as the reply's ending says; None where it says nothing of the kind.

    Example:
        >>> parse_verdict("A is wordy.\\n**Verdict: [[B]].**")
        0.0
    """
    lines = ending(reply)
    if not lines:
        return None
    found = field_of(lines, NAMES)
    if found is not None:
        return side(found, bare=True)
    alone = len(lines) == 1
    verdict = labelled(lines[-1], alone)
    # The three lines of which one was asked for are no choice.
    copied = {labelled(line, alone=False) for line in lines[-3:]}
    return None if copied == {0.0, 0.5, 1.0} else verdict


def parse_score(reply: str, low: int, high: int) -> float | None:
    """The number at the reply's end, moved from [low, high] to [0, 1]; None where there is none on the scale.

    Example:
        >>> parse_score("Clear and right.\\n**Score: 10/10**", 1, 10)
        1.0
    """
    lines = ending(reply)
    if not lines:
        return None
    value = field_of(lines, SCORE_NAMES)
    line = bare(lines[-1]) if value is None else bare(value)
    found = SCORE.fullmatch(line)
    if found is None or (found["most"] and int(found["most"]) != high):
        return None
    boxed = lines[-1].strip().startswith("[[")
    if not (found["name"] or value is not None or len(lines) == 1 or boxed):
        return None  # a number that ends a list or a sum is no score
    score = float(found["score"])
    return (score - low) / (high - low) if low <= score <= high else None


def ending(reply: str) -> list[str]:
    """The lines of a reply with something in them, without fences and without thoughts; none where it breaks
    off in its thoughts."""
    if breaks_off_in_thoughts(reply):
        return []
    text = THOUGHTS.sub("\n", plain(reply))
    text = re.sub(r"^.*</(?:think|thinking|reasoning)>", "", text, flags=re.DOTALL | re.IGNORECASE)
    # A line that only opens or closes a code block says nothing.
    lines = [line for line in text.split("\n") if not re.fullmatch(r"\s*(```|~~~)\s*\w*\s*", line)]
    return [line for line in lines if line.strip()]


def breaks_off_in_thoughts(reply: str) -> bool:
    return OPEN_THOUGHT.search(THOUGHTS.sub("\n", reply)) is not None


def plain(text: str) -> str:
    """A text with full-width characters as ordinary ones, without signs, without characters that have no
    width, and without the marks that end a turn or set type."""
    text = MARKUP.sub("", text.translate(FULL_WIDTH))
    return "".join(c for c in text if unicodedata.category(c) not in ("Cf", "So"))


def field_of(lines: list[str], names: str) -> str | None:
    """The value of a verdict's field in a JSON object or a tag that ends the reply."""
    text = "\n".join(lines).rstrip()
    tag = TAG.search(text)
    if tag is not None and re.fullmatch(rf"(?:final_?)?(?:{names})", tag[1], re.IGNORECASE):
        return tag[2]
    value = json_at_end(text.rstrip("`").rstrip())
    if value is None:
        return None
    fields = [
        content
        for name, content in value.items()
        if re.fullmatch(rf"(?:final_?)?(?:{names})", name, re.IGNORECASE)
    ]
    # Two fields that could be meant are none.
    known = [content for content in fields if isinstance(content, str | int | float)]
    return str(known[0]) if len(known) == 1 and not isinstance(known[0], bool) else None


def json_at_end(text: str) -> dict[str, Any] | None:
    """The outermost JSON object whose end is the text's end."""
    if not text.endswith("}"):
        return None
    decoder = json.JSONDecoder()
    for found in re.finditer(r"\{", text):
        try:
            value, end = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            continue
        if end == len(text) and isinstance(value, dict):
            return value
    return None


def labelled(line: str, alone: bool) -> float | None:
    """What one line says. ``alone``: it is all that was written, so that a bare letter is the answer."""
    text = bare(line)
    found = LABELLED.fullmatch(text)
    if found is not None:
        return side(found[1].strip(), bare=True)
    # Without a label: a capital letter or a word that stands alone, or "Response A is better".
    return side(text, bare=alone or text.isupper() or len(text) > 1)


def side(text: str, bare: bool) -> float | None:
    """A, B or a tie as a number."""
    words = _undecorated(text).lower()
    relation = RELATION.fullmatch(words)
    if relation is not None:
        if relation[2]:
            return 0.0 if relation[2].startswith(">") else 1.0
        return {">": 1.0, "<": 0.0, "=": 0.5}[relation[1][0]]
    if re.fullmatch(TIE, words):
        return 0.5
    found = WINS.fullmatch(words)
    if found is None or not bare:
        return None
    return 1.0 if found[1] == "a" else 0.0


def bare(line: str) -> str:
    """A line without decoration, list marks and final marks."""
    return _undecorated(re.sub(r"^\s*(?:[-•>+]\s+|>+\s*)", "", line))


def _undecorated(text: str) -> str:
    text = DECORATION.sub(" ", text)
    return re.sub(r"[ \t\r\xa0]+", " ", text).strip().rstrip(".!,;").strip()
