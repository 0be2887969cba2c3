"""Data sets that `datasets.load_dataset` reads: on the Hugging Face Hub, or a folder in one of its forms.

A folder is read as it lies; what has a name is downloaded to the cache of `datasets` once, and read from there again without a network.
`datasets` runs no code of a data set and reads no pickle, and neither is done here.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataset.config import DataConfig
from dataset.record_validation import DropReason, InvalidRecordError
from dataset.source_config import HubSource
from dataset.sources.layouts import KNOWN_COLUMNS, tabular
from dataset.sources.record import Parser, RawSample, RecordLocation, Records, parse_split_name
from dataset.sources.rows import ROWS_PER_BATCH, arrow_rows
from errors import TesseraError
from hub_access import work_offline_if_unreachable

IMAGE_IDS = ("image_id", "imageId")
"""Columns of questions that name an image of `image_subset`; the first that a row has is taken."""


def hub(source: HubSource, config: DataConfig) -> tuple[Records, Parser]:
    """One sample per row, split after split."""
    splits = _load(source, source.subset, source.split, stream=config.streaming)
    if Path(source.path).is_dir():
        splits = {name: _in_row_groups(rows) for name, rows in splits.items()}
    records: Records = (record for name, rows in splits.items() for record in _rows(rows, name if len(splits) > 1 else ""))
    if source.image_subset is not None:
        records = _with_images(records, _images_by_id(source, source.image_subset))
    records, parse_row = tabular(records, source, config, _described(source, source.subset))
    # A data set with one split alone, which is called train, has not been divided by its authors.
    is_divided = len(splits) > 1 or (source.split is not None and "+" not in source.split)

    def parse(location: RecordLocation, row: dict[str, Any]) -> RawSample:
        sample = parse_row(location, row)
        name = parse_split_name(location.file or source.split) if is_divided else None
        return sample if sample.split is not None else dataclasses.replace(sample, split=name)

    return records, parse


def _load(source: HubSource, subset: str | None, split: str | None, by_index: bool = False, stream: bool = False) -> dict[str, Any]:
    """The splits of a data set by name.

    Args:
        source: Its name or folder, and revision.
        subset: Subset, if it has several.
        split: Split or part of one; all by default.
        by_index: Rows must be found by their index. A folder is then copied to the cache of `datasets`.
        stream: What has a name is read from the Hub as it comes, not downloaded first.

    Raises:
        TesseraError: There is no such data set, subset or split, it cannot be reached, or is a script.
    """
    is_folder = Path(source.path).is_dir()
    is_offline = not is_folder and work_offline_if_unreachable()
    if is_offline and not _is_cached(source.path):
        raise TesseraError(f"{_described(source, subset)}: the Hugging Face Hub cannot be reached, and the data set was not fetched before")
    # Imported here: it takes a second, and must see whether there is a network.
    import datasets

    datasets.disable_progress_bars()
    # Parts of a split are known only where its length is.
    streaming = (is_folder or (stream and not is_offline)) and not by_index and not any(character in (split or "") for character in "[+")
    try:
        if Path(source.path, "state.json").is_file():
            loaded = datasets.load_from_disk(source.path)
        else:
            path = str(Path(source.path).absolute()) if is_folder else source.path
            loaded = datasets.load_dataset(path, subset, split=split, revision=source.revision, streaming=streaming)
    except Exception as error:  # what datasets, its readers and the Hub's client raise has no common class
        raise TesseraError(f"{_described(source, subset)}: {_reason(error, is_offline)}") from error
    if isinstance(loaded, dict):
        return dict(loaded)
    return {split or "train": loaded}


def _is_cached(name: str) -> bool:
    """Whether `datasets` has prepared a data set of this name, whatever its subset; without importing `datasets`."""
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    # `datasets` names its folders OWNER___NAME, with CamelCase as snake_case.
    wanted = re.sub("[/_]", "", name).lower()
    return any(folder.name.replace("_", "").lower() == wanted for folder in (cache.iterdir() if cache.is_dir() else ()))


def _reason(error: Exception, is_offline: bool) -> str:
    message = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and "scripts are no longer supported" in message:
        advice = "convert it to Parquet, or name a revision that is Parquet (often refs/convert/parquet)"
        return f"it is a script, and code of a data set is not run: {advice}"
    if is_offline:
        return f"the Hugging Face Hub cannot be reached, and the cache does not have what is asked for ({message:.300})"
    if "gated" in message or "cannot be accessed" in message:
        return f"{message:.300}: a private or gated data set needs an account that may read it; run hf auth login, or set HF_TOKEN"
    return f"it cannot be loaded: {message:.600}"


def _described(source: HubSource, subset: str | None) -> str:
    revision = "" if source.revision is None else f"@{source.revision}"
    return f"{source.path}{revision}" + ("" if subset is None else f", subset {subset}")


def _rows(rows: Any, split: str) -> Records:
    """The rows of a split, numbered through. A file that cannot be read on is one rejected record, and the next one follows.

    Args:
        rows: A `datasets.Dataset` or `IterableDataset`.
        split: Name of the split, for locations; empty where there is one alone.
    """
    number = 0
    files = getattr(rows, "num_shards", 1)
    for index in range(files):
        file = rows.shard(files, index) if files > 1 else rows
        try:
            for table in file.with_format("arrow").iter(batch_size=ROWS_PER_BATCH):
                yield from _in_split(arrow_rows(table.to_batches(), number), split)
                number += table.num_rows
        except Exception as error:  # noqa: BLE001 - as in _load: each format has a reader with exceptions of its own
            message = f"file {index + 1} of {files} cannot be read from here on: {' '.join(str(error).split()):.300}"
            yield RecordLocation("row", number, split), InvalidRecordError(DropReason.MISSING_FIELD, message)
            number += 1


def _in_row_groups(rows: Any) -> Any:
    """The rows of a folder in parts that are read one after the other: of Parquet files their row groups. Of a whole file, `datasets` would
    hold all in memory."""
    if not hasattr(rows, "reshard"):
        return rows
    try:
        return rows.reshard()
    except Exception:  # noqa: BLE001 - a file that cannot be opened is found again, and counted, when it is its turn
        return rows


def _in_split(records: Records, split: str) -> Records:
    return ((dataclasses.replace(location, file=split), record) for location, record in records)


def _images_by_id(source: HubSource, subset: str) -> dict[Any, tuple[Any, int, str]]:
    """Image id -> table, index of the row, and name of the column that has the image."""
    found: dict[Any, tuple[Any, int, str]] = {}
    for rows in _load(source, subset, None, by_index=True).values():
        names = {key: next((name for name in KNOWN_COLUMNS[key] if name in rows.column_names), None) for key in ("id", "image")}
        if None in names.values():
            where = _described(source, subset)
            raise TesseraError(f"{where}: expected columns with ids and images, found {', '.join(rows.column_names)}")
        tables = rows.with_format("arrow")
        found |= {id: (tables, row, names["image"]) for row, id in enumerate(rows[names["id"]])}
    return found


def _with_images(records: Records, images: dict[Any, tuple[Any, int, str]]) -> Records:
    for location, record in records:
        if isinstance(record, dict):
            image_id = next((record[name] for name in IMAGE_IDS if record.get(name) is not None), None)
            if image_id not in images:
                yield location, InvalidRecordError(DropReason.UNPAIRED, f"no image has the id {image_id!r:.100}")
                continue
            table, row, column = images[image_id]
            record = {**record, "image": _value(table[row], column)}
        yield location, record


def _value(row: pa.Table, column: str) -> Any:
    return row[column].to_pylist()[0]
