"""Estimate of the GPU memory of a training step of Qwen3-VL, computed as that of our own model (see memory_estimate)."""

import dataclasses
from typing import Any

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from benchmarks.benchmark_report import BenchmarkReport
from benchmarks.full_size_models import QWEN3
from benchmarks.memory.memory_estimate import (
    CUDA_CONTEXT_BYTES,
    language_transient_bytes,
    memory_report,
    persistent_bytes,
    vision_bytes,
)
from model.kernels.chunked_cross_entropy import BYTES_PER_LOGIT
from model.qwen_vl.config import QwenVlConfig
from model.qwen_vl.family import FAMILY
from model.qwen_vl.modeling import GROUP_PATHS
from training.config import TrainConfig

PIXELS_PER_TOKEN = 32 * 32
"""Pixels of an image token: 2 x 2 patches of 16 x 16."""

VISION: dict[str, Any] = {
    "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16, "spatial_merge_size": 2,
    "num_position_embeddings": 2304, "out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17],
}  # fmt: skip
"""Vision tower of Qwen3-VL-4B, from the config.json of Qwen/Qwen3-VL-4B-Instruct; its language model has the shapes of Qwen3-4B."""


def estimate_memory(model: QwenVlConfig, train: TrainConfig) -> BenchmarkReport:
    """Table of the memory of a training step of Qwen3-VL-4B over a batch of the longest samples.

    Every sample has `max_length` tokens, of which `max_pixels` are image tokens; all others are supervised, so that no step takes more.
    """
    adapted = _adapted(model, train)
    config = adapted.get_base_model().config
    samples, image_tokens = train.per_device_train_batch_size, (model.max_pixels or 0) // PIXELS_PER_TOKEN
    supervised = samples * (model.max_length - image_tokens)
    parts = {
        **persistent_bytes(adapted, model, train),
        **language_transient_bytes(adapted, model, samples * model.max_length),
        "scores over the vocabulary, at most": float(supervised * config.text_config.vocab_size * BYTES_PER_LOGIT),
        "vision encoder at work": vision_bytes(config.vision_config, samples * image_tokens * config.vision_config.spatial_merge_size**2),
        "CUDA context and fragments (assumed)": CUDA_CONTEXT_BYTES,
    }
    batch = f"{samples} samples of at most {model.max_length:,} tokens, {image_tokens:,} of them visual"
    return memory_report("qwen3-vl-4b", batch, parts, model, train)


def _adapted(model: QwenVlConfig, train: TrainConfig) -> Any:
    """The model on the meta device, in bf16, with the adapters of the last stage."""
    shapes = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "max_position_embeddings": 262_144}
    rope = {"rope_type": "default", "rope_theta": 5_000_000.0, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    config = Qwen3VLConfig(text_config={**QWEN3["4b"], **shapes, "rope_parameters": rope}, vision_config=VISION, tie_word_embeddings=True)
    with torch.device("meta"):
        qwen: Any = Qwen3VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
        qwen.group_paths, qwen.trained_groups = GROUP_PATHS, ()
        qwen.requires_grad_(False)
        groups = train.stages[-1].train
        return FAMILY.configure_trainable(qwen, dataclasses.replace(model, quantization="none"), groups, groups)
