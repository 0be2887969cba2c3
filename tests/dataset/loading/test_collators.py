"""Batches: each sample once per epoch, reproducible, equally many on every rank; padded and packed inputs."""

import numpy as np
import pytest
import torch

from dataset.loading.collators import Example, PackedCollator, PaddedCollator
from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample
from dataset.loading.samplers import DistributedBatchSampler, LengthGroupedBatching, PackedBatching, split_largest_batches
from errors import UsageError


def reference_lengths(n: int, seed: int) -> np.ndarray:
    """Lengths like those of the reference data: 729 image tokens, a short question, and a caption or a long answer."""
    rng = np.random.default_rng(seed)
    return 729 + np.where(rng.random(n) < 0.4, rng.integers(22, 42, n), rng.integers(105, 335, n))


def example(name: str, length: int, images: int = 1) -> Example:
    ids = list(range(10, 10 + length))
    labels = [IGNORE_INDEX] * (length - 2) + ids[-2:]
    return Example(name, EncodedSample(ids, labels, images), torch.full((images, 3, 2, 2), float(length)))


@pytest.mark.parametrize("plan", [LengthGroupedBatching, PackedBatching])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_rank_gets_equally_many_batches_and_every_sample_is_seen_once(plan: type, world_size: int) -> None:
    lengths = [reference_lengths(203, epoch) for epoch in range(3)]
    size = 4096 if plan is PackedBatching else 7
    counts = set()
    for epoch in range(3):
        seen: list[int] = []
        for rank in range(world_size):
            batches = DistributedBatchSampler(plan(lengths, size, 5), 3, rank, world_size)
            batches.set_epoch(epoch)
            rank_batches = list(batches)
            assert len(rank_batches) == len(batches)
            counts.add(len(rank_batches))
            seen += [index for batch in rank_batches for index, _ in batch]
        assert sorted(seen) == list(range(203))
    assert len(counts) == 1


def test_batches_are_reproducible_and_differ_between_epochs() -> None:
    batching = LengthGroupedBatching([reference_lengths(100, 0)] * 2, 8, seed=3)
    assert batching.batches(1) == batching.batches(1)
    assert batching.batches(0) != batching.batches(1)


def test_padded_batches_hold_samples_of_similar_length() -> None:
    lengths = reference_lengths(4000, 2)
    batches = LengthGroupedBatching([lengths], 16, seed=0).batches(0)
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    assert padded / lengths.sum() < 1.02


def test_every_index_comes_with_its_epoch() -> None:
    batches = DistributedBatchSampler(LengthGroupedBatching([np.ones(4, dtype=int)] * 2, 2, 0), 2)
    batches.set_epoch(1)
    assert {epoch for batch in batches for _, epoch in batch} == {1}


def test_the_largest_batches_are_split_and_too_few_samples_are_an_error() -> None:
    assert sorted(map(len, split_largest_batches([[1, 2, 3, 4], [5]], 3))) == [1, 2, 2]
    with pytest.raises(UsageError, match="2 training samples are too few for 3 batches"):
        split_largest_batches([[1], [2]], 3)


def test_padding_is_neither_attended_to_nor_supervised() -> None:
    batch = PaddedCollator(pad_id=0)([example("a", 5), example("b", 3, images=2)])
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13, 14], [10, 11, 12, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE_INDEX] * 3 + [13, 14], [IGNORE_INDEX, 11, 12, IGNORE_INDEX, IGNORE_INDEX]]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [5.0, 3.0, 3.0]
    assert batch["sample_ids"] == ["a", "b"]


def test_a_packed_row_restarts_positions_and_its_padding_forms_segments() -> None:
    batch = PackedCollator(pad_id=0, capacity=16, max_length=5)([example("a", 5), example("b", 3)])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2]]
    assert batch["cu_seqlens"].tolist() == [0, 5, 8, 13, 16]
    assert batch["input_ids"].shape == batch["labels"].shape == (1, 16)
    assert batch["labels"][0, 8:].unique().tolist() == [IGNORE_INDEX]


def test_the_first_token_of_a_packed_sample_is_never_supervised() -> None:
    """Otherwise the last position of one sample would be trained to predict the first token of the next."""
    batch = PackedCollator(pad_id=0, capacity=8, max_length=8)([example("a", 4), example("b", 4)])
    assert batch["labels"][0, 4].item() == IGNORE_INDEX
