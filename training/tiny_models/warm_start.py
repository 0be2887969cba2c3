"""Initialise a model from trained ones where their layers match."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, Qwen3ForCausalLM, SiglipModel

from visual.hub_name import pretrained


def clip_from_siglip(clip: transformers.CLIPModel, siglip: SiglipModel) -> None:
    """Copy vision layers, patch and position embeddings. CLIP's class token, projections and text encoder are not changed."""
    source, target = siglip.vision_model, clip.vision_model
    _copy(source.encoder, target.encoder)
    with torch.no_grad():
        target.embeddings.patch_embedding.weight.copy_(source.embeddings.patch_embedding.weight)
        # Position 0 of CLIP belongs to the class token.
        target.embeddings.position_embedding.weight[1:].copy_(source.embeddings.position_embedding.weight)


def blip2_from_siglip(model: transformers.Blip2ForConditionalGeneration, siglip: SiglipModel) -> None:
    """Copy vision layers, as many as there are, patch and position embeddings; not the class token, the Q-Former, the language model."""
    source, target = siglip.vision_model, model.vision_model
    with torch.no_grad():
        _copy(source.embeddings.patch_embedding, target.embeddings.patch_embedding)
        # Position 0 belongs to the class token.
        target.embeddings.position_embedding[0, 1:].copy_(source.embeddings.position_embedding.weight)
        target.embeddings.class_embedding.zero_()
        target.embeddings.position_embedding[0, 0].zero_()
        for layer, block in zip(source.encoder.layers, target.encoder.layers, strict=False):
            _copy_fused_attention(layer, block.self_attn.qkv, block.self_attn.projection)
            for name in ("layer_norm1", "layer_norm2", "mlp"):
                _copy(getattr(layer, name), getattr(block, name))


def _copy(source: torch.nn.Module, target: torch.nn.Module) -> None:
    target.load_state_dict(source.state_dict())


def _copy_fused_attention(layer: Any, qkv: torch.nn.Linear, projection: torch.nn.Linear) -> None:
    """Copy the attention of a SigLIP layer to one that computes queries, keys and values with one matrix."""
    parts = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
    qkv.weight.copy_(torch.cat([part.weight for part in parts]))
    qkv.bias.copy_(torch.cat([part.bias for part in parts]))
    _copy(layer.self_attn.out_proj, projection)


def qwen3_vl_from_models(model: transformers.Qwen3VLForConditionalGeneration, language: Qwen3ForCausalLM, siglip: SiglipModel) -> None:
    """Copy the language model from Qwen3 and the vision layers from SigLIP. Patch mergers and DeepStack layers are not changed."""
    _copy(language.model, model.model.language_model)
    source, target = siglip.vision_model, model.model.visual
    with torch.no_grad():
        kernel, frames = source.embeddings.patch_embedding.weight, target.patch_embed.proj.weight.shape[2]
        # An image is repeated over all frames of the temporal patch, so the kernel is divided by their number.
        target.patch_embed.proj.weight.copy_(kernel.unsqueeze(2).expand_as(target.patch_embed.proj.weight) / frames)
        target.patch_embed.proj.bias.copy_(source.embeddings.patch_embedding.bias)
        target.pos_embed.weight.copy_(
            _resize_position_embeddings(source.embeddings.position_embedding.weight, len(target.pos_embed.weight))
        )
        for layer, block in zip(source.encoder.layers, target.blocks, strict=True):
            _copy_fused_attention(layer, block.attn.qkv, block.attn.proj)
            _copy(layer.layer_norm1, block.norm1)
            _copy(layer.layer_norm2, block.norm2)
            _copy(layer.mlp.fc1, block.mlp.linear_fc1)
            _copy(layer.mlp.fc2, block.mlp.linear_fc2)


def _resize_position_embeddings(positions: torch.Tensor, count: int) -> torch.Tensor:
    """Interpolate position embeddings [P, D] to [count, D], bilinearly as Qwen3-VL does; both numbers are squares."""
    side, new_side = round(len(positions) ** 0.5), round(count**0.5)
    grid = positions.T.reshape(1, -1, side, side)
    return torch.nn.functional.interpolate(grid, (new_side, new_side), mode="bilinear", align_corners=True).flatten(2)[0].T


_COPY: dict[str, Callable[..., None]] = {"clip": clip_from_siglip, "blip2": blip2_from_siglip, "qwen3_vl": qwen3_vl_from_models}
_SOURCES = {"clip": ("siglip",), "blip2": ("siglip",), "qwen3_vl": ("qwen3", "siglip")}
_CLASSES = {"siglip": SiglipModel, "qwen3": Qwen3ForCausalLM}


def start(folder: Path, model_name: str, model: PreTrainedModel) -> tuple[str, ...]:
    """Initialise `model` from trained models in `folder`; returns their names, empty when one that is needed is missing."""
    sources = _SOURCES.get(model_name, ())
    if not sources or not all((folder / source / "config.json").exists() for source in sources):
        return ()
    loaded = [_CLASSES[source].from_pretrained(**pretrained(folder / source), dtype=torch.float32) for source in sources]
    _COPY[model_name](model, *loaded)
    return sources
