"""The config of our own model, as `config.json` of a checkpoint holds it, and the connector that it describes."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from model.family_config import ParamGroup
from model.siglip_qwen.config import ConnectorConfig
from model.siglip_qwen.connectors.connector import Connector
from model.siglip_qwen.connectors.connector_factory import build_connector, num_image_tokens
from model.siglip_qwen.tiles import TileConnector, TileGrid, tile_grid
from renamed_keys import with_connector_kind, with_new_keys
from visual import vision_encoder


class VisionLanguageConfig(PreTrainedConfig):
    """Configs of the vision encoder and the language model, and the fields of SiglipQwenConfig that `forward` reads.

    image_size: side of the images in pixels, where it is another one than the vision encoder was pre-trained with.
    settings: the whole SiglipQwenConfig as plain values; loading a checkpoint rebuilds the model from it.
    language_weights: the checkpoint contains the language model, trained in full.
    vision_weights: the checkpoint contains weights of the vision encoder, trained in full.
    adapter_groups: parameter groups with LoRA.
    base_folder: path and sha256 of the folder whose whole model is the base, in place of the models that `settings` names."""

    model_type = "tessera"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": AutoConfig, "text_config": AutoConfig}
    attribute_map: ClassVar[dict[str, str]] = {"image_token_id": "image_token_index"}

    vision_config: Any = None
    image_size: int | None = None
    text_config: Any = None
    image_token_index: int = 0
    vision_feature_layer: vision_encoder.FeatureLayer = -2
    drop_first_patch: bool = False
    connector: dict[str, Any] | None = None
    tiles: int | None = None
    tie_word_embeddings: bool = False
    settings: dict[str, Any] | None = None
    language_weights: bool = False
    vision_weights: bool = False
    adapter_groups: tuple[ParamGroup, ...] | list[ParamGroup] = ("lora",)
    base_folder: dict[str, str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_feature_layer = kwargs.pop("feature_layer", self.vision_feature_layer)  # schema version 1
        self.settings = with_connector_kind(with_new_keys("model", self.settings))
        pool = kwargs.pop("pool", 1)  # before there were several kinds of connectors
        if self.connector is None:
            self.connector = {"kind": "mlp_pool", "pool": pool} if pool > 1 else {}
        if isinstance(self.vision_config, dict):
            self.vision_config = AutoConfig.for_model(**{"model_type": "siglip_vision_model"} | self.vision_config)
        if isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**self.text_config)
        if self.text_config is not None:
            self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        super().__post_init__(**kwargs)

    @property
    def image_side(self) -> int:
        """Side of the images in pixels."""
        return int(self.image_size or self.vision_config.image_size)

    @property
    def tile_grid(self) -> TileGrid:
        """The grids of tiles of a model that has any."""
        assert self.tiles is not None
        side = vision_encoder.grid_side(self.vision_config, self.image_side)
        tokens = num_image_tokens(self.connector_config, side, self.drop_first_patch)
        return tile_grid(self.connector_config, self.tiles, self.image_side, tokens)

    @property
    def connector_config(self) -> ConnectorConfig:
        return ConnectorConfig(**(self.connector or {}))


def connector_of(config: VisionLanguageConfig) -> Connector:
    """A new connector of a model."""
    language_width = config.text_config.hidden_size
    connector = build_connector(config.connector_config, config.vision_config.hidden_size, language_width)
    return connector if config.tiles is None else TileConnector(connector, config.tile_grid, language_width)
