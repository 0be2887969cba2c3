"""Records that sources yield, valid or rejected, and the parsers of common fields."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.bounding_box import RawBox
from dataset.config import DataConfig
from dataset.record_validation import DropReason, InvalidRecordError, encoding_hint
from dataset.remote_files import FilePath, RemotePath, is_url, known_protocol, parse_path
from dataset.sample import IMAGE_PLACEHOLDER, Language, Message, Role, Task, detect_language, hash_to_index, join_parts
from dataset.source_base import SourceBase, Split
from dataset.sources.json_reader import NestedTooDeeply

_WEB_ADDRESS = re.compile("(https?|ftp)://", re.IGNORECASE)
_DRIVE = re.compile("[A-Za-z]:")

ImageSource = FilePath | bytes
"""Path or URL of an image file, or the encoded bytes of an image that is embedded in the annotation file."""


@dataclass(frozen=True, slots=True)
class RecordLocation:
    """Position of a record in its file, such as `record 17` (counted from 0) or `line 18` (from 1)."""

    kind: str
    number: int
    file: str = ""
    """The file, where a source has several."""

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"

    @property
    def key(self) -> str:
        """Second part of the id of a sample whose record states no id of its own."""
        return f"{Path(self.file).stem}-{self.number}" if self.file else str(self.number)


@dataclass(frozen=True, slots=True)
class RawSample:
    """One record in the form of a `Sample`, before validation.

    Args:
        location: Position in the annotation file.
        key: Second part of the sample id, after the name of the source.
        images: Image files or bytes, in the order of the `<image>` placeholders.
        task: Kind of sample.
        messages: Conversation up to and including the last user turn.
        targets: Possible assistant replies to the last user turn.
        answers: Reference answers.
        split: Split stated in the file, if any.
        category: What the sample is about, if its record says so.
        boxes: Boxes in the order of the `<bbox>` placeholders in the messages and then in the targets; without any, such a text is no
            placeholder.
    """

    location: RecordLocation
    key: str
    images: tuple[ImageSource, ...]
    task: Task
    messages: tuple[Message, ...]
    targets: tuple[str, ...]
    answers: tuple[str, ...]
    split: Split | None = None
    category: str | None = None
    boxes: tuple[RawBox, ...] = ()

    @property
    def language(self) -> Language:
        """Language of the sample (see `Sample`)."""
        return detect_language(
            *(message.content for message in self.messages), *(() if self.task in ("vqa", "grounding") else self.targets)
        )


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that cannot be used, with the reason and a message."""

    location: RecordLocation
    reason: DropReason
    detail: str


ParsedRecord = RawSample | RejectedRecord


Records = Iterator[tuple[RecordLocation, Any]]
"""The records of a file with their locations: JSON values, or an InvalidRecordError in the place of one that cannot be read."""

Parser = Callable[[RecordLocation, dict[str, Any]], RawSample]
"""Makes a sample of a record. Raises InvalidRecordError."""


def enumerate_records(records: Iterable[Any], kind: str = "record") -> Records:
    """Records with their locations, counted from 0."""
    return ((RecordLocation(kind, number), record) for number, record in enumerate(records))


def require_object(record: Any) -> dict[str, Any]:
    """Return the record. Raises InvalidRecordError when it is not a JSON object."""
    if not isinstance(record, dict):
        found = "a value with too many levels" if isinstance(record, NestedTooDeeply) else type(record).__name__
        raise InvalidRecordError(DropReason.NOT_AN_OBJECT, f"expected an object, found {found}")
    return record


def require_field(record: dict[str, Any], *names: str) -> Any:
    """The first field among `names` that is present and not null. Raises InvalidRecordError when there is none."""
    for name in names:
        if record.get(name) is not None:
            return record[name]
    raise InvalidRecordError(DropReason.MISSING_FIELD, f'it has no "{" or ".join(names)}"')


def image_path(source: SourceBase, name: Any) -> FilePath:
    """Path or URL of an image by its name; backslashes separate folders, as Windows writes them, unless a local file's own name has them.

    Raises InvalidRecordError when the name is not a string, is blank, is not valid UTF-8, is a web address or a URL of an unknown kind, or
    leads out of the folder without permission.
    """
    if not isinstance(name, str) or not name.strip():
        raise InvalidRecordError(DropReason.MISSING_FIELD, f"expected an image name, found {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        detail = f"the image name {name!a} is not valid UTF-8{encoding_hint(name)}"
        raise InvalidRecordError(DropReason.BAD_ENCODING, detail) from error
    if _WEB_ADDRESS.match(name):
        detail = f"{name} is a web address: download the images first, and give the names of the files"
        raise InvalidRecordError(DropReason.MISSING_FILE, detail)
    folder, name = source.image_folder, name.removeprefix("file://")
    # os.path.exists, because unlike Path.exists it never raises.
    if "\\" in name and (isinstance(folder, RemotePath) or not os.path.exists(folder / name)):  # noqa: PTH110
        name = name.replace("\\", "/")
    if not source.allow_outside_images and _leads_outside(name, folder):
        kind = "is a URL" if is_url(name) else "is an absolute path or has '..'"
        detail = f"{name} {kind}, so it may lead out of {folder}; allow_outside_images: true permits it"
        raise InvalidRecordError(DropReason.OUTSIDE, detail)
    if is_url(name):
        if not known_protocol(name):
            raise InvalidRecordError(DropReason.MISSING_FILE, f"{name}: no such kind of URL is known; expected s3://, gs:// or hf://")
        return parse_path(name)
    return Path(name) if isinstance(folder, RemotePath) and _is_absolute(name) else folder / str(name)


def _is_absolute(name: str) -> bool:
    """Whether a file name is an absolute path, on Unix or Windows."""
    return name.startswith("/") or _DRIVE.match(name) is not None


def _leads_outside(name: str, folder: FilePath) -> bool:
    """Whether a file name has a part `..`, or is an absolute path or a URL of what is not in the folder."""
    if ".." in name.split("/"):
        return True
    if isinstance(folder, RemotePath):
        return _is_absolute(name) or (is_url(name) and not name.startswith(f"{str(folder).rstrip('/')}/"))
    return is_url(name) or (_is_absolute(name) and not Path(name).is_relative_to(folder.absolute()))


def require_id(record: dict[str, Any], name: str) -> int | str:
    """The id in the field `name`. Raises InvalidRecordError when it is neither an integer nor a string."""
    value = require_field(record, name)
    if not isinstance(value, int | str):
        raise InvalidRecordError(DropReason.MISSING_FIELD, f'"{name}" is {value!r}; expected an integer or a string')
    return value


def parse_question(value: Any) -> str:
    """A question, stripped of white space. Raises InvalidRecordError when it is blank or not a string."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidRecordError(DropReason.EMPTY, f"the question is {value!r}")
    return value.strip()


def parse_answers(value: Any) -> tuple[str, ...]:
    """Answers or captions, stripped of white space, from a string or a list of strings or of VQA's {"answer": string}; whole numbers count
    as strings. Raises InvalidRecordError for any other value."""
    if value is None:
        raise InvalidRecordError(DropReason.EMPTY, "there is no answer")
    entries = value if isinstance(value, list) else [value]
    if not isinstance(value, list) and not isinstance(number_as_text(value), str):
        raise InvalidRecordError(DropReason.ANSWER_TYPE, f"expected a string or a list of strings, found {type(value).__name__}")
    return tuple(_parse_answer(entry.get("answer") if isinstance(entry, dict) else entry) for entry in entries)


def _parse_answer(value: Any) -> str:
    text = value if isinstance(value, str) else number_as_text(value)
    if not isinstance(text, str):
        raise InvalidRecordError(DropReason.ANSWER_TYPE, f"an answer is {value!r}; expected a string or a whole number")
    return text.strip()


def number_as_text(value: Any) -> Any:
    """The digits of a whole number (also of 2.0, which tables hold in the place of 2), as an answer is written; else the value itself."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        return value
    return str(int(value))


def caption_sample(
    location: RecordLocation, images: Sequence[ImageSource], captions: Sequence[str], questions: Sequence[str], seed: int
) -> RawSample:
    """A sample of a captioned image: a hash of the sample picks the question, and each caption is a possible target.

    Args:
        location: Position in the annotation file.
        images: The image; several if a caption is about them all.
        captions: Captions; blank ones are skipped. Raises InvalidRecordError when all are.
        questions: Question templates.
        seed: Seed of the choice of the question.
    """
    targets = tuple(filter(None, captions))
    if not targets:
        raise InvalidRecordError(DropReason.EMPTY, "there is no caption")
    # Hash names and captions, not the position: the question stays the same when other records are added or removed.
    names = [image.name for image in images if not isinstance(image, bytes)]
    key = "\0".join((*names, *targets)).encode("utf-8", "replace").decode()
    question = questions[hash_to_index(key, seed, 0, len(questions))]
    return RawSample(location, location.key, tuple(images), "caption", (image_question(question, len(images)),), targets, targets)


def vqa_sample(
    location: RecordLocation,
    key: str,
    images: Sequence[ImageSource],
    question: str,
    answers: tuple[str, ...],
    config: DataConfig,
    split: Split | None = None,
) -> RawSample:
    """A sample of a question with answers of several annotators.

    Args:
        location: Position in the annotation file.
        key: Id of the question.
        images: What it is about.
        question: The question.
        answers: All answers; blank ones stay references but are never targets. Raises InvalidRecordError when all are.
        config: Decides between the most frequent answer and all answers as targets.
        split: Split stated in the file, if any.
    """
    targets = tuple(filter(None, answers))
    if not targets:
        raise InvalidRecordError(DropReason.EMPTY, "there is no answer")
    if config.vqa_target == "majority":
        # most_common keeps insertion order, so a tie goes to the answer that was given first.
        targets = (Counter(targets).most_common(1)[0][0],)
    return RawSample(location, key, tuple(images), "vqa", (image_question(question, len(images)),), targets, answers, split)


def conversation_sample(
    location: RecordLocation, images: Sequence[ImageSource], turns: Sequence[Message], split: Split | None = None
) -> RawSample:
    """A sample of a conversation whose last turn is the target. Raises InvalidRecordError when that is not the assistant's."""
    if not turns:
        raise InvalidRecordError(DropReason.EMPTY, "there are no turns")
    *before, last = turns
    if last.role != "assistant":
        raise InvalidRecordError(DropReason.TURN_ORDER, f"the last turn is by the {last.role}; expected the assistant")
    return RawSample(location, location.key, tuple(images), "conversation", tuple(before), (last.content,), (last.content,), split)


def require_list(value: Any, name: str) -> list[Any]:
    """Return the value. Raises InvalidRecordError when it is not a list."""
    if not isinstance(value, list):
        raise InvalidRecordError(DropReason.MISSING_FIELD, f'expected "{name}" to be a list, found {type(value).__name__}')
    return value


def parse_turn(role: Any, content: Any, roles: Mapping[str, Role]) -> Message:
    """One turn, whose role `roles` maps to ours; the user's and the system's have no blank space around them, as in questions that are
    asked. An answer may be a whole number. Raises InvalidRecordError when the role is unknown or the content is not a string."""
    mapped_role = roles.get(role) if isinstance(role, str) else None
    if mapped_role is None:
        raise InvalidRecordError(DropReason.UNKNOWN_ROLE, f"the role is {role!r}; expected {', '.join(roles)}")
    if content is None:
        raise InvalidRecordError(DropReason.EMPTY, f"a turn of the {mapped_role} has no content")
    text = number_as_text(content) if mapped_role == "assistant" else content
    if not isinstance(text, str):
        raise InvalidRecordError(DropReason.ANSWER_TYPE, f"the content of a turn is {type(content).__name__}; expected a string")
    return Message(mapped_role, text if mapped_role == "assistant" else text.strip())


def image_question(question: str, images: int = 1) -> Message:
    """A user turn: a placeholder for each image, then the question."""
    return Message("user", join_parts((*[IMAGE_PLACEHOLDER] * images, question)))


def parse_split_name(name: Any) -> Split | None:
    """Map a dataset's own name of a split (train2014, val, test-dev ...) to ours; None when unknown."""
    known: tuple[tuple[str, Split], ...] = (("train", "train"), ("val", "validation"), ("test", "test"))
    return next((split for start, split in known if isinstance(name, str) and name.startswith(start)), None)
