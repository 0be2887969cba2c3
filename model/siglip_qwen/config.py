"""Settings of the model: base models, connector, LoRA, quantisation."""

from typing import Annotated, Literal

from pydantic import Field

from config_schema import section
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
class LoraConfig:
    """LoRA on every linear layer of the language model (Hu et al. 2021, arXiv:2106.09685)."""

    r: Annotated[int, Field(ge=1)] = 64
    """Rank."""
    lora_alpha: Annotated[float, Field(gt=0.0)] = 128
    """The LoRA update is scaled by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Dropout probability on the input of the adapter."""
    use_dora: bool = False
    """Weight-decomposed LoRA (DoRA, arXiv:2402.09353)."""


@section
class ModelConfig:
    """The vision-language model: base models, connector and adapters."""

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
    system_prompt: str | None = None
    """System message of every conversation; null for the chat template's default."""
    max_length: Annotated[int, Field(ge=16)] = 2048
    """Maximum length of a sample in tokens, image tokens included."""
    connector: ConnectorConfig = ConnectorConfig()
    """The connector."""
    lora: LoraConfig | None = LoraConfig()
    """LoRA adapters; null for none (training the connector only, or the full language model)."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """Quantisation of the frozen language model; nf4 uses double quantisation (QLoRA, arXiv:2305.14314)."""
