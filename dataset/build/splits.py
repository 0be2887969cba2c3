"""Splits by picture content: samples that share a picture, directly or through others, stand on one side."""

import hashlib
from dataclasses import dataclass

import numpy as np

from dataset.config import Split, SplitConfig

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""By how much a split must be guarded: what one source tests with, no other may train with."""


class Groups:
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
class Assignment:
    """split: place in SPLITS of each sample, [n] int8; moved: whether it left its source's own split for it, [n] bool."""

    split: np.ndarray
    moved: np.ndarray


def assign(groups: np.ndarray, keys: list[str], own: np.ndarray, shares: SplitConfig, seed: int) -> Assignment:
    """Give each sample a split.

    groups: [n] which group a sample belongs to, in 0..len(keys)-1; keys: what stands for a group's content, so that
    neither the order of sources nor further pictures change where it goes; own: [n] place in SPLITS of the sample's own
    split, -1 where its source has none. A group whose samples have splits of their own takes the most guarded of them
    (test before validation before train); any other is drawn by a hash of its key.
    """
    wanted = np.full(len(keys), -1, dtype=np.int8)
    np.maximum.at(wanted, groups, own.astype(np.int8))
    drawn = np.array([_draw(key, shares, seed) if wanted[group] < 0 else wanted[group] for group, key in enumerate(keys)], dtype=np.int8)
    split = drawn[groups]
    return Assignment(split, (own >= 0) & (own != split))


def _draw(key: str, shares: SplitConfig, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    if position < shares.test:
        return SPLITS.index("test")
    return SPLITS.index("validation" if position < shares.test + shares.validation else "train")
