"""Official VQA v2: a question file and an annotation file with ten answers per question, joined by question id."""

import functools
import os.path
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset.config import Split, VqaV2Source
from dataset.record_validation import DropReason, InvalidRecordError
from dataset.sources.json_reader import JsonReader, read_array
from dataset.sources.record import (
    ParsedRecord,
    RawSample,
    ReadOptions,
    RecordLocation,
    enumerate_records,
    parse_answers,
    parse_question,
    parse_record,
    parse_split_name,
    require_id,
    require_object,
    vqa_sample,
)
from errors import TesseraError


@dataclass(frozen=True, slots=True)
class _Annotation:
    """The unparsed answers to a question, the image id, and the number of annotations with this question id."""

    image_id: Any
    answers: tuple[Any, ...]
    occurrences: int = 1


@dataclass
class _Annotations:
    """Content of the annotation file: answers by question id, and the COCO subset (train2014, val2014)."""

    subtype: str = ""
    by_question: dict[Any, _Annotation] = field(default_factory=dict)


def read(source: VqaV2Source, options: ReadOptions) -> Iterator[ParsedRecord]:
    """One sample per question, in the order of the question file. Images have the file names of COCO 2014 or 2017."""
    annotations = _read_annotations(source.annotations)
    folder = source.images or source.questions.parent
    find_image = functools.cache(functools.partial(_image, folder, annotations.subtype))
    split = parse_split_name(annotations.subtype)
    seen_ids: set[int | str] = set()
    for location, record in enumerate_records(read_array(source.questions, member="questions"), source.limit, "question"):
        yield parse_record(location, _sample, record, annotations, seen_ids, find_image, options, split)


def _read_annotations(path: Path) -> _Annotations:
    content, has_annotations = _Annotations(), False
    interned_texts: dict[str, str] = {}
    with JsonReader(path) as file:
        if file.peek() != "{":
            raise TesseraError(f'{path}: expected an object with the list "annotations"')
        for key in file.iter_keys():
            if key == "annotations" and file.peek() == "[":
                has_annotations = True
                for entry in file.iter_array():
                    _add(content.by_question, entry, interned_texts)
            elif key == "data_subtype":
                content.subtype = _subtype(path, file.value())
            else:
                file.value()
        file.end()
    if not has_annotations:
        raise TesseraError(f'{path}: expected an object with the list "annotations"; it has no such key')
    return content


def _subtype(path: Path, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", value):
        raise TesseraError(f"{path}: data_subtype is {value!r}; expected a name such as train2014, which is part of the image names")
    return value


def _add(by_question: dict[Any, _Annotation], entry: Any, interned_texts: dict[str, str]) -> None:
    """Add the answers of one entry. Entries without a question id are skipped; their questions are rejected as unpaired."""
    if not isinstance(entry, dict) or not isinstance(entry.get("question_id"), int | str):
        return
    answers = entry.get("answers")
    raw_answers = (
        [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers] if isinstance(answers, list) else [answers]
    )
    previous = by_question.get(entry["question_id"])
    # Millions of answers have few distinct texts: store each text once.
    interned = tuple(interned_texts.setdefault(answer, answer) if isinstance(answer, str) else answer for answer in raw_answers)
    by_question[entry["question_id"]] = _Annotation(entry.get("image_id"), interned, previous.occurrences + 1 if previous else 1)


def _image(folder: Path, subtype: str, image_id: int | str) -> Path:
    """Path of an image by id: `COCO_train2014_000000000009.jpg`, or `000000000009.jpg` as in the 2017 folders."""
    try:
        number = f"{int(image_id):012d}.jpg"
    except ValueError as error:
        raise InvalidRecordError(DropReason.MISSING_FIELD, f"expected image_id to be a number, found {image_id!r}") from error
    coco_2014_path = folder / f"COCO_{subtype}_{number}"
    exists = os.path.exists  # unlike Path.exists it never raises, whatever the name
    return folder / number if not exists(coco_2014_path) and exists(folder / number) else coco_2014_path


def _sample(
    location: RecordLocation,
    record: Any,
    annotations: _Annotations,
    seen_ids: set[int | str],
    find_image: Callable[[int | str], Path],
    options: ReadOptions,
    split: Split | None,
) -> RawSample:
    record_id = require_id(require_object(record), "question_id")
    if record_id in seen_ids:
        raise InvalidRecordError(DropReason.UNPAIRED, f"an earlier question has the same question_id {record_id}")
    seen_ids.add(record_id)
    annotation = annotations.by_question.get(record_id)
    if annotation is None:
        raise InvalidRecordError(DropReason.UNPAIRED, f"no annotation has the question_id {record_id}")
    if annotation.occurrences > 1:
        raise InvalidRecordError(DropReason.UNPAIRED, f"{annotation.occurrences} annotations have the question_id {record_id}")
    image_id = require_id(record, "image_id")
    if annotation.image_id != image_id:
        raise InvalidRecordError(
            DropReason.UNPAIRED, f"question {record_id} refers to image {image_id}, its annotation to image {annotation.image_id}"
        )
    question, answers = parse_question(record.get("question")), parse_answers(list(annotation.answers))
    return vqa_sample(location, str(record_id), find_image(image_id), question, answers, options, split)
