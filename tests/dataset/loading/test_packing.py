"""Packing: every sample in one row, no row too long, hardly any room left over, and rows of mixed samples."""

import numpy as np
import pytest

from dataset.loading.packing import pack
from dataset.loading.samplers import PackedBatching
from tests.dataset.loading.test_collators import reference_lengths


def empty(lengths: np.ndarray, rows: list[list[int]], capacity: int) -> float:
    """Share of all positions at which no sample stands."""
    return float(1 - lengths.sum() / (capacity * len(rows)))


def fewest(lengths: np.ndarray, capacity: int) -> int:
    """Rows that there must be."""
    return int(-(-lengths.sum() // capacity))


RANDOM = np.random.default_rng(0)
MIXES = {
    "reference": reference_lengths(3000, 0),
    "short": reference_lengths(3000, 0) - 648,
    "lognormal": np.clip(RANDOM.lognormal(6, 0.8, 3000).astype(int), 8, 4096),
    "uniform": RANDOM.integers(1, 4097, 3000),
    "two kinds": np.where(RANDOM.random(3000) < 0.5, 2500, 600) + RANDOM.integers(0, 60, 3000),
    "one length": np.full(3000, 880),
    "whole rows": np.full(5, 4096),
    "one sample": np.array([7]),
}


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("capacity", [4096, 16_384])
def test_every_sample_stands_in_one_row_and_no_row_overflows(name: str, capacity: int) -> None:
    lengths = MIXES[name]
    rows = pack(lengths, capacity)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert max(int(lengths[row].sum()) for row in rows) <= capacity


@pytest.mark.parametrize(("capacity", "most"), [(4096, 0.015), (8192, 0.008), (16_384, 0.003)])
def test_hardly_any_position_is_empty_on_the_reference_mix(capacity: int, most: float) -> None:
    lengths = reference_lengths(20_000, 1)
    assert empty(lengths, PackedBatching([lengths], capacity, seed=0).batches(0), capacity) <= most


@pytest.mark.parametrize("name", ["short", "lognormal"])
def test_short_samples_fill_rows_to_the_last_token(name: str) -> None:
    lengths = MIXES[name]
    assert len(pack(lengths, 16_384)) == fewest(lengths, 16_384)


def test_long_samples_are_not_left_until_nothing_fits_beside_them() -> None:
    lengths = RANDOM.integers(1, 4097, 8000)
    assert empty(lengths, pack(lengths, 8192), 8192) <= 0.003


def test_a_few_samples_take_as_few_rows_as_they_can() -> None:
    lengths = reference_lengths(130, 3)
    assert len(pack(lengths, 16_384)) == fewest(lengths, 16_384)


def test_a_sample_is_exchanged_for_a_longer_one_that_fills_the_row() -> None:
    # As they come, 6 and 2 leave room of 2; exchanged for the 4, the 2 goes into the other row.
    assert sorted(map(sorted, pack(np.array([6, 2, 3, 5, 4]), 10))) == [[0, 4], [1, 2, 3]]


def test_a_sample_as_long_as_the_row_fills_it() -> None:
    assert sorted(map(sorted, pack(np.array([10, 4, 6, 10]), 10))) == [[0], [1, 2], [3]]


def test_rows_mix_long_samples_with_short_ones() -> None:
    """Otherwise a step of training would see captions alone, and the next none."""
    lengths = reference_lengths(4000, 4)
    share = float((lengths < 800).mean())
    shares = [float((lengths[row] < 800).mean()) for row in pack(lengths, 16_384)]
    assert np.std(shares) < 1.5 * np.sqrt(share * (1 - share) / (16_384 / lengths.mean()))
