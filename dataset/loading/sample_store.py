"""The merged data on disk: `images.parquet`, `samples.parquet`, opened by training, evaluation and inspection."""

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
"""Key in the metadata of samples.parquet: SHA-256 of the images.parquet that its image ids point into."""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One picture: a row of `images.parquet`. Width and height in pixels, after EXIF rotation."""

    image_id: int
    path: Path
    width: int
    height: int
    sha256: str
    source: str


class SampleStore:
    """Merged data. Samples and pictures are read from Arrow tables, so millions of rows cost little memory."""

    def __init__(self, folder: Path):
        """Raises UsageError when `folder` holds no merged data."""
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
        """All samples, or those in the rows `indices`, in that order."""
        table = self._samples if indices is None else self._samples.take(pa.array(indices))
        for batch in table.to_batches(max_chunksize=1024):
            yield from map(_sample, batch.to_pylist())

    def indices(self, split: Split) -> np.ndarray:
        """Rows [n] int64 of the samples in a split, in file order."""
        return np.flatnonzero(self._samples["split"].to_numpy(zero_copy_only=False) == split)

    def row_index(self, sample_id: str) -> int:
        """The row of a sample. Raises UsageError when there is none of that id."""
        row = pc.index(self._samples["sample_id"], sample_id).as_py()
        if row < 0:
            raise UsageError(f"{self.folder}: no sample has the id '{sample_id}'")
        return int(row)

    def column(self, name: str) -> list[Any]:
        """One column of the samples as Python values."""
        return list(self._samples[name].to_pylist())

    def image(self, image_id: int) -> ImageRow:
        """The row of a picture."""
        return _image(self._images.slice(self._row_by_image_id[image_id], 1).to_pylist()[0])

    def images(self) -> Iterator[ImageRow]:
        """The rows of all pictures, in file order."""
        for batch in self._images.to_batches(max_chunksize=1024):
            yield from map(_image, batch.to_pylist())

    def load_image(self, image_id: int) -> Image.Image:
        """The decoded picture, RGB. Raises PictureError when the file has gone or changed into something unreadable."""
        row = self.image(image_id)
        # The merge has let it pass, maybe with a higher limit than the usual one.
        return open_image(row.path, max_pixels=max(MAX_PIXELS, row.width * row.height))


def _table(path: Path, schema: pa.Schema) -> pa.Table:
    if not path.is_file():
        raise UsageError(f"{path} does not exist; run python tools/preprocess.py first")
    table = pq.read_table(path, memory_map=True)
    if table.schema.names != schema.names:
        raise UsageError(f"{path}: expected the columns {schema.names}, found {table.schema.names}; run python tools/preprocess.py again")
    return table.cast(schema).combine_chunks()


def _check_same_merge(folder: Path) -> None:
    """Raise UsageError when a merge was killed between putting the one file in its place and the other."""
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
    )
