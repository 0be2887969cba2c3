"""What makes a record unusable, and the checks that every source shares."""

from collections.abc import Sequence
from enum import StrEnum

from dataset.sample import IMAGE_PLACEHOLDER, Message


class DropReason(StrEnum):
    """Why a record is dropped: the keys of `dropped` in report.json."""

    MISSING_FILE = "missing file"
    UNDECODABLE = "undecodable or truncated picture"
    TOO_MANY_PIXELS = "over the pixel limit"
    EMPTY = "empty question or answer"
    IMAGE_COUNT = "marks and pictures disagree"
    UNKNOWN_ROLE = "unknown role"
    TURN_ORDER = "turns out of order"
    NOT_AN_OBJECT = "not an object"
    BAD_ENCODING = "bad encoding"
    ANSWER_TYPE = "unknown answer type"
    MISSING_FIELD = "missing field"
    UNPAIRED = "question and annotation do not pair"


class InvalidRecordError(Exception):  # noqa: N818 - an ordinary event that is counted, not a failure
    """One record that cannot be used. It is counted under its reason and never stops a merge."""

    def __init__(self, reason: DropReason, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def check_conversation(messages: Sequence[Message], targets: Sequence[str], answers: Sequence[str], num_images: int) -> None:
    """Raise BadRecord unless the turns alternate up to a user's, no turn or target is empty, each picture has its one
    mark in a user's turn, and all text can be written as UTF-8."""
    roles = [message.role for message in messages if message.role != "system"]
    alternating = all(role == ("user", "assistant")[i % 2] for i, role in enumerate(roles)) and len(roles) % 2 == 1
    if not alternating or any(message.role == "system" for message in messages[1:]):
        raise InvalidRecordError(
            DropReason.TURN_ORDER, f"expected user and assistant in turn, an answer last; found {[m.role for m in messages]} before it"
        )
    if not targets or not all(map(_has_text, targets)) or not all(_has_text(message.content) for message in messages):
        raise InvalidRecordError(DropReason.EMPTY, "a question or an answer is blank")
    num_placeholders = sum(message.content.count(IMAGE_PLACEHOLDER) for message in messages if message.role == "user")
    if num_placeholders != num_images:
        raise InvalidRecordError(
            DropReason.IMAGE_COUNT, f"{num_placeholders} {IMAGE_PLACEHOLDER} marks in the user's turns for {num_images} pictures"
        )
    others = [*(message.content for message in messages if message.role != "user"), *targets]
    if any(IMAGE_PLACEHOLDER in text for text in others):
        raise InvalidRecordError(DropReason.IMAGE_COUNT, f"{IMAGE_PLACEHOLDER} stands in a turn that is not the user's")
    check_encoding("\n".join((*(message.content for message in messages), *targets, *answers)))


def check_encoding(text: str) -> None:
    """Raise BadRecord when `text` holds a lone surrogate: bytes that are not UTF-8, or half of a `\\ud83d\\ude00` pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRecordError(DropReason.BAD_ENCODING, f"not valid UTF-8 at character {error.start} of {text[:60]!a}") from error


def _has_text(text: str) -> bool:
    return bool(text.replace(IMAGE_PLACEHOLDER, "").strip())
