"""Estimate of the GPU memory of a training step, computed from shapes and settings without running anything.

Activation checkpointing of all layers is assumed: the inputs of all layers are in memory, and the activations of one layer at a time.
"""

import dataclasses
import math
from typing import Any, cast

import torch
from torch import nn
from transformers import Blip2Config as StockBlip2Config
from transformers import OPTConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.modeling_layers import GradientCheckpointingLayer

from benchmarks.benchmark_report import BenchmarkReport, format_number
from benchmarks.full_size_models import QWEN3, Size, build_ours, build_processor
from model.blip2 import modeling as blip2
from model.blip2.config import Blip2Config
from model.family import family
from model.family_config import FamilyConfig
from model.kernels.chunked_cross_entropy import BYTES_PER_LOGIT
from model.lora import checkpointed_layers
from model.param_groups import GroupPaths, unwrapped
from model.qwen_vl import modeling as qwen_vl
from model.qwen_vl.config import QwenVlConfig
from model.siglip_qwen.adapters import base_model, configure_trainable
from model.siglip_qwen.config import SiglipQwenConfig, siglip_qwen_settings
from training.config import TrainConfig
from training.optimization.optimizers import optimizer_bytes_per_parameter
from visual.vision_encoder import COMPILED_BATCH_SIZE

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

PIXELS_PER_TOKEN = 32 * 32
"""Pixels of an image token: 2 x 2 patches of 16 x 16."""

QWEN_VISION: dict[str, Any] = {
    "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16, "spatial_merge_size": 2,
    "num_position_embeddings": 2304, "out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17],
}  # fmt: skip
"""Vision tower of Qwen3-VL-4B, from the config.json of Qwen/Qwen3-VL-4B-Instruct; its language model has the shapes of Qwen3-4B."""

BLIP2: dict[str, Any] = {
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

OPT: dict[str, Any] = {
    "hidden_size": 2560, "word_embed_proj_dim": 2560, "ffn_dim": 10_240, "num_hidden_layers": 32, "num_attention_heads": 32,
    "vocab_size": 50_304, "max_position_embeddings": 2048,
}  # fmt: skip
"""OPT 2.7B."""


def estimate_memory(size: str, model: FamilyConfig, train: TrainConfig) -> BenchmarkReport:
    """Table of the memory of a training step over a micro-batch: a packed row, or a batch of the longest samples.

    Of Qwen3-VL and BLIP-2 there is one size, 4B and OPT 2.7B. Raises UsageError for other families.
    """
    if isinstance(model, QwenVlConfig):
        batch, adapted, transient = _qwen_vl_step(model, train)
    elif isinstance(model, Blip2Config):
        batch, adapted, transient = _blip2_step(model, train)
    else:
        batch, adapted, transient = _siglip_qwen_step(cast(Size, size), siglip_qwen_settings(model, "this benchmark"), train)
    parts = {**persistent_bytes(adapted, model, train), **transient, "CUDA context and fragments (assumed)": CUDA_CONTEXT_BYTES}
    parts = {what: float(count) for what, count in parts.items()}
    parts["in all"] = sum(parts.values())
    facts = {
        "computed": "from shapes and settings; nothing was run",
        "step": f"{batch}, all layers checkpointed, {train.optim}, language model in {model.quantization}",
    }
    return BenchmarkReport(f"Memory of a training step, {size}", facts, COLUMNS, gib_rows(parts), {"bytes": parts})


def gib_rows(parts: dict[str, float]) -> list[list[str]]:
    """Rows of a table of bytes."""
    return [[what, format_number(count / 2**30, 2)] for what, count in parts.items()]


Step = tuple[str, nn.Module, dict[str, float]]
"""Description of a micro-batch, the model on the meta device with the adapters of the last stage, and bytes that are allocated and freed
within a step."""


def _siglip_qwen_step(size: Size, model: SiglipQwenConfig, train: TrainConfig) -> Step:
    plain, samples = dataclasses.replace(model, quantization="none"), train.per_device_train_batch_size
    processor = build_processor(size, plain)
    ours = build_ours(size, plain, processor, dtype=torch.bfloat16, device=torch.device("meta"))
    adapted = configure_trainable(ours, plain, train.stages[-1].train)
    text, vision = base_model(adapted).config.text_config, base_model(adapted).config.vision_config
    tokens, batch, attention_scores = train.packing_length, f"rows of {train.packing_length:,} tokens", dict[str, float]()
    if train.batching == "padded":
        tokens, batch = samples * model.max_length, f"{samples} samples of at most {model.max_length:,} tokens"
        # Where no fused attention avoids them: in fp16, which stands for a card before Ampere, with keys shared by several heads.
        # Scores, probabilities and a gradient of one layer in fp32.
        if train.precision == "fp16":
            scores = samples * text.num_attention_heads * model.max_length**2
            attention_scores = {"attention scores of one layer, at most": 3 * scores * FP32_BYTES}
    # Of tiles, each has about as many tokens as a whole image.
    images = samples if train.batching == "padded" and model.tiles is None else max(1, tokens // processor.tokens_per_image)
    transient = {
        **language_transient_bytes(adapted, model, tokens),
        **attention_scores,
        "scores over the vocabulary, at most": min(tokens * text.vocab_size * BYTES_PER_LOGIT, train.logits_memory_gib * 2**30),
        "vision encoder at work": _vision_bytes(vision, COMPILED_BATCH_SIZE * (vision.image_size // vision.patch_size) ** 2),
        **vision_training_bytes(adapted, images * (vision.image_size // vision.patch_size) ** 2),
    }
    return batch, adapted, transient


def _qwen_vl_step(model: QwenVlConfig, train: TrainConfig) -> Step:
    """Every sample has `max_length` tokens, of which `max_pixels` are image tokens; all others are supervised, so that no step takes
    more."""
    shapes = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "max_position_embeddings": 262_144}
    rope = {"rope_type": "default", "rope_theta": 5_000_000.0, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text = {**QWEN3["4b"], **shapes, "rope_parameters": rope, "tie_word_embeddings": True}
    config = Qwen3VLConfig(text_config=text, vision_config=QWEN_VISION, tie_word_embeddings=True)
    adapted = _adapted(Qwen3VLForConditionalGeneration, config, qwen_vl.GROUP_PATHS, model, train)
    samples, image_tokens = train.per_device_train_batch_size, (model.max_pixels or 0) // PIXELS_PER_TOKEN
    supervised = samples * (model.max_length - image_tokens)
    patches = samples * image_tokens * config.vision_config.spatial_merge_size**2
    transient = {
        **language_transient_bytes(adapted, model, samples * model.max_length),
        "scores over the vocabulary, at most": supervised * config.text_config.vocab_size * BYTES_PER_LOGIT,
        "vision encoder at work": _vision_bytes(config.vision_config, patches),
    }
    return f"{samples} samples of at most {model.max_length:,} tokens, {image_tokens:,} of them visual", adapted, transient


def _blip2_step(model: Blip2Config, train: TrainConfig) -> Step:
    """Every sample has `max_length` tokens; all of its text is supervised."""
    config = StockBlip2Config(text_config=OPTConfig(**OPT), **BLIP2)
    adapted = _adapted(blip2.DecoderOnlyBlip2, config, blip2.GROUP_PATHS, model, train)
    samples, vision = train.per_device_train_batch_size, config.vision_config
    supervised = samples * (model.max_length - config.num_query_tokens)
    transient = {
        **language_transient_bytes(adapted, model, samples * model.max_length),
        "scores over the vocabulary, at most": supervised * config.text_config.vocab_size * BYTES_PER_LOGIT,
        "vision encoder at work": _vision_bytes(vision, samples * ((vision.image_size // vision.patch_size) ** 2 + 1)),
    }
    return f"{samples} samples of at most {model.max_length:,} tokens", adapted, transient


def _adapted(model_class: Any, config: Any, group_paths: GroupPaths, settings: QwenVlConfig | Blip2Config, train: TrainConfig) -> Any:
    """A model of stock classes in bf16."""
    groups = train.stages[-1].train
    with torch.device("meta"):
        model = model_class._from_config(config, dtype=torch.bfloat16)
        model.group_paths, model.trained_groups = group_paths, ()
        model.requires_grad_(False)
        return family(settings.family).configure_trainable(model, dataclasses.replace(settings, quantization="none"), groups, groups)


def persistent_bytes(model: nn.Module, settings: FamilyConfig, train: TrainConfig) -> dict[str, float]:
    """Bytes that are allocated during the whole training."""
    matrices = {id(layer.weight): layer.weight for layer in _frozen_linears(model)}
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    # PEFT keeps a frozen copy of the original connector.
    others = sum(
        weight.numel() * weight.element_size() for weight in model.parameters() if not weight.requires_grad and id(weight) not in matrices
    )
    vision = {id(weight): weight for name, weight in model.named_parameters() if any(part in name for part in VISION_NAMES)}
    tower = sum(weight.numel() for weight in vision.values() if not weight.requires_grad) * BF16_BYTES
    return {
        "language model's layers": sum(weight_matrix_bytes(weight.numel(), settings.quantization) for weight in matrices.values()),
        "vision encoder": tower,
        "vocabulary, norms": others - tower,
        "trained weights and gradients, fp32": trained * 2 * FP32_BYTES,
        "optimizer": trained * optimizer_bytes_per_parameter(train),
    }


def weight_matrix_bytes(weights: int, quantization: str) -> int:
    """Bytes of a frozen matrix in bf16, int8 (without the scale per row) or NF4 with double quantisation."""
    if quantization != "nf4":
        return weights * (BF16_BYTES if quantization == "none" else 1)
    scales = math.ceil(weights / NF4_BLOCK_SIZE)
    return math.ceil(weights / 2) + scales + FP32_BYTES * math.ceil(scales / NF4_SCALE_BLOCK_SIZE) + NF4_TABLE_BYTES


def _vision_bytes(vision: Any, patches: int) -> int:
    """Bytes of the widest part of a frozen vision encoder over this many patches."""
    return int(patches * (vision.hidden_size * 4 + vision.intermediate_size * 2) * BF16_BYTES)


def vision_training_bytes(model: nn.Module, patches: int) -> dict[str, float]:
    """Bytes that a trained vision encoder allocates and frees within a step over this many patches, its layers recomputed."""
    vision = base_model(model).config.vision_config
    trained = [
        layer
        for layer in base_model(model).model.vision_tower.modules()
        if isinstance(layer, GradientCheckpointingLayer) and any(weight.requires_grad for weight in layer.parameters())
    ]
    if not trained:
        return {}
    weights = sum(weight.numel() for layer in trained for weight in layer.parameters() if weight.requires_grad)
    return {
        "trained vision weights' copies in 16 bits": weights * BF16_BYTES,
        "inputs of the trained vision layers": len(trained) * patches * vision.hidden_size * FP32_BYTES,
        "activations of one of them": patches * vision_activation_bytes_per_patch(vision),
    }


def vision_activation_bytes_per_patch(vision: Any) -> int:
    """Bytes per patch that a trained layer of the vision encoder saves for its backward pass under autocast: inputs of both norms in fp32;
    the copy in 16 bits that each of four projections makes of its input; queries, keys, values, attention output; the MLP before and
    after its activation."""
    return int(2 * vision.hidden_size * FP32_BYTES + (8 * vision.hidden_size + 2 * vision.intermediate_size) * BF16_BYTES)


def language_transient_bytes(model: nn.Module, settings: FamilyConfig, tokens: int) -> dict[str, float]:
    """Bytes that the language model's layers allocate and free within a step over this many tokens."""
    text = unwrapped(model).config.text_config
    adapters = sum(weight.numel() for name, weight in model.named_parameters() if ".lora_" in name)
    largest = max(int(layer.weight.numel()) for layer in _frozen_linears(model))
    inner = text.ffn_dim if isinstance(text, OPTConfig) else text.intermediate_size
    return {
        "adapters' copies in 16 bits": adapters * BF16_BYTES,
        "inputs of all layers": text.num_hidden_layers * tokens * text.hidden_size * BF16_BYTES,
        "activations of one layer": tokens * activation_bytes_per_token(text, settings),
        "a layer's gradients, twice its widest part in fp32": 2 * tokens * inner * FP32_BYTES,
        "a matrix unpacked to 16 bits": largest * BF16_BYTES if settings.quantization != "none" else 0,
    }


def activation_bytes_per_token(text: Any, settings: FamilyConfig) -> int:
    """Bytes per token that a decoder layer saves for its backward pass, with PEFT's adapters under autocast.

    Saved are: for each adapted matrix its input after dropout in bf16, the dropout mask and the output of A; queries, keys, values and
    the attention output; three tensors of the gated MLP; inputs and scaled inputs of the norms in fp32. A layer of OPT has two adapted
    matrices, saves its MLP after the ReLU alone, and scales in place.
    """
    width, lora = text.hidden_size, settings.lora
    if isinstance(text, OPTConfig):
        query_width = kv_width = width
        num_matrices, inputs, mlp, norms = 2, 2 * width, text.ffn_dim, 4 * width
    else:
        query_width, kv_width = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
        num_matrices, inputs = 7, 3 * width + query_width + 2 * width + text.intermediate_size
        mlp, norms = 3 * text.intermediate_size, 2 * (2 * width + query_width + kv_width)
    adapters = 0 if lora is None else inputs * (BF16_BYTES + (lora.lora_dropout > 0)) + num_matrices * lora.r * BF16_BYTES
    # The product with a frozen matrix saves no input, quantised or not: the gradient needs only the matrix.
    return int(adapters + (2 * query_width + 2 * kv_width + mlp) * BF16_BYTES + norms * FP32_BYTES)


def _frozen_linears(model: nn.Module) -> list[Any]:
    """Frozen linear layers inside the language model's layers."""
    layers = (layer for block in checkpointed_layers(model) for layer in block.modules() if isinstance(layer, nn.Linear))
    return [layer for layer in layers if not layer.weight.requires_grad]
