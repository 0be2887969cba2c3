"""Deduplicate images by content: files with the same bytes are one image; samples that share an image share a split.

Shapes: n kept samples, m images of all kept samples counted with repetition, i distinct images.
"""

from dataclasses import dataclass

import numpy as np

from dataset.build.image_validation import ImageCheck
from dataset.build.record_buffer import RecordBuffer
from dataset.build.splits import SplitAssignment, UnionFind, assign_splits
from dataset.config import SplitConfig


@dataclass(frozen=True, slots=True)
class MergeResult:
    """The kept samples with their splits and deduplicated images.

    Args:
        rows: Positions in the record buffer of the kept samples, int64 [n], ascending.
        assignment: Splits of the kept samples.
        image_ids: Image ids of all kept samples, concatenated, int64 [m].
        image_offsets: Sample k has the images `image_ids[image_offsets[k]:image_offsets[k + 1]]`, [n + 1].
        images: For each image id, the file that named the content first.
        first_source: For each image id, the index of the source that named it first, [i].
    """

    rows: np.ndarray
    assignment: SplitAssignment
    image_ids: np.ndarray
    image_offsets: np.ndarray
    images: list[ImageCheck]
    first_source: np.ndarray


def join(buffer: RecordBuffer, keep: np.ndarray, image_checks: list[ImageCheck], split_fractions: SplitConfig, seed: int) -> MergeResult:
    """Number the images of the kept samples by first occurrence, and assign splits.

    Args:
        buffer: All records that were read.
        keep: Which of them are kept, bool, one entry per record.
        image_checks: Check result of each image file, indexed like `buffer.images`.
        split_fractions: Fractions of the images by split.
        seed: Seed of the split.
    """
    rows = np.flatnonzero(keep)
    files, image_offsets = _gather_files(buffer, rows)
    ids: dict[str, int] = {}
    images: list[ImageCheck] = []
    for file_index in dict.fromkeys(files.tolist()):
        if ids.setdefault(image_checks[file_index].sha256, len(images)) == len(images):
            images.append(image_checks[file_index])
    image_of = np.array([ids.get(check.sha256, -1) for check in image_checks], dtype=np.int64)
    image_ids = image_of[files]
    _, first = np.unique(image_ids, return_index=True)
    source_of_image = np.repeat(np.asarray(buffer.source)[rows], np.diff(image_offsets))
    groups, keys = _groups(buffer, rows, image_ids, image_offsets, images)
    source_splits = np.asarray(buffer.source_split)[rows]
    return MergeResult(
        rows, assign_splits(groups, keys, source_splits, split_fractions, seed), image_ids, image_offsets, images, source_of_image[first]
    )


def _gather_files(buffer: RecordBuffer, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """File indices of the images of the samples in `rows`, concatenated [m], and the offsets of each sample [n + 1]."""
    offsets = np.asarray(buffer.image_offsets)
    lengths = (offsets[1:] - offsets[:-1])[rows]
    image_offsets = np.concatenate([[0], np.cumsum(lengths)])
    indices = np.repeat(offsets[:-1][rows] - image_offsets[:-1], lengths) + np.arange(image_offsets[-1])
    return np.asarray(buffer.images)[indices], image_offsets


def _groups(
    buffer: RecordBuffer, rows: np.ndarray, image_ids: np.ndarray, image_offsets: np.ndarray, images: list[ImageCheck]
) -> tuple[np.ndarray, list[str]]:
    """Groups of samples that must share a split: those connected through common images, or with the same text if without images.

    Returns the group of each sample, [n], and the key of each group: the smallest SHA-256 of its images, or of its text.
    """
    union = UnionFind(len(images))
    for k in np.flatnonzero(np.diff(image_offsets) > 1):
        for other in image_ids[image_offsets[k] + 1 : image_offsets[k + 1]]:
            union.join(int(image_ids[image_offsets[k]]), int(other))
    roots = union.roots()
    min_digest: dict[int, str] = {}
    for image, root in enumerate(roots.tolist()):
        min_digest[root] = min(min_digest.get(root, "~"), images[image].sha256)
    ids: dict[str, int] = {}
    group_of_image = np.array([ids.setdefault(min_digest[root], len(ids)) for root in roots.tolist()], dtype=np.int64)
    groups = np.empty(len(rows), dtype=np.int64)
    has_images = np.diff(image_offsets) > 0
    groups[has_images] = group_of_image[image_ids[image_offsets[:-1][has_images]]]
    for k in np.flatnonzero(~has_images):
        groups[k] = ids.setdefault(buffer.text_digests[int(rows[k])], len(ids))
    return groups, list(ids)
