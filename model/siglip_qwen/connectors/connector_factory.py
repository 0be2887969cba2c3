"""Builds the connector that the settings name, and counts its image tokens without building it."""

from errors import UsageError
from model.siglip_qwen.config import ConnectorConfig
from model.siglip_qwen.connectors.connector import Connector
from model.siglip_qwen.connectors.mlp import AveragePoolConnector, LinearConnector, MlpConnector
from model.siglip_qwen.connectors.resampler import ResamplerConnector
from model.siglip_qwen.connectors.token_merging import num_kept


def build_connector(connector: ConnectorConfig, vision_width: int, language_width: int) -> Connector:
    """A new connector between two models of these hidden sizes. Raises UsageError when the attention heads do not divide the width."""
    if connector.kind == "linear":
        return LinearConnector(vision_width, language_width, connector.keep_ratio)
    if connector.kind == "avg_pool":
        return AveragePoolConnector(vision_width, language_width, connector.pool)
    if not connector.has_queries:
        return MlpConnector(vision_width, language_width, connector.pool, connector.keep_ratio)
    if vision_width % connector.num_attention_heads:
        raise UsageError(
            f"model.connector.num_attention_heads: {connector.num_attention_heads} does not divide the vision encoder's hidden size "
            f"{vision_width}"
        )
    sizes = (connector.num_queries, connector.num_layers, connector.num_attention_heads)
    if connector.kind == "resampler":
        return ResamplerConnector(vision_width, language_width, *sizes)
    # Imports BLIP-2, which the other kinds do not need.
    from model.siglip_qwen.connectors.qformer import QFormerConnector

    return QFormerConnector(vision_width, language_width, *sizes)


def num_image_tokens(connector: ConnectorConfig, side: int, drop_first_patch: bool) -> int:
    """Image tokens of an image with side x side patches. Raises UsageError when `pool` does not divide side, or is combined with
    drop_first_patch."""
    if connector.has_queries:
        return connector.num_queries
    if side % connector.pool:
        raise UsageError(
            f"model.connector.pool: {side} x {side} patches cannot be divided into neighbourhoods of {connector.pool} x {connector.pool}"
        )
    if drop_first_patch and connector.pool > 1:
        raise UsageError("model.connector.pool: must be 1 with model.drop_first_patch, which leaves an incomplete grid")
    return num_kept((side // connector.pool) ** 2 - drop_first_patch, connector.keep_ratio)
