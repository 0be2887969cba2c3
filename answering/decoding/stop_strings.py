"""Texts before which an answer ends, and the text of an answer that is still being generated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StopStrings:
    """Finds stop texts in answers that are still being generated. decode: text of token ids, with its whitespace."""

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


@dataclass(slots=True)
class IncrementalDetokenizer:
    """Turns token ids that arrive one by one into text, up to the first text in `stop`.

    text: text of token ids, with its whitespace. num_emitted: number of characters returned so far.
    """

    text: Callable[[Sequence[int]], str]
    stop: Sequence[str] = ()
    ids: list[int] = field(default_factory=list)
    num_emitted: int = 0

    def add(self, token: int) -> str:
        """The text that one more token adds; empty while a character is incomplete or the text may become a stop text."""
        self.ids.append(token)
        # A character may span several tokens, and trailing whitespace is stripped if the answer ends here.
        whole = cut_before(self.text(self.ids), self.stop).strip().rstrip("\ufffd").rstrip()
        return self._emit(without_beginning_of(whole, self.stop).rstrip())

    def flush(self) -> str:
        """The text that was held back; call it after the last token."""
        return self._emit(cut_before(self.text(self.ids), self.stop).strip())

    def _emit(self, text: str) -> str:
        piece = text[self.num_emitted :]
        self.num_emitted += len(piece)
        return piece
