"""Models of full size with random weights, and the stock model around the same weights.

In: a size and the model's settings. Out: our model, its processor, and transformers' own LLaVA. Nothing is downloaded.
"""

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
from model.hub.llava_export import check_expressible, to_llava
from model.quantization import keep_trainable_on_cpu
from model.siglip_qwen.assembly import assemble
from model.siglip_qwen.config import ModelConfig
from model.siglip_qwen.connector import count_tokens
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import PLACEHOLDERS, Processor
from training.tiny_models.architectures import build_qwen3, build_siglip, build_tokenizer, image_processor
from training.tiny_models.data.tokenizer_corpus import tokenizer_corpus
from visual.siglip import VisionTower, grid_side

Size = Literal["tiny", "1.7b", "4b", "8b"]

SIGLIP_SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
}  # fmt: skip
"""SigLIP-so400m/14 at 384 pixels."""

QWEN3: dict[str, dict[str, Any]] = {
    "1.7b": {
        "hidden_size": 2048,
        "num_hidden_layers": 28,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "4b": {"hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728, "num_attention_heads": 32, "tie_word_embeddings": True},
    "8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}
"""Where the sizes of Qwen3 differ; see `_QWEN3` for what they share."""

_QWEN3 = {
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "max_position_embeddings": 40_960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}  # fmt: skip


def shapes(size: Size) -> tuple[SiglipVisionConfig, PreTrainedConfig]:
    """Configs of the vision encoder and of the language model."""
    tokenizer = build_tokenizer(tokenizer_corpus())
    if size == "tiny":
        vision, language = build_siglip(tokenizer).config.vision_config, build_qwen3(tokenizer).config
    else:
        vision = SiglipVisionConfig(**SIGLIP_SO400M)
        ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        language = Qwen3Config(**_QWEN3, **QWEN3[size], **ends)
    vision.vision_use_head = False
    return vision, language


def build_processor(size: Size, settings: ModelConfig) -> Processor:
    """The demo's tokenizer with as many entries as the language model has rows, and the encoder's image processor."""
    vision, language = shapes(size)
    side = grid_side(vision)
    resolution = {"height": vision.image_size, "width": vision.image_size}
    return Processor(
        _widen(build_tokenizer(tokenizer_corpus()), language.vocab_size),
        image_processor("siglip") if size == "tiny" else SiglipImageProcessorPil(size=resolution),
        placeholder=PLACEHOLDERS[0],
        tokens_per_image=count_tokens(side, settings.projector.pool, settings.drop_first_patch),
        max_tokens=settings.max_tokens,
        system_prompt=settings.system_prompt,
    )


def build_ours(
    size: Size,
    settings: ModelConfig,
    processor: Processor,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    four_bits: bool = False,
) -> VisionLanguageModel:
    """Our model with random weights, made in `dtype` where they are to stay. Raises UsageError for settings that it cannot take.

    four_bits: the linear layers of the language model in NF4 with quantised scales, as `model.build` loads them for
    model.quantization=nf4. No more than one layer ever exists in `dtype`.
    """
    check_unquantised(settings)
    torch.manual_seed(seed)
    vision, language = shapes(size)
    with torch.device(device):
        tower = VisionTower._from_config(vision, dtype=dtype)
        causal = _in_four_bits(language, dtype) if four_bits else AutoModelForCausalLM.from_config(language, dtype=dtype)
    model = assemble(settings, tower, causal, processor.placeholder_id)
    model.model.multi_modal_projector.initialize(settings.projector.init, settings.projector.init_std)
    model.model.multi_modal_projector.to(device)
    return model


def check_comparable(settings: ModelConfig) -> None:
    """Raise UsageError naming the setting that the stock model cannot be given, too."""
    check_unquantised(settings)
    check_expressible(settings)


def check_unquantised(settings: ModelConfig) -> None:
    """Raise UsageError where weights are to be loaded in few bits: here they are made."""
    if settings.quantization != "none":
        raise UsageError(f"model.quantization: {settings.quantization}, but the benchmark makes unquantised weights; set it to none")


def _in_four_bits(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A causal language model whose layers are made and quantised one by one."""
    depth, kinds = config.num_hidden_layers, config.layer_types
    config.num_hidden_layers, config.layer_types = 1, kinds[:1]
    causal: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    # All layers share this one, which says how they attend.
    shared, layers = causal.config, causal.model.layers
    shared.num_hidden_layers, shared.layer_types = depth, kinds
    quantise(layers[0])
    for i in range(1, depth):
        layer = type(layers[0])(shared, i).to(dtype)
        for module in layer.modules():
            causal._init_weights(module)
        quantise(layer)
        layers.append(layer)
    keep_trainable_on_cpu(causal)
    # PEFT looks at it.
    causal.is_loaded_in_4bit = True
    return causal


def quantise(layer: nn.Module) -> None:
    """The linear layers of a decoder layer in NF4 with quantised scales, in place."""
    for parent in list(layer.modules()):
        for name, linear in parent.named_children():
            if type(linear) is nn.Linear:
                setattr(parent, name, _linear_in_four_bits(linear))


def _linear_in_four_bits(linear: nn.Linear) -> nn.Module:
    made = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=linear.weight.dtype, quant_type="nf4", device="meta"
    )
    made.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=made)
    if linear.bias is not None:
        made.bias = linear.bias
    quantised: nn.Module = made.to(linear.weight.device)
    return quantised.requires_grad_(False)


def build_stock(model: VisionLanguageModel) -> LlavaForConditionalGeneration:
    """transformers' LLaVA with modules of its own around the very tensors of `model`, which take no memory twice."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return to_llava(copy.deepcopy(model, shared))


def _widen(tokenizer: Qwen2Tokenizer, rows: int) -> Qwen2Tokenizer:
    """Every row of the embedding gets a text, so that whatever random weights say can be read and compared."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"] |= {f"Ġw{i}": i for i in range(len(tokenizer), rows)}
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer
