"""Exports a checkpoint as one merged model, in Tessera's format or in the LLaVA format that transformers loads.

The exported folder contains weights, processor, generation config and a model card.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedConfig,
)

from atomic_io import atomic_write_folder, write_json, write_text
from errors import TesseraError, UsageError
from model.checkpoint_manifest import write_manifest
from model.hub.model_card import model_card
from model.processors.sample_processor import PROMPTS_FILE
from model.siglip_qwen import checkpoint
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor
from visual.pretrained_model import output_size
from visual.vision_encoder import num_prefix_tokens

ExportFormat = Literal["merged", "llava"]
Llava: TypeAlias = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration

POST_NORM_WARNING = (
    "model.vision_feature_layer is last_hidden_state, which the LLaVA format expresses by vision_config.tie_last_hidden_states. "
    "Runtimes that do not support this field (older transformers, vLLM) silently read the features before the final norm and give "
    "other answers."
)
"""Warning about exports with features after the final norm of the vision encoder."""


def export(
    folder: Path,
    out: Path,
    export_format: ExportFormat,
    processor: Processor,
    *,
    dtype: torch.dtype = torch.float32,
    data_report: str | None = None,
) -> list[str]:
    """Merge a checkpoint and write it to a new folder. In LLaVA format, logits are compared before anything is written.

    Args:
        folder: checkpoint folder.
        out: folder to write; must be empty or missing.
        export_format: merged (Tessera's format) or llava.
        processor: the checkpoint's processor.
        dtype: of the exported weights.
        data_report: table of the training data for the model card.

    Returns warnings to print, which are in the model card too. Raises UsageError when `out` is not empty, or the format cannot express
    a setting, TesseraError when LLaVA in the installed transformers computes other logits.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: it exists already; choose a new folder")
    settings = checkpoint.settings(folder)
    warnings = check_llava_compatible(settings, checkpoint.read_config(folder).vision_config) if export_format == "llava" else []
    model = checkpoint.merge(folder, dtype=dtype)
    base = checkpoint.read_config(folder).base_folder
    dtype_name = str(dtype).removeprefix("torch.")
    card = model_card(export_format, settings, processor.prompts, dtype_name, warnings, data_report, base["path"] if base else None)
    with atomic_write_folder(out) as temp_path:
        if export_format == "llava":
            llava = to_llava(model)
            check_same_logits(model, llava)
            llava.save_pretrained(temp_path, state_dict=published_names(llava.state_dict()))
            llava_processor(processor, model).save_pretrained(temp_path)
            if processor.prompts:
                write_json(temp_path / PROMPTS_FILE, processor.prompts)
        else:
            model.save_pretrained(temp_path)
            processor.save(temp_path)
        write_text(temp_path / "README.md", card)
        write_manifest(temp_path)
    return warnings


def check_llava_compatible(settings: SiglipQwenConfig, vision: PreTrainedConfig | None = None) -> list[str]:
    """Return warnings. Raises UsageError naming a setting that the LLaVA format cannot express. vision: config of the vision encoder, by
    default of a SigLIP."""
    if settings.connector.kind != "mlp":
        raise UsageError(
            f"--format llava: model.connector.kind is {settings.connector.kind}, but the LLaVA format has two layers for each patch (only "
            "mlp); use --format merged"
        )
    if settings.connector.keep_ratio < 1.0:
        raise UsageError(
            f"--format llava: model.connector.keep_ratio is {settings.connector.keep_ratio}, but the LLaVA format merges no patches (only "
            "1.0); use --format merged"
        )
    if settings.drop_first_patch:
        raise UsageError(
            "--format llava: model.drop_first_patch is true, but the LLaVA format either uses all patches or reads the vision encoder "
            "in another way; use --format merged"
        )
    last = settings.vision_feature_layer == "last_hidden_state"
    if settings.tiles is not None and vision is not None and vision.model_type == "dinov2":
        raise UsageError(
            "--format llava: model.tiles with a DINOv2, whose images LLaVA-NeXT takes to be of another size; use --format merged"
        )
    if vision is None or vision.model_type == "siglip_vision_model":
        return [POST_NORM_WARNING] if last else []
    if (before := num_prefix_tokens(vision)) > 1:
        raise UsageError(
            f"--format llava: model.vision is a {vision.model_type} model with {before} positions before its patches, and the LLaVA format "
            "leaves out one; use --format merged"
        )
    if last and vision.model_type == "dinov2":
        raise UsageError(
            "--format llava: model.vision_feature_layer is last_hidden_state, which the LLaVA format does not have for DINOv2; use "
            "--format merged"
        )
    return []


def to_llava(model: VisionLanguageModel) -> Llava:
    """A model of transformers' class that shares the tensors of `model`; LLaVA-NeXT where images are cut into tiles."""
    config = model.config
    vision = copy.deepcopy(config.vision_config)
    num_hidden_states = vision.num_hidden_layers + 1
    layer = config.vision_feature_layer
    if layer == "last_hidden_state":
        vision.tie_last_hidden_states, layer = vision.model_type == "siglip_vision_model", -1
    values = {
        "vision_config": vision,
        "text_config": copy.deepcopy(config.text_config),
        "image_token_index": config.image_token_id,
        "image_seq_length": (config.image_side // vision.patch_size) ** 2,
        # As a negative index: transformers treats 0 as "no layer".
        "vision_feature_layer": layer % num_hidden_states - num_hidden_states,
        "vision_feature_select_strategy": _select_strategy(model),
    }
    connector: Any = model.model.multi_modal_projector
    llava_config: Any = LlavaConfig(**values)
    if config.tiles is not None:
        tied = config.tie_word_embeddings
        llava_config = LlavaNextConfig(**values, image_grid_pinpoints=config.tile_grid.resolutions, tie_word_embeddings=tied)
    llava_config.dtype = model.dtype
    for sub_config in (llava_config.vision_config, llava_config.text_config):
        # A local path is meaningless on other machines.
        if Path(sub_config._name_or_path).is_absolute():
            sub_config._name_or_path = ""
    with torch.device("meta"):
        llava: Llava = (LlavaForConditionalGeneration if config.tiles is None else LlavaNextForConditionalGeneration)(llava_config)
    llava.model.vision_tower = model.model.vision_tower
    llava.model.language_model = model.model.language_model
    llava.lm_head = model.lm_head
    if isinstance(llava, LlavaNextForConditionalGeneration):
        llava.model.image_newline, connector = connector.image_newline, connector.connector
    llava.model.multi_modal_projector.load_state_dict(connector.state_dict(), assign=True)
    llava.model.vision_tower.config, llava.model.language_model.config = llava_config.vision_config, llava_config.text_config
    llava.generation_config = model.generation_config
    return llava.eval()


def _select_strategy(model: VisionLanguageModel) -> str:
    """`default` leaves out the first position, a class token."""
    return "default" if num_prefix_tokens(model.config.vision_config) else "full"


def published_names(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, those of the vision encoder under the prefix that published LLaVA checkpoints with SigLIP have.

    transformers reads SigLIP's weights with and without `vision_model`, and writes a model that it did not load without it; other
    runtimes look for it (vLLM 0.32: SiglipVisionModel.vision_model).
    """
    inside, published = "model.vision_tower.", "model.vision_tower.vision_model."
    if not any(name.startswith(f"{inside}encoder.layers.") for name in state_dict):
        return state_dict  # DINOv2, whose class has no such prefix
    return {name.replace(inside, published, 1) if name.startswith(inside) else name: tensor for name, tensor in state_dict.items()}


@torch.no_grad()
def check_same_logits(model: VisionLanguageModel, llava: Llava) -> None:
    """Raise TesseraError when LLaVA in the installed transformers gives other logits than `model` for a random image and text."""
    generator, config = torch.Generator().manual_seed(0), model.config
    side, vocab_size = config.image_side, config.text_config.vocab_size
    # Of tiles, an image that leaves margins in its grid.
    size, tiled = (side + 5, 2 * side - 7), config.tiles is not None
    rows, tokens = (config.tile_grid.num_rows(size), config.tile_grid.num_tokens(size)) if tiled else (1, llava.config.image_seq_length)
    pixels = torch.randn(rows, 3, side, side, generator=generator).to(model.device, model.dtype)
    text_ids = torch.randint(min(vocab_size, config.image_token_id), (1, 16), generator=generator)
    input_ids = torch.cat([text_ids[:, :8], torch.full((1, tokens), config.image_token_id), text_ids[:, 8:]], dim=1).to(model.device)
    sizes = {"image_sizes": torch.tensor([size])} if tiled else {}
    ours, theirs = (m(input_ids=input_ids, pixel_values=pixels, logits_to_keep=8, **sizes).logits.float() for m in (model, llava))
    difference, scale = float((ours - theirs).abs().max()), float(ours.abs().max())
    if difference > scale * (1e-4 if model.dtype == torch.float32 else 2e-2):
        raise TesseraError(
            f"--format llava: LLaVA in the installed transformers gives other logits than Tessera (maximum difference {difference:.2g}, "
            f"largest logit {scale:.2g}); nothing was written; use --format merged or another version of transformers"
        )


def llava_processor(processor: Processor, model: VisionLanguageModel) -> LlavaProcessor | LlavaNextProcessor:
    """LLaVA's processor: image processor, tokenizer, and a chat template that renders the prompts of training."""
    template_parts = processor.template_parts
    if processor.system_prompt is not None:
        opening = template_parts.system_open + processor.system_prompt + template_parts.system_close
        template_parts = dataclasses.replace(template_parts, opening=opening)
    template = template_parts.template(processor.image_token)
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.chat_template = template
    image_processor = processor.image_processor
    if model.config.tiles is not None:
        image_processor = _llava_next_image_processor(image_processor, model.config.tile_grid.resolutions)
    return (LlavaProcessor if model.config.tiles is None else LlavaNextProcessor)(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=model.config.vision_config.patch_size,
        vision_feature_select_strategy=_select_strategy(model),
        num_additional_image_tokens=num_prefix_tokens(model.config.vision_config),
        image_token=processor.image_token,
        chat_template=template,
    )


def _llava_next_image_processor(own: Any, resolutions: list[list[int]]) -> LlavaNextImageProcessorPil:
    """LLaVA-NeXT's image processor with the size and normalisation of the vision encoder's."""
    height, width = output_size(own)
    names = ("resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    return LlavaNextImageProcessorPil(
        size={"height": height, "width": width},
        do_center_crop=False,
        crop_size=None,
        image_grid_pinpoints=resolutions,
        **{name: getattr(own, name) for name in names},
    )
