"""Token ids and labels of a sample, and the message checks that all encoders share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dataset.sample import IMAGE_PLACEHOLDER, Message, is_alternating
from errors import TesseraError

IGNORE_INDEX = -100
"""Label of an unsupervised position; cross-entropy ignores it."""


class EncodingError(TesseraError):
    """Messages cannot be encoded: wrong number of placeholders, roles that do not alternate, a prompt that is too long."""


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One encoded sample. `labels` are not shifted: `labels[i]` is `input_ids[i]` if supervised, else IGNORE_INDEX."""

    input_ids: list[int]
    labels: list[int]
    num_images: int

    def __len__(self) -> int:
        return len(self.input_ids)

    def unsupervised(self) -> "EncodedSample":
        """The same tokens, none of them supervised."""
        return replace(self, labels=[IGNORE_INDEX] * len(self.labels))


def check_messages(messages: Sequence[Message], num_images: int) -> None:
    """Raise EncodingError unless there is one `<image>` placeholder per image, all in user turns, and turns alternate and end with
    the user."""
    num_placeholders = sum(message.content.count(IMAGE_PLACEHOLDER) for message in messages)
    if num_placeholders != num_images:
        raise EncodingError(f"{num_placeholders} {IMAGE_PLACEHOLDER} placeholders for {num_images} images")
    if any(IMAGE_PLACEHOLDER in message.content for message in messages if message.role != "user"):
        raise EncodingError(f"{IMAGE_PLACEHOLDER} in a turn that is not the user's")
    if not is_alternating(messages):
        raise EncodingError(
            "roles must be an optional system turn, then user and assistant turns in alternation, the user last; "
            f"found {[m.role for m in messages]}"
        )
