"""Loads config, weights and image processor of a pre-trained model. Errors name the setting that names the model, `key`."""

import re
from collections.abc import Callable, Collection
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig
from transformers.image_processing_base import ImageProcessingMixin

from errors import UsageError, loading
from visual.hub_name import pretrained


def read_config(key: str, name: str, model_types: Collection[str] | None = None, expected: str = "") -> PreTrainedConfig:
    """The config of a folder or hub name.

    Args:
        key: setting that names the model.
        name: folder or hub name.
        model_types: `model_type` of the models that can be used; None for any.
        expected: what they are called, for the message.

    Raises UsageError when it cannot be read, or has another `model_type`.
    """
    with loading(key, name):
        config: PreTrainedConfig = AutoConfig.from_pretrained(**pretrained(name))
    if model_types is not None and config.model_type not in model_types:
        raise UsageError(f"{key}: {name} is a {config.model_type} model; {expected} is expected")
    return config


def load_model(
    key: str,
    name: str,
    model_class: Any,
    *,
    part: str = "model",
    may_be_missing: Callable[[str], bool] = lambda _: False,
    **options: Any,
) -> Any:
    """A model of one of transformers' classes with all its weights.

    Args:
        key, name: as in `read_config`.
        model_class: has from_pretrained.
        part: what `name` is loaded for, for the message.
        may_be_missing: whether a weight of this name is not used.
        options: of from_pretrained.

    Raises UsageError when it cannot be loaded, or lacks weights.
    """
    with loading(key, name):
        model, report = model_class.from_pretrained(**pretrained(name), **options, output_loading_info=True)
    if missing := {weight for weight in report["missing_keys"] if not may_be_missing(weight)}:
        raise UsageError(f"{key}: {name} lacks weights of the {part}, such as {min(missing)}")
    return model


def output_size(image_processor: Any) -> tuple[int, int]:
    """Height and width in pixels of what an image processor gives: those of its crop, or its size."""
    cropped = getattr(image_processor, "do_center_crop", False) and getattr(image_processor, "crop_size", None)
    size = dict(image_processor.crop_size if cropped else image_processor.size)
    if not {"height", "width"} <= size.keys():
        raise UsageError(f"model.vision: its image processor has the size {size}; expected height and width")
    return int(size["height"]), int(size["width"])


EQUIVALENT = {"DINOv3ViTImageProcessor": "ViTImageProcessor"}
"""Image processors without a Pillow variant, and one with the same steps. DINOv3's own resizes after it has scaled pixels to 0..1, so its
values differ by the rounding to 1/255."""


def load_image_processor(key: str, name: str) -> Any:
    """The Pillow variant of a model's image processor. Raises UsageError when it is missing or has none.

    AutoImageProcessor picks the torchvision variant where torchvision is installed, whose resize gives different pixels, and
    older versions of transformers require torchvision even for the Pillow variant. So the class is chosen by name.
    """
    with loading(key, name):
        settings, _ = ImageProcessingMixin.get_image_processor_dict(**pretrained(name))
        # Old folders name a feature extractor, some folders the torchvision variant.
        class_name = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
        base = re.sub(r"FeatureExtractor$", "ImageProcessor", re.sub(r"(Fast|Pil)$", "", class_name))
        processor = getattr(transformers, f"{EQUIVALENT.get(base, base)}Pil", None)
        if processor is None:
            raise ValueError(f"its image processor {class_name or '(unnamed)'} has no Pillow variant")
        return processor.from_pretrained(**pretrained(name))
