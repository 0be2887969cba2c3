"""Load a checkpoint exported to the LLaVA layout (`tools/export.py --format llava`) with transformers' own class."""

import json
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from errors import UsageError, loading
from model.checkpoint_manifest import verify
from model.quantization import Quantization, disable_avx512bf16, quantization_config
from model.siglip_qwen.processor import PROMPTS_FILE, Processor
from visual.hub_name import pretrained
from visual.image_processor import load_image_processor

NOT_QUANTISED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
"""Modules that stay unquantised."""


def load(
    folder: Path, quantization: Literal["as_trained"] | Quantization, dtype: torch.dtype, device: torch.device | str
) -> tuple[LlavaForConditionalGeneration, Processor]:
    """The model, and a processor that builds the prompts of the checkpoint, from the chat template and PROMPTS_FILE of the export.

    Args:
        folder: written by `tools/export.py --format llava`.
        quantization: of the language model; "as_trained" is unquantised.
        dtype: of the weights that are not quantised.
        device: of all weights.

    Raises:
        UsageError: the folder was not written by the export or is damaged, or the installed transformers would compute other features.
    """
    verify(folder)
    quantized = quantization_config("none" if quantization == "as_trained" else quantization, dtype, NOT_QUANTISED)
    options = {} if quantized is None else {"quantization_config": quantized}
    with loading("checkpoint", str(folder)):
        prompts = json.loads(path.read_text(encoding="utf-8")) if (path := folder / PROMPTS_FILE).is_file() else {}
        tokenizer = AutoTokenizer.from_pretrained(**pretrained(folder))
        image_processor = load_image_processor(str(folder))
        model = LlavaForConditionalGeneration.from_pretrained(**pretrained(folder), dtype=dtype, device_map={"": device}, **options)
    config = model.config
    if config.vision_feature_select_strategy != "full" or not tokenizer.chat_template:
        raise UsageError(f"{folder}: a LLaVA model, but not one that tools/export.py wrote (all patches and a chat template are expected)")
    if getattr(config.vision_config, "tie_last_hidden_states", False) and not _last_hidden_state_is_normed(model):
        raise UsageError(
            f"{folder}: its image features are taken after the final norm (vision_config.tie_last_hidden_states). The installed "
            "transformers does not support this setting and would give other answers; a newer one is needed"
        )
    disable_avx512bf16(model)
    processor = Processor(
        tokenizer,
        image_processor,
        image_token=str(tokenizer.convert_ids_to_tokens(config.image_token_id)),
        tokens_per_image=config.image_seq_length,
        # The export does not store model.max_length; use the maximum length of the language model.
        max_length=int(config.text_config.max_position_embeddings),
        prompts=prompts,
    )
    return model.requires_grad_(False).eval(), processor


@torch.no_grad()
def _last_hidden_state_is_normed(model: LlavaForConditionalGeneration) -> bool:
    """Whether the last hidden state of the vision tower is taken after its final norm."""
    tower, side = model.model.vision_tower, model.config.vision_config.image_size
    outputs = tower(torch.zeros(1, 3, side, side, dtype=tower.dtype, device=tower.device), output_hidden_states=True)
    return torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
