"""Chat datasets in the Hub's usual form: JSONL or Parquet rows of {"messages": [{"role", "content"}], "images": [...]}.

A content is a string with `<image>` placeholders, or a list of {"type": "text", "text"} and {"type": "image"} parts, each of which
begins on a new line. An image is a file name, or {"bytes", "path"} with the encoded image itself. A row may state its own `split`.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from dataset.config import MessagesSource, Split
from dataset.record_validation import DropReason, InvalidRecordError
from dataset.sample import IMAGE_PLACEHOLDER, Message, Role, join_parts
from dataset.sources.record import (
    ImageSource,
    ParsedRecord,
    RawSample,
    ReadOptions,
    RecordLocation,
    RejectedRecord,
    conversation_sample,
    image_path,
    parse_record,
    parse_turn,
    require_field,
    require_list,
    require_object,
)
from errors import TesseraError

ROLES: tuple[tuple[str, Role], ...] = (("user", "user"), ("assistant", "assistant"), ("system", "system"))
"""Pairs of the role name in the file and ours."""

COLUMNS = ("messages", "images", "split")
"""Columns that are read from a Parquet file."""

ROWS_PER_BATCH = 64
"""Rows of a Parquet file decoded at a time; few, because rows may contain images."""


def read(source: MessagesSource, _options: ReadOptions) -> Iterator[ParsedRecord]:
    """One sample per row."""
    rows = _parquet_rows(source.path) if source.path.suffix == ".parquet" else _jsonl_rows(source.path)
    folder = source.images or source.path.parent
    for location, row in itertools.islice(rows, source.limit):
        yield row if isinstance(row, RejectedRecord) else parse_record(location, _sample, row, folder)


def _jsonl_rows(path: Path) -> Iterator[tuple[RecordLocation, Any]]:
    try:
        file = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n")
    except OSError as error:
        raise TesseraError(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield RecordLocation("line", number), json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                column, message = (error.colno, error.msg) if isinstance(error, json.JSONDecodeError) else (1, "nested too deeply")
                raise TesseraError(f"{path}: not valid JSON at line {number} column {column}: {message}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[RecordLocation, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            if "messages" not in columns:
                raise TesseraError(f'{path}: expected a column "messages", found {", ".join(file.schema_arrow.names)}')
            number = 0
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, columns=columns):
                for row in range(batch.num_rows):
                    location = RecordLocation("row", number)
                    yield location, _row(location, batch.slice(row, 1))
                    number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise TesseraError(f"{path}: not a Parquet file that can be read: {' '.join(str(error).split())}") from error


def _row(location: RecordLocation, batch: pa.RecordBatch) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return RejectedRecord(location, DropReason.BAD_ENCODING, f"a text is not valid UTF-8: {error.reason}")


def _sample(location: RecordLocation, row: Any, folder: Path) -> RawSample:
    messages = [_message(entry) for entry in require_list(require_field(require_object(row), "messages"), "messages")]
    images = row.get("images")
    image_entries = images if isinstance(images, list) else [] if images is None else [images]
    split = row.get("split")
    if split is not None and split not in get_args(Split):
        raise InvalidRecordError(DropReason.MISSING_FIELD, f"split is {split!r}; expected train, validation or test")
    return conversation_sample(location, [_image(folder, image) for image in image_entries], messages, split)


def _image(folder: Path, image: Any) -> ImageSource:
    if not isinstance(image, dict):
        return image_path(folder, image)
    if isinstance(image.get("bytes"), bytes):
        return bytes(image["bytes"])
    return image_path(folder, image.get("path"))


def _message(entry: Any) -> Message:
    content = require_object(entry).get("content")
    if isinstance(content, list):
        content = join_parts(_part(part) for part in content)
    return parse_turn(entry.get("role"), content, ROLES)


def _part(part: Any) -> str:
    kind = require_object(part).get("type")
    if kind == "image":
        return IMAGE_PLACEHOLDER
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise InvalidRecordError(DropReason.ANSWER_TYPE, f"a content part has type {kind!r}; expected text or image")
