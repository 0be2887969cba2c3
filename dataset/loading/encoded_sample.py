"""An encoded sample: token ids and labels, and the checks of messages that every encoder shares."""

from collections.abc import Sequence
from dataclasses import dataclass

from dataset.sample import IMAGE_PLACEHOLDER, Message
from errors import TesseraError

IGNORE_INDEX = -100
"""Label of a position that is not supervised."""


class EncodingError(TesseraError):
    """Messages that cannot be encoded: marks and pictures disagree, roles do not alternate, a prompt is too long."""


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One encoded sample. `labels[i]` is the id at position i where it is supervised, else IGNORED (not shifted)."""

    input_ids: list[int]
    labels: list[int]
    num_images: int

    def __len__(self) -> int:
        return len(self.input_ids)


def check_messages(messages: Sequence[Message], num_images: int) -> None:
    """Raise EncodingError unless marks and pictures agree and turns alternate up to a user's."""
    num_placeholders = sum(message.content.count(IMAGE_PLACEHOLDER) for message in messages)
    if num_placeholders != num_images:
        raise EncodingError(f"{num_placeholders} {IMAGE_PLACEHOLDER} marks for {num_images} pictures")
    if any(IMAGE_PLACEHOLDER in message.content for message in messages if message.role != "user"):
        raise EncodingError(f"{IMAGE_PLACEHOLDER} stands in a turn that is not the user's")
    turns = [message.role for message in messages if message.role != "system"]
    system_first = all(message.role != "system" for message in messages[1:])
    alternating = all(role == ("user", "assistant")[i % 2] for i, role in enumerate(turns))
    if not (system_first and alternating and len(turns) % 2):
        raise EncodingError(
            f"roles must be an optional system turn, then user and assistant in turn up to a user's; found {[m.role for m in messages]}"
        )
