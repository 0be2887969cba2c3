"""Estimate of the GPU memory of a training step, computed from shapes and settings without running anything.

Activation checkpointing of all layers is assumed: the inputs of all layers are in memory, and the activations of one layer at a time.
"""

import dataclasses
import math
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from benchmarks.benchmark_report import BenchmarkReport, format_number
from benchmarks.full_size_models import Size, build_ours, build_processor
from model.family_config import FamilyConfig
from model.kernels.chunked_cross_entropy import BYTES_PER_LOGIT
from model.lora import checkpointed_layers
from model.param_groups import unwrapped
from model.siglip_qwen.adapters import base_model, configure_trainable
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.modeling import VisionLanguageModel
from training.config import TrainConfig
from training.optimization.optimizers import optimizer_bytes_per_parameter
from visual.siglip import COMPILED_BATCH_SIZE

BF16_BYTES, FP32_BYTES = 2, 4
"""Bytes per element."""
NF4_BLOCK_SIZE, NF4_SCALE_BLOCK_SIZE = 64, 256
"""Weights per scale in NF4, and scales per second-level scale with double quantisation (QLoRA, arXiv:2305.14314, section 3)."""
NF4_TABLE_BYTES = (16 + 256 + 1) * FP32_BYTES
"""What bitsandbytes stores in addition per matrix: the 4-bit and 8-bit code tables and the mean of the scales, rounded up."""
CUDA_CONTEXT_BYTES = 0.6 * 2**30
"""Assumed size of the CUDA context with its libraries, and of allocator fragmentation."""
COLUMNS = ("what", "GiB")
VISION_NAMES = ("vision_tower", ".visual.", "vision_model.")
"""Parts of the names of the vision encoder's weights, in all families."""


def estimate_memory(size: Size, model: SiglipQwenConfig, train: TrainConfig) -> BenchmarkReport:
    """Table of the memory of a training step: a packed row, or with train.batching=padded a batch of the longest samples."""
    plain = dataclasses.replace(model, quantization="none")
    ours = build_ours(size, plain, build_processor(size, plain), dtype=torch.bfloat16, device=torch.device("meta"))
    adapted = configure_trainable(ours, plain, train.stages[-1].train)
    parts = {
        **persistent_bytes(adapted, model, train),
        **transient_bytes(adapted, model, train),
        "CUDA context and fragments (assumed)": CUDA_CONTEXT_BYTES,
    }
    return memory_report(size, _micro_batch(model, train), parts, model, train)


def memory_report(size: str, batch: str, parts: dict[str, float], model: FamilyConfig, train: TrainConfig) -> BenchmarkReport:
    """Table of the parts, in bytes, of the memory of a training step over a micro-batch, which `batch` describes."""
    rows = [[what, format_number(bytes_ / 2**30, 2)] for what, bytes_ in parts.items()]
    total = sum(parts.values())
    facts = {
        "computed": "from shapes and settings; nothing was run",
        "step": f"{batch}, all layers checkpointed, {train.optim}, language model in {model.quantization}",
    }
    return BenchmarkReport(
        f"Memory of a training step, {size}",
        facts,
        COLUMNS,
        [*rows, ["in all", format_number(total / 2**30, 2)]],
        {"bytes": {**parts, "in all": total}},
    )


def persistent_bytes(model: nn.Module, settings: FamilyConfig, train: TrainConfig) -> dict[str, float]:
    """Bytes that are allocated during the whole training."""
    matrices = {id(layer.weight): layer.weight for layer in _linear_layers(model) if _is_frozen_linear(layer)}
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    # PEFT keeps a frozen copy of the original connector.
    others = sum(
        weight.numel() * weight.element_size() for weight in model.parameters() if not weight.requires_grad and id(weight) not in matrices
    )
    vision = {id(weight): weight for name, weight in model.named_parameters() if any(part in name for part in VISION_NAMES)}
    tower = sum(weight.numel() for weight in vision.values() if not weight.requires_grad) * BF16_BYTES
    return {
        "language model's layers": float(sum(weight_matrix_bytes(weight.numel(), settings.quantization) for weight in matrices.values())),
        "vision encoder": float(tower),
        "vocabulary, norms": float(others - tower),
        "trained weights and gradients, fp32": float(trained * 2 * FP32_BYTES),
        "optimizer": float(trained * optimizer_bytes_per_parameter(train)),
    }


def weight_matrix_bytes(weights: int, quantization: str) -> int:
    """Bytes of a frozen matrix in bf16, int8 (without the scale per row) or NF4 with double quantisation."""
    if quantization != "nf4":
        return weights * (BF16_BYTES if quantization == "none" else 1)
    scales = math.ceil(weights / NF4_BLOCK_SIZE)
    return math.ceil(weights / 2) + scales + FP32_BYTES * math.ceil(scales / NF4_SCALE_BLOCK_SIZE) + NF4_TABLE_BYTES


def transient_bytes(model: VisionLanguageModel | PeftModel, settings: SiglipQwenConfig, train: TrainConfig) -> dict[str, float]:
    """Bytes that are allocated and freed within a step."""
    config = base_model(model).config
    text, vision = config.text_config, config.vision_config
    tokens = tokens_per_micro_batch(settings, train)
    logits_bytes = min(tokens * text.vocab_size * BYTES_PER_LOGIT, train.logits_memory_gib * 2**30)
    patches = (vision.image_size // vision.patch_size) ** 2
    return {
        **language_transient_bytes(model, settings, tokens),
        **_attention_scores(text, settings, train),
        "scores over the vocabulary, at most": float(logits_bytes),
        "vision encoder at work": vision_bytes(vision, COMPILED_BATCH_SIZE * patches),
    }


def vision_bytes(vision: Any, patches: int) -> float:
    """Bytes of the widest part of a frozen vision encoder over this many patches."""
    return float(patches * (vision.hidden_size * 4 + vision.intermediate_size * 2) * BF16_BYTES)


def language_transient_bytes(model: nn.Module, settings: FamilyConfig, tokens: int) -> dict[str, float]:
    """Bytes that the language model's layers allocate and free within a step over this many tokens."""
    text = unwrapped(model).config.text_config
    adapters = sum(weight.numel() for name, weight in model.named_parameters() if ".lora_" in name)
    largest = largest_matrix(model)
    return {
        "adapters' copies in 16 bits": float(adapters * BF16_BYTES),
        "inputs of all layers": float(text.num_hidden_layers * tokens * text.hidden_size * BF16_BYTES),
        "activations of one layer": float(tokens * activation_bytes_per_token(text, settings)),
        "a layer's gradients, twice its widest part in fp32": float(2 * tokens * text.intermediate_size * FP32_BYTES),
        "a matrix unpacked to 16 bits": float(largest * BF16_BYTES) if settings.quantization != "none" else 0.0,
    }


def tokens_per_micro_batch(model: SiglipQwenConfig, train: TrainConfig) -> int:
    """Tokens of the largest micro-batch."""
    return train.per_device_train_batch_size * model.max_length if train.batching == "padded" else train.packing_length


def _micro_batch(model: SiglipQwenConfig, train: TrainConfig) -> str:
    if train.batching == "padded":
        return f"{train.per_device_train_batch_size} samples of at most {model.max_length:,} tokens"
    return f"rows of {train.packing_length:,} tokens"


def _attention_scores(text: Any, settings: SiglipQwenConfig, train: TrainConfig) -> dict[str, float]:
    """Scores, probabilities and a gradient of one layer in fp32, where no fused attention avoids them: in fp16, which stands for a
    card before Ampere, with keys shared by several heads."""
    if train.batching != "padded" or train.precision != "fp16":
        return {}
    scores = train.per_device_train_batch_size * text.num_attention_heads * settings.max_length**2
    return {"attention scores of one layer, at most": float(3 * scores * FP32_BYTES)}


def activation_bytes_per_token(text: Any, settings: FamilyConfig) -> int:
    """Bytes per token that a decoder layer saves for its backward pass, with PEFT's adapters under autocast.

    Saved are: for each adapted matrix its input after dropout in bf16, the dropout mask and the output of A; queries, keys, values and
    the attention output; three tensors of the gated MLP; inputs and scaled inputs of the norms in fp32.
    """
    width, inner = text.hidden_size, text.intermediate_size
    query_width, kv_width = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    inputs = 3 * width + query_width + 2 * width + inner
    lora = settings.lora
    adapters = 0 if lora is None else inputs * (BF16_BYTES + (lora.lora_dropout > 0)) + 7 * lora.r * BF16_BYTES
    # The product with a frozen matrix saves no input, quantised or not: the gradient needs only the matrix.
    attention = (2 * query_width + 2 * kv_width) * BF16_BYTES
    norms = 2 * (2 * width + query_width + kv_width) * FP32_BYTES
    return int(adapters + attention + 3 * inner * BF16_BYTES + norms)


def largest_matrix(model: nn.Module) -> int:
    """Weights of the largest frozen matrix of the language model's layers."""
    return max(int(layer.weight.numel()) for layer in _linear_layers(model) if _is_frozen_linear(layer))


def _linear_layers(model: nn.Module) -> list[Any]:
    """Linear layers inside the language model's layers."""
    return [layer for block in checkpointed_layers(model) for layer in block.modules() if isinstance(layer, nn.Linear)]


def _is_frozen_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and not layer.weight.requires_grad
