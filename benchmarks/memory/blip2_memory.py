"""Estimate of the GPU memory of a training step of BLIP-2 with OPT 2.7B, computed as that of our own model (see memory_estimate)."""

import dataclasses
from typing import Any

import torch
from transformers import Blip2Config as StockConfig
from transformers import OPTConfig

from benchmarks.benchmark_report import BenchmarkReport
from benchmarks.memory.memory_estimate import (
    BF16_BYTES,
    CUDA_CONTEXT_BYTES,
    FP32_BYTES,
    largest_matrix,
    memory_report,
    persistent_bytes,
    vision_bytes,
)
from model.blip2.config import Blip2Config
from model.blip2.family import FAMILY
from model.blip2.modeling import GROUP_PATHS, DecoderOnlyBlip2
from model.kernels.chunked_cross_entropy import BYTES_PER_LOGIT
from training.config import TrainConfig

SHAPES: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16, "image_size": 224,
        "patch_size": 14,
    },
    "qformer_config": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "encoder_hidden_size": 1408,
        "cross_attention_frequency": 2, "vocab_size": 30_522,
    },
    "num_query_tokens": 32,
}  # fmt: skip
"""Vision encoder (EVA ViT-g) and Q-Former, from the config.json of Salesforce/blip2-opt-2.7b."""

LANGUAGE: dict[str, Any] = {
    "hidden_size": 2560, "word_embed_proj_dim": 2560, "ffn_dim": 10_240, "num_hidden_layers": 32, "num_attention_heads": 32,
    "vocab_size": 50_304, "max_position_embeddings": 2048,
}  # fmt: skip
"""OPT 2.7B."""


def estimate_memory(model: Blip2Config, train: TrainConfig) -> BenchmarkReport:
    """Table of the memory of a training step over a batch of the longest samples, all of whose text is supervised."""
    adapted = _adapted(model, train)
    config = adapted.get_base_model().config
    text, vision = config.text_config, config.vision_config
    samples = train.per_device_train_batch_size
    tokens = samples * model.max_length
    adapters = sum(weight.numel() for name, weight in adapted.named_parameters() if ".lora_" in name)
    parts = {
        **persistent_bytes(adapted, model, train),
        "adapters' copies in 16 bits": float(adapters * BF16_BYTES),
        "inputs of all layers": float(text.num_hidden_layers * tokens * text.hidden_size * BF16_BYTES),
        "activations of one layer": float(tokens * _activation_bytes_per_token(text, model)),
        "a layer's gradients, twice its widest part in fp32": float(2 * tokens * text.ffn_dim * FP32_BYTES),
        "a matrix unpacked to 16 bits": float(largest_matrix(adapted) * BF16_BYTES),
        "scores over the vocabulary, at most": float((tokens - samples * config.num_query_tokens) * text.vocab_size * BYTES_PER_LOGIT),
        "vision encoder at work": vision_bytes(vision, samples * ((vision.image_size // vision.patch_size) ** 2 + 1)),
        "CUDA context and fragments (assumed)": CUDA_CONTEXT_BYTES,
    }
    return memory_report("blip2-opt-2.7b", f"{samples} samples of at most {model.max_length:,} tokens", parts, model, train)


def _activation_bytes_per_token(text: Any, settings: Blip2Config) -> int:
    """Bytes per token that an OPT layer saves for its backward pass: inputs of the two adapted matrices, queries, keys, values and the
    attention's output, the MLP after its ReLU, inputs of the norms in fp32."""
    width, lora = text.hidden_size, settings.lora
    adapters = 0 if lora is None else 2 * (width * (BF16_BYTES + (lora.lora_dropout > 0)) + lora.r * BF16_BYTES)
    return int(adapters + 4 * width * BF16_BYTES + text.ffn_dim * BF16_BYTES + 2 * 2 * width * FP32_BYTES)


def _adapted(model: Blip2Config, train: TrainConfig) -> Any:
    """The model on the meta device, in bf16, with the adapters of the last stage."""
    with torch.device("meta"):
        blip: Any = DecoderOnlyBlip2._from_config(StockConfig(text_config=OPTConfig(**LANGUAGE), **SHAPES), dtype=torch.bfloat16)
        blip.group_paths, blip.trained_groups = GROUP_PATHS, ()
        blip.requires_grad_(False)
        groups = train.stages[-1].train
        return FAMILY.configure_trainable(blip, dataclasses.replace(model, quantization="none"), groups, groups)
