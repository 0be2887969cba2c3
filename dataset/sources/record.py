"""What a source yields: samples as the file has them, and records that cannot be used."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from dataset.config import Split
from dataset.record_validation import DropReason, InvalidRecordError
from dataset.sample import IMAGE_PLACEHOLDER, Message, Role, Task, hash_to_index

T = TypeVar("T")

ImageSource = Path | bytes
"""A picture file, or the bytes of one that stands in the annotation file itself."""


@dataclass(frozen=True, slots=True)
class RecordLocation:
    """Where a record stands in its file: `record 17` (counted from 0), `line 18` (from 1) and the like."""

    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"


@dataclass(frozen=True, slots=True)
class RawSample:
    """One usable record. Fields as in `Sample`; pictures are still files or bytes.

    split: the file's own split; key: what its sample id is made of, where that is not the number of its place.
    """

    location: RecordLocation
    images: tuple[ImageSource, ...]
    task: Task
    messages: tuple[Message, ...]
    targets: tuple[str, ...]
    answers: tuple[str, ...]
    split: Split | None = None
    explicit_key: str | None = None

    @property
    def key(self) -> str:
        """What the sample id is made of."""
        return str(self.location.number) if self.explicit_key is None else self.explicit_key


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that cannot be used, and why."""

    location: RecordLocation
    reason: DropReason
    detail: str


ParsedRecord = RawSample | RejectedRecord


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Settings that touch what a record becomes."""

    seed: int = 0
    vqa_target: Literal["majority", "sample"] = "majority"


def enumerate_records(records: Iterable[T], limit: int | None, kind: str = "record") -> Iterator[tuple[RecordLocation, T]]:
    """Each record with its place, up to the limit of the source."""
    for number, record in enumerate(itertools.islice(records, limit)):
        yield RecordLocation(kind, number), record


def parse_record(location: RecordLocation, function: Callable[..., RawSample], *arguments: Any) -> ParsedRecord:
    """What `function` makes of a place and further arguments, or the rejection it raised."""
    try:
        return function(location, *arguments)
    except InvalidRecordError as error:
        return RejectedRecord(location, error.reason, error.detail)


def require_object(record: Any) -> dict[str, Any]:
    """The record itself. Raises BadRecord when it is not an object."""
    if not isinstance(record, dict):
        raise InvalidRecordError(DropReason.NOT_AN_OBJECT, f"expected an object, found {type(record).__name__}")
    return record


def require_field(record: dict[str, Any], *names: str) -> Any:
    """The first of the fields `names` that the record has. Raises BadRecord when it has none of them."""
    for name in names:
        if record.get(name) is not None:
            return record[name]
    raise InvalidRecordError(DropReason.MISSING_FIELD, f'it has no "{" or ".join(names)}"')


def image_path(folder: Path, name: Any) -> Path:
    """The path of a picture by its name. Raises BadRecord when the name is not a text."""
    if not isinstance(name, str) or not name.strip():
        raise InvalidRecordError(DropReason.MISSING_FIELD, f"a picture name is expected, found {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidRecordError(DropReason.BAD_ENCODING, f"the picture name {name!a} is not valid UTF-8") from error
    return folder / name


def require_id(record: dict[str, Any], name: str) -> int | str:
    """The field `name`, by which records are joined. Raises BadRecord when it is neither a number nor a text."""
    value = require_field(record, name)
    if not isinstance(value, int | str):
        raise InvalidRecordError(DropReason.MISSING_FIELD, f'"{name}" is {value!r}; a number or a text is expected')
    return value


def parse_question(value: Any) -> str:
    """A question, without white space around it. Raises BadRecord when it is blank or not a text."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidRecordError(DropReason.EMPTY, f"the question is {value!r}")
    return value.strip()


def parse_answers(value: Any) -> tuple[str, ...]:
    """Answers or captions: a text, or a list of texts or of VQA's {answer: text}, without white space around each.

    Raises BadRecord when there is something else in it.
    """
    if value is None:
        raise InvalidRecordError(DropReason.EMPTY, "there is no answer")
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list):
        raise InvalidRecordError(DropReason.ANSWER_TYPE, f"a text or a list of texts is expected, found {type(value).__name__}")
    return tuple(_parse_answer(entry.get("answer") if isinstance(entry, dict) else entry) for entry in entries)


def _parse_answer(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRecordError(DropReason.ANSWER_TYPE, f"an answer is {value!r}; a text is expected")
    return value.strip()


def caption_sample(
    location: RecordLocation, image: Path, captions: Sequence[str], questions: Sequence[str], seed: int, split: Split | None = None
) -> RawSample:
    """A captioned picture: one of `questions`, drawn by a hash of the sample, and each caption as a possible target.

    Blank captions beside others are left out.
    """
    nonempty_captions = tuple(caption for caption in captions if caption)
    if not nonempty_captions:
        raise InvalidRecordError(DropReason.EMPTY, "there is no caption")
    # By name and text, not by place: the draw stays when other records come or go.
    question = questions[
        hash_to_index("\0".join((image.name, *nonempty_captions)).encode("utf-8", "replace").decode(), seed, 0, len(questions))
    ]
    return RawSample(location, (image,), "caption", (image_question(question),), nonempty_captions, nonempty_captions, split)


def vqa_sample(
    location: RecordLocation,
    key: str | None,
    image: Path,
    question: str,
    answers: tuple[str, ...],
    options: ReadOptions,
    split: Split | None,
) -> RawSample:
    """A question with several people's answers; all of them stay as references, blank ones too."""
    nonempty_answers = [answer for answer in answers if answer]
    if not nonempty_answers:
        raise InvalidRecordError(DropReason.EMPTY, "there is no answer")
    # Of equally frequent answers, the one that was given first.
    targets = (Counter(nonempty_answers).most_common(1)[0][0],) if options.vqa_target == "majority" else tuple(nonempty_answers)
    return RawSample(location, (image,), "vqa", (image_question(question),), targets, answers, split, key)


def conversation_sample(
    location: RecordLocation, images: Sequence[ImageSource], turns: Sequence[Message], split: Split | None = None
) -> RawSample:
    """A conversation with all its turns; the last, an assistant's, is the target.

    Raises BadRecord when it ends otherwise; the other turns are checked with every sample.
    """
    if not turns:
        raise InvalidRecordError(DropReason.EMPTY, "there are no turns")
    *before, last = turns
    if last.role != "assistant":
        raise InvalidRecordError(DropReason.TURN_ORDER, f"it ends with a turn of the {last.role}; an answer is expected last")
    return RawSample(location, tuple(images), "conversation", tuple(before), (last.content,), (last.content,), split)


def require_list(value: Any, name: str) -> list[Any]:
    """The value itself. Raises BadRecord when it is not a list."""
    if not isinstance(value, list):
        raise InvalidRecordError(DropReason.MISSING_FIELD, f'"{name}" is expected to be a list, found {type(value).__name__}')
    return value


def parse_turn(role: Any, content: Any, roles: Iterable[tuple[str, Role]]) -> Message:
    """One turn, with the file's name of the role translated. Raises BadRecord."""
    mapped_role = next((known for name, known in roles if name == role), None)
    if mapped_role is None:
        raise InvalidRecordError(DropReason.UNKNOWN_ROLE, f"the role is {role!r}; expected {', '.join(name for name, _ in roles)}")
    if content is None:
        raise InvalidRecordError(DropReason.EMPTY, f"a turn of the {mapped_role} holds nothing")
    if not isinstance(content, str):
        raise InvalidRecordError(DropReason.ANSWER_TYPE, f"a turn is {type(content).__name__}; a text is expected")
    return Message(mapped_role, content)


def image_question(question: str) -> Message:
    """A user's turn: the picture, then the question."""
    return Message("user", f"{IMAGE_PLACEHOLDER}\n{question}")


def parse_split_name(name: Any) -> Split | None:
    """The split that a data set's own name for it means (train2014, val, test-dev ...)."""
    known: tuple[tuple[str, Split], ...] = (("train", "train"), ("val", "validation"), ("test", "test"))
    return next((split for start, split in known if isinstance(name, str) and name.startswith(start)), None)
