"""Settings that every model family has, and what a family can do. Loads no heavy library."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from config_schema import section

ParamGroup = Literal["vision", "connector", "lora", "language"]
"""Name of a parameter group; each group has its own learning rate."""

TextTemplate = Annotated[str, Field(pattern=r"^[^{}]*\{\}[^{}]*$")]
"""Text that contains {} exactly once."""

Ability = Literal["packed", "cached_features", "compiled", "sharded", "init_from"]
"""What only some families can do: packed rows, cached vision features, compiled layers, weights sharded over processes (FSDP, ZeRO-3),
other weights to start from."""


@section
class LoraConfig:
    """LoRA on linear layers of the language model (Hu et al. 2021, arXiv:2106.09685)."""

    r: Annotated[int, Field(ge=1)] = 64
    """Rank."""
    lora_alpha: Annotated[float, Field(gt=0.0)] = 128
    """The LoRA update is scaled by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Dropout probability on the input of the adapter."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers, such as [q_proj, v_proj]."""
    layers_to_transform: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Numbers of the transformer layers that get adapters, from 0; null = all."""
    use_dora: bool = False
    """Weight-decomposed LoRA (DoRA, arXiv:2402.09353)."""
    use_rslora: bool = False
    """Scale the update by lora_alpha / sqrt(r) (rank-stabilised LoRA, arXiv:2312.03732)."""
    init_lora_weights: Literal["default", "pissa"] = "default"
    """default = the update begins at zero; pissa = adapters begin as the principal components of the weights, which keep the rest (PiSSA,
    arXiv:2404.02948). Not of a quantised model, and not with FSDP or ZeRO-3."""


@section
class FamilyConfig:
    """Settings of every family."""

    base_models: ClassVar[tuple[str, ...]]
    """Keys that name pre-trained models."""
    groups: ClassVar[tuple[ParamGroup, ...]]
    """Parameter groups that can be trained."""
    abilities: ClassVar[frozenset[Ability]] = frozenset()
    """What the family can do beyond training in padded batches."""

    system_prompt: str | None = None
    """System message of every conversation; null for the chat template's default."""
    max_length: Annotated[int, Field(ge=16)] = 2048
    """Maximum length of a sample in tokens, image tokens included."""
    lora: LoraConfig | None = LoraConfig()
    """LoRA adapters; null for none."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """Quantisation of the frozen language model; nf4 uses double quantisation (QLoRA, arXiv:2305.14314)."""
