"""Connectors that map each patch, or each neighbourhood of patches, by itself."""

import torch
from torch.nn import functional

from model.siglip_qwen.connectors.mlp import AveragePoolConnector, LinearConnector, MlpConnector, space_to_depth


def test_it_is_two_linear_layers_with_a_gelu_between() -> None:
    connector, features = MlpConnector(8, 6), torch.randn(2, 9, 8)
    expected = connector.linear_2(functional.gelu(connector.linear_1(features)))
    torch.testing.assert_close(connector(features), expected)
    assert set(connector.state_dict()) == {"linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"}


def test_pooling_concatenates_the_patches_of_a_neighbourhood_row_by_row() -> None:
    # A 4 x 4 grid numbered row by row; pool 2 gives its four quarters.
    features = torch.arange(16.0).view(1, 16, 1)
    quarters = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert space_to_depth(features, 2)[0].tolist() == quarters


def test_pooling_keeps_the_features_of_a_patch_together() -> None:
    features = torch.arange(8.0).view(1, 4, 2)
    assert space_to_depth(features, 2)[0].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_a_pooling_connector_gives_one_token_per_neighbourhood() -> None:
    assert MlpConnector(8, 6, pool=3)(torch.randn(2, 81, 8)).shape == (2, 9, 6)


def test_normal_initialisation_has_the_given_standard_deviation_and_zero_bias() -> None:
    connector = MlpConnector(256, 256)
    connector.initialize("normal", 0.01)
    assert 0.0095 < connector.linear_1.weight.std() < 0.0105
    assert not connector.linear_1.bias.any()
    assert not connector.linear_2.bias.any()
    connector.initialize("default", 0.01)
    assert connector.linear_1.weight.std() > 0.03


def test_features_are_cast_to_the_dtype_of_the_connector() -> None:
    assert MlpConnector(8, 6)(torch.randn(1, 4, 8, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_mean_of_a_neighbourhood_is_mapped_like_a_patch() -> None:
    connector, features = AveragePoolConnector(8, 6, pool=2), torch.randn(2, 16, 8)
    quarters = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    means = torch.stack([features[:, quarter].mean(1) for quarter in quarters], dim=1)
    expected = connector.linear_2(functional.gelu(connector.linear_1(means)))
    torch.testing.assert_close(connector(features), expected)


def test_one_linear_layer() -> None:
    connector, features = LinearConnector(8, 6), torch.randn(2, 9, 8)
    torch.testing.assert_close(connector(features), features @ connector.linear.weight.T + connector.linear.bias)
