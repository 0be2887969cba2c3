"""Official VQA v2: a question file and an annotation file with ten answers a question, joined by question id."""

import functools
import os.path
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset.config import Split, VqaV2Source
from dataset.record_validation import BadRecord, Reason
from dataset.sources.json_reader import JsonFile, read_array
from dataset.sources.record import (
    Item,
    Place,
    RawSample,
    Reading,
    answer_texts,
    convert,
    fields,
    identity_of,
    numbered,
    own_split,
    question_text,
    vqa_sample,
)
from errors import TesseraError


@dataclass(frozen=True, slots=True)
class _Annotation:
    """The answers to a question, as they stand, and the picture that they are about; `times` it stands in the file."""

    image_id: Any
    answers: tuple[Any, ...]
    times: int = 1


@dataclass
class _Annotations:
    """The annotation file: answers by question id, and the part of COCO that it belongs to (train2014, val2014)."""

    subtype: str = ""
    by_question: dict[Any, _Annotation] = field(default_factory=dict)


def read(source: VqaV2Source, reading: Reading) -> Iterator[Item]:
    """One sample a question, in the order of the question file. Pictures are named as in the 2014 or the 2017 folders."""
    annotations = _read_annotations(source.annotations)
    folder = source.images or source.questions.parent
    find = functools.cache(functools.partial(_picture, folder, annotations.subtype))
    split = own_split(annotations.subtype)
    asked: set[int | str] = set()
    for place, record in numbered(read_array(source.questions, member="questions"), source.limit, "question"):
        yield convert(place, _sample, record, annotations, asked, find, reading, split)


def _read_annotations(path: Path) -> _Annotations:
    content, found = _Annotations(), False
    texts: dict[str, str] = {}
    with JsonFile(path) as file:
        if file.opens() != "{":
            raise TesseraError(f'{path}: expected an object with the list "annotations"')
        for key in file.members():
            if key == "annotations" and file.opens() == "[":
                found = True
                for entry in file.elements():
                    _add(content.by_question, entry, texts)
            elif key == "data_subtype":
                content.subtype = _subtype(path, file.value())
            else:
                file.value()
        file.end()
    if not found:
        raise TesseraError(f'{path}: expected an object with the list "annotations"; it has no such key')
    return content


def _subtype(path: Path, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", value):
        raise TesseraError(f"{path}: data_subtype is {value!r}; a name like train2014 is expected, which names of pictures hold")
    return value


def _add(by_question: dict[Any, _Annotation], entry: Any, texts: dict[str, str]) -> None:
    """Note the answers of one entry. Entries that name no question can pair with none: the question is counted then."""
    if not isinstance(entry, dict) or not isinstance(entry.get("question_id"), int | str):
        return
    answers = entry.get("answers")
    given = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers] if isinstance(answers, list) else [answers]
    before = by_question.get(entry["question_id"])
    # Millions of answers are a few thousand texts: each is kept once.
    kept = tuple(texts.setdefault(answer, answer) if isinstance(answer, str) else answer for answer in given)
    by_question[entry["question_id"]] = _Annotation(entry.get("image_id"), kept, before.times + 1 if before else 1)


def _picture(folder: Path, subtype: str, image_id: int | str) -> Path:
    """The picture of an id: `COCO_train2014_000000000009.jpg`, or `000000000009.jpg` as the 2017 folders have it."""
    try:
        number = f"{int(image_id):012d}.jpg"
    except ValueError as error:
        raise BadRecord(Reason.MISSING_FIELD, f"an image_id is expected to be a number, found {image_id!r}") from error
    official = folder / f"COCO_{subtype}_{number}"
    exists = os.path.exists  # unlike Path.exists it never raises, however odd the number is
    return folder / number if not exists(official) and exists(folder / number) else official


def _sample(
    place: Place,
    record: Any,
    annotations: _Annotations,
    asked: set[int | str],
    find: Callable[[int | str], Path],
    reading: Reading,
    split: Split | None,
) -> RawSample:
    identity = identity_of(fields(record), "question_id")
    if identity in asked:
        raise BadRecord(Reason.UNPAIRED, f"an earlier question has the question_id {identity} too")
    asked.add(identity)
    annotation = annotations.by_question.get(identity)
    if annotation is None:
        raise BadRecord(Reason.UNPAIRED, f"no annotation has the question_id {identity}")
    if annotation.times > 1:
        raise BadRecord(Reason.UNPAIRED, f"{annotation.times} annotations have the question_id {identity}")
    image_id = identity_of(record, "image_id")
    if annotation.image_id != image_id:
        raise BadRecord(Reason.UNPAIRED, f"question {identity} is about picture {image_id}, its annotation about {annotation.image_id}")
    question, answers = question_text(record.get("question")), answer_texts(list(annotation.answers))
    return vqa_sample(place, str(identity), find(image_id), question, answers, reading, split)
