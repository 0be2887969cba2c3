"""From a ModelConfig to a model: stock pre-trained parts and a fresh projector.

In: names of parts and settings. Out: a frozen VisionLanguageModel, the language model quantised if asked for.
`tokens_per_image` and `vocabulary_rows` need no weights, only the parts' configs.
"""

import dataclasses
import logging
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from errors import UsageError, loading
from model.quantization import Quantization, keep_trainable_on_cpu, quantization_config
from model.siglip_qwen.config import ModelConfig
from model.siglip_qwen.connector import Projector, count_tokens
from model.siglip_qwen.modeling import VisionLanguageConfig, VisionLanguageModel
from visual import siglip

LANGUAGE_FAMILIES = ("qwen2", "qwen3")
"""`model_type` of dense causal Qwen 2 and 2.5 (qwen2), and 3."""


def tokens_per_image(config: ModelConfig) -> int:
    """Placeholders a picture takes, read from the encoder's config. Raises UsageError where settings do not fit."""
    vision = siglip.vision_config(config.vision)
    siglip.check_feature_layer(vision, config.feature_layer)
    return count_tokens(siglip.grid_side(vision), config.projector.pool, config.drop_first_patch)


def vocabulary_rows(config: ModelConfig) -> int:
    """Rows of the language model's embedding, read from its config. Raises UsageError for another family."""
    return int(language_config(config.language).vocab_size)


def language_config(name: str) -> PreTrainedConfig:
    """Config of a causal Qwen. Raises UsageError when it cannot be loaded or is of another family."""
    with loading("model.language", name):
        config = AutoConfig.from_pretrained(name)
    if config.model_type not in LANGUAGE_FAMILIES:
        raise UsageError(f"model.language: {name} is a {config.model_type} model; a dense causal Qwen 2, 2.5 or 3 is expected")
    return config


def default_dtype(device: torch.device | str) -> torch.dtype:
    """Precision of frozen weights: bf16 on CUDA, fp32 elsewhere."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


def build(
    config: ModelConfig, *, placeholder_id: int, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> VisionLanguageModel:
    """Load the parts, make a fresh projector, freeze everything.

    placeholder_id: the token that stands for a patch (the processor's). dtype: of unquantised weights, `default_dtype`
    unless given; the projector is fp32. Raises UsageError when a part cannot be loaded or settings do not fit.
    """
    dtype = dtype or default_dtype(device)
    tokens_per_image(config)
    tower = siglip.load(config.vision, dtype=dtype, device=device)
    language = _load_language(config.language, config.quantization, dtype, device)
    model = assemble(config, tower, language, placeholder_id)
    model.model.multi_modal_projector.initialize(config.projector.init, config.projector.init_std)
    model.model.multi_modal_projector.to(device)
    return model


def load_encoder(config: ModelConfig, *, dtype: torch.dtype, device: torch.device | str) -> siglip.VisionEncoder:
    """The vision half alone: what `VisionLanguageModel.encode_images` of a model of these settings does."""
    return siglip.VisionEncoder(siglip.load(config.vision, dtype=dtype, device=device), config.feature_layer, config.drop_first_patch)


def assemble(config: ModelConfig, tower: PreTrainedModel, language: PreTrainedModel, placeholder_id: int) -> VisionLanguageModel:
    """Join loaded parts; frozen and in eval mode, with an uninitialised fp32 projector on the CPU."""
    joined = VisionLanguageConfig(
        vision_config=tower.config,
        text_config=language.config,
        image_token_index=placeholder_id,
        feature_layer=config.feature_layer,
        drop_first_patch=config.drop_first_patch,
        pool=config.projector.pool,
        settings=dataclasses.asdict(config),
    )
    with torch.device("meta"):
        model = VisionLanguageModel(joined)
    model.model.vision_tower = tower
    model.model.language_model = language.model
    model.lm_head = language.lm_head
    model.model.multi_modal_projector = Projector(tower.config.hidden_size, language.config.hidden_size, joined.pool)
    model.generation_config = plain_generation(language)
    # PEFT and the Trainer look at these. `is_quantized` stays away: with it the Trainer refuses to train the projector alone.
    for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method", "hf_quantizer"):
        if hasattr(language, mark):
            setattr(model, mark, getattr(language, mark))
    model.requires_grad_(False).eval()
    return model


def plain_generation(language: PreTrainedModel) -> GenerationConfig:
    """End and padding tokens of the language model and nothing else.

    Qwen's own defaults (temperature, top-k, a repetition penalty) would silently change every candidate's probability.
    """
    own = language.generation_config
    ends = own.eos_token_id if own is not None else None
    ends = language.config.eos_token_id if ends is None else ends
    first = ends[0] if isinstance(ends, list) else ends
    padding = own.pad_token_id if own is not None and own.pad_token_id is not None else language.config.pad_token_id
    return GenerationConfig(eos_token_id=ends, pad_token_id=first if padding is None else padding)


def _load_language(name: str, quantization: Quantization, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    config = language_config(name)
    options: dict[str, Any] = {"config": config, "dtype": dtype, "output_loading_info": True}
    quantized = quantization_config(quantization, dtype, keep=["lm_head"])
    if quantized is not None:
        options |= {"quantization_config": quantized, "device_map": {"": device}}
    with loading("model.language", name):
        model, report = AutoModelForCausalLM.from_pretrained(name, **options)
    if report["missing_keys"]:
        raise UsageError(f"model.language: {name} lacks weights of the language model, such as {min(report['missing_keys'])}")
    keep_trainable_on_cpu(model)
    if quantization == "int8":
        # It says in every layer and pass that inputs are cast to fp16, which is how this method works.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    loaded: PreTrainedModel = model if quantized is not None else model.to(device)
    return loaded
