"""Replaces modules by fused versions that read and write memory fewer times, for training and generation; results stay the same.

For models whose weights are not sharded over ranks.
"""

from typing import TYPE_CHECKING

from model.kernels.rms_norm import fuse_rms_norms
from model.param_groups import has_adapters
from model.siglip_qwen.adapters import base_model
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.sparse_last_layer import enable_sparse_last_layer

if TYPE_CHECKING:
    from peft import PeftModel


def fuse_modules(model: "VisionLanguageModel | PeftModel") -> None:
    """Replace LoRA layers, RMS norms and the last layer by fused ones with the same weights."""
    if has_adapters(model):
        # Imports PEFT, which a model without adapters does not need.
        from model.kernels.fused_lora import fuse_lora

        fuse_lora(model)
    language_model = base_model(model).model.language_model
    fuse_rms_norms(language_model)
    enable_sparse_last_layer(language_model)
