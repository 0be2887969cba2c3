"""Pictures by content: the same bytes are one picture, whatever names they have; samples that share one stay together."""

from dataclasses import dataclass

import numpy as np

from dataset.build.image_validation import ImageCheck
from dataset.build.record_buffer import RecordBuffer
from dataset.build.splits import SplitAssignment, UnionFind, assign_splits
from dataset.config import SplitConfig


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What of the spool stays, and as what.

    rows: [n] places in the spool of the samples that stay; assignment: their splits; image_ids, starts: sample k has the
    pictures image_ids[starts[k]:starts[k + 1]]; pictures: one file for each image id; first_source: [images] the source
    that named it first.
    """

    rows: np.ndarray
    assignment: SplitAssignment
    image_ids: np.ndarray
    image_offsets: np.ndarray
    images: list[ImageCheck]
    first_source: np.ndarray


def join(buffer: RecordBuffer, keep: np.ndarray, image_checks: list[ImageCheck], split_fractions: SplitConfig, seed: int) -> MergeResult:
    """Number the pictures of the samples that stay by first appearance, and split the samples."""
    rows = np.flatnonzero(keep)
    files, image_offsets = _gather_files(buffer, rows)
    ids: dict[str, int] = {}
    images: list[ImageCheck] = []
    for file_index in dict.fromkeys(files.tolist()):
        if ids.setdefault(image_checks[file_index].sha256, len(images)) == len(images):
            images.append(image_checks[file_index])
    image_of = np.array([ids.get(one.sha256, -1) for one in image_checks], dtype=np.int64)
    image_ids = image_of[files]
    _, first = np.unique(image_ids, return_index=True)
    source_of_image = np.repeat(np.asarray(buffer.source)[rows], np.diff(image_offsets))
    groups, keys = _groups(buffer, rows, image_ids, image_offsets, images)
    source_splits = np.asarray(buffer.source_split)[rows]
    return MergeResult(
        rows, assign_splits(groups, keys, source_splits, split_fractions, seed), image_ids, image_offsets, images, source_of_image[first]
    )


def _gather_files(buffer: RecordBuffer, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Picture files of the samples in `rows`, one after another, and where each sample's begin."""
    offsets = np.asarray(buffer.image_offsets)
    lengths = (offsets[1:] - offsets[:-1])[rows]
    image_offsets = np.concatenate([[0], np.cumsum(lengths)])
    indices = np.repeat(offsets[:-1][rows] - image_offsets[:-1], lengths) + np.arange(image_offsets[-1])
    return np.asarray(buffer.images)[indices], image_offsets


def _groups(
    buffer: RecordBuffer, rows: np.ndarray, image_ids: np.ndarray, image_offsets: np.ndarray, images: list[ImageCheck]
) -> tuple[np.ndarray, list[str]]:
    """The group of each sample, [n], and what stands for each group's content: the least SHA-256 of its pictures, or of
    the texts of samples without pictures."""
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
