"""Splits by picture content: samples that share a picture, directly or through others, stand on one side."""

import hashlib
from dataclasses import dataclass

import numpy as np

from dataset.config import Split, SplitConfig

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""By how much a split must be guarded: what one source tests with, no other may train with."""


class UnionFind:
    """Union-find over pictures (Tarjan 1975, with path halving)."""

    def __init__(self, size: int):
        self._parent = list(range(size))

    def find(self, member: int) -> int:
        """The member that stands for its group."""
        parent = self._parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    def join(self, one: int, other: int) -> None:
        """The groups of both become one."""
        self._parent[self.find(other)] = self.find(one)

    def roots(self) -> np.ndarray:
        """The representative of each member, [size] int64."""
        return np.array([self.find(member) for member in range(len(self._parent))], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class SplitAssignment:
    """split: place in SPLITS of each sample, [n] int8; moved: whether it left its source's own split for it, [n] bool."""

    split: np.ndarray
    moved: np.ndarray


def assign_splits(
    groups: np.ndarray, keys: list[str], source_splits: np.ndarray, split_fractions: SplitConfig, seed: int
) -> SplitAssignment:
    """Give each sample a split.

    groups: [n] which group a sample belongs to, in 0..len(keys)-1; keys: what stands for a group's content, so that
    neither the order of sources nor further pictures change where it goes; own: [n] place in SPLITS of the sample's own
    split, -1 where its source has none. A group whose samples have splits of their own takes the most guarded of them
    (test before validation before train); any other is drawn by a hash of its key.
    """
    required_splits = np.full(len(keys), -1, dtype=np.int8)
    np.maximum.at(required_splits, groups, source_splits.astype(np.int8))
    group_splits = np.array(
        [
            _split_by_hash(key, split_fractions, seed) if required_splits[group] < 0 else required_splits[group]
            for group, key in enumerate(keys)
        ],
        dtype=np.int8,
    )
    split = group_splits[groups]
    return SplitAssignment(split, (source_splits >= 0) & (source_splits != split))


def _split_by_hash(key: str, split_fractions: SplitConfig, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    fraction = int.from_bytes(digest, "big") / 2**64
    if fraction < split_fractions.test:
        return SPLITS.index("test")
    return SPLITS.index("validation" if fraction < split_fractions.test + split_fractions.validation else "train")
