"""Deduplicate images by content: files with the same bytes or the same pixels are one image; samples that share one share a split.

Shapes: n kept samples, m images of all kept samples counted with repetition, i distinct images, p pairs.
"""

from dataclasses import dataclass

import numpy as np

from dataset.build.image_validation import ImageCheck
from dataset.build.record_buffer import RecordBuffer
from dataset.build.splits import SplitAssignment, assign_splits
from dataset.config import SplitConfig
from dataset.connected_groups import connected_groups


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
        image_splits: For each image id, the split of its samples as an index into SPLITS, int8 [i].
        near_duplicates: Pairs of image ids that look alike, int64 [p, 2].
    """

    rows: np.ndarray
    assignment: SplitAssignment
    image_ids: np.ndarray
    image_offsets: np.ndarray
    images: list[ImageCheck]
    first_source: np.ndarray
    image_splits: np.ndarray
    near_duplicates: np.ndarray


@dataclass(frozen=True, slots=True)
class CheckedImages:
    """The image files of a merge.

    Args:
        checks: Check result of each image file, indexed like the record buffer's `images`.
        near_duplicates: Pairs of files that look alike, by index, int64 [p, 2].
    """

    checks: list[ImageCheck]
    near_duplicates: np.ndarray


def join(buffer: RecordBuffer, keep: np.ndarray, checked: CheckedImages, split_config: SplitConfig, seed: int) -> MergeResult:
    """Number the images of the kept samples by first occurrence, and assign splits.

    Args:
        buffer: All records that were read.
        keep: Which of them are kept, bool, one entry per record.
        checked: The image files.
        split_config: Fractions of the images by split, and whether near duplicates stay together.
        seed: Seed of the split.
    """
    rows = np.flatnonzero(keep)
    files, image_offsets = _gather_files(buffer, rows)
    ids: dict[str, int] = {}
    images: list[ImageCheck] = []
    smallest_digests: list[str] = []
    for file_index in dict.fromkeys(files.tolist()):
        check = checked.checks[file_index]
        image_id = ids.setdefault(check.content, len(images))
        if image_id == len(images):
            images.append(check)
            smallest_digests.append(check.sha256)
        smallest_digests[image_id] = min(smallest_digests[image_id], check.sha256)
    image_of = np.array([ids.get(check.content, -1) for check in checked.checks], dtype=np.int64)
    image_ids = image_of[files]
    _, first = np.unique(image_ids, return_index=True)
    source_of_image = np.repeat(np.asarray(buffer.source)[rows], np.diff(image_offsets))
    near = _distinct_pairs(image_of[checked.near_duplicates])
    linked = near if split_config.near_duplicates == "together" else near[:0]
    groups, keys = _groups(buffer, rows, image_ids, image_offsets, smallest_digests, linked)
    assignment = assign_splits(groups, keys, np.asarray(buffer.source_split)[rows], split_config, seed)
    image_splits = np.repeat(assignment.split, np.diff(image_offsets))[first]
    return MergeResult(rows, assignment, image_ids, image_offsets, images, source_of_image[first], image_splits, near)


def _distinct_pairs(pairs: np.ndarray) -> np.ndarray:
    """Pairs of image ids without those of one image, of images of dropped samples only (-1), and repetitions."""
    pairs = np.sort(pairs.reshape(-1, 2), axis=1)
    return np.unique(pairs[(pairs[:, 0] >= 0) & (pairs[:, 0] != pairs[:, 1])], axis=0)


def _gather_files(buffer: RecordBuffer, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """File indices of the images of the samples in `rows`, concatenated [m], and the offsets of each sample [n + 1]."""
    offsets = np.asarray(buffer.image_offsets)
    lengths = (offsets[1:] - offsets[:-1])[rows]
    image_offsets = np.concatenate([[0], np.cumsum(lengths)])
    indices = np.repeat(offsets[:-1][rows] - image_offsets[:-1], lengths) + np.arange(image_offsets[-1])
    return np.asarray(buffer.images)[indices], image_offsets


def _groups(
    buffer: RecordBuffer, rows: np.ndarray, image_ids: np.ndarray, image_offsets: np.ndarray, digests: list[str], linked: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Groups of samples that must share a split: those connected through common images, or with the same text if without images.

    Args:
        buffer: All records that were read.
        rows: Positions of the kept samples in it.
        image_ids: Image ids of all kept samples, concatenated.
        image_offsets: Where those of each sample begin and end.
        digests: SHA-256 of each image, of several files with the same pixels the smallest.
        linked: Further pairs of images that must share a split, [p, 2].

    Returns:
        The group of each sample, [n], and the key of each group: the smallest SHA-256 of its images, or of its text.
    """
    counts = np.diff(image_offsets)
    has_images = counts > 0
    first_image = image_ids[image_offsets[:-1][has_images]]
    same_sample = np.column_stack([np.repeat(first_image, counts[has_images]), image_ids])
    connected = connected_groups(len(digests), np.concatenate([linked.reshape(-1, 2), same_sample])).tolist()
    min_digest: dict[int, str] = {}
    for image, group in enumerate(connected):
        min_digest[group] = min(min_digest.get(group, "~"), digests[image])
    ids: dict[str, int] = {}
    group_of_image = np.array([ids.setdefault(min_digest[group], len(ids)) for group in connected], dtype=np.int64)
    groups = np.empty(len(rows), dtype=np.int64)
    groups[has_images] = group_of_image[first_image]
    for k in np.flatnonzero(~has_images):
        groups[k] = ids.setdefault(buffer.text_digests[int(rows[k])], len(ids))
    return groups, list(ids)
