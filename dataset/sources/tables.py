"""Sources whose records are rows: tables, tar shards in the form of WebDataset."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from webdataset.tariterators import group_by_keys, tar_file_iterator

from dataset.config import DataConfig
from dataset.loading.image_formats import IMAGE_SUFFIXES
from dataset.object_storage import StorageError
from dataset.record_validation import DropReason, InvalidRecordError
from dataset.remote_files import FilePath
from dataset.source_config import TableSource, WebDatasetSource
from dataset.sources.json_reader import decode_json
from dataset.sources.layouts import tabular
from dataset.sources.record import Parser, RecordLocation, Records, require_object
from dataset.sources.rows import read_rows
from errors import TesseraError

TEXT_SUFFIXES = frozenset(("txt", "text", "cls", "caption"))
"""Last parts of the names of members that are texts."""


def table(source: TableSource, config: DataConfig) -> tuple[Records, Parser]:
    """One sample per row."""
    [path] = source.annotation_files
    return tabular(read_rows(path), source, config, str(path))


def webdataset(source: WebDatasetSource, config: DataConfig) -> tuple[Records, Parser]:
    """One sample per group of members with one name. Its columns are `image`, those of its .json member, `caption` of its .txt member, and
    `id`, the name."""
    [shard] = source.annotation_files
    return tabular(_shard_records(shard), source, config, str(shard))


def _shard_records(shard: FilePath) -> Records:
    """The records of one shard. What cannot be read is one record that is rejected; after a damage in the archive itself nothing more of
    it can be read."""
    errors: list[Exception] = []
    number = 0

    def count(error: Exception) -> bool:
        errors.append(error)
        return True

    def rejected() -> Iterator[tuple[RecordLocation, InvalidRecordError]]:
        nonlocal number
        for error in errors:
            # webdataset adds the repr of the stream.
            reason = " ".join(str(error.args[0] if error.args else error).split()).partition(" @ ")[0]
            yield location(), InvalidRecordError(DropReason.UNDECODABLE, f"a member cannot be read ({reason:.200})")
            number += 1
        errors.clear()

    def location() -> RecordLocation:
        return RecordLocation("record", number)

    try:
        file = shard.open("rb") if isinstance(shard, Path) else shard.open()
    except OSError as error:
        raise TesseraError(f"{shard}: cannot be read ({error.strerror})") from error
    with file:
        members = ({**member, "__url__": str(shard)} for member in _members(file, count))
        for sample in group_by_keys(members, handler=count):
            yield location(), _row(sample)
            number += 1
            yield from rejected()
        yield from rejected()


def _members(file: Any, count: Any) -> Iterator[dict[str, Any]]:
    try:
        yield from tar_file_iterator(file)
    except StorageError as error:
        # Not damage in the archive. webdataset adds the repr of the stream.
        raise StorageError(str(error.args[0]).partition(" @ ")[0]) from error
    except Exception as error:  # noqa: BLE001 - what tarfile and its decompressors raise for damaged archives has no common class
        count(error)


def _row(sample: dict[str, Any]) -> dict[str, Any] | InvalidRecordError:
    row: dict[str, Any] = {"id": sample["__key__"]}
    images = {}
    for suffix, data in sample.items():
        kind = suffix.rsplit(".", 1)[-1]
        if kind == "json":
            try:
                row |= require_object(decode_json(data.decode("utf-8", "surrogateescape")))
            except json.JSONDecodeError as error:
                return InvalidRecordError(DropReason.NOT_AN_OBJECT, f"{sample['__key__']}.{suffix} is not valid JSON: {error.msg}")
            except InvalidRecordError as error:
                return error
        elif kind in TEXT_SUFFIXES:
            row.setdefault("caption" if suffix == "txt" else suffix, data.decode("utf-8", "surrogateescape"))
        elif f".{kind}" in IMAGE_SUFFIXES:
            images[suffix] = data
    if images:
        # Several have names such as 0.jpg and 1.jpg.
        in_order = [images[suffix] for suffix in sorted(images)]
        row["image"] = in_order[0] if len(in_order) == 1 else in_order
    return row
