"""Readers of annotation formats: each gives the records of a source and the function that makes a sample of one."""

import dataclasses
import importlib
import itertools
from collections.abc import Iterator
from typing import Any

from dataset.config import DataConfig
from dataset.record_validation import InvalidRecordError, check_conversation, check_encoding
from dataset.source_config import Source
from dataset.sources.record import ParsedRecord, Parser, RawSample, RecordLocation, Records, RejectedRecord, number_as_text, require_object

READERS = {
    "ai_challenger": "image_captions",
    "coco_captions": "image_captions",
    "flickr_captions": "image_captions",
    "folder": "image_captions",
    "hub": "hub",
    "llava": "conversations",
    "messages": "conversations",
    "refcoco": "referring_expressions",
    "table": "tables",
    "vqa_metadata": "visual_questions",
    "vqav2": "visual_questions",
    "webdataset": "tables",
}
"""`format` of a source -> module that has a function of this name. Imported when they are needed: some bring large libraries."""


def read(source: Source, config: DataConfig, name_files: bool | None = None) -> Iterator[ParsedRecord]:
    """The records of a source in file order: samples that are valid apart from their images, and rejected records.

    Args:
        source: The source.
        config: The data configuration.
        name_files: Whether locations name the file; by default where there are several.

    Raises:
        TesseraError: A file cannot be read or does not have the structure of its format.
    """
    parts = source.parts()
    name_files = len(parts) > 1 if name_files is None else name_files
    per_part = ((str(part.annotation_files[0]), *open_part(part, config)) for part in parts)
    # Opened one after the other.
    items = ((location, record, parse, file) for file, records, parse in per_part for location, record in records)
    for location, record, parse, file in itertools.islice(items, source.limit):
        if name_files:
            location = RecordLocation(location.kind, location.number, file)
        try:
            item: ParsedRecord = valid_sample(location, record, parse)
        except InvalidRecordError as error:
            item = RejectedRecord(location, error.reason, error.detail)
        yield item


def open_part(part: Source, config: DataConfig) -> tuple[Records, Parser]:
    """The raw records of a source that has one file, or pair of files, and the function that makes a sample of one."""
    reader = getattr(importlib.import_module(f"dataset.sources.{READERS[part.format]}"), part.format)
    opened: tuple[Records, Parser] = reader(part, config)
    return opened


def valid_sample(location: RecordLocation, record: Any, parse: Parser) -> RawSample:
    """The sample of a record. Its category is the record's field of this name, a text or a whole number. Raises InvalidRecordError."""
    if isinstance(record, InvalidRecordError):
        raise record
    sample = parse(location, require_object(record))
    check_conversation(sample.messages, sample.targets, sample.answers, len(sample.images))
    check_encoding(sample.key)
    category = sample.category or number_as_text(record.get("category"))
    if category is None:
        return sample
    return dataclasses.replace(sample, category=category.strip()) if isinstance(category, str) and category.strip() else sample
