"""Blocks are interleaved, ratios are computed per round, and batches are halved until they fit."""

from functools import partial

import pytest
import torch

from benchmarks.timing import Ratio, largest_fitting_batch, matmul_tflops, time_interleaved


def test_every_round_starts_with_another_block() -> None:
    order: list[str] = []

    def block(name: str) -> float:
        order.append(name)
        return float(len(order))

    seconds = time_interleaved({name: partial(block, name) for name in "abc"}, rounds=3)
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert seconds == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}


def test_a_ratio_compares_blocks_of_the_same_round() -> None:
    ratio = Ratio.of(ours=[1.0, 10.0, 1.0], theirs=[2.0, 50.0, 3.0])
    assert (ratio.median, ratio.lowest, ratio.highest) == (3.0, 2.0, 5.0)
    assert str(ratio) == "3.00 (2.00 .. 5.00)"
    with pytest.raises(ValueError):
        Ratio.of([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("limit", "fits", "too_large"), [(16, 16, []), (5, 4, [16, 8]), (1, 1, [16, 8, 4, 2]), (0, None, [16, 8, 4, 2, 1])]
)
def test_a_batch_is_halved_until_it_fits(limit: int, fits: int | None, too_large: list[int]) -> None:
    def attempt(batch: int) -> int:
        if batch > limit:
            raise torch.OutOfMemoryError
        return batch

    assert largest_fitting_batch(attempt, 16) == (fits, too_large)


def test_other_errors_are_not_caught() -> None:
    with pytest.raises(RuntimeError, match="another"):
        largest_fitting_batch(lambda _: (_ for _ in ()).throw(RuntimeError("another")), 4)


def test_tflops_of_a_product_are_operations_divided_by_the_median_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr("benchmarks.timing.timed", lambda *_: next(times))
    assert matmul_tflops(torch.device("cpu"), torch.float32) == pytest.approx(2 * 1024**3 / 3 / 1e12)
