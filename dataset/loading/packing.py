"""Bin packing: distribute samples of different lengths over rows of equal capacity with little padding.

A row takes samples in random order, then the longest that still fits (best fit), and then swaps some of its samples for
others that fill it to the last token. Best-fit decreasing alone would leave half a sample of padding per row when all samples
have about the same length, as with one large image each. It would also group samples by length, so that one training
step saw only short answers and the next none.
"""

from collections import deque

import numpy as np

MAX_SWAPS = 4
"""Most samples of a row that are swapped for others."""
LONG_DIVISOR = 4
"""Samples longer than `capacity / LONG_DIVISOR` are hard to place, so the longest of them start a row."""

_NO_GAP = np.iinfo(np.int64).max
"""Gap of a swap that is impossible because there is no partner."""


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Indices into `lengths` for each row; every index is in exactly one row, and no row exceeds `capacity` tokens.

    lengths: int [n], from 1 to `capacity`, in random order.
    """
    pool = _LengthPool(lengths)
    rows: list[list[int]] = []
    while pool.count:
        rows.append(_fill_row(pool, capacity))
    indices: dict[int, list[int]] = {}
    for index, length in enumerate(lengths.tolist()):
        indices.setdefault(length, []).append(index)
    return [[indices[length].pop() for length in row] for row in rows]


def _fill_row(pool: "_LengthPool", capacity: int) -> list[int]:
    """Remove the samples of one row from the pool; returns their lengths."""
    longest = pool.longest(capacity)
    row = [pool.take(longest if longest > capacity // LONG_DIVISOR else pool.next())]
    gap = capacity - row[0]
    while (length := pool.next()) and length <= gap:
        row.append(pool.take(length))
        gap -= length
    if 0 < length < 2 * gap:
        # More than half of the next sample fits: take it if swapping a long sample for a shorter one makes the row fit.
        extended = [*row, pool.take(length)]
        remaining = pool.swap(extended, gap - length)
        if remaining >= 0:
            row, gap = extended, remaining
        else:
            pool.put_back(length)
    while length := pool.longest(gap):
        row.append(pool.take(length))
        gap -= length
    for _ in range(MAX_SWAPS):
        before, gap = gap, pool.swap(row, gap)
        if gap == before:
            break
    return row


class _LengthPool:
    """The samples that are in no row yet, counted by length: samples of equal length are interchangeable."""

    def __init__(self, lengths: np.ndarray):
        self.count = len(lengths)
        self._counts = np.bincount(lengths)
        # Random order of the lengths. Lengths that have been taken already are skipped.
        self._order = deque(lengths.tolist())
        self._lengths = np.arange(len(self._counts))

    def next(self) -> int:
        """Length of the next sample in order, 0 when the pool is empty."""
        while self._order and not self._counts[self._order[0]]:
            self._order.popleft()
        return self._order[0] if self._order else 0

    def longest(self, limit: int) -> int:
        """Largest length up to `limit`, 0 when there is none."""
        available = np.flatnonzero(self._counts[: limit + 1])
        return int(available[-1]) if len(available) else 0

    def take(self, length: int) -> int:
        """Remove a sample of this length; returns the length."""
        self._counts[length] -= 1
        self.count -= 1
        if self._order and self._order[0] == length:
            self._order.popleft()
        return length

    def put_back(self, length: int) -> None:
        """Return a sample of this length to the pool, at the end of the order."""
        self._counts[length] += 1
        self.count += 1
        self._order.append(length)

    def swap(self, row: list[int], gap: int) -> int:
        """Swap the one sample of the row that makes `gap` smallest but not negative. Returns the new gap.

        gap: Free tokens of the row; negative when the row is too long. Unchanged when no swap helps.
        """
        if gap == 0 or not self.count:
            return gap
        longest = np.maximum.accumulate(np.where(self._counts > 0, self._lengths, 0))
        row_lengths = np.array(row)
        partners = longest[np.clip(row_lengths + gap, 0, len(longest) - 1)]
        gaps = np.where(partners > 0, gap + row_lengths - partners, _NO_GAP)
        index = int(gaps.argmin())
        if gaps[index] >= (gap if gap > 0 else _NO_GAP):
            return gap
        partner = self.take(int(partners[index]))
        self.put_back(row[index])
        row[index] = partner
        return int(gaps[index])
