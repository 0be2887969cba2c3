"""Conversations about images, in the form of LLaVA and in the Hub's usual forms.

LLaVA: [{"id", "image": name, "conversations": [{"from": "human" | "gpt", "value": text}]}]. All turns are kept, with their line breaks,
and `<image>` placeholders keep their position. `image` may be a list of names, or absent in a conversation without an image.

Messages: JSONL, JSON or Parquet rows of {"messages": [{"role", "content"}], "images": [...]}. `conversations` with `from` and `value` may
stand in the place of `messages`, `image` in the place of `images`. A content is a string with `<image>` placeholders, or a list of parts,
each of which begins on a new line: {"type": "text", "text"}, {"type": "image"} for the next of the row's images, or a part that names
its image itself, as in {"type": "image_url", "image_url": {"url"}}. An image is a file name, {"bytes", "path"} with the encoded image,
or a data: URL. A row may state its own `split` and `category`, and boxes in `objects` (see `record_boxes`).
"""

import base64
import binascii
import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

from dataset.config import DataConfig
from dataset.record_validation import DropReason, InvalidRecordError
from dataset.sample import IMAGE_PLACEHOLDER, Role, join_parts
from dataset.source_base import BoxedSource, SourceBase, Split
from dataset.source_config import LlavaSource, MessagesSource
from dataset.sources.json_reader import read_array
from dataset.sources.record import (
    ImageSource,
    Parser,
    RawSample,
    RecordLocation,
    Records,
    conversation_sample,
    enumerate_records,
    image_path,
    parse_turn,
    require_field,
    require_list,
    require_object,
)
from dataset.sources.record_boxes import with_boxes
from dataset.sources.rows import parquet_columns, read_rows
from errors import TesseraError

LLAVA_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "human": "user", "gpt": "assistant"}
"""Role name in the file -> ours."""

TURNS, IMAGES = ("messages", "conversations"), ("images", "image")
COLUMNS = (*TURNS, *IMAGES, "objects", "split", "category")
"""Columns that are read from a Parquet file."""


def llava(source: LlavaSource, _config: DataConfig) -> tuple[Records, Parser]:
    """One sample per conversation."""

    def parse(location: RecordLocation, record: dict[str, Any]) -> RawSample:
        turns = require_list(require_field(record, "conversations"), "conversations")
        images = [image_path(source, name) for name in as_list(record.get("image"))]
        messages = [parse_turn(require_object(turn).get("from"), turn.get("value"), LLAVA_ROLES) for turn in turns]
        return conversation_sample(location, images, messages)

    return enumerate_records(read_array(source.annotation_files[0])), parse


def messages(source: MessagesSource, _config: DataConfig) -> tuple[Records, Parser]:
    """One sample per row."""

    def parse(location: RecordLocation, row: dict[str, Any]) -> RawSample:
        entries = require_field(row, *TURNS)
        split = row.get("split")
        if split is not None and split not in get_args(Split):
            raise InvalidRecordError(DropReason.MISSING_FIELD, f"split is {str(split)[:100]!r}; expected train, validation or test")
        row_images = next((row[name] for name in IMAGES if row.get(name) is not None), None)
        sample = chat_sample(source, location, entries, as_list(row_images), row.get("objects"))
        return sample if split is None else dataclasses.replace(sample, split=split)

    [path] = source.annotation_files
    if path.suffix == ".parquet" and not set(TURNS) & set(columns := parquet_columns(path)):
        raise TesseraError(f'{path}: expected a column "messages", found {", ".join(columns)}')
    return read_rows(path, COLUMNS), parse


def chat_sample(source: BoxedSource, location: RecordLocation, turns: Any, images: Sequence[Any], objects: Any = None) -> RawSample:
    """A sample of a conversation in any of the forms above.

    Args:
        source: The source, whose images may be files.
        location: Position of the row.
        turns: Its list of turns.
        images: Its images, for placeholders that name none.
        objects: Its boxes; None if it has none.
    """
    entries = require_list(turns, "messages")
    contents = [_content(entry) for entry in entries]
    in_order = _images_in_order(list(images), [parts for _, parts in contents])
    roles = [entry["from"] if entry.get("role") is None and "from" in entry else entry.get("role") for entry in entries]
    messages = [parse_turn(role, text, ROLES) for role, (text, _) in zip(roles, contents, strict=True)]
    sample = conversation_sample(location, [row_image(source, image) for image in in_order], messages)
    return with_boxes(source, sample, objects)


def as_list(value: Any) -> list[Any]:
    """A list as it is; one value as a list, None as an empty one."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _images_in_order(row_images: list[Any], named_by_turn: Sequence[Sequence[Any]]) -> list[Any]:
    """The images of a row in the order of its placeholders. `named_by_turn` has for each placeholder of each turn the image that its part
    names, None for the next one of the row's own list."""
    named = [image for turn in named_by_turn for image in turn]
    if row_images == [image for image in named if image is not None]:
        row_images = []  # named twice: in the parts and in the row
    remaining = iter(row_images)
    in_order = [next(remaining, None) if image is None else image for image in named]
    return [image for image in in_order if image is not None] + list(remaining)


def row_image(source: SourceBase, image: Any) -> ImageSource:
    """The image that a row gives as {bytes, path}, as bytes, as a data: URL or by its name. Raises InvalidRecordError."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, dict):
        if isinstance(image.get("bytes"), bytes):
            return bytes(image["bytes"])
        image = image.get("path")
    if isinstance(image, str) and image.startswith("data:"):
        return _decode_data_url(image)
    return image_path(source, image)


def _decode_data_url(url: str) -> bytes:
    head, comma, data = url.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("expected data:image/...;base64,...")
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRecordError(DropReason.UNDECODABLE, f"the data: URL {url[:40]!r} cannot be decoded ({error})") from error


def _content(entry: Any) -> tuple[Any, list[Any]]:
    """The text of a turn, and for each of its placeholders the image that its part names, or None."""
    content = require_object(entry).get("content", entry.get("value"))
    if not isinstance(content, list):
        return content, [None] * (content.count(IMAGE_PLACEHOLDER) if isinstance(content, str) else 0)
    parts = [_part(part) for part in content]
    named = [image for text, image in parts for _ in range(text.count(IMAGE_PLACEHOLDER))]
    return join_parts(text for text, _ in parts), named


def _part(part: Any) -> tuple[str, Any]:
    """The text of a part and the image that it names, if any: {type: image}, {type: image, image | path | url: ...}, {image: ...},
    {type: image_url, image_url: {url: ...}} or {type: text, text: ...}. Null fields count as absent, since tables fill them in."""
    part = {name: value for name, value in require_object(part).items() if value is not None}
    kind = part.get("type", next((name for name in ("text", "image", "image_url") if name in part), None))
    if kind in ("image", "image_url"):
        image = next((part[name] for name in ("image", "image_url", "path", "url") if name in part), None)
        if isinstance(image, dict):
            image = {name: value for name, value in image.items() if value is not None}
        return IMAGE_PLACEHOLDER, image.get("url", image or None) if isinstance(image, dict) else image
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"]), None
    raise InvalidRecordError(DropReason.ANSWER_TYPE, f"a content part has type {str(kind)[:100]!r}; expected text, image or image_url")
