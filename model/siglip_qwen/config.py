"""Settings of our own model: SigLIP vision encoder, connector and Qwen language model."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from config_schema import section
from errors import UsageError
from model.family_config import Ability, FamilyConfig, ParamGroup
from model.family_config import LoraConfig as LoraConfig
from visual.config import ModelNameOrPath


@section
class ConnectorConfig:
    """The two-layer MLP from patch features to word embeddings."""

    pool: Annotated[int, Field(ge=1)] = 1
    """Concatenate pool x pool neighbouring patches into one token; 3 turns 27x27 patches into 81 tokens."""
    init: Literal["default", "normal"] = "default"
    """`default`: torch's initialisation of nn.Linear; `normal`: weights from normal(0, init_std), zero bias."""
    init_std: Annotated[float, Field(gt=0.0)] = 0.01
    """Standard deviation of the weights with `init: normal`."""


@section
class SiglipQwenConfig(FamilyConfig):
    """SigLIP, a connector and a causal Qwen, joined in the LLaVA way."""

    base_models: ClassVar[tuple[str, ...]] = ("vision", "language")
    groups: ClassVar[tuple[ParamGroup, ...]] = ("connector", "lora", "language")
    abilities: ClassVar[frozenset[Ability]] = frozenset(("packed", "cached_features", "compiled", "sharded", "init_from"))

    family: Literal["siglip_qwen"] = "siglip_qwen"
    """The family; siglip_qwen when nothing is said."""
    vision: ModelNameOrPath = "google/siglip-so400m-patch14-384"
    """Vision encoder: a SigLIP or SigLIP 2 of fixed resolution, folder or hub name."""
    language: ModelNameOrPath = "Qwen/Qwen3-1.7B"
    """Language model: a dense causal Qwen 2, 2.5 or 3, folder or hub name."""
    vision_feature_layer: int | Literal["last_hidden_state"] = -2
    """Hidden state of the vision encoder that the connector reads; `last_hidden_state` is the one after the final layer norm."""
    drop_first_patch: bool = False
    """Omit the first patch, as recipes for encoders with a CLS token do. SigLIP has no CLS token."""
    image_token: str = "auto"
    """Placeholder token for a patch. auto: `<|image_pad|>` or `<|extra_0|>` if the vocabulary has one, else added to it."""
    connector: ConnectorConfig = ConnectorConfig()
    """The connector."""


def siglip_qwen_settings(model: FamilyConfig, what: str) -> SiglipQwenConfig:
    """The settings, if they are of our own model. Raises UsageError naming `what` only our own model has."""
    if not isinstance(model, SiglipQwenConfig):
        raise UsageError(f"model.family: {what} needs a model of the family siglip_qwen")
    return model
