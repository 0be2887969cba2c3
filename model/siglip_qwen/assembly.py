"""Builds a VisionLanguageModel from a SiglipQwenConfig: pre-trained vision encoder and language model, newly initialised connector.

The model is frozen; the language model is quantised if the config says so. `tokens_per_image` and `language_config`
read the configs of the pre-trained models only, no weights.
"""

import dataclasses
import logging
import tempfile
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from errors import UsageError
from model.family import DEFAULT_OPTIONS, LoadOptions
from model.quantization import Quantization, disable_avx512bf16, quantization_config
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.connectors.connector_factory import num_image_tokens
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.tiles import tile_grid
from model.siglip_qwen.vision_language_config import VisionLanguageConfig, connector_of
from visual import vision_encoder
from visual.pretrained_model import load_model, read_config

LANGUAGE_FAMILIES = ("qwen2", "qwen3")
"""Supported `model_type`: qwen2 (dense causal Qwen 2 and 2.5) and qwen3."""


def tokens_per_image(config: SiglipQwenConfig) -> int:
    """Image tokens per image, or per tile, from the vision encoder's config. Raises UsageError when the settings contradict each other."""
    vision = vision_encoder.vision_config(config.vision)
    vision_encoder.check_feature_layer(vision, config.vision_feature_layer)
    if config.drop_first_patch and vision_encoder.num_prefix_tokens(vision):
        raise UsageError("model.drop_first_patch: a class token is left out in any case; set it to false")
    side = vision_encoder.grid_side(vision, vision_encoder.image_side(config.vision, vision))
    tokens = num_image_tokens(config.connector, side, config.drop_first_patch)
    if config.tiles is not None:
        tile_grid(config.connector, config.tiles.max, vision_encoder.image_side(config.vision, vision), tokens)
    return tokens


def language_config(name: str) -> PreTrainedConfig:
    """Config of a causal Qwen. Raises UsageError when it cannot be loaded or has another `model_type`."""
    return read_config("model.language", name, LANGUAGE_FAMILIES, "a dense causal Qwen 2, 2.5 or 3")


def build(config: SiglipQwenConfig, image_token_id: int, options: LoadOptions = DEFAULT_OPTIONS) -> VisionLanguageModel:
    """Load the pre-trained models, initialise an fp32 connector and freeze everything.

    image_token_id: the processor's. Raises UsageError when a pre-trained model cannot be loaded, or the settings contradict each other.
    """
    tokens_per_image(config)
    if options.load_weights:
        tower = vision_encoder.load(config.vision, dtype=options.weight_dtype, device=options.device)
        language = _load_language_model(config.language, config.quantization, options)
    else:
        vision, text = vision_encoder.vision_config(config.vision), language_config(config.language)
        tower, language = _without_weights(vision, text, dtype=options.weight_dtype)
    model = assemble(config, tower, language, image_token_id, _other_image_size(config.vision, tower.config))
    model.model.multi_modal_projector.initialize(config.connector.init, config.connector.init_std)
    model.model.multi_modal_projector.to(options.device)
    return model


def build_without_weights(config: SiglipQwenConfig, image_token_id: int) -> VisionLanguageModel:
    """The model on the meta device, from the configs of the pre-trained models: shapes without weights, unquantised.

    Raises UsageError as `build` does for settings.
    """
    tokens_per_image(config)
    tower, language = _without_weights(vision_encoder.vision_config(config.vision), language_config(config.language))
    with torch.device("meta"):
        return assemble(config, tower, language, image_token_id, _other_image_size(config.vision, tower.config))


def _other_image_size(name: str, vision: PreTrainedConfig) -> int | None:
    """Side in pixels of the images that a vision encoder gets, where it is another one than it was pre-trained with."""
    side = vision_encoder.image_side(name, vision)
    return None if side == vision.image_size else side


def build_from_model(
    whole: VisionLanguageModel, config: SiglipQwenConfig, options: LoadOptions, language: str | None = None
) -> VisionLanguageModel:
    """As `build`, from the parts of a whole model, its connector included. The parts are taken over, not copied.

    Args:
        whole: unquantised model.
        config: model settings. Their quantisation is applied; their base models are not loaded.
        options: dtype and device.
        language: folder of a language model to use instead of that of `whole`.
    """
    device, dtype = options.device, options.weight_dtype
    if language is not None:
        language_model = _load_language_model(language, config.quantization, options)
    elif config.quantization == "none":
        language_model = causal_language_model(whole).to(device=device, dtype=dtype)
    else:
        # Quantised while it is loaded from files: merging into quantised weights, or quantising in place, would give others.
        with tempfile.TemporaryDirectory() as folder:
            causal_language_model(whole).to(dtype).save_pretrained(folder)
            language_model = _load_language_model(folder, config.quantization, options)
    tower = whole.model.vision_tower.to(device=device, dtype=dtype)
    model = assemble(config, tower, language_model, whole.config.image_token_id, whole.config.image_size)
    model.model.multi_modal_projector.load_state_dict(whole.model.multi_modal_projector.state_dict())
    model.model.multi_modal_projector.to(device)
    return model


def build_shape(config: SiglipQwenConfig, vlm_config: VisionLanguageConfig, options: LoadOptions) -> VisionLanguageModel:
    """The frozen model of a checkpoint's config with its pre-trained weights on the meta device, for a rank that rank 0 sends them to."""
    tower, language = _without_weights(vlm_config.vision_config, vlm_config.text_config, dtype=options.weight_dtype)
    model = assemble(config, tower, language, vlm_config.image_token_id, vlm_config.image_size)
    model.model.multi_modal_projector.to(options.device)
    return model


def _without_weights(vision: PreTrainedConfig, text: PreTrainedConfig, **dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Vision encoder and language model on the meta device. dtype: in place of that of their configs."""
    with torch.device("meta"):
        return vision_encoder.without_weights(vision, **dtype), AutoModelForCausalLM.from_config(text, **dtype)


def causal_language_model(model: VisionLanguageModel) -> PreTrainedModel:
    """The language model of `model` as a stand-alone causal language model; it shares the weights."""
    with torch.device("meta"):
        language: PreTrainedModel = AutoModelForCausalLM.from_config(model.config.text_config)
    language.model, language.lm_head = model.model.language_model, model.lm_head
    language.generation_config = model.generation_config
    return language


def load_encoder(
    config: SiglipQwenConfig, *, dtype: torch.dtype, device: torch.device | str, whole: VisionLanguageModel | None = None
) -> vision_encoder.VisionEncoder:
    """The vision encoder alone; it computes what `VisionLanguageModel.encode_images` computes with these settings.

    whole: take its vision tower instead of loading model.vision.
    """
    tower = vision_encoder.load(config.vision, dtype=dtype, device=device) if whole is None else whole.model.vision_tower.to(device, dtype)
    side = vision_encoder.image_side(config.vision, tower.config) if whole is None else whole.config.image_side
    return vision_encoder.VisionEncoder(tower, config.vision_feature_layer, config.drop_first_patch, side)


def assemble(
    config: SiglipQwenConfig, tower: PreTrainedModel, language: PreTrainedModel, image_token_id: int, image_size: int | None = None
) -> VisionLanguageModel:
    """Combine a loaded vision encoder and language model; frozen, in eval mode, with an fp32 connector on the CPU.

    Args:
        config: model settings.
        tower: vision encoder.
        language: causal language model.
        image_token_id: the processor's image token.
        image_size: side of images in pixels, where it is another one than the vision encoder was pre-trained with.
    """
    vlm_config = VisionLanguageConfig(
        image_size=image_size,
        vision_config=tower.config,
        text_config=language.config,
        image_token_index=image_token_id,
        vision_feature_layer=config.vision_feature_layer,
        drop_first_patch=config.drop_first_patch,
        connector=dataclasses.asdict(config.connector),
        tiles=None if config.tiles is None else config.tiles.max,
        settings=dataclasses.asdict(config),
    )
    with torch.device("meta"):
        model = VisionLanguageModel(vlm_config)
    model.model.vision_tower = tower
    model.model.language_model = language.model
    model.lm_head.weight = language.lm_head.weight
    model.model.multi_modal_projector = connector_of(vlm_config)
    model.generation_config = minimal_generation_config(language)
    # PEFT and the Trainer read these. Not `is_quantized`: with it the Trainer refuses to train the connector alone.
    for attribute in ("is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method", "hf_quantizer"):
        if hasattr(language, attribute):
            setattr(model, attribute, getattr(language, attribute))
    model.requires_grad_(False).eval()
    return model


def minimal_generation_config(language: PreTrainedModel) -> GenerationConfig:
    """The end-of-sequence and padding tokens of the language model, without its sampling defaults.

    Qwen's defaults (temperature, top-k, repetition penalty) would silently change the probability of every candidate answer.
    """
    own = language.generation_config
    eos_token_ids = own.eos_token_id if own is not None else None
    eos_token_ids = language.config.eos_token_id if eos_token_ids is None else eos_token_ids
    first_eos_token_id = eos_token_ids[0] if isinstance(eos_token_ids, list) else eos_token_ids
    pad_token = own.pad_token_id if own is not None and own.pad_token_id is not None else language.config.pad_token_id
    return GenerationConfig(eos_token_id=eos_token_ids, pad_token_id=first_eos_token_id if pad_token is None else pad_token)


def _load_language_model(name: str, quantization: Quantization, options: LoadOptions) -> PreTrainedModel:
    quantized = quantization_config(quantization, options.weight_dtype, skip_modules=["lm_head"], shardable=options.shardable)
    arguments: dict[str, Any] = {"config": language_config(name), "dtype": options.weight_dtype}
    if quantized is not None:
        arguments |= {"quantization_config": quantized, "device_map": {"": options.device}}
    model = load_model("model.language", name, AutoModelForCausalLM, part="language model", **arguments)
    disable_avx512bf16(model)
    if quantization == "int8":
        # LLM.int8() casts inputs to fp16 by design and would warn about it in every layer and forward pass.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    loaded: PreTrainedModel = model if quantized is not None else model.to(options.device)
    return loaded
