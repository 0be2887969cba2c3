"""Reasons for dropping a record, and the checks that all sources share."""

from collections.abc import Sequence
from enum import StrEnum

from dataset.bounding_box import BOX_PLACEHOLDER, Box, RawBox
from dataset.sample import IMAGE_PLACEHOLDER, Message, is_alternating


class DropReason(StrEnum):
    """Why a record is dropped. The values are keys of `dropped` in report.json."""

    MISSING_FILE = "missing file"
    OUTSIDE = "image outside its folder"
    UNDECODABLE = "undecodable or truncated picture"
    TOO_MANY_PIXELS = "over the pixel limit"
    TOO_LARGE = "too large for memory"
    EMPTY = "empty question or answer"
    IMAGE_COUNT = "marks and pictures disagree"
    UNKNOWN_ROLE = "unknown role"
    TURN_ORDER = "turns out of order"
    NOT_AN_OBJECT = "not an object"
    BAD_ENCODING = "bad encoding"
    ANSWER_TYPE = "unknown answer type"
    MISSING_FIELD = "missing field"
    UNPAIRED = "question and annotation do not pair"
    BOX = "box outside the image or malformed"
    BOX_COUNT = "boxes and their placeholders disagree"


class InvalidRecordError(Exception):
    """A record cannot be used. The merge counts it under its reason and continues."""

    def __init__(self, reason: DropReason, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def check_conversation(messages: Sequence[Message], targets: Sequence[str], answers: Sequence[str], num_images: int) -> None:
    """Check one conversation.

    Args:
        messages: Turns up to the last user turn; only the first may be a system turn.
        targets: Possible assistant replies to the last user turn.
        answers: Reference answers; only their encoding is checked.
        num_images: Number of images; the user turns must hold as many `<image>` placeholders.

    Raises:
        InvalidRecordError: Turns do not alternate or do not end with the user, a turn or target is blank, the number of
            placeholders differs from `num_images` or one is outside the user turns, or a text is not valid UTF-8.
    """
    found = [message.role for message in messages]
    if [role for role in found if role != "system"][:1] == ["assistant"]:
        raise InvalidRecordError(DropReason.TURN_ORDER, "the assistant opens the conversation; expected the user's turn first")
    if found != ["user"] and not is_alternating(messages):
        raise InvalidRecordError(
            DropReason.TURN_ORDER,
            f"expected alternating user and assistant turns, the assistant last; found {found} before the last",
        )
    if not targets or not all(map(_has_text, [*targets, *[message.content for message in messages]])):
        raise InvalidRecordError(DropReason.EMPTY, "a question or an answer is blank")
    asked = "\n".join([message.content for message in messages if message.role == "user"])
    num_placeholders = asked.count(IMAGE_PLACEHOLDER)
    if num_placeholders != num_images:
        raise InvalidRecordError(
            DropReason.IMAGE_COUNT, f"{num_placeholders} {IMAGE_PLACEHOLDER} placeholders in user turns for {num_images} images"
        )
    others = "\n".join([*[message.content for message in messages if message.role != "user"], *targets])
    if IMAGE_PLACEHOLDER in others:
        raise InvalidRecordError(DropReason.IMAGE_COUNT, f"{IMAGE_PLACEHOLDER} in a turn that is not the user's")
    check_encoding("\n".join([*[message.content for message in messages], *targets, *answers]))


def check_boxes(texts: Sequence[str], boxes: Sequence[RawBox], num_images: int) -> None:
    """Raise InvalidRecordError unless the texts hold one `<bbox>` placeholder for each box, and each box is of one of the images."""
    num_placeholders = sum(text.count(BOX_PLACEHOLDER) for text in texts)
    if num_placeholders != len(boxes):
        raise InvalidRecordError(DropReason.BOX_COUNT, f"{num_placeholders} {BOX_PLACEHOLDER} placeholders for {len(boxes)} boxes")
    for box in boxes:
        if not 0 <= box.image < num_images:
            raise InvalidRecordError(DropReason.BOX, f"a box is of image {box.image}, counted from 0, of {num_images}")


def upright_boxes(boxes: Sequence[RawBox], sizes: Sequence[tuple[int, int]], orientations: Sequence[int]) -> list[tuple[int, Box]]:
    """The boxes in their upright images, each with the index of its image. Raises InvalidRecordError for one that its image cannot have.

    Args:
        boxes: The boxes of a record.
        sizes: Width and height of each of its images, upright, in pixels.
        orientations: EXIF orientation of each.
    """
    try:
        return [(box.image, box.upright(sizes[box.image], orientations[box.image])) for box in boxes]
    except ValueError as error:
        raise InvalidRecordError(DropReason.BOX, str(error)) from error


def check_encoding(text: str) -> None:
    """Raise InvalidRecordError when `text` holds a lone surrogate: a byte that is not UTF-8, or half of a `\\ud83d\\ude00` pair."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        detail = f"not valid UTF-8 at character {error.start} of {text[:60]!a}{encoding_hint(text)}"
        raise InvalidRecordError(DropReason.BAD_ENCODING, detail) from error


def encoding_hint(text: str) -> str:
    """What to do when the bytes that are no UTF-8 are Chinese text in GBK; empty when they are not.

    Args:
        text: Text decoded as UTF-8 with `surrogateescape`; it may begin or end in the middle of a character.
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return ""
    undecoded = sum("\udc80" <= character <= "\udcff" for character in text)
    decoded = sum(character >= "\u0800" for character in text) - undecoded
    chinese = [character for character in data.decode("gb18030", "replace") if not character.isascii()]
    # The first byte of punctuation and of the 3,755 most common characters of GB 2312.
    common = [character for character in chinese if b"\xa1" <= character.encode("gb2312", "ignore")[:1] <= b"\xd7"]
    # Damaged UTF-8 has more characters that are whole (of Chinese 3 bytes each), and other 8-bit encodings give rare characters.
    if undecoded <= decoded or len(common) < 2 or len(common) * 5 < len(chinese) * 4:
        return ""
    return f"; it is GBK ({''.join(common[:8])}): convert the file to UTF-8, for instance with iconv -f GB18030 -t UTF-8"


def _has_text(text: str) -> bool:
    return bool((text.replace(IMAGE_PLACEHOLDER, "") if IMAGE_PLACEHOLDER in text else text).strip())
