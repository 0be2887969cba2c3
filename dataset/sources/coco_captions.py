"""Official COCO captions: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset.config import CocoCaptionsSource
from dataset.record_validation import DropReason, InvalidRecordError
from dataset.sources.json_reader import JsonReader
from dataset.sources.record import (
    ImageFolder,
    ParsedRecord,
    RawSample,
    ReadOptions,
    RecordLocation,
    RejectedRecord,
    caption_sample,
    enumerate_records,
    parse_answers,
    parse_record,
    require_field,
    require_id,
    require_object,
)
from errors import TesseraError


def read(source: CocoCaptionsSource, options: ReadOptions) -> Iterator[ParsedRecord]:
    """One sample per image, with all its captions, in the order of `images`.

    Records are the entries of `images`, and the entries of `annotations` that refer to none of them (rejected).
    """
    file = _read_file(source.annotations)
    folder = ImageFolder.of(source, source.annotations)
    yield from itertools.islice(_items(file, folder, source, options), source.limit)


@dataclass
class _Captions:
    """The unparsed captions of one image, and the index of its first annotation."""

    first: int
    texts: list[Any] = field(default_factory=list)


@dataclass
class _File:
    """Content of a caption file: unparsed images, captions by image id, and annotations without a valid image id."""

    images: list[Any] = field(default_factory=list)
    captions: dict[int | str, _Captions] = field(default_factory=dict)
    rejected: list[RejectedRecord] = field(default_factory=list)


def _read_file(path: Path) -> _File:
    content, keys = _File(), set()
    with JsonReader(path) as file:
        if file.peek() != "{":
            raise TesseraError(f'{path}: expected an object with the lists "images" and "annotations"')
        for key in file.iter_keys():
            keys.add(key)
            if key == "images" and file.peek() == "[":
                content.images = [_select_fields(entry, "id", "file_name") for entry in file.iter_array()]
            elif key == "annotations" and file.peek() == "[":
                for number, entry in enumerate(file.iter_array()):
                    _add_caption(content, number, entry)
            else:
                file.value()
        file.end()
    if missing := {"images", "annotations"} - keys:
        raise TesseraError(f'{path}: expected an object with the lists "images" and "annotations"; it has no {sorted(missing)[0]!r}')
    return content


def _select_fields(entry: Any, *names: str) -> Any:
    """Keep only the fields that are needed, to save memory."""
    return {name: entry.get(name) for name in names} if isinstance(entry, dict) else entry


def _add_caption(content: _File, number: int, entry: Any) -> None:
    try:
        record_id = require_id(require_object(entry), "image_id")
    except InvalidRecordError as error:
        content.rejected.append(RejectedRecord(RecordLocation("annotation", number), error.reason, error.detail))
        return
    content.captions.setdefault(record_id, _Captions(number)).texts.append(entry.get("caption"))


def _items(file: _File, folder: ImageFolder, source: CocoCaptionsSource, options: ReadOptions) -> Iterator[ParsedRecord]:
    id_counts = Counter(record["id"] for record in file.images if isinstance(record, dict) and isinstance(record["id"], int | str))
    for location, record in enumerate_records(file.images, None, "image"):
        yield parse_record(location, _sample, record, id_counts, file.captions, folder, source, options)
    yield from file.rejected
    for record_id, captions in file.captions.items():
        if record_id not in id_counts:
            yield RejectedRecord(RecordLocation("annotation", captions.first), DropReason.UNPAIRED, f"no image has the id {record_id}")


def _sample(
    location: RecordLocation,
    record: Any,
    id_counts: Counter[int | str],
    captions: dict[int | str, _Captions],
    folder: ImageFolder,
    source: CocoCaptionsSource,
    options: ReadOptions,
) -> RawSample:
    record_id = require_id(require_object(record), "id")
    if id_counts[record_id] > 1:
        raise InvalidRecordError(DropReason.UNPAIRED, f"the id {record_id} occurs {id_counts[record_id]} times in images")
    texts = parse_answers(captions[record_id].texts if record_id in captions else [])
    return caption_sample(location, folder.path(require_field(record, "file_name")), texts, source.questions, options.seed)
