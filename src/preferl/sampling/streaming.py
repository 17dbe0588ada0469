"""A response as text while it is drawn, token by token."""

from collections.abc import Callable, Sequence
from typing import Any

from preferl.data.tokens import written_text
from preferl.sampling.samples import Sampling


class TextStream:
    """Shows one response as it grows: a ``Watch`` of ``CachedEngine``, for a batch of one.

    A character of several tokens is shown when it is whole. What was shown always begins the response's text,
    as ``decode`` writes it, but where a tokenizer writes a text differently once more follows; ``end`` then
    shows the whole again.

    Args:
        tokenizer: whose tokens they are.
        sampling: how they are drawn; it says what ends a response.
        before: the last token of the prompt.
        show: takes each piece of text.
    """

    def __init__(self, tokenizer: Any, sampling: Sampling, before: int, show: Callable[[str], None]):
        self.tokenizer, self.before, self.show = tokenizer, before, show
        self.ends = {*sampling.stop, *sampling.suppressed}
        self.stop_texts = sampling.stop_texts
        self.drawn: list[int] = []
        self.shown = ""

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Takes the token of a step; whether a stop text is complete with it."""
        self.drawn += tokens
        written = [token for token in self.drawn if token not in self.ends]
        text = written_text(self.tokenizer, written, self.before, finished=False)
        if text.startswith(self.shown):
            self.show(text[len(self.shown) :])
            self.shown = text
        if not self.stop_texts:
            return False
        decoded = self.tokenizer.decode(self.drawn)  # as ``cut_at_stop`` reads it
        return any(stop in decoded for stop in self.stop_texts)

    def end(self, response: str) -> None:
        """Shows what is left of the whole response."""
        if response.startswith(self.shown):
            self.show(response[len(self.shown) :])
        else:
            self.show(f"\n{response}")
