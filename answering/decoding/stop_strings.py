"""Texts before which an answer ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopStrings:
    """Finds stop texts in answers that are still being generated.

    Args:
        texts: an answer ends before the first of them.
        decode: text of token ids, with its whitespace.
    """

    texts: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def newly_found(self, token_ids: Sequence[int]) -> bool:
        """Whether the answer's latest token completes a stop text; only the last tokens are read, since it was not found before them."""
        # A token adds at least one byte, so a text of b bytes is within the last b tokens; some decoders treat their first token otherwise.
        longest = max(len(text.encode()) for text in self.texts)
        tail = self.decode(token_ids[-(longest + 1) :])
        return any(text in tail for text in self.texts)


def cut_before(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop text in it; all of it if there is none."""
    return text[: min((index for stop in stops if (index := text.find(stop)) >= 0), default=len(text))]


def without_beginning_of(text: str, stops: Sequence[str]) -> str:
    """The text without an end that may turn out to be the beginning of a stop text."""
    lengths = [n for stop in stops for n in range(1, min(len(stop), len(text)) + 1) if text.endswith(stop[:n])]
    return text[: len(text) - max(lengths, default=0)]
