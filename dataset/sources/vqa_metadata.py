"""Visual questions in one list: [{"id", "question", "answers": [texts], "image_file"}], or TextVQA's official file,
{"data": [{"question_id", "question", "answers", "image_id", "set_name"}]} with pictures named <image_id>.jpg."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.config import VqaMetadataSource
from dataset.sources.json_reader import read_array
from dataset.sources.record import (
    Item,
    Place,
    RawSample,
    Reading,
    answer_texts,
    convert,
    fields,
    numbered,
    own_split,
    picture_file,
    question_text,
    required,
    vqa_sample,
)


def read(source: VqaMetadataSource, reading: Reading) -> Iterator[Item]:
    """One sample a question."""
    folder = source.images or source.annotations.parent
    for place, record in numbered(read_array(source.annotations, member="data"), source.limit):
        yield convert(place, _sample, record, folder, reading)


def _sample(place: Place, record: Any, folder: Path, reading: Reading) -> RawSample:
    record = fields(record)
    name = record.get("image_file")
    if name is None:
        name = f"{required(record, 'image_file', 'image_id')}.jpg"
    identity = next((record[key] for key in ("id", "question_id") if isinstance(record.get(key), int | str)), None)
    return vqa_sample(
        place,
        None if identity is None else str(identity),
        picture_file(folder, name),
        question_text(record.get("question")),
        answer_texts(record.get("answers")),
        reading,
        own_split(record.get("set_name")),
    )
