"""The image processor of a model, in its Pillow form.

The automatic choice takes torchvision's resize where that is installed, which gives other pixels, and older transformers
ask for torchvision even when Pillow's is wanted. So the class is named.
"""

import re
from typing import Any

import transformers
from transformers.image_processing_base import ImageProcessingMixin


def load_image_processor(name: str) -> Any:
    """The image processor of a folder or hub name. Raises ValueError when it has no Pillow form, OSError when it is missing."""
    settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
    # Old folders name a feature extractor, some name the torchvision form.
    class_name = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    base = re.sub(r"FeatureExtractor$", "ImageProcessor", re.sub(r"(Fast|Pil)$", "", class_name))
    processor = getattr(transformers, f"{base}Pil", None)
    if processor is None:
        raise ValueError(f"its image processor {class_name or '(unnamed)'} has no Pillow form")
    return processor.from_pretrained(name)
