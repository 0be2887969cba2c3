"""Samples of different lengths in rows of one length, with hardly any room left over.

In: lengths in tokens. Out: which samples stand in which row. Called by the plan of an epoch's packed rows.

A row takes samples as they come, then the longest that still fits (best fit), and then exchanges some of its samples for others by
which it is filled to the last token. Best fit alone, longest samples first, leaves half a sample's room in every row where samples
are all of about one length, as those of one large picture are; and it puts like to like, so that one step of training
sees short answers only and the next none.
"""

from collections import deque

import numpy as np

MAX_SWAPS = 4
"""Samples of a row that may be exchanged for others."""
LONG_DIVISOR = 4
"""A sample of more than a row's fourth is hard to place, so the longest such come first."""

_NO_GAP = np.iinfo(np.int64).max
"""The gap behind an exchange for which there is no other sample."""


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Places of `lengths` in rows of at most `capacity` tokens each, every place in just one.

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
    """Lengths of the samples of the next row."""
    longest = pool.longest(capacity)
    row = [pool.take(longest if longest > capacity // LONG_DIVISOR else pool.next())]
    gap = capacity - row[0]
    while (length := pool.next()) and length <= gap:
        row.append(pool.take(length))
        gap -= length
    if 0 < length < 2 * gap:
        # Most of the next one fits: in it goes, if a long sample can go out for a shorter one.
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
    """The samples that stand in no row yet. Those of one length are as good as each other, so they are counted by length."""

    def __init__(self, lengths: np.ndarray):
        self.count = len(lengths)
        self._counts = np.bincount(lengths)
        # The order in which they come. Lengths that were taken out of turn are passed over.
        self._order = deque(lengths.tolist())
        self._lengths = np.arange(len(self._counts))

    def next(self) -> int:
        """Length of the one that comes next, 0 where none does."""
        while self._order and not self._counts[self._order[0]]:
            self._order.popleft()
        return self._order[0] if self._order else 0

    def longest(self, limit: int) -> int:
        """Length of the longest of at most `most`, 0 where there is none."""
        available = np.flatnonzero(self._counts[: limit + 1])
        return int(available[-1]) if len(available) else 0

    def take(self, length: int) -> int:
        """One of this length; gives its length."""
        self._counts[length] -= 1
        self.count -= 1
        if self._order and self._order[0] == length:
            self._order.popleft()
        return length

    def put_back(self, length: int) -> None:
        """One of this length, which comes last from now on."""
        self._counts[length] += 1
        self.count += 1
        self._order.append(length)

    def swap(self, row: list[int], gap: int) -> int:
        """Exchange that sample of the row by which `gap` becomes the smallest, if it does; the gap then. One below zero, of a row that is
        too long, stays where no exchange makes it fit."""
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
