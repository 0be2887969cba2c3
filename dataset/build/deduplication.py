"""Pictures by content: the same bytes are one picture, whatever names they have; samples that share one stay together."""

from dataclasses import dataclass

import numpy as np

from dataset.build.image_validation import Checked
from dataset.build.record_buffer import Spool
from dataset.build.splits import Assignment, Groups, assign
from dataset.config import SplitConfig


@dataclass(frozen=True, slots=True)
class Merged:
    """What of the spool stays, and as what.

    rows: [n] places in the spool of the samples that stay; assignment: their splits; image_ids, starts: sample k has the
    pictures image_ids[starts[k]:starts[k + 1]]; pictures: one file for each image id; first_source: [images] the source
    that named it first.
    """

    rows: np.ndarray
    assignment: Assignment
    image_ids: np.ndarray
    starts: np.ndarray
    pictures: list[Checked]
    first_source: np.ndarray


def join(spool: Spool, keep: np.ndarray, checked: list[Checked], shares: SplitConfig, seed: int) -> Merged:
    """Number the pictures of the samples that stay by first appearance, and split the samples."""
    rows = np.flatnonzero(keep)
    files, starts = _take(spool, rows)
    numbers: dict[str, int] = {}
    pictures: list[Checked] = []
    for file in dict.fromkeys(files.tolist()):
        if numbers.setdefault(checked[file].sha256, len(pictures)) == len(pictures):
            pictures.append(checked[file])
    image_of = np.array([numbers.get(one.sha256, -1) for one in checked], dtype=np.int64)
    image_ids = image_of[files]
    _, first = np.unique(image_ids, return_index=True)
    source_of_place = np.repeat(np.asarray(spool.source)[rows], np.diff(starts))
    groups, keys = _groups(spool, rows, image_ids, starts, pictures)
    own = np.asarray(spool.own_split)[rows]
    return Merged(rows, assign(groups, keys, own, shares, seed), image_ids, starts, pictures, source_of_place[first])


def _take(spool: Spool, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Picture files of the samples in `rows`, one after another, and where each sample's begin."""
    begins = np.asarray(spool.starts)
    lengths = (begins[1:] - begins[:-1])[rows]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    places = np.repeat(begins[:-1][rows] - starts[:-1], lengths) + np.arange(starts[-1])
    return np.asarray(spool.pictures)[places], starts


def _groups(
    spool: Spool, rows: np.ndarray, image_ids: np.ndarray, starts: np.ndarray, pictures: list[Checked]
) -> tuple[np.ndarray, list[str]]:
    """The group of each sample, [n], and what stands for each group's content: the least SHA-256 of its pictures, or of
    the texts of samples without pictures."""
    union = Groups(len(pictures))
    for k in np.flatnonzero(np.diff(starts) > 1):
        for other in image_ids[starts[k] + 1 : starts[k + 1]]:
            union.join(int(image_ids[starts[k]]), int(other))
    roots = union.roots()
    least: dict[int, str] = {}
    for image, root in enumerate(roots.tolist()):
        least[root] = min(least.get(root, "~"), pictures[image].sha256)
    numbers: dict[str, int] = {}
    group_of_image = np.array([numbers.setdefault(least[root], len(numbers)) for root in roots.tolist()], dtype=np.int64)
    groups = np.empty(len(rows), dtype=np.int64)
    pictured = np.diff(starts) > 0
    groups[pictured] = group_of_image[image_ids[starts[:-1][pictured]]]
    for k in np.flatnonzero(~pictured):
        groups[k] = numbers.setdefault(spool.text_keys[int(rows[k])], len(numbers))
    return groups, list(numbers)
