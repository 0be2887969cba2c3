"""What makes a record unusable, and the checks that every source shares."""

from collections.abc import Sequence
from enum import StrEnum

from dataset.sample import IMAGE_MARK, Message


class Reason(StrEnum):
    """Why a record is dropped: the keys of `dropped` in report.json."""

    MISSING_FILE = "missing file"
    UNDECODABLE = "undecodable or truncated picture"
    TOO_MANY_PIXELS = "over the pixel limit"
    EMPTY = "empty question or answer"
    MARKS = "marks and pictures disagree"
    UNKNOWN_ROLE = "unknown role"
    TURNS = "turns out of order"
    NOT_AN_OBJECT = "not an object"
    BAD_ENCODING = "bad encoding"
    ANSWER_TYPE = "unknown answer type"
    MISSING_FIELD = "missing field"
    UNPAIRED = "question and annotation do not pair"


class BadRecord(Exception):  # noqa: N818 - an ordinary event that is counted, not a failure
    """One record that cannot be used. It is counted under its reason and never stops a merge."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def check_conversation(messages: Sequence[Message], targets: Sequence[str], answers: Sequence[str], pictures: int) -> None:
    """Raise BadRecord unless the turns alternate up to a user's, no turn or target is empty, each picture has its one
    mark in a user's turn, and all text can be written as UTF-8."""
    roles = [message.role for message in messages if message.role != "system"]
    in_order = all(role == ("user", "assistant")[i % 2] for i, role in enumerate(roles)) and len(roles) % 2 == 1
    if not in_order or any(message.role == "system" for message in messages[1:]):
        raise BadRecord(Reason.TURNS, f"expected user and assistant in turn, an answer last; found {[m.role for m in messages]} before it")
    if not targets or not all(map(_says_something, targets)) or not all(_says_something(message.content) for message in messages):
        raise BadRecord(Reason.EMPTY, "a question or an answer is blank")
    marks = sum(message.content.count(IMAGE_MARK) for message in messages if message.role == "user")
    if marks != pictures:
        raise BadRecord(Reason.MARKS, f"{marks} {IMAGE_MARK} marks in the user's turns for {pictures} pictures")
    others = [*(message.content for message in messages if message.role != "user"), *targets]
    if any(IMAGE_MARK in text for text in others):
        raise BadRecord(Reason.MARKS, f"{IMAGE_MARK} stands in a turn that is not the user's")
    check_encoding("\n".join((*(message.content for message in messages), *targets, *answers)))


def check_encoding(text: str) -> None:
    """Raise BadRecord when `text` holds a lone surrogate: bytes that are not UTF-8, or half of a `\\ud83d\\ude00` pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(Reason.BAD_ENCODING, f"not valid UTF-8 at character {error.start} of {text[:60]!a}") from error


def _says_something(text: str) -> bool:
    return bool(text.replace(IMAGE_MARK, "").strip())
