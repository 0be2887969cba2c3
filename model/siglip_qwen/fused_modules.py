"""Everything by which an unsharded model takes fewer passes, in training and in answering; what it computes stays the same."""

from peft import PeftModel

from model.kernels.fused_lora import fuse_lora
from model.kernels.rms_norm import fuse_rms_norms
from model.lora import base_model
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.sparse_last_layer import enable_sparse_last_layer


def fuse_modules(model: VisionLanguageModel | PeftModel) -> None:
    """Adapters, norms and the last layer of a model that is about to be used."""
    fuse_lora(model)
    language_model = base_model(model).model.language_model
    fuse_rms_norms(language_model)
    enable_sparse_last_layer(language_model)
