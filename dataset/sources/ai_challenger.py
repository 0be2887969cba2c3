"""AI Challenger captions: [{"image_id": "<sha1>.jpg", "caption": [Chinese sentences]}], or with the keys `image` and
`conversations`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.config import AiChallengerSource
from dataset.sources.json_reader import read_array
from dataset.sources.record import (
    Item,
    Place,
    RawSample,
    Reading,
    answer_texts,
    caption_sample,
    convert,
    fields,
    numbered,
    picture_file,
    required,
)


def read(source: AiChallengerSource, reading: Reading) -> Iterator[Item]:
    """One sample a picture, with all its captions."""
    folder = source.images or source.annotations.parent
    for place, record in numbered(read_array(source.annotations), source.limit):
        yield convert(place, _sample, record, folder, source, reading)


def _sample(place: Place, record: Any, folder: Path, source: AiChallengerSource, reading: Reading) -> RawSample:
    record = fields(record)
    captions = answer_texts(record.get("caption", record.get("conversations")))
    return caption_sample(place, picture_file(folder, required(record, "image_id", "image")), captions, source.questions, reading.seed)
