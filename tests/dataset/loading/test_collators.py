"""Batches: each sample once per epoch, reproducible, equally many on every rank; padded and packed inputs."""

import torch

from dataset.loading.collators import Example, PackedCollator, PaddedCollator
from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample


def example(name: str, length: int, images: int = 1) -> Example:
    ids = list(range(10, 10 + length))
    labels = [IGNORE_INDEX] * (length - 2) + ids[-2:]
    return Example(name, EncodedSample(ids, labels, images), {"pixel_values": torch.full((images, 3, 2, 2), float(length))})


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
