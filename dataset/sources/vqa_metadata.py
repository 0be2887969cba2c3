"""Visual questions in one list: [{"id", "question", "answers": [strings], "image_file"}], with `image` in the place of `image_file`
and answers as {"answer": string} as VizWiz has them, or TextVQA's official file, {"data": [{"question_id", "question", "answers",
"image_id", "set_name"}]} with images named <image_id>.jpg."""

from collections.abc import Iterator
from typing import Any

from dataset.config import VqaMetadataSource
from dataset.sources.json_reader import read_array
from dataset.sources.record import (
    ImageFolder,
    ParsedRecord,
    RawSample,
    ReadOptions,
    RecordLocation,
    enumerate_records,
    parse_answers,
    parse_question,
    parse_record,
    parse_split_name,
    require_field,
    require_object,
    vqa_sample,
)


def read(source: VqaMetadataSource, options: ReadOptions) -> Iterator[ParsedRecord]:
    """One sample per question."""
    folder = ImageFolder.of(source, source.annotations)
    for location, record in enumerate_records(read_array(source.annotations, member="data"), source.limit):
        yield parse_record(location, _sample, record, folder, options)


def _sample(location: RecordLocation, record: Any, folder: ImageFolder, options: ReadOptions) -> RawSample:
    record = require_object(record)
    name = require_field(record, "image_file", "image", "image_id")
    if record.get("image_file") is None and record.get("image") is None:
        name = f"{name}.jpg"
    record_id = next((record[key] for key in ("id", "question_id") if isinstance(record.get(key), int | str)), None)
    return vqa_sample(
        location,
        None if record_id is None else str(record_id),
        folder.path(name),
        parse_question(record.get("question")),
        parse_answers(record.get("answers")),
        options,
        parse_split_name(record.get("set_name")),
    )
