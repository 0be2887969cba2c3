"""Image captions.

AI Challenger: [{"image_id": "<sha1>.jpg", "caption": [Chinese sentences]}], or with the keys `image` and `conversations`.
Official COCO captions: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.
Flickr8k and Flickr30k: lines of `name.jpg#0<tab>caption`, or the table `image,caption`.
A folder: images, each with a text file of the same name that has a caption in each line.
"""

import itertools
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from dataset.config import DataConfig
from dataset.loading.image_formats import IMAGE_SUFFIXES
from dataset.record_validation import DropReason, InvalidRecordError
from dataset.remote_files import FilePath, files_below
from dataset.source_config import AiChallengerSource, CocoCaptionsSource, FlickrCaptionsSource, FolderSource
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
from dataset.sources.rows import delimited_rows, open_text

_FLICKR_LINE = re.compile(r"(?P<image>[^\t#]+)#\S+\s+(?P<caption>.*)")


def ai_challenger(source: AiChallengerSource, config: DataConfig) -> tuple[Records, Parser]:
    """One sample per image, with all its captions."""

    def parse(location: RecordLocation, record: dict[str, Any]) -> RawSample:
        captions = parse_answers(record.get("caption", record.get("conversations")))
        image = image_path(source, require_field(record, "image_id", "image"))
        return caption_sample(location, [image], captions, source.questions, config.seed)

    return enumerate_records(read_array(source.annotation_files[0])), parse


def coco_captions(source: CocoCaptionsSource, config: DataConfig) -> tuple[Records, Parser]:
    """One sample per image, with all its captions, in the order of `images`.

    Records are the entries of `images`, and the entries of `annotations` that refer to none of them (rejected).
    """
    file = _read_coco_file(source.annotation_files[0])
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
        image = image_path(source, require_field(record, "file_name"))
        return caption_sample(location, [image], captions, source.questions, config.seed)

    return itertools.chain(enumerate_records(file.images, "image"), file.rejected, unpaired), parse


def flickr_captions(source: FlickrCaptionsSource, config: DataConfig) -> tuple[Records, Parser]:
    """One sample per image, with all its captions, at the line that names it first."""
    captions: dict[str, list[str]] = {}
    records: list[tuple[RecordLocation, Any]] = []
    for location, row in _flickr_lines(source.annotation_files[0]):
        if isinstance(row, InvalidRecordError):
            records.append((location, row))
            continue
        if row["image"] not in captions:
            records.append((location, row))
        captions.setdefault(row["image"], []).append((row["caption"] or "").strip())

    def parse(location: RecordLocation, row: dict[str, Any]) -> RawSample:
        return caption_sample(location, [image_path(source, row["image"])], captions[row["image"]], source.questions, config.seed)

    return iter(records), parse


def _flickr_lines(path: FilePath) -> Records:
    """Rows of `image` and `caption`."""
    with open_text(path, newline="\n") as file:
        if file.readline().strip() == "image,caption":
            yield from delimited_rows(path, ",")
            return
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if line.strip():
                match = _FLICKR_LINE.fullmatch(line.strip())
                problem = f"expected an image name, #, a number and a caption, found {line!r:.100}"
                yield RecordLocation("line", number), match.groupdict() if match else InvalidRecordError(DropReason.MISSING_FIELD, problem)


def folder(source: FolderSource, config: DataConfig) -> tuple[Records, Parser]:
    """One sample per image, in the order of their names. An image without captions and captions without an image are rejected."""
    [root] = source.annotation_files
    files = files_below(root)
    images = {path.with_suffix(""): path for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    texts = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}

    def parse(location: RecordLocation, record: dict[str, Any]) -> RawSample:
        name = PurePosixPath(record["name"])
        if name not in images or name not in texts:
            found, missing = (images[name], "text") if name in images else (texts[name], "image")
            raise InvalidRecordError(DropReason.UNPAIRED, f"{found} has no {missing} file of the same name")
        with open_text(root / texts[name], newline=None) as file:
            captions = [line.strip() for line in file]
        return caption_sample(location, [image_path(source, str(images[name]))], captions, source.questions, config.seed)

    return enumerate_records({"name": str(name)} for name in sorted(images.keys() | texts.keys())), parse


@dataclass
class _CocoFile:
    """Content of a caption file: unparsed images, captions and index of the first annotation by image id, and annotations without a valid
    image id."""

    images: list[Any] = field(default_factory=list)
    captions: dict[int | str, list[Any]] = field(default_factory=dict)
    first_annotations: dict[int | str, int] = field(default_factory=dict)
    rejected: list[tuple[RecordLocation, InvalidRecordError]] = field(default_factory=list)


def _read_coco_file(path: FilePath) -> _CocoFile:
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
