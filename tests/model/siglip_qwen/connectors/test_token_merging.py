"""The most similar patches are merged."""

import pytest
import torch

from model.siglip_qwen.connectors.token_merging import merge_tokens, num_kept


@pytest.mark.parametrize(("tokens", "ratio", "kept"), [(729, 1.0, 729), (729, 0.5, 365), (36, 0.25, 9), (36, 0.01, 1)])
def test_the_number_that_is_left(tokens: int, ratio: float, kept: int) -> None:
    assert num_kept(tokens, ratio) == kept
    assert merge_tokens(torch.randn(2, tokens, 4), kept).shape == (2, kept, 4)


def test_equal_patches_are_merged_first_and_the_order_stays() -> None:
    torch.manual_seed(0)
    distinct = torch.randn(3, 8, 16)
    doubled = distinct.repeat_interleave(2, dim=1)
    torch.testing.assert_close(merge_tokens(doubled, 8), distinct)


def test_each_is_the_mean_of_its_patches() -> None:
    features = torch.randn(1, 6, 4)
    # Two patches are nearly the same as two others; the pairs are merged, of even and odd positions.
    features[0, 2], features[0, 4] = features[0, 1] + 0.01, features[0, 5] - 0.01
    expected = torch.stack([features[0, 0], features[0, 1] + 0.005, features[0, 3], features[0, 5] - 0.005])
    torch.testing.assert_close(merge_tokens(features, 4)[0], expected)


def test_one_token_is_the_mean_of_all() -> None:
    features = torch.randn(2, 21, 8)
    torch.testing.assert_close(merge_tokens(features, 1), features.mean(1, keepdim=True))


def test_an_image_is_merged_alone_and_gradients_reach_every_patch() -> None:
    features = torch.randn(2, 20, 8, requires_grad=True)
    merged = merge_tokens(features, 7)
    torch.testing.assert_close(merge_tokens(features[1:], 7), merged[1:])
    merged.sum().backward()
    assert features.grad is not None and features.grad.all()


def test_nothing_happens_where_all_are_kept() -> None:
    features = torch.randn(2, 9, 4)
    assert merge_tokens(features, 9) is features
