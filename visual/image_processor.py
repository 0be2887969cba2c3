"""Load the Pillow variant of a model's image processor.

AutoImageProcessor picks the torchvision variant where torchvision is installed, whose resize gives different pixels, and
older versions of transformers require torchvision even for the Pillow variant. So the class is chosen by name.
"""

import re
from typing import Any

import transformers
from transformers.image_processing_base import ImageProcessingMixin

from visual.hub_name import pretrained


def load_image_processor(name: str) -> Any:
    """The image processor of a folder or hub name. Raises ValueError when it has no Pillow variant, OSError when it is missing."""
    settings, _ = ImageProcessingMixin.get_image_processor_dict(**pretrained(name))
    # Old folders name a feature extractor, some folders the torchvision variant.
    class_name = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    base = re.sub(r"FeatureExtractor$", "ImageProcessor", re.sub(r"(Fast|Pil)$", "", class_name))
    processor = getattr(transformers, f"{base}Pil", None)
    if processor is None:
        raise ValueError(f"its image processor {class_name or '(unnamed)'} has no Pillow variant")
    return processor.from_pretrained(**pretrained(name))
