"""Initialise a model from trained ones where their layers match."""

from typing import Any

import torch
from transformers import Blip2ForConditionalGeneration, CLIPModel, Qwen3ForCausalLM, Qwen3VLForConditionalGeneration, SiglipModel


def clip_from_siglip(clip: CLIPModel, siglip: SiglipModel) -> None:
    """Copy vision layers, patch and position embeddings. CLIP's class token, projections and text encoder are not changed."""
    source, target = siglip.vision_model, clip.vision_model
    target.encoder.load_state_dict(source.encoder.state_dict())
    with torch.no_grad():
        target.embeddings.patch_embedding.weight.copy_(source.embeddings.patch_embedding.weight)
        # Position 0 of CLIP belongs to the class token.
        target.embeddings.position_embedding.weight[1:].copy_(source.embeddings.position_embedding.weight)


def blip2_from_siglip(model: Blip2ForConditionalGeneration, siglip: SiglipModel) -> None:
    """Copy vision layers, as many as there are, patch and position embeddings; not the class token, the Q-Former, the language model."""
    source, target = siglip.vision_model, model.vision_model
    with torch.no_grad():
        target.embeddings.patch_embedding.load_state_dict(source.embeddings.patch_embedding.state_dict())
        # Position 0 belongs to the class token.
        target.embeddings.position_embedding[0, 1:].copy_(source.embeddings.position_embedding.weight)
        target.embeddings.class_embedding.zero_()
        target.embeddings.position_embedding[0, 0].zero_()
        for layer, block in zip(source.encoder.layers, target.encoder.layers, strict=False):
            _copy_fused_attention(layer, block.self_attn.qkv, block.self_attn.projection)
            for name in ("layer_norm1", "layer_norm2", "mlp"):
                getattr(block, name).load_state_dict(getattr(layer, name).state_dict())


def _copy_fused_attention(layer: Any, qkv: torch.nn.Linear, projection: torch.nn.Linear) -> None:
    """Copy the attention of a SigLIP layer to one that computes queries, keys and values with one matrix."""
    parts = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
    qkv.weight.copy_(torch.cat([part.weight for part in parts]))
    qkv.bias.copy_(torch.cat([part.bias for part in parts]))
    projection.load_state_dict(layer.self_attn.out_proj.state_dict())


def qwen3_vl_from_models(model: Qwen3VLForConditionalGeneration, language: Qwen3ForCausalLM, siglip: SiglipModel) -> None:
    """Copy the language model from Qwen3 and the vision layers from SigLIP. Patch mergers and DeepStack layers are not changed."""
    model.model.language_model.load_state_dict(language.model.state_dict())
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
            block.norm1.load_state_dict(layer.layer_norm1.state_dict())
            block.norm2.load_state_dict(layer.layer_norm2.state_dict())
            block.mlp.linear_fc1.load_state_dict(layer.mlp.fc1.state_dict())
            block.mlp.linear_fc2.load_state_dict(layer.mlp.fc2.state_dict())


def _resize_position_embeddings(positions: torch.Tensor, count: int) -> torch.Tensor:
    """Interpolate position embeddings [P, D] to [count, D], bilinearly as Qwen3-VL does; both numbers are squares."""
    side, new_side = round(len(positions) ** 0.5), round(count**0.5)
    grid = positions.T.reshape(1, -1, side, side)
    return torch.nn.functional.interpolate(grid, (new_side, new_side), mode="bilinear", align_corners=True).flatten(2)[0].T
