"""Read access to the merged data: `images.parquet` and `samples.parquet`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from dataset.bounding_box import Box, Region
from dataset.loading.image_io import MAX_PIXELS, open_image
from dataset.remote_files import FilePath, parse_path
from dataset.sample import IMAGES_SCHEMA, SAMPLES_SCHEMA, Message, Sample
from dataset.source_base import Split
from errors import UsageError, command

IMAGES_DIGEST_KEY = b"tessera.images"
"""Metadata key of samples.parquet: the SHA-256 of the images.parquet that its image ids refer to."""

_ROWS_DECODED_AT_ONCE = 1024

OPTIONAL_COLUMNS = ("prompt", "category", "regions")
"""Columns that earlier merges did not write; their samples have none."""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """A row of `images.parquet`. Width and height in pixels, after EXIF rotation; sha256 of the file; source that named it first."""

    image_id: int
    path: FilePath
    width: int
    height: int
    sha256: str
    source: str


class SampleStore:
    """Merged data. Rows are decoded from Arrow tables on access, so millions of rows take little more memory than their text.

    The tables stay in chunks of one row group: a single column would end at 2 GiB of text.
    """

    def __init__(self, folder: Path, is_empty: bool = False):
        """Raises UsageError when `folder` holds no merged data, or tables of two different merges. is_empty: read nothing, have no rows."""
        self.folder = folder
        if is_empty:
            self._images, self._samples = IMAGES_SCHEMA.empty_table(), SAMPLES_SCHEMA.empty_table()
        else:
            self._images = _table(folder / "images.parquet", IMAGES_SCHEMA)
            self._samples = _table(folder / "samples.parquet", SAMPLES_SCHEMA)
            _check_same_merge(folder)
        self._image_rows, self._sample_rows = _Rows(self._images), _Rows(self._samples)
        ids = self._images["image_id"].to_numpy()
        self._row_by_image_id = dict(zip(ids.tolist(), range(len(ids)), strict=True))

    def __len__(self) -> int:
        """Number of samples."""
        return int(self._samples.num_rows)

    def sample(self, index: int) -> Sample:
        """The sample in row `index`."""
        return _sample(self._sample_rows.row(index))

    def samples(self, indices: np.ndarray | None = None) -> Iterator[Sample]:
        """All samples in file order, or those in the rows `indices`, in that order."""
        yield from map(_sample, self._sample_rows.rows(np.arange(len(self)) if indices is None else indices))

    def indices(self, split: Split) -> np.ndarray:
        """Row indices of the samples of a split, int64 [n], ascending."""
        return np.flatnonzero(self._samples["split"].to_numpy(zero_copy_only=False) == split)

    def row_index(self, sample_id: str) -> int:
        """The row of a sample. Raises UsageError when the id is unknown."""
        row = pc.index(self._samples["sample_id"], sample_id).as_py()
        if row < 0:
            raise UsageError(f"{self.folder}: no sample has the id '{sample_id}'")
        return int(row)

    def column(self, name: str) -> list[Any]:
        """One column of samples.parquet as Python values."""
        return list(self._samples[name].to_pylist())

    def prompt_counts(self, split: Split) -> list[dict[str, Any]]:
        """How many samples of a split have each prompt: {task, language, prompt, count}, by task and language, the most frequent first."""
        rows = self._samples.select(["task", "language", "prompt"]).filter(pc.equal(self._samples["split"], split))
        counts = rows.group_by(rows.column_names).aggregate([([], "count_all")]).rename_columns({"count_all": "count"})
        order = [("task", "ascending"), ("language", "ascending"), ("count", "descending"), ("prompt", "ascending")]
        return list(counts.sort_by(order).to_pylist())

    def image(self, image_id: int) -> ImageRow:
        """The row of an image."""
        return _image(self._image_rows.row(self._row_by_image_id[image_id]))

    def images(self) -> Iterator[ImageRow]:
        """The rows of all images, in file order."""
        for batch in self._images.to_batches(max_chunksize=1024):
            yield from map(_image, batch.to_pylist())

    def load_image(self, image_id: int) -> Image.Image:
        """The decoded image, RGB. Raises ImageError when the file is missing or can no longer be decoded."""
        row = self.image(image_id)
        # The merge accepted this image, maybe with a higher pixel limit than the default.
        return open_image(row.path, max_pixels=max(MAX_PIXELS, row.width * row.height))


class _Rows:
    """Rows of a table by their index, at the same cost with any number of chunks."""

    def __init__(self, table: pa.Table):
        self._batches = table.to_batches()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def row(self, index: int) -> dict[str, Any]:
        """One row as Python values."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return dict(self._batches[number].slice(index - int(self._starts[number]), 1).to_pylist()[0])

    def rows(self, indices: np.ndarray) -> Iterator[dict[str, Any]]:
        """The rows `indices`, in that order."""
        batch_of = np.searchsorted(self._starts, indices, side="right") - 1
        cuts = np.flatnonzero(np.diff(batch_of)) + 1
        for run, numbers in zip(np.split(indices, cuts), np.split(batch_of, cuts), strict=True):
            for first in range(0, len(run), _ROWS_DECODED_AT_ONCE):
                local = run[first : first + _ROWS_DECODED_AT_ONCE] - self._starts[numbers[0]]
                yield from self._batches[numbers[0]].take(pa.array(local)).to_pylist()


def _table(path: Path, schema: pa.Schema) -> pa.Table:
    if not path.is_file():
        raise UsageError(f"{path} does not exist; run {command('tools/preprocess.py')} first")
    with pq.ParquetFile(path) as file:
        # Not read_table: Arrow reads nested columns of several row groups into one array.
        groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
        table = pa.concat_tables(groups) if groups else file.schema_arrow.empty_table()
    for name in OPTIONAL_COLUMNS:
        if name in schema.names and name not in table.schema.names:
            table = table.add_column(schema.names.index(name), name, pa.nulls(len(table), schema.field(name).type))
    if table.schema.names != schema.names:
        raise UsageError(
            f"{path}: expected the columns {schema.names}, found {table.schema.names}; run {command('tools/preprocess.py')} again"
        )
    return table.cast(schema)


def _check_same_merge(folder: Path) -> None:
    """Raise UsageError when a merge was killed after it replaced one of the two files."""
    expected = (pq.read_schema(folder / "samples.parquet").metadata or {}).get(IMAGES_DIGEST_KEY)
    if expected is not None and expected.decode() != hashlib.sha256((folder / "images.parquet").read_bytes()).hexdigest():
        raise UsageError(f"{folder}: images.parquet and samples.parquet are not from one merge; run {command('tools/preprocess.py')} again")


def _image(row: dict[str, Any]) -> ImageRow:
    return ImageRow(**{**row, "path": parse_path(row["path"])})


def _sample(row: dict[str, Any]) -> Sample:
    lists = {name: tuple(row[name]) for name in ("image_ids", "targets", "answers")}
    regions = tuple(Region(**{**region, "box": Box(*region["box"])}) for region in row["regions"] or ())
    return Sample(**{**row, **lists, "messages": tuple(Message(**message) for message in row["messages"]), "regions": regions})
