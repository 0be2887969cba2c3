"""Replaces modules by fused versions that read and write memory fewer times, for training and generation; results stay the same.

For models whose weights are not sharded over ranks.
"""

from peft import PeftModel

from model.kernels.fused_lora import fuse_lora
from model.kernels.rms_norm import fuse_rms_norms
from model.siglip_qwen.adapters import base_model
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.sparse_last_layer import enable_sparse_last_layer


def fuse_modules(model: VisionLanguageModel | PeftModel) -> None:
    """Fuse LoRA layers and RMS norms and enable the sparse last layer, in place."""
    fuse_lora(model)
    language_model = base_model(model).model.language_model
    fuse_rms_norms(language_model)
    enable_sparse_last_layer(language_model)
