"""Readers of annotation formats: each gives the records of a source and the function that makes a sample of one."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from dataset.config import DataConfig, Source
from dataset.record_validation import InvalidRecordError, check_conversation, check_encoding
from dataset.sources.conversations import llava, messages
from dataset.sources.image_captions import ai_challenger, coco_captions
from dataset.sources.record import ParsedRecord, Parser, RawSample, RecordLocation, Records, RejectedRecord, number_as_text, require_object
from dataset.sources.visual_questions import vqa_metadata, vqav2

_READERS: dict[str, Callable[[Any, DataConfig], tuple[Records, Parser]]] = {
    "ai_challenger": ai_challenger,
    "llava": llava,
    "coco_captions": coco_captions,
    "vqav2": vqav2,
    "vqa_metadata": vqa_metadata,
    "messages": messages,
}
"""By the `format` of a source."""


def read(source: Source, config: DataConfig) -> Iterator[ParsedRecord]:
    """The records of a source in file order: samples that are valid apart from their images, and rejected records.

    Raises TesseraError when a file cannot be read or does not have the structure of its format.
    """
    records, parse = _READERS[source.format](source, config)
    for location, record in itertools.islice(records, source.limit):
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
    category = number_as_text(record.get("category"))
    return dataclasses.replace(sample, category=category.strip()) if isinstance(category, str) and category.strip() else sample
