"""How much GPU memory a training step needs, computed from shapes and settings: nothing is run, nothing is measured.

Every layer recomputes its activations, so those of one layer exist at a time, and the inputs of all. In: a size and an
experiment's settings. Out: a table of bytes by what holds them.
"""

import dataclasses
import math
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from benchmarks.benchmark_report import Report, number
from benchmarks.full_size_models import Size, build_ours, build_processor
from model.kernels.chunked_cross_entropy import BYTES_A_SCORE
from model.lora import attach, base_model
from model.siglip_qwen.config import ModelConfig
from model.siglip_qwen.modeling import VisionLanguageModel
from training.config import TrainConfig
from training.optimization.optimizers import bytes_a_weight
from visual.siglip import PICTURES_TOGETHER

HALF, FULL = 2, 4
"""Bytes of a number in bf16 and in fp32."""
BLOCK, BLOCK_OF_SCALES = 64, 256
"""Weights that share a scale in NF4, and scales that share one when they are quantised again (QLoRA, arXiv:2305.14314)."""
TABLES = (16 + 256 + 1) * FULL
"""What bitsandbytes keeps beside a matrix: the values of its 4-bit and 8-bit codes and the mean of the scales, rounded up."""
CONTEXT = 0.6 * 2**30
"""CUDA context with its libraries, and fragments: an assumption."""
COLUMNS = ("what", "GiB")


def plan(size: Size, model: ModelConfig, train: TrainConfig) -> Report:
    """The table of a step over `train.tokens_per_row` tokens. Raises UsageError for settings that have no plan."""
    plain = dataclasses.replace(model, quantization="none")
    ours = build_ours(size, plain, build_processor(size, plain), dtype=torch.bfloat16, device=torch.device("meta"))
    adapted = attach(ours, plain, train.stages[-1].train)
    parts = {**held(adapted, model, train), **passing(adapted, model, train), "CUDA context and fragments (assumed)": CONTEXT}
    rows = [[what, number(size / 2**30, 2)] for what, size in parts.items()]
    total = sum(parts.values())
    facts = {
        "computed": "from shapes and settings; nothing was run",
        "step": f"rows of {train.tokens_per_row:,} tokens, all layers recompute, {train.optimizer}, language model in {model.quantization}",
    }
    return Report(
        f"Memory of a training step, {size}",
        facts,
        COLUMNS,
        [*rows, ["in all", number(total / 2**30, 2)]],
        {"bytes": {**parts, "in all": total}},
    )


def held(model: VisionLanguageModel | PeftModel, settings: ModelConfig, train: TrainConfig) -> dict[str, float]:
    """Bytes that are there all the time. settings: how the language model is loaded."""
    inner = base_model(model)
    matrices = {id(layer.weight): layer.weight for layer in inner.model.language_model.layers.modules() if _is_frozen_linear(layer)}
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    # PEFT keeps the projector that it found.
    others = sum(
        weight.numel() * weight.element_size() for weight in model.parameters() if not weight.requires_grad and id(weight) not in matrices
    )
    tower = sum(weight.numel() for weight in inner.model.vision_tower.parameters()) * HALF
    return {
        "language model's layers": float(sum(bytes_of_matrix(weight.numel(), settings.quantization) for weight in matrices.values())),
        "vision trunk": float(tower),
        "vocabulary, norms": float(others - tower),
        "trained weights and gradients, fp32": float(trained * 2 * FULL),
        "optimizer": float(trained * bytes_a_weight(train)),
    }


def bytes_of_matrix(weights: int, quantization: str) -> int:
    """Of a frozen matrix: bf16, int8 (a scale a row is left out), or NF4 whose scales are quantised again."""
    if quantization != "nf4":
        return weights * (HALF if quantization == "none" else 1)
    scales = math.ceil(weights / BLOCK)
    return math.ceil(weights / 2) + scales + FULL * math.ceil(scales / BLOCK_OF_SCALES) + TABLES


def passing(model: VisionLanguageModel | PeftModel, settings: ModelConfig, train: TrainConfig) -> dict[str, float]:
    """Bytes that come and go in a step."""
    config = base_model(model).config
    text, vision = config.text_config, config.vision_config
    tokens = train.tokens_per_row
    adapters = sum(weight.numel() for name, weight in model.named_parameters() if ".lora_" in name)
    largest = max(layer.weight.numel() for layer in base_model(model).model.language_model.layers.modules() if _is_frozen_linear(layer))
    scores = min(tokens * text.vocab_size * BYTES_A_SCORE, train.logits_memory_gib * 2**30)
    widest = vision.hidden_size * 4 + vision.intermediate_size * 2
    patches = (vision.image_size // vision.patch_size) ** 2
    return {
        "adapters' copies in bf16": float(adapters * HALF),
        "inputs of all layers": float(text.num_hidden_layers * tokens * text.hidden_size * HALF),
        "activations of one layer": float(tokens * kept_a_token(text, settings)),
        "a layer's gradients, twice its widest part in fp32": float(2 * tokens * text.intermediate_size * FULL),
        "a matrix unpacked to bf16": float(largest * HALF) if settings.quantization != "none" else 0.0,
        "scores over the vocabulary, at most": float(scores),
        "vision trunk at work": float(PICTURES_TOGETHER * patches * widest * HALF),
    }


def kept_a_token(text: Any, settings: ModelConfig) -> int:
    """Bytes that a layer keeps of each token for its backward pass, with PEFT's adapters under autocast.

    For each adapted matrix what goes into it behind dropout, in bf16, a mask of what was dropped, and what A makes of it; queries, keys,
    values and what attention gives; the three parts of the gated perceptron; inputs and scaled inputs of the norms in fp32.
    """
    width, inner = text.hidden_size, text.intermediate_size
    heads, shared = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    inputs = 3 * width + heads + 2 * width + inner
    lora = settings.lora
    adapters = 0 if lora is None else inputs * (HALF + (lora.dropout > 0)) + 7 * lora.r * HALF
    # Without quantisation the product with a frozen matrix keeps nothing of its input either: its gradient needs the matrix alone.
    attention = (2 * heads + 2 * shared) * HALF
    norms = 2 * (2 * width + heads + shared) * FULL
    return int(adapters + attention + 3 * inner * HALF + norms)


def _is_frozen_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and not layer.weight.requires_grad
