"""Batches: each sample once per epoch, reproducible, equally many on every rank; optimizer steps are the same for any world size."""

from collections.abc import Iterable

import numpy as np
import pytest

from dataset.loading.samplers import (
    BatchingStrategy,
    DistributedBatchSampler,
    LengthGroupedBatching,
    PackedBatching,
    SampleKey,
    StepShape,
    split_largest_batches,
)


def reference_lengths(n: int, seed: int) -> np.ndarray:
    """Lengths like those of the reference data: 729 image tokens, a short question, and a caption or a long answer."""
    rng = np.random.default_rng(seed)
    return 729 + np.where(rng.random(n) < 0.4, rng.integers(22, 42, n), rng.integers(105, 335, n))


def steps(batching: BatchingStrategy, epochs: float, batches: int, micro_batches: int, world_size: int) -> list[list[list[SampleKey]]]:
    """Micro-batches of every optimizer step, of all ranks."""
    shape, samplers = StepShape(batches, micro_batches), []
    for rank in range(world_size):
        sampler = DistributedBatchSampler(batching, epochs, shape, rank, world_size)
        samplers.append(list(sampler))
        assert len(samplers[-1]) == len(sampler)
    assert len({len(rank_batches) for rank_batches in samplers}) == 1, "all ranks have equally many micro-batches"
    chunks = [[rank_batches[i : i + micro_batches] for i in range(0, len(rank_batches), micro_batches)] for rank_batches in samplers]
    made = [[batch for chunk in step for batch in chunk] for step in zip(*chunks, strict=True)]
    assert len(made) == DistributedBatchSampler(batching, epochs, shape, 0, world_size).steps
    return made


def samples(step: Iterable[list[SampleKey]]) -> list[tuple[int, int]]:
    """Supervised samples of a step, sorted, with their epochs."""
    return sorted((key.epoch, key.index) for batch in step for key in batch if key.supervised)


Strategy = type[LengthGroupedBatching] | type[PackedBatching]
STRATEGIES: dict[str, tuple[Strategy, int]] = {"padded": (LengthGroupedBatching, 6), "packed": (PackedBatching, 4096)}


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_sample_is_seen_once_an_epoch(kind: str, world_size: int) -> None:
    strategy, size = STRATEGIES[kind]
    batching = strategy([reference_lengths(203, epoch) for epoch in range(3)], size, 5)
    seen = [sample for step in steps(batching, 3, world_size, 1, world_size) for sample in samples(step)]
    assert sorted(seen) == [(epoch, index) for epoch in range(3) for index in range(203)]


@pytest.mark.parametrize("kind", STRATEGIES)
def test_an_optimizer_step_has_the_same_samples_for_any_number_of_processes(kind: str) -> None:
    strategy, size = STRATEGIES[kind]
    batching = strategy([reference_lengths(203, epoch) for epoch in range(3)], size, 5)
    # Twelve batches a step; of padded ones, a launch may also have micro-batches of another size.
    launches = [(12, 1), (6, 2), (4, 3), (3, 4), (1, 12)] + ([(24, 1), (6, 1), (4, 6), (1, 2)] if kind == "padded" else [])
    expected = [samples(step) for step in steps(batching, 2.5, 12, 12, 1)]
    for micro_batches, world_size in launches:
        made = steps(batching, 2.5, 12, micro_batches, world_size)
        assert [samples(step) for step in made] == expected
        assert all(len(step) == micro_batches * world_size for step in made[:-1])
        if kind == "padded":
            largest = 6 * 12 // (micro_batches * world_size)
            assert max(len(batch) for step in made for batch in step) <= largest
        else:
            lengths = batching.lengths
            assert all(sum(lengths[key.epoch][key.index] for key in batch) <= size for step in made for batch in step)


@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_longer_run_begins_with_the_steps_of_the_shorter_one(kind: str) -> None:
    strategy, size = STRATEGIES[kind]
    lengths = [reference_lengths(203, epoch) for epoch in range(4)]
    short, long = (steps(strategy(lengths[:epochs], size, 5), epochs, 4, 2, 2) for epochs in (2, 4))
    assert long[: len(short) - 1] == short[:-1]
    assert len(long) > len(short)


def test_a_rank_without_a_sample_of_its_own_gets_one_that_is_not_supervised() -> None:
    batching = LengthGroupedBatching([np.array([5, 6])], 4, 0)
    (step,) = steps(batching, 1, 3, 1, 3)
    assert samples(step) == [(0, 0), (0, 1)]
    assert [len(batch) for batch in step] == [1, 1, 1]
    assert sum(not key.supervised for batch in step for key in batch) == 1


def test_batches_are_reproducible_and_differ_between_epochs() -> None:
    batching = LengthGroupedBatching([reference_lengths(100, 0)] * 2, 8, seed=3)
    assert batching.batches(1) == batching.batches(1)
    assert batching.batches(0) != batching.batches(1)


def test_padded_batches_hold_samples_of_similar_length() -> None:
    lengths = reference_lengths(4000, 2)
    batches = LengthGroupedBatching([lengths], 16, seed=0).batches(0)
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    assert padded / lengths.sum() < 1.02


def test_the_largest_batches_are_split_and_a_single_sample_leaves_an_empty_one() -> None:
    first = [[SampleKey(i, 0) for i in range(4)], [SampleKey(5, 0)]]
    assert sorted(map(len, split_largest_batches(first, 3))) == [1, 2, 2]
    assert sorted(map(len, split_largest_batches([[SampleKey(0, 0)], [SampleKey(1, 0)]], 3))) == [0, 1, 1]
