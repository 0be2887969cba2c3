"""A least-recently-used (LRU) cache of answers, bounded by its size in bytes."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")

ENTRY_OVERHEAD_BYTES = 512
"""Bytes counted for an entry in addition to the size of its value."""


class LruCache(Generic[V]):
    """Caches values of at most `max_bytes` in total and evicts the least recently used ones first. 0 turns the cache off."""

    def __init__(self, max_bytes: int):
        self.max_bytes, self.bytes = max_bytes, 0
        self.hits = self.misses = 0
        self._entries: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        """The cached value; None if there is none."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Hashable, value: V, size: int) -> None:
        """Cache a value of `size` bytes, unless it alone exceeds the limit."""
        size += ENTRY_OVERHEAD_BYTES
        if size > self.max_bytes:
            return
        if key in self._entries:
            self.bytes -= self._entries.pop(key)[1]
        self._entries[key] = value, size
        self.bytes += size
        while self.bytes > self.max_bytes:
            _, (_, old_size) = self._entries.popitem(last=False)
            self.bytes -= old_size

    def __len__(self) -> int:
        return len(self._entries)
