"""Write `images.parquet` and `samples.parquet`.

Shapes: n kept samples of a batch.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from atomic_io import naming_full_disk
from dataset.bounding_box import Box, fill
from dataset.build.deduplication import MergeResult
from dataset.build.merge_report import MergeReport
from dataset.build.record_buffer import ROWS_PER_BATCH, RecordBuffer
from dataset.build.splits import SPLITS
from dataset.loading.sample_store import IMAGES_DIGEST_KEY
from dataset.sample import IMAGES_SCHEMA, SAMPLES_SCHEMA, Language
from dataset.source_base import SourceBase

UPRIGHT_BOXES = pa.list_(pa.struct([("image", pa.int32()), ("box", pa.list_(pa.float64()))]))
"""Boxes of a sample in its upright images, by the index of the image."""


def write_images(file: Path, merged: MergeResult, names: Sequence[str]) -> str:
    """Write one row per image. Returns the SHA-256 of the file, which is stored in the metadata of samples.parquet."""
    images = merged.images
    columns = [np.arange(len(images)), *(images[name] for name in ("path", "width", "height", "sha256")), _named(names, images["source"])]
    with naming_full_disk(file):
        pq.write_table(pa.table(columns, names=IMAGES_SCHEMA.names).cast(IMAGES_SCHEMA), file, compression="zstd")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_samples(
    file: Path, buffer: RecordBuffer, merged: MergeResult, sources: Sequence[SourceBase], images_digest: str, report: MergeReport
) -> None:
    """Write the kept samples, training samples `repeat` times, and add the counts to `report`.

    Args:
        file: File to write.
        buffer: All records that were read.
        merged: Which of them are kept, with splits and image ids.
        sources: Configuration of each source.
        images_digest: SHA-256 of images.parquet, written to the metadata.
        report: Report whose counts are filled in.
    """
    rows, origins, splits = (merged.samples[name].to_numpy() for name in ("row", "source", "split"))
    repeats = np.where(splits == SPLITS.index("train"), np.array([source.repeat for source in sources])[origins], 1)
    names = [source.name for source in report.sources]
    by_language = Counter[str]()
    schema = SAMPLES_SCHEMA.with_metadata({IMAGES_DIGEST_KEY: images_digest})
    # Repeated rows, too, must fit into one Arrow column.
    rows_at_once = max(1, ROWS_PER_BATCH // max(source.repeat for source in sources))
    begin = row = 0
    with naming_full_disk(file), pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in buffer.batches():
            end = int(np.searchsorted(rows, row + batch.num_rows))
            for first in range(begin, end, rows_at_once):
                part = slice(first, min(first + rows_at_once, end))
                texts = _with_boxes(pa.table(batch).take(pa.array(rows[part] - row)), merged.samples["regions"][part])
                table = _repeated(texts, merged.samples[part], repeats[part], sources, names)
                writer.write_table(table.cast(schema))
                by_language.update(table["language"].to_pylist())
            begin, row = end, row + batch.num_rows
    sample_counts = np.bincount(origins, repeats, len(sources)).astype(int).tolist()
    in_training = splits == SPLITS.index("train")
    training_counts = np.bincount(origins[in_training], repeats[in_training], len(sources)).astype(int).tolist()
    moved_counts = np.bincount(origins[merged.samples["moved"].to_numpy()], minlength=len(sources)).tolist()
    for counts, *numbers in zip(report.sources, sample_counts, training_counts, moved_counts, strict=True):
        counts.samples, counts.training_samples, counts.moved = numbers
    report.images, report.samples = len(merged.images), int(repeats.sum())
    report.by_split = dict(zip(SPLITS, np.bincount(splits, repeats, len(SPLITS)).astype(int).tolist(), strict=True))
    report.by_language = {language: by_language[language] for language in get_args(Language)}


def _with_boxes(texts: pa.Table, regions: pa.ChunkedArray) -> pa.Table:
    """The texts of some samples with their boxes in the places of the placeholders, and the column `regions`.

    regions: list of UPRIGHT_BOXES, null where a sample has no boxes.
    """
    if regions.null_count == len(regions):
        return texts.append_column("regions", pa.nulls(len(texts), SAMPLES_SCHEMA.field("regions").type))
    rows = texts.to_pylist()
    for row, boxes in zip(rows, regions.to_pylist(), strict=True):
        row["regions"] = None
        if boxes is not None:
            _fill_boxes(row, [(box["image"], Box(*box["box"])) for box in boxes])
    return pa.Table.from_pylist(rows, texts.schema.append(SAMPLES_SCHEMA.field("regions")))


def _fill_boxes(row: dict[str, Any], boxes: Sequence[tuple[int, Box]]) -> None:
    """Put the boxes of a sample into its texts, and add its regions."""
    before = row["targets"]
    filled, regions = fill([*(message["content"] for message in row["messages"]), *before], boxes)
    row["messages"] = [{**message, "content": text} for message, text in zip(row["messages"], filled, strict=False)]
    row["targets"] = filled[len(row["messages"]) :]
    row["answers"] = row["targets"] if row["answers"] == before else row["answers"]
    row["regions"] = [asdict(region) | {"box": list(region.box)} for region in regions]


def _repeated(texts: pa.Table, samples: pa.Table, repeats: np.ndarray, sources: Sequence[SourceBase], names: Sequence[str]) -> pa.Table:
    """The final rows of some kept samples: repeated, with source, split, image ids and prompt.

    Args:
        texts: Texts of the samples.
        samples: The same samples, as in `MergeResult`.
        repeats: How many rows each becomes, int [n].
        sources: Configuration of each source.
        names: Name of each source.
    """
    copy_numbers = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    repeated = pa.array(np.repeat(np.arange(len(samples)), repeats))
    texts, samples = texts.take(repeated), samples.take(repeated)
    ids = zip(texts["sample_id"].to_pylist(), copy_numbers.tolist(), strict=True)
    kinds = zip(samples["source"].to_pylist(), texts["language"].to_pylist(), texts["task"].to_pylist(), strict=True)
    columns = {
        **{name: texts[name] for name in texts.column_names},
        "sample_id": [name if not copy else f"{name}#copy{copy + 1}" for name, copy in ids],
        "image_ids": samples["image_ids"],
        "source": _named(names, samples["source"]),
        "split": _named(SPLITS, samples["split"]),
        "prompt": pa.array([sources[i].prompt_in(language, task) for i, language, task in kinds], pa.string()),
    }
    return pa.table([columns[name] for name in SAMPLES_SCHEMA.names], schema=SAMPLES_SCHEMA)


def _named(names: Sequence[str], indices: pa.ChunkedArray) -> pa.ChunkedArray:
    """The name at each index."""
    return pa.chunked_array([pa.array(names)]).take(indices)
