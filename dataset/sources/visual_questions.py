"""Questions about images with the answers of several annotators.

Official VQA v2: a question file and an annotation file with ten answers per question, joined by question id.
One list: [{"id", "question", "answers": [strings], "image_file"}], with `image` in the place of `image_file` and answers as
{"answer": string} as VizWiz has them, or TextVQA's official file, {"data": [{"question_id", "question", "answers", "image_id",
"set_name"}]} with images named <image_id>.jpg.
"""

import functools
import os.path
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dataset.config import DataConfig
from dataset.record_validation import DropReason, InvalidRecordError
from dataset.remote_files import FilePath, RemotePath
from dataset.source_config import VqaMetadataSource, VqaV2Source
from dataset.sources.json_reader import JsonReader, read_array
from dataset.sources.record import (
    Parser,
    RawSample,
    RecordLocation,
    Records,
    enumerate_records,
    image_path,
    parse_answers,
    parse_question,
    parse_split_name,
    require_field,
    require_id,
    vqa_sample,
)
from errors import TesseraError


def vqa_metadata(source: VqaMetadataSource, config: DataConfig) -> tuple[Records, Parser]:
    """One sample per question of a list."""

    def parse(location: RecordLocation, record: dict[str, Any]) -> RawSample:
        name = require_field(record, "image_file", "image", "image_id")
        if record.get("image_file") is None and record.get("image") is None:
            name = f"{name}.jpg"
        ids = (str(record[key]) for key in ("id", "question_id") if isinstance(record.get(key), int | str))
        image, question = image_path(source, name), parse_question(record.get("question"))
        answers, split = parse_answers(record.get("answers")), parse_split_name(record.get("set_name"))
        return vqa_sample(location, next(ids, location.key), [image], question, answers, config, split)

    return enumerate_records(read_array(source.annotation_files[0], member="data")), parse


def vqav2(source: VqaV2Source, config: DataConfig) -> tuple[Records, Parser]:
    """One sample per question, in the order of the question file. Images have the file names of COCO 2014 or 2017."""
    questions, annotation_file = source.annotation_files
    subtype, annotations = _read_annotations(annotation_file)
    find_image = functools.cache(functools.partial(_coco_image, source.image_folder, subtype, _existence(source.image_folder)))
    split = parse_split_name(subtype)
    seen_ids: set[int | str] = set()

    def parse(location: RecordLocation, record: dict[str, Any]) -> RawSample:
        record_id = require_id(record, "question_id")
        if record_id in seen_ids:
            raise InvalidRecordError(DropReason.UNPAIRED, f"an earlier question has the same question_id {record_id}")
        seen_ids.add(record_id)
        annotation = annotations.get(record_id)
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
        return vqa_sample(location, str(record_id), [find_image(image_id)], question, answers, config, split)

    return enumerate_records(read_array(questions, member="questions"), "question"), parse


@dataclass(frozen=True, slots=True)
class _Annotation:
    """The unparsed answers to a question, the image id, and the number of annotations with this question id."""

    image_id: Any
    answers: tuple[Any, ...]
    occurrences: int = 1


def _read_annotations(path: FilePath) -> tuple[str, dict[int | str, _Annotation]]:
    """The COCO subset of an annotation file (train2014, val2014), and its annotations by question id."""
    subtype, by_question = "", dict[int | str, _Annotation]()
    # Millions of answers have few distinct texts: store each text once.
    distinct_texts: dict[str, str] = {}
    with JsonReader(path) as file:
        for key, value in file.iter_members(["annotations"], 'an object with the list "annotations"'):
            if key == "annotations":
                for entry in value:
                    _add_annotation(by_question, entry, distinct_texts)
            elif key == "data_subtype":
                if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", value):
                    raise TesseraError(
                        f"{path}: data_subtype is {value!r}; expected a name such as train2014, which is part of the image names"
                    )
                subtype = value
    return subtype, by_question


def _add_annotation(by_question: dict[int | str, _Annotation], entry: Any, distinct_texts: dict[str, str]) -> None:
    """Add the answers of one entry. Entries without a question id are skipped; their questions are rejected as unpaired."""
    if not isinstance(entry, dict) or not isinstance(entry.get("question_id"), int | str):
        return
    answers = entry.get("answers")
    texts = [
        answer.get("answer") if isinstance(answer, dict) else answer for answer in (answers if isinstance(answers, list) else [answers])
    ]
    distinct = tuple(distinct_texts.setdefault(text, text) if isinstance(text, str) else text for text in texts)
    previous = by_question.get(entry["question_id"])
    by_question[entry["question_id"]] = _Annotation(entry.get("image_id"), distinct, previous.occurrences + 1 if previous else 1)


def _existence(folder: FilePath) -> Callable[[FilePath], bool]:
    """What says whether a file of a folder exists; of one in object storage by one listing."""
    if isinstance(folder, RemotePath):
        entries = folder.entries()
        return lambda path: isinstance(path, RemotePath) and (path.exists() if entries is None else path.name in entries)
    return os.path.exists  # unlike Path.exists it never raises, whatever the name


def _coco_image(folder: FilePath, subtype: str, exists: Callable[[FilePath], bool], image_id: int | str) -> FilePath:
    """Path of an image by id: `COCO_train2014_000000000009.jpg`, or `000000000009.jpg` as in the 2017 folders."""
    try:
        number = f"{int(image_id):012d}.jpg"
    except ValueError as error:
        raise InvalidRecordError(DropReason.MISSING_FIELD, f"expected image_id to be a number, found {image_id!r}") from error
    coco_2014_path = folder / f"COCO_{subtype}_{number}"
    return folder / number if not exists(coco_2014_path) and exists(folder / number) else coco_2014_path
