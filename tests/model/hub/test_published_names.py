"""The weights of an export have the names and shapes of published LLaVA checkpoints with SigLIP."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import LlavaForConditionalGeneration

from model.checkpoint_manifest import write_manifest
from model.hub.llava_export import export
from model.siglip_qwen import checkpoint
from model.siglip_qwen.adapters import configure_trainable
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.processor import Processor
from tests.model.conftest import Build

PUBLISHED = {
    "vision_tower.vision_model.embeddings.patch_embedding.weight": ("vision", 3, "patch", "patch"),
    "vision_tower.vision_model.embeddings.patch_embedding.bias": ("vision",),
    "vision_tower.vision_model.embeddings.position_embedding.weight": ("patches", "vision"),
    "vision_tower.vision_model.encoder.layers.{v}.layer_norm1.weight": ("vision",),
    "vision_tower.vision_model.encoder.layers.{v}.layer_norm1.bias": ("vision",),
    "vision_tower.vision_model.encoder.layers.{v}.layer_norm2.weight": ("vision",),
    "vision_tower.vision_model.encoder.layers.{v}.layer_norm2.bias": ("vision",),
    "vision_tower.vision_model.encoder.layers.{v}.mlp.fc1.weight": ("vision mlp", "vision"),
    "vision_tower.vision_model.encoder.layers.{v}.mlp.fc1.bias": ("vision mlp",),
    "vision_tower.vision_model.encoder.layers.{v}.mlp.fc2.weight": ("vision", "vision mlp"),
    "vision_tower.vision_model.encoder.layers.{v}.mlp.fc2.bias": ("vision",),
    "vision_tower.vision_model.encoder.layers.{v}.self_attn.q_proj.weight": ("vision", "vision"),
    "vision_tower.vision_model.encoder.layers.{v}.self_attn.q_proj.bias": ("vision",),
    "vision_tower.vision_model.encoder.layers.{v}.self_attn.k_proj.weight": ("vision", "vision"),
    "vision_tower.vision_model.encoder.layers.{v}.self_attn.k_proj.bias": ("vision",),
    "vision_tower.vision_model.encoder.layers.{v}.self_attn.v_proj.weight": ("vision", "vision"),
    "vision_tower.vision_model.encoder.layers.{v}.self_attn.v_proj.bias": ("vision",),
    "vision_tower.vision_model.encoder.layers.{v}.self_attn.out_proj.weight": ("vision", "vision"),
    "vision_tower.vision_model.encoder.layers.{v}.self_attn.out_proj.bias": ("vision",),
    "vision_tower.vision_model.post_layernorm.weight": ("vision",),
    "vision_tower.vision_model.post_layernorm.bias": ("vision",),
    "multi_modal_projector.linear_1.weight": ("text", "vision"),
    "multi_modal_projector.linear_1.bias": ("text",),
    "multi_modal_projector.linear_2.weight": ("text", "text"),
    "multi_modal_projector.linear_2.bias": ("text",),
    "language_model.model.embed_tokens.weight": ("vocabulary", "text"),
    "language_model.model.layers.{t}.input_layernorm.weight": ("text",),
    "language_model.model.layers.{t}.mlp.down_proj.weight": ("text", "text mlp"),
    "language_model.model.layers.{t}.mlp.gate_proj.weight": ("text mlp", "text"),
    "language_model.model.layers.{t}.mlp.up_proj.weight": ("text mlp", "text"),
    "language_model.model.layers.{t}.post_attention_layernorm.weight": ("text",),
    "language_model.model.layers.{t}.self_attn.q_proj.weight": ("queries", "text"),
    "language_model.model.layers.{t}.self_attn.q_proj.bias": ("queries",),
    "language_model.model.layers.{t}.self_attn.k_proj.weight": ("keys", "text"),
    "language_model.model.layers.{t}.self_attn.k_proj.bias": ("keys",),
    "language_model.model.layers.{t}.self_attn.v_proj.weight": ("keys", "text"),
    "language_model.model.layers.{t}.self_attn.v_proj.bias": ("keys",),
    "language_model.model.layers.{t}.self_attn.o_proj.weight": ("text", "queries"),
    "language_model.model.norm.weight": ("text",),
    "language_model.lm_head.weight": ("vocabulary", "text"),
}
"""Names of LLaVA-Interleave (SigLIP so400m and Qwen1.5), as transformers' convert_llava_weights_to_hf.py published it on the hub, with
what their sizes are. {v} and {t} stand for the index of a layer of the vision encoder and of the language model. The pooling head of
SigLIP is left out (`vision_use_head` is false): no LLaVA uses it."""


def expected_shapes(config: Any) -> dict[str, list[int]]:
    """PUBLISHED for the sizes of a model."""
    vision, text = config.vision_config, config.text_config
    sizes: dict[Any, int] = {
        "vision": vision.hidden_size,
        "vision mlp": vision.intermediate_size,
        "patch": vision.patch_size,
        3: 3,
        "patches": (vision.image_size // vision.patch_size) ** 2,
        "vocabulary": text.vocab_size,
        "text": text.hidden_size,
        "text mlp": text.intermediate_size,
        "queries": text.num_attention_heads * (head_dim := text.hidden_size // text.num_attention_heads),
        "keys": text.num_key_value_heads * head_dim,
    }
    layers = {"{v}": vision.num_hidden_layers, "{t}": text.num_hidden_layers}
    shapes = {}
    for name, dimensions in PUBLISHED.items():
        placeholder = next((key for key in layers if key in name), None)
        names = [name.replace(placeholder, str(i)) for i in range(layers[placeholder])] if placeholder else [name]
        shapes.update({each: [sizes[dimension] for dimension in dimensions] for each in names})
    return shapes


def test_an_export_of_qwen2_has_the_names_and_shapes_of_published_checkpoints(
    make: Build, settings: Callable[..., SiglipQwenConfig], processor: Processor, qwen2: Path, tmp_path: Path
) -> None:
    changes = {"language": str(qwen2)}
    model = configure_trainable(make(**changes), settings(**changes), ["connector"])
    checkpoint.save(model, tmp_path / "c")
    write_manifest(tmp_path / "c")
    export(tmp_path / "c", tmp_path / "out", "llava", processor)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {name: list(file.get_slice(name).get_shape()) for name in file.keys()} == expected_shapes(model.config)  # noqa: SIM118
    _, report = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
