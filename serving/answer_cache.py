"""A least-recently-used (LRU) cache of answers, bounded by its size in bytes."""

from collections.abc import Hashable
from typing import Generic, TypeVar

from cachetools import LRUCache

V = TypeVar("V")

ENTRY_OVERHEAD_BYTES = 512
"""Bytes counted for an entry in addition to the size of its value."""


class AnswerCache(Generic[V]):
    """Caches values of at most `max_bytes` in total, evicts the least recently used ones first, and counts hits. 0 turns it off."""

    def __init__(self, max_bytes: int):
        self._entries: LRUCache[Hashable, tuple[V, int]] = LRUCache(max_bytes, getsizeof=lambda entry: entry[1])
        self.hits = self.misses = 0

    @property
    def bytes(self) -> int:
        """Size of all entries."""
        return int(self._entries.currsize)

    def get(self, key: Hashable) -> V | None:
        """The cached value; None if there is none."""
        entry = self._entries.get(key)
        self.hits, self.misses = self.hits + (entry is not None), self.misses + (entry is None)
        return None if entry is None else entry[0]

    def put(self, key: Hashable, value: V, size: int) -> None:
        """Cache a value of `size` bytes, unless it alone exceeds the limit."""
        size += ENTRY_OVERHEAD_BYTES
        if size <= self._entries.maxsize:
            self._entries[key] = value, size
