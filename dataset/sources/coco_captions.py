"""Official COCO captions: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset.config import CocoCaptionsSource
from dataset.record_validation import BadRecord, Reason
from dataset.sources.json_reader import JsonFile
from dataset.sources.record import (
    Item,
    Place,
    RawSample,
    Reading,
    Rejected,
    answer_texts,
    caption_sample,
    convert,
    fields,
    identity_of,
    numbered,
    picture_file,
    required,
)
from errors import TesseraError


def read(source: CocoCaptionsSource, reading: Reading) -> Iterator[Item]:
    """One sample a picture, with all its captions, in the order of the file's `images`.

    Its records are the entries of `images`, and those of `annotations` that belong to none of them.
    """
    file = _read_file(source.annotations)
    folder = source.images or source.annotations.parent
    yield from itertools.islice(_items(file, folder, source, reading), source.limit)


@dataclass
class _Captions:
    """The captions of one picture as they stand, and the number of the first annotation that holds one."""

    first: int
    texts: list[Any] = field(default_factory=list)


@dataclass
class _File:
    """What a caption file holds: pictures as they stand, captions by picture id, and annotations that name no picture."""

    images: list[Any] = field(default_factory=list)
    captions: dict[int | str, _Captions] = field(default_factory=dict)
    broken: list[Rejected] = field(default_factory=list)


def _read_file(path: Path) -> _File:
    content, found = _File(), set()
    with JsonFile(path) as file:
        if file.opens() != "{":
            raise TesseraError(f'{path}: expected an object with the lists "images" and "annotations"')
        for key in file.members():
            found.add(key)
            if key == "images" and file.opens() == "[":
                content.images = [_only(entry, "id", "file_name") for entry in file.elements()]
            elif key == "annotations" and file.opens() == "[":
                for number, entry in enumerate(file.elements()):
                    _add_caption(content, number, entry)
            else:
                file.value()
        file.end()
    if missing := {"images", "annotations"} - found:
        raise TesseraError(f'{path}: expected an object with the lists "images" and "annotations"; it has no {sorted(missing)[0]!r}')
    return content


def _only(entry: Any, *names: str) -> Any:
    """The fields that are needed, so that a large file's other fields take no memory."""
    return {name: entry.get(name) for name in names} if isinstance(entry, dict) else entry


def _add_caption(content: _File, number: int, entry: Any) -> None:
    try:
        identity = identity_of(fields(entry), "image_id")
    except BadRecord as bad:
        content.broken.append(Rejected(Place("annotation", number), bad.reason, bad.detail))
        return
    content.captions.setdefault(identity, _Captions(number)).texts.append(entry.get("caption"))


def _items(file: _File, folder: Path, source: CocoCaptionsSource, reading: Reading) -> Iterator[Item]:
    times = Counter(record["id"] for record in file.images if isinstance(record, dict) and isinstance(record["id"], int | str))
    for place, record in numbered(file.images, None, "image"):
        yield convert(place, _sample, record, times, file.captions, folder, source, reading)
    yield from file.broken
    for identity, captions in file.captions.items():
        if identity not in times:
            yield Rejected(Place("annotation", captions.first), Reason.UNPAIRED, f"no picture has the id {identity}")


def _sample(
    place: Place,
    record: Any,
    times: Counter[int | str],
    captions: dict[int | str, _Captions],
    folder: Path,
    source: CocoCaptionsSource,
    reading: Reading,
) -> RawSample:
    identity = identity_of(fields(record), "id")
    if times[identity] > 1:
        raise BadRecord(Reason.UNPAIRED, f"the id {identity} stands {times[identity]} times in images")
    texts = answer_texts(captions[identity].texts if identity in captions else [])
    return caption_sample(place, picture_file(folder, required(record, "file_name")), texts, source.questions, reading.seed)
