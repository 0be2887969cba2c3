"""Readers of annotation formats: each gives the records of a source and the function that makes a sample of one."""

import dataclasses
import importlib
import itertools
from collections.abc import Iterator
from typing import Any

from dataset.config import DataConfig
from dataset.record_validation import InvalidRecordError, check_conversation, check_encoding
from dataset.source_config import Source
from dataset.sources.record import ParsedRecord, Parser, RawSample, RecordLocation, RejectedRecord, number_as_text, require_object

READERS = {
    "ai_challenger": "image_captions",
    "coco_captions": "image_captions",
    "flickr_captions": "image_captions",
    "folder": "image_captions",
    "hub": "hub",
    "llava": "conversations",
    "messages": "conversations",
    "table": "tables",
    "vqa_metadata": "visual_questions",
    "vqav2": "visual_questions",
    "webdataset": "tables",
}
"""`format` of a source -> module that has a function of this name. Imported when they are needed: some bring large libraries."""


def read(source: Source, config: DataConfig) -> Iterator[ParsedRecord]:
    """The records of a source in file order: samples that are valid apart from their images, and rejected records.

    Raises TesseraError when a file cannot be read or does not have the structure of its format.
    """
    reader = getattr(importlib.import_module(f"dataset.sources.{READERS[source.format]}"), source.format)
    parts = source.parts()
    per_part = ((part, *reader(part, config)) for part in parts)
    # Opened one after the other.
    items = ((location, record, parse, part) for part, records, parse in per_part for location, record in records)
    for location, record, parse, part in itertools.islice(items, source.limit):
        if len(parts) > 1:
            location = dataclasses.replace(location, file=str(part.annotation_files[0]))
        try:
            item: ParsedRecord = _valid_sample(location, record, parse)
        except InvalidRecordError as error:
            item = RejectedRecord(location, error.reason, error.detail)
        yield item


def _valid_sample(location: RecordLocation, record: Any, parse: Parser) -> RawSample:
    """The sample of a record. Its category is the record's field of this name, a text or a whole number."""
    if isinstance(record, InvalidRecordError):
        raise record
    sample = parse(location, require_object(record))
    check_conversation(sample.messages, sample.targets, sample.answers, len(sample.images))
    check_encoding(sample.key)
    category = sample.category or number_as_text(record.get("category"))
    if category is None:
        return sample
    return dataclasses.replace(sample, category=category.strip()) if isinstance(category, str) and category.strip() else sample
