"""Deduplicate images by content: files with the same bytes or the same pixels are one image; samples that share one share a split.

Records, image files and their joins are Arrow tables. Shapes: p pairs of images, m images of all samples, counted with repetition.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.build.image_check_cache import ImageCheck
from dataset.build.splits import assign_splits
from dataset.config import DataConfig
from dataset.connected_groups import connected_groups

FILES_SCHEMA = pa.schema(
    [("path", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("sha256", pa.string()), ("content", pa.string())]
)
"""One row per image file; files with the same pixels have the same `content`."""


@dataclass(frozen=True, slots=True)
class MergeResult:
    """The kept samples with their splits, and their images.

    Args:
        samples: One row per sample, in the order of the records: `row` in the record buffer, `source`, `split` (index into SPLITS),
            `moved` (whether that is not the source's own split), `image_ids`, `regions` (boxes in the upright images, or null).
        images: One row per image id: `path`, `width`, `height` and `sha256` of the file that named its content first, `source` that named
            it, and `split` of its samples.
        near_duplicates: Pairs of image ids that look alike, int64 [p, 2].
    """

    samples: pa.Table
    images: pa.Table
    near_duplicates: np.ndarray


def join(kept: pa.Table, checks: Sequence[ImageCheck], look_alike: np.ndarray, config: DataConfig) -> MergeResult:
    """Number the images of the kept records by first occurrence, and assign splits.

    Args:
        kept: The records as `merge.drop_unusable` returns them.
        checks: Check result of each image file; records name the files by their indices.
        look_alike: Pairs of files that look alike, by index, int64 [p, 2].
        config: Fractions of the images by split, whether near duplicates stay together, and the seed.
    """
    lists = kept["files"].combine_chunks()
    named, files = pc.list_parent_indices(lists), lists.flatten().to_numpy()
    table = pa.table([[getattr(check, name) for check in checks] for name in FILES_SCHEMA.names], schema=FILES_SCHEMA)
    content_of_file = table["content"].combine_chunks().dictionary_encode().indices.to_numpy()
    contents, first = np.unique(content_of_file[files], return_index=True)
    order = np.argsort(first)
    first = first[order]
    image_of_content = np.full(len(checks), -1, dtype=np.int64)
    image_of_content[contents[order]] = np.arange(len(contents))
    image_of_file = image_of_content[content_of_file]
    image_ids = image_of_file[files]
    near = _distinct_pairs(image_of_file[look_alike])
    linked = near if config.split.near_duplicates == "together" else near[:0]
    used = np.unique(files)
    digests = _smallest(image_of_file[used], table["sha256"].take(pa.array(used)))
    offsets = lists.offsets.to_numpy() - lists.offsets[0].as_py()
    keys = _group_keys(kept, image_ids, offsets, digests, linked).dictionary_encode()
    own_splits = kept["source_split"].to_numpy()
    splits = assign_splits(keys.indices.to_numpy(), keys.dictionary.to_pylist(), own_splits, config.split, config.seed)
    first_named = named.take(pa.array(first))
    images = table.take(pa.array(files[first])).append_column("source", kept["source"].take(first_named))
    samples = {
        "row": kept["row"],
        "source": kept["source"],
        "split": splits,
        "moved": (own_splits >= 0) & (own_splits != splits),
        "image_ids": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(image_ids)),
        "regions": kept["regions"],
    }
    return MergeResult(pa.table(samples), images.append_column("split", pa.array(splits).take(first_named)), near)


def _distinct_pairs(pairs: np.ndarray) -> np.ndarray:
    """Pairs of image ids without those of one image, of images of dropped samples only (-1), and repetitions."""
    pairs = np.sort(pairs.astype(np.int64).reshape(-1, 2), axis=1)
    return np.unique(pairs[(pairs[:, 0] >= 0) & (pairs[:, 0] != pairs[:, 1])], axis=0)


def _smallest(groups: np.ndarray, texts: pa.ChunkedArray) -> pa.Array:
    """The smallest text of each group 0, 1, ..., which all occur."""
    smallest = pa.table({"group": groups, "text": texts}).group_by("group").aggregate([("text", "min")]).sort_by("group")
    return smallest["text_min"].combine_chunks()


def _group_keys(kept: pa.Table, image_ids: np.ndarray, offsets: np.ndarray, digests: pa.Array, linked: np.ndarray) -> pa.Array:
    """What samples that must share a split have in common: the smallest SHA-256 of the images by which they are connected; of a sample
    without images, that of its text.

    Args:
        kept: The records.
        image_ids: Image ids of all samples, concatenated, [m].
        offsets: Where those of each sample begin and end.
        digests: SHA-256 of each image, of several files with the same pixels the smallest.
        linked: Further pairs of images that must share a split, [p, 2].
    """
    counts = np.diff(offsets)
    has_images = counts > 0
    first_image = np.zeros(len(kept), dtype=np.int64)
    first_image[has_images] = image_ids[offsets[:-1][has_images]]
    same_sample = np.column_stack([np.repeat(first_image, counts), image_ids])
    groups = connected_groups(len(digests), np.concatenate([linked, same_sample]))
    key_of_image = _smallest(groups, digests).take(pa.array(groups))
    of_images = key_of_image.take(pa.array(first_image, mask=~has_images))
    return pc.coalesce(of_images, kept["text_digest"].combine_chunks())
