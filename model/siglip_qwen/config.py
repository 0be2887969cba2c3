"""Settings of our own model: SigLIP vision encoder, connector and Qwen language model."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from config_schema import section
from errors import UsageError
from model.family_config import Ability, FamilyConfig, ParamGroup
from model.family_config import LoraConfig as LoraConfig
from visual.config import ModelNameOrPath

ConnectorKind = Literal["mlp", "linear", "mlp_pool", "avg_pool", "resampler", "qformer"]


@section
class ConnectorConfig:
    """The connector from patch features to word embeddings."""

    kind: ConnectorKind = "mlp"
    """mlp = two linear layers for each patch (LLaVA-1.5); linear = one (LLaVA); mlp_pool = the features of pool x pool neighbouring
    patches, concatenated, then two layers; avg_pool = their mean, then two layers; resampler = learned queries that read the patches
    (Perceiver Resampler of Flamingo); qformer = the same with BLIP-2's Q-Former."""
    pool: Annotated[int, Field(ge=1)] = 1
    """mlp_pool and avg_pool: side of a neighbourhood of patches that becomes one token; 3 turns 27x27 patches into 81 tokens."""
    keep_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """mlp and linear: share of the patches that is left; the others are merged into the most similar ones (Token Merging,
    arXiv:2210.09461)."""
    num_queries: Annotated[int, Field(ge=1)] = 64
    """resampler and qformer: number of queries, which is the number of tokens of an image."""
    num_layers: Annotated[int, Field(ge=1)] = 2
    """resampler and qformer: number of layers. Every second layer of a Q-Former reads the patches, from the first on."""
    num_attention_heads: Annotated[int, Field(ge=1)] = 8
    """resampler and qformer: number of attention heads; must divide the hidden size of the vision encoder."""
    init: Literal["default", "normal"] = "default"
    """`default`: the initialisation of each layer's class; `normal`: linear layers from normal(0, init_std) with zero bias."""
    init_std: Annotated[float, Field(gt=0.0)] = 0.01
    """Standard deviation of the weights with `init: normal`."""

    @property
    def has_queries(self) -> bool:
        """Whether the number of tokens is that of learned queries, whatever the number of patches."""
        return self.kind in ("resampler", "qformer")

    @model_validator(mode="after")
    def _check_pool(self) -> Self:
        pools = self.kind in ("mlp_pool", "avg_pool")
        if self.pool > 1 and not pools:
            raise ValueError(f"pool {self.pool} needs kind mlp_pool or avg_pool, found {self.kind}")
        if pools and self.pool == 1:
            raise ValueError(f"kind {self.kind} needs pool of 2 or more, found 1")
        if self.keep_ratio < 1.0 and self.kind not in ("mlp", "linear"):
            raise ValueError(f"keep_ratio {self.keep_ratio} needs kind mlp or linear, found {self.kind}")
        return self


@section
class TilesConfig:
    """Larger images: the whole image, and the image cut into tiles of the vision encoder's size (LLaVA-NeXT)."""

    max: Annotated[int, Field(ge=2, le=64)] = 4
    """Most tiles of an image, without the whole image; the grid of tiles that keeps most pixels and wastes least is taken."""


@section
class SiglipQwenConfig(FamilyConfig):
    """SigLIP, a connector and a causal Qwen, joined in the LLaVA way."""

    base_models: ClassVar[tuple[str, ...]] = ("vision", "language")
    groups: ClassVar[tuple[ParamGroup, ...]] = ("vision", "connector", "lora", "language")
    abilities: ClassVar[frozenset[Ability]] = frozenset(("packed", "cached_features", "compiled", "sharded", "init_from"))

    family: Literal["siglip_qwen"] = "siglip_qwen"
    """The family; siglip_qwen when nothing is said."""
    vision: ModelNameOrPath = "google/siglip-so400m-patch14-384"
    """Vision encoder: a SigLIP or SigLIP 2 of fixed resolution, a CLIP, a DINOv2 or a DINOv3 ViT; folder or hub name."""
    language: ModelNameOrPath = "Qwen/Qwen3-1.7B"
    """Language model: a dense causal Qwen 2, 2.5 or 3, folder or hub name."""
    vision_feature_layer: int | Literal["last_hidden_state"] = -2
    """Hidden state of the vision encoder that the connector reads; `last_hidden_state` is the one after the final layer norm."""
    vision_layers: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """What a stage that trains `vision` trains of the vision encoder: its last n layers of those that run, or all with the embeddings."""
    vision_lora: LoraConfig | None = None
    """LoRA on the vision encoder: a stage that trains `vision` trains these adapters instead of its weights. null = the weights."""
    tiles: TilesConfig | None = None
    """Cut images into tiles, for small text and small objects: more tokens, which depend on the size of the image. null = one tile."""
    drop_first_patch: bool = False
    """Omit the first patch, as recipes for encoders with a class token do. SigLIP has none; that of other encoders is left out anyway."""
    image_token: str = "auto"
    """Placeholder token for a patch. auto: `<|image_pad|>` or `<|extra_0|>` if the vocabulary has one, else added to it."""
    connector: ConnectorConfig = ConnectorConfig()
    """The connector."""


def siglip_qwen_settings(model: FamilyConfig, what: str) -> SiglipQwenConfig:
    """The settings, if they are of our own model. Raises UsageError naming `what` only our own model has."""
    if not isinstance(model, SiglipQwenConfig):
        raise UsageError(f"model.family: {what} needs a model of the family siglip_qwen")
    return model
