"""A streamed text, and why it ended."""

from collections.abc import Iterator

from answering.protocol import FinishReason


class StreamedText:
    """Iterates over the pieces of a text. Afterwards `finish_reason` says why it ended; None if the generator of pieces returns nothing."""

    def __init__(self, pieces: Iterator[str]):
        self._pieces = pieces
        self.finish_reason: FinishReason | None = None

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                piece = next(self._pieces)
            except StopIteration as end:
                self.finish_reason = end.value
                return
            yield piece
