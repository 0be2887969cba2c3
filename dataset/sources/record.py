"""What a source yields: samples as the file has them, and records that cannot be used."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from dataset.config import Split
from dataset.record_validation import BadRecord, Reason
from dataset.sample import IMAGE_MARK, Message, Role, Task, uniform

T = TypeVar("T")

Picture = Path | bytes
"""A picture file, or the bytes of one that stands in the annotation file itself."""


@dataclass(frozen=True, slots=True)
class Place:
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

    place: Place
    pictures: tuple[Picture, ...]
    task: Task
    messages: tuple[Message, ...]
    targets: tuple[str, ...]
    answers: tuple[str, ...]
    split: Split | None = None
    own_key: str | None = None

    @property
    def key(self) -> str:
        """What the sample id is made of."""
        return str(self.place.number) if self.own_key is None else self.own_key


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that cannot be used, and why."""

    place: Place
    reason: Reason
    detail: str


Item = RawSample | Rejected


@dataclass(frozen=True, slots=True)
class Reading:
    """Settings that touch what a record becomes."""

    seed: int = 0
    vqa_target: Literal["majority", "sample"] = "majority"


def numbered(records: Iterable[T], limit: int | None, kind: str = "record") -> Iterator[tuple[Place, T]]:
    """Each record with its place, up to the limit of the source."""
    for number, record in enumerate(itertools.islice(records, limit)):
        yield Place(kind, number), record


def convert(place: Place, function: Callable[..., RawSample], *arguments: Any) -> Item:
    """What `function` makes of a place and further arguments, or the rejection it raised."""
    try:
        return function(place, *arguments)
    except BadRecord as bad:
        return Rejected(place, bad.reason, bad.detail)


def fields(record: Any) -> dict[str, Any]:
    """The record itself. Raises BadRecord when it is not an object."""
    if not isinstance(record, dict):
        raise BadRecord(Reason.NOT_AN_OBJECT, f"expected an object, found {type(record).__name__}")
    return record


def required(record: dict[str, Any], *names: str) -> Any:
    """The first of the fields `names` that the record has. Raises BadRecord when it has none of them."""
    for name in names:
        if record.get(name) is not None:
            return record[name]
    raise BadRecord(Reason.MISSING_FIELD, f'it has no "{" or ".join(names)}"')


def picture_file(folder: Path, name: Any) -> Path:
    """The path of a picture by its name. Raises BadRecord when the name is not a text."""
    if not isinstance(name, str) or not name.strip():
        raise BadRecord(Reason.MISSING_FIELD, f"a picture name is expected, found {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(Reason.BAD_ENCODING, f"the picture name {name!a} is not valid UTF-8") from error
    return folder / name


def identity_of(record: dict[str, Any], name: str) -> int | str:
    """The field `name`, by which records are joined. Raises BadRecord when it is neither a number nor a text."""
    value = required(record, name)
    if not isinstance(value, int | str):
        raise BadRecord(Reason.MISSING_FIELD, f'"{name}" is {value!r}; a number or a text is expected')
    return value


def question_text(value: Any) -> str:
    """A question, without white space around it. Raises BadRecord when it is blank or not a text."""
    if not isinstance(value, str) or not value.strip():
        raise BadRecord(Reason.EMPTY, f"the question is {value!r}")
    return value.strip()


def answer_texts(value: Any) -> tuple[str, ...]:
    """Answers or captions: a text, or a list of texts or of VQA's {answer: text}, without white space around each.

    Raises BadRecord when there is something else in it.
    """
    if value is None:
        raise BadRecord(Reason.EMPTY, "there is no answer")
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list):
        raise BadRecord(Reason.ANSWER_TYPE, f"a text or a list of texts is expected, found {type(value).__name__}")
    return tuple(_answer_text(entry.get("answer") if isinstance(entry, dict) else entry) for entry in listed)


def _answer_text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRecord(Reason.ANSWER_TYPE, f"an answer is {value!r}; a text is expected")
    return value.strip()


def caption_sample(
    place: Place, picture: Path, captions: Sequence[str], questions: Sequence[str], seed: int, split: Split | None = None
) -> RawSample:
    """A captioned picture: one of `questions`, drawn by a hash of the sample, and each caption as a possible target.

    Blank captions beside others are left out.
    """
    said = tuple(caption for caption in captions if caption)
    if not said:
        raise BadRecord(Reason.EMPTY, "there is no caption")
    # By name and text, not by place: the draw stays when other records come or go.
    drawn = questions[uniform("\0".join((picture.name, *said)).encode("utf-8", "replace").decode(), seed, 0, len(questions))]
    return RawSample(place, (picture,), "caption", (ask_about_picture(drawn),), said, said, split)


def vqa_sample(
    place: Place, key: str | None, picture: Path, question: str, answers: tuple[str, ...], reading: Reading, split: Split | None
) -> RawSample:
    """A question with several people's answers; all of them stay as references, blank ones too."""
    given = [answer for answer in answers if answer]
    if not given:
        raise BadRecord(Reason.EMPTY, "there is no answer")
    # Of equally frequent answers, the one that was given first.
    targets = (Counter(given).most_common(1)[0][0],) if reading.vqa_target == "majority" else tuple(given)
    return RawSample(place, (picture,), "vqa", (ask_about_picture(question),), targets, answers, split, key)


def conversation_sample(place: Place, pictures: Sequence[Picture], turns: Sequence[Message], split: Split | None = None) -> RawSample:
    """A conversation with all its turns; the last, an assistant's, is the target.

    Raises BadRecord when it ends otherwise; the other turns are checked with every sample.
    """
    if not turns:
        raise BadRecord(Reason.EMPTY, "there are no turns")
    *before, last = turns
    if last.role != "assistant":
        raise BadRecord(Reason.TURNS, f"it ends with a turn of the {last.role}; an answer is expected last")
    return RawSample(place, tuple(pictures), "conversation", tuple(before), (last.content,), (last.content,), split)


def list_of(value: Any, name: str) -> list[Any]:
    """The value itself. Raises BadRecord when it is not a list."""
    if not isinstance(value, list):
        raise BadRecord(Reason.MISSING_FIELD, f'"{name}" is expected to be a list, found {type(value).__name__}')
    return value


def turn(role: Any, content: Any, roles: Iterable[tuple[str, Role]]) -> Message:
    """One turn, with the file's name of the role translated. Raises BadRecord."""
    meaning = next((known for name, known in roles if name == role), None)
    if meaning is None:
        raise BadRecord(Reason.UNKNOWN_ROLE, f"the role is {role!r}; expected {', '.join(name for name, _ in roles)}")
    if content is None:
        raise BadRecord(Reason.EMPTY, f"a turn of the {meaning} holds nothing")
    if not isinstance(content, str):
        raise BadRecord(Reason.ANSWER_TYPE, f"a turn is {type(content).__name__}; a text is expected")
    return Message(meaning, content)


def ask_about_picture(question: str) -> Message:
    """A user's turn: the picture, then the question."""
    return Message("user", f"{IMAGE_MARK}\n{question}")


def own_split(name: Any) -> Split | None:
    """The split that a data set's own name for it means (train2014, val, test-dev ...)."""
    known: tuple[tuple[str, Split], ...] = (("train", "train"), ("val", "validation"), ("test", "test"))
    return next((split for start, split in known if isinstance(name, str) and name.startswith(start)), None)
