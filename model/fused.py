"""Everything by which an unsharded model takes fewer passes, in training and in answering; what it computes stays the same."""

from peft import PeftModel

from model.adapters import base_model
from model.fused_lora import fuse_adapters
from model.last_layer import read_sparsely
from model.norms import fuse_norms
from model.vlm import VisionLanguageModel


def fuse(model: VisionLanguageModel | PeftModel) -> None:
    """Adapters, norms and the last layer of a model that is about to be used."""
    fuse_adapters(model)
    language_model = base_model(model).model.language_model
    fuse_norms(language_model)
    read_sparsely(language_model)
