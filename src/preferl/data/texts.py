"""Plain texts as demonstrations: their first words are the prompt, what follows is the response."""

import re

from preferl.data.records import Demonstration


def opening(text: Demonstration, opening_words: int, max_response_words: int | None) -> Demonstration | None:
    """Cuts a plain text into its first words (the prompt) and what follows (the response).

    With ``max_response_words`` the response ends with the last sentence that fits. None where nothing is
    left. White space is kept: prompt + response is a prefix of the text.
    """
    ends = [match.end() for match in re.finditer(r"\S+", text.response)]
    if len(ends) <= opening_words:
        return None
    cut = ends[opening_words - 1]
    if max_response_words is None:
        return Demonstration(text.response[:cut], text.response[cut:].rstrip(), text.columns)
    window = text.response[cut : ends[min(opening_words + max_response_words, len(ends)) - 1]]
    sentences = [match.end() for match in re.finditer(r"[.!?][\"')]*(?=\s|$)", window)]
    if not sentences:
        return None
    return Demonstration(text.response[:cut], window[: sentences[-1]], text.columns)


def passages(text: Demonstration, opening_words: int, max_response_words: int | None) -> list[Demonstration]:
    """A text as demonstrations one after the other, so that all of it is learnt from.

    Only the first is an opening (``passage`` 0) and so a prompt for sampling; the others stay in its split.
    """
    found: list[Demonstration] = []
    first = opening(text, opening_words, max_response_words)
    rest = text.response
    while first is not None:
        columns = text.columns | {"passage": len(found)}
        found.append(Demonstration(first.prompt, first.response, columns))
        # Prompt and response are a prefix of the text; the next passage begins with the first word after it.
        rest = rest[len(first.prompt) + len(first.response) :].lstrip()
        first = opening(Demonstration("", rest, text.columns), opening_words, max_response_words)
    return found
