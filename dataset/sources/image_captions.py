"""Image captions.

AI Challenger: [{"image_id": "<sha1>.jpg", "caption": [Chinese sentences]}], or with the keys `image` and `conversations`.
Official COCO captions: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.
"""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset.config import AiChallengerSource, CocoCaptionsSource, DataConfig
from dataset.record_validation import DropReason, InvalidRecordError
from dataset.sources.json_reader import JsonReader, read_array
from dataset.sources.record import (
    Parser,
    RawSample,
    RecordLocation,
    Records,
    caption_sample,
    enumerate_records,
    image_path,
    parse_answers,
    require_field,
    require_id,
    require_object,
)


def ai_challenger(source: AiChallengerSource, config: DataConfig) -> tuple[Records, Parser]:
    """One sample per image, with all its captions."""

    def parse(location: RecordLocation, record: dict[str, Any]) -> RawSample:
        captions = parse_answers(record.get("caption", record.get("conversations")))
        return caption_sample(
            location, image_path(source, require_field(record, "image_id", "image")), captions, source.questions, config.seed
        )

    return enumerate_records(read_array(source.annotations)), parse


def coco_captions(source: CocoCaptionsSource, config: DataConfig) -> tuple[Records, Parser]:
    """One sample per image, with all its captions, in the order of `images`.

    Records are the entries of `images`, and the entries of `annotations` that refer to none of them (rejected).
    """
    file = _read_coco_file(source.annotations)
    id_counts = Counter(record["id"] for record in file.images if isinstance(record, dict) and isinstance(record["id"], int | str))
    unpaired = [
        (RecordLocation("annotation", number), InvalidRecordError(DropReason.UNPAIRED, f"no image has the id {image_id}"))
        for image_id, number in file.first_annotations.items()
        if image_id not in id_counts
    ]

    def parse(location: RecordLocation, record: dict[str, Any]) -> RawSample:
        image_id = require_id(record, "id")
        if id_counts[image_id] > 1:
            raise InvalidRecordError(DropReason.UNPAIRED, f"the id {image_id} occurs {id_counts[image_id]} times in images")
        captions = parse_answers(file.captions.get(image_id, []))
        return caption_sample(location, image_path(source, require_field(record, "file_name")), captions, source.questions, config.seed)

    return itertools.chain(enumerate_records(file.images, "image"), file.rejected, unpaired), parse


@dataclass
class _CocoFile:
    """Content of a caption file: unparsed images, captions and index of the first annotation by image id, and annotations without a valid
    image id."""

    images: list[Any] = field(default_factory=list)
    captions: dict[int | str, list[Any]] = field(default_factory=dict)
    first_annotations: dict[int | str, int] = field(default_factory=dict)
    rejected: list[tuple[RecordLocation, InvalidRecordError]] = field(default_factory=list)


def _read_coco_file(path: Path) -> _CocoFile:
    content = _CocoFile()
    with JsonReader(path) as file:
        for key, entries in file.iter_members(("images", "annotations"), 'an object with the lists "images" and "annotations"'):
            if key == "images":
                # Only the fields that are needed, to save memory.
                content.images = [
                    {name: entry.get(name) for name in ("id", "file_name")} if isinstance(entry, dict) else entry for entry in entries
                ]
            elif key == "annotations":
                for number, entry in enumerate(entries):
                    _add_caption(content, number, entry)
    return content


def _add_caption(content: _CocoFile, number: int, entry: Any) -> None:
    try:
        image_id = require_id(require_object(entry), "image_id")
    except InvalidRecordError as error:
        content.rejected.append((RecordLocation("annotation", number), error))
        return
    content.first_annotations.setdefault(image_id, number)
    content.captions.setdefault(image_id, []).append(entry.get("caption"))
