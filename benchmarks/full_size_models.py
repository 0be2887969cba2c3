"""Full-size models with random weights, and the stock model (transformers' LLaVA) on the same weights. Nothing is downloaded."""

import copy
import json
from itertools import chain
from typing import Any, Literal

import bitsandbytes as bnb
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Tokenizer,
    Qwen3Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from errors import UsageError
from model.hub.llava_export import check_llava_compatible, to_llava
from model.quantization import disable_avx512bf16
from model.siglip_qwen.assembly import assemble
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.connectors.connector_factory import num_image_tokens
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import IMAGE_TOKEN_CANDIDATES, Processor
from model.siglip_qwen.tiles_processor import TilesProcessor
from training.tiny_models.architectures import build_qwen3, build_siglip, build_tokenizer, image_processor
from training.tiny_models.data.tokenizer_corpus import tokenizer_corpus
from visual.vision_encoder import VisionTower, grid_side

Size = Literal["tiny", "1.7b", "4b", "8b"]

SIGLIP_SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
}  # fmt: skip
"""SigLIP-so400m/14 at 384 pixels."""

QWEN3: dict[str, dict[str, Any]] = {
    "1.7b": {"hidden_size": 2048, "num_hidden_layers": 28, "intermediate_size": 6144, "num_attention_heads": 16},
    "4b": {"hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728, "num_attention_heads": 32},
    "8b": {"hidden_size": 4096, "num_hidden_layers": 36, "intermediate_size": 12288, "num_attention_heads": 32},
}
"""Configuration values of each Qwen3 size; `_QWEN3` has those that all sizes share. The output layer of 8B alone has its own weights."""

_QWEN3 = {
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "max_position_embeddings": 40_960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}  # fmt: skip


def model_configs(size: Size) -> tuple[SiglipVisionConfig, PreTrainedConfig]:
    """Configurations of the vision encoder and of the language model."""
    tokenizer = build_tokenizer(tokenizer_corpus())
    if size == "tiny":
        vision, language = build_siglip(tokenizer).config.vision_config, build_qwen3(tokenizer).config
    else:
        vision = SiglipVisionConfig(**SIGLIP_SO400M)
        special_tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        language = Qwen3Config(**_QWEN3, **QWEN3[size], **special_tokens, tie_word_embeddings=size != "8b")
    vision.vision_use_head = False
    return vision, language


def build_processor(size: Size, settings: SiglipQwenConfig) -> Processor:
    """Processor with the demo's tokenizer, padded to the language model's vocabulary size, and the encoder's image processor."""
    vision, language = model_configs(size)
    side = grid_side(vision)
    resolution = {"height": vision.image_size, "width": vision.image_size}
    kind: Any = Processor if settings.tiles is None else TilesProcessor
    processor: Processor = kind(
        _pad_vocabulary(build_tokenizer(tokenizer_corpus()), language.vocab_size),
        image_processor("siglip") if size == "tiny" else SiglipImageProcessorPil(size=resolution),
        image_token=IMAGE_TOKEN_CANDIDATES[0],
        tokens_per_image=num_image_tokens(settings.connector, side, settings.drop_first_patch),
        max_length=settings.max_length,
        system_prompt=settings.system_prompt,
        **({} if settings.tiles is None else {"max_tiles": settings.tiles.max}),
    )
    return processor


def build_ours(
    size: Size,
    settings: SiglipQwenConfig,
    processor: Processor,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    load_in_4bit: bool = False,
) -> VisionLanguageModel:
    """Our model with random weights, created directly on `device`.

    Args:
        size: shape of the vision encoder and of the language model.
        settings: `model` section of the configuration.
        processor: gives the id of the image token.
        dtype: of the vision encoder and of the language model; the connector is fp32.
        device: where the weights are created.
        seed: of the random weights.
        load_in_4bit: linear layers of the language model in NF4 with double quantisation, as model.quantization=nf4 loads them.
            At most one decoder layer exists in `dtype` at a time.

    Raises:
        UsageError: settings.quantization is not none.
    """
    check_unquantised(settings)
    torch.manual_seed(seed)
    vision, language = model_configs(size)
    with torch.device(device):
        tower = VisionTower._from_config(vision, dtype=dtype)
        language_model = _build_nf4_model(language, dtype) if load_in_4bit else AutoModelForCausalLM.from_config(language, dtype=dtype)
    model = assemble(settings, tower, language_model, processor.image_token_id)
    model.model.multi_modal_projector.initialize(settings.connector.init, settings.connector.init_std)
    model.model.multi_modal_projector.to(device)
    return model


def check_comparable(settings: SiglipQwenConfig) -> None:
    """Raise UsageError for a setting that the stock model does not support."""
    check_unquantised(settings)
    check_llava_compatible(settings)


def check_unquantised(settings: SiglipQwenConfig) -> None:
    """Raise UsageError if `model.quantization` is set: the random weights are unquantised."""
    if settings.quantization != "none":
        raise UsageError(f"model.quantization: {settings.quantization}, but the benchmark creates unquantised weights; set it to none")


def _build_nf4_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Causal language model whose decoder layers are created and quantised one at a time."""
    depth, layer_types = config.num_hidden_layers, config.layer_types
    config.num_hidden_layers, config.layer_types = 1, layer_types[:1]
    language_model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    # All layers share this configuration, which names the attention implementation.
    shared, layers = language_model.config, language_model.model.layers
    shared.num_hidden_layers, shared.layer_types = depth, layer_types
    quantise(layers[0])
    for i in range(1, depth):
        layer = type(layers[0])(shared, i).to(dtype)
        for module in layer.modules():
            language_model._init_weights(module)
        quantise(layer)
        layers.append(layer)
    disable_avx512bf16(language_model)
    # PEFT reads this attribute.
    language_model.is_loaded_in_4bit = True
    return language_model


def quantise(layer: nn.Module) -> None:
    """Quantise the linear layers of a decoder layer to NF4 with double quantisation, in place."""
    for parent in list(layer.modules()):
        for name, linear in parent.named_children():
            if type(linear) is nn.Linear:
                setattr(parent, name, _to_nf4_linear(linear))


def _to_nf4_linear(linear: nn.Linear) -> nn.Module:
    nf4_linear = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=linear.weight.dtype, quant_type="nf4", device="meta"
    )
    nf4_linear.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=nf4_linear)
    if linear.bias is not None:
        nf4_linear.bias = linear.bias
    quantised: nn.Module = nf4_linear.to(linear.weight.device)
    return quantised.requires_grad_(False)


def build_stock(model: VisionLanguageModel) -> LlavaForConditionalGeneration:
    """transformers' LLaVA with modules of its own that share the tensors of `model`, so that no weight is in memory twice."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return to_llava(copy.deepcopy(model, shared))


def _pad_vocabulary(tokenizer: Qwen2Tokenizer, rows: int) -> Qwen2Tokenizer:
    """Add a token for every unused row of the embedding, so that any output of random weights can be decoded and compared."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"] |= {f"Ġw{i}": i for i in range(len(tokenizer), rows)}
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer
