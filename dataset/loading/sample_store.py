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

from dataset.config import Split
from dataset.loading.image_io import MAX_PIXELS, open_image
from dataset.sample import IMAGES_SCHEMA, SAMPLES_SCHEMA, Message, Sample
from errors import UsageError

IMAGES_DIGEST_KEY = b"tessera.images"
"""Metadata key of samples.parquet: the SHA-256 of the images.parquet that its image ids refer to."""

OPTIONAL_COLUMN = "prompt"
"""Column that earlier merges did not write; their samples have none."""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """A row of `images.parquet`. Width and height in pixels, after EXIF rotation; sha256 of the file; source that named it first."""

    image_id: int
    path: Path
    width: int
    height: int
    sha256: str
    source: str


class SampleStore:
    """Merged data. Rows are decoded from memory-mapped Arrow tables on access, so millions of rows take little memory."""

    def __init__(self, folder: Path):
        """Raises UsageError when `folder` holds no merged data, or tables of two different merges."""
        self.folder = folder
        self._images = _table(folder / "images.parquet", IMAGES_SCHEMA)
        self._samples = _table(folder / "samples.parquet", SAMPLES_SCHEMA)
        _check_same_merge(folder)
        ids = self._images["image_id"].to_numpy()
        self._row_by_image_id = dict(zip(ids.tolist(), range(len(ids)), strict=True))

    def __len__(self) -> int:
        """Number of samples."""
        return int(self._samples.num_rows)

    def sample(self, index: int) -> Sample:
        """The sample in row `index`."""
        return _sample(self._samples.slice(index, 1).to_pylist()[0])

    def samples(self, indices: np.ndarray | None = None) -> Iterator[Sample]:
        """All samples in file order, or those in the rows `indices`, in that order."""
        table = self._samples if indices is None else self._samples.take(pa.array(indices))
        for batch in table.to_batches(max_chunksize=1024):
            yield from map(_sample, batch.to_pylist())

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
        rows = self._samples.filter(pc.equal(self._samples["split"], split))
        counts = rows.group_by(["task", "language", "prompt"]).aggregate([([], "count_all")]).rename_columns({"count_all": "count"})
        return sorted(
            counts.to_pylist(), key=lambda row: (row["task"], row["language"], -row["count"], row["prompt"] is None, row["prompt"] or "")
        )

    def image(self, image_id: int) -> ImageRow:
        """The row of an image."""
        return _image(self._images.slice(self._row_by_image_id[image_id], 1).to_pylist()[0])

    def images(self) -> Iterator[ImageRow]:
        """The rows of all images, in file order."""
        for batch in self._images.to_batches(max_chunksize=1024):
            yield from map(_image, batch.to_pylist())

    def load_image(self, image_id: int) -> Image.Image:
        """The decoded image, RGB. Raises ImageError when the file is missing or can no longer be decoded."""
        row = self.image(image_id)
        # The merge accepted this image, maybe with a higher pixel limit than the default.
        return open_image(row.path, max_pixels=max(MAX_PIXELS, row.width * row.height))


def _table(path: Path, schema: pa.Schema) -> pa.Table:
    if not path.is_file():
        raise UsageError(f"{path} does not exist; run python tools/preprocess.py first")
    table = pq.read_table(path, memory_map=True)
    if OPTIONAL_COLUMN in schema.names and OPTIONAL_COLUMN not in table.schema.names:
        table = table.append_column(OPTIONAL_COLUMN, pa.nulls(len(table), pa.string()))
    if table.schema.names != schema.names:
        raise UsageError(f"{path}: expected the columns {schema.names}, found {table.schema.names}; run python tools/preprocess.py again")
    return table.cast(schema).combine_chunks()


def _check_same_merge(folder: Path) -> None:
    """Raise UsageError when a merge was killed after it replaced one of the two files."""
    expected = (pq.read_schema(folder / "samples.parquet").metadata or {}).get(IMAGES_DIGEST_KEY)
    if expected is not None and expected.decode() != hashlib.sha256((folder / "images.parquet").read_bytes()).hexdigest():
        raise UsageError(f"{folder}: images.parquet and samples.parquet are not from one merge; run python tools/preprocess.py again")


def _image(row: dict[str, Any]) -> ImageRow:
    return ImageRow(**{**row, "path": Path(row["path"])})


def _sample(row: dict[str, Any]) -> Sample:
    return Sample(
        sample_id=row["sample_id"],
        image_ids=tuple(row["image_ids"]),
        source=row["source"],
        task=row["task"],
        language=row["language"],
        split=row["split"],
        messages=tuple(Message(m["role"], m["content"]) for m in row["messages"]),
        targets=tuple(row["targets"]),
        answers=tuple(row["answers"]),
        prompt=row["prompt"],
    )
