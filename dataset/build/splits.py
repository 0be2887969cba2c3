"""Assign splits by image content: samples that share an image, directly or through other samples, get the same split.

Shapes: n samples.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from dataset.config import SplitConfig
from dataset.source_base import Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""In ascending priority: an image that one source tests on must not be trained on by another."""


def assign_splits(groups: np.ndarray, keys: list[str], source_splits: np.ndarray, split_fractions: SplitConfig, seed: int) -> np.ndarray:
    """The split of each sample, an index into SPLITS, int8 [n].

    A group whose samples have splits of their own gets the one of highest priority (test, validation, train). For any other
    group a hash of its key decides, so neither the order of sources nor additional images change the result.

    Args:
        groups: Group of each sample, in 0..len(keys)-1, [n].
        keys: Digest of the content of each group.
        source_splits: Own split of each sample as an index into SPLITS, -1 for none, [n].
        split_fractions: Fractions of the groups by split.
        seed: Seed of the hash.
    """
    group_splits = np.full(len(keys), -1, dtype=np.int8)
    np.maximum.at(group_splits, groups, source_splits.astype(np.int8))
    for group in np.flatnonzero(group_splits < 0):
        group_splits[group] = SPLITS.index(split_by_hash(keys[group], split_fractions, seed))
    return np.asarray(group_splits[groups])


def text_digest(contents: Sequence[str], targets: Sequence[str]) -> str:
    """SHA-256 of the texts of a sample without images: the contents of its turns and its targets."""
    return hashlib.sha256("\0".join((*contents, *targets)).encode()).hexdigest()


def split_by_hash(key: str, split_fractions: SplitConfig, seed: int) -> Split:
    """The split of a group that has none of its own, by the digest of its content."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    fraction = int.from_bytes(digest, "big") / 2**64
    if fraction < split_fractions.test:
        return "test"
    return "validation" if fraction < split_fractions.test + split_fractions.validation else "train"
