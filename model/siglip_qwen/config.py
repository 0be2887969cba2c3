"""Settings of the model: parts, projector, adapters, quantisation."""

from typing import Annotated, Literal

from pydantic import Field

from config_schema import section
from visual.config import ModelNameOrPath


@section
class ConnectorConfig:
    """The two-layer projector from vision features to word embeddings."""

    pool: Annotated[int, Field(ge=1)] = 1
    """Concatenate pool x pool neighbouring patches into one token; 3 turns 27x27 patches into 81 tokens."""
    init: Literal["default", "normal"] = "default"
    """`default`: torch's own; `normal`: weights from normal(0, init_std), zero bias."""
    init_std: Annotated[float, Field(gt=0.0)] = 0.01
    """Standard deviation of `init: normal`."""


@section
class LoraConfig:
    """Low-rank adapters on every linear layer of the language model (Hu et al. 2021, arXiv:2106.09685)."""

    r: Annotated[int, Field(ge=1)] = 64
    """Rank."""
    lora_alpha: Annotated[float, Field(gt=0.0)] = 128
    """Scale; the update is multiplied by alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Dropout before the adapter."""
    use_dora: bool = False
    """Weight-decomposed adapters (DoRA, arXiv:2402.09353)."""


@section
class ModelConfig:
    """The model: its pre-trained parts and what is trained on them."""

    vision: ModelNameOrPath = "google/siglip-so400m-patch14-384"
    """SigLIP or SigLIP 2 of fixed resolution: folder or hub name."""
    language: ModelNameOrPath = "Qwen/Qwen3-1.7B"
    """Causal Qwen (2, 2.5, 3): folder or hub name."""
    vision_feature_layer: int | Literal["last_hidden_state"] = -2
    """Which hidden state of the vision encoder is used; `last_hidden_state` is the one after the final layer norm."""
    drop_first_patch: bool = False
    """Leave the first patch out, as recipes written for encoders with a CLS token do. SigLIP has no CLS token."""
    image_token: str = "auto"
    """Token that stands for a patch: auto = `<|image_pad|>`, else `<|extra_0|>`, else added."""
    system_prompt: str | None = None
    """System message before every conversation; the template's own default when null."""
    max_length: Annotated[int, Field(ge=16)] = 2048
    """Longest sample in tokens, placeholders counted."""
    connector: ConnectorConfig = ConnectorConfig()
    """The projector."""
    lora: LoraConfig | None = LoraConfig()
    """Adapters; null trains none (projector only, or the whole language model)."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """How the frozen language model is loaded; nf4 with double quantisation is QLoRA (arXiv:2305.14314)."""
