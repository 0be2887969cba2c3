"""AI Challenger captions: [{"image_id": "<sha1>.jpg", "caption": [Chinese sentences]}], or with the keys `image` and
`conversations`."""

from collections.abc import Iterator
from typing import Any

from dataset.config import AiChallengerSource
from dataset.sources.json_reader import read_array
from dataset.sources.record import (
    ImageFolder,
    ParsedRecord,
    RawSample,
    ReadOptions,
    RecordLocation,
    caption_sample,
    enumerate_records,
    parse_answers,
    parse_record,
    require_field,
    require_object,
)


def read(source: AiChallengerSource, options: ReadOptions) -> Iterator[ParsedRecord]:
    """One sample per image, with all its captions."""
    folder = ImageFolder.of(source, source.annotations)
    for location, record in enumerate_records(read_array(source.annotations), source.limit):
        yield parse_record(location, _sample, record, folder, source, options)


def _sample(location: RecordLocation, record: Any, folder: ImageFolder, source: AiChallengerSource, options: ReadOptions) -> RawSample:
    record = require_object(record)
    captions = parse_answers(record.get("caption", record.get("conversations")))
    return caption_sample(location, folder.path(require_field(record, "image_id", "image")), captions, source.questions, options.seed)
