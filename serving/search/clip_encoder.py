"""CLIP embeddings of images and texts, and a fingerprint of the model.

Reading, hashing and decoding may run in threads; the scorer locks its model. Shapes: N images or texts, D embedding_dim.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataset.loading.image_io import MAX_PIXELS, open_image
from visual.clip_scorer import ClipScorer
from visual.hub_name import pretrained

_IMAGE_PROCESSOR_KEYS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
    "do_normalize", "image_mean", "image_std",
)  # fmt: skip
"""Settings of the image processor that are part of the fingerprint."""


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """The model of an index. name: for messages; fingerprint: of weights and preprocessing; embedding_dim: length of a vector."""

    name: str
    fingerprint: str
    embedding_dim: int


class ClipEncoder:
    """Unit vectors of images and texts from one CLIP. max_pixels: larger images are refused before they are decoded."""

    def __init__(self, scorer: ClipScorer, name: str, max_pixels: int = MAX_PIXELS):
        self.scorer, self.max_pixels = scorer, max_pixels
        self.embedding_model = EmbeddingModel(name, fingerprint(scorer, name), self.texts(["a"]).shape[1])

    def pixels(self, data: bytes) -> torch.Tensor:
        """Preprocessed pixels of an image file [1, 3, height, width]. Does not use the model, so it may run in any thread.

        Raises ImageError.
        """
        return self.scorer.pixels([open_image(data, self.max_pixels)])

    def encode(self, pixels: Sequence[torch.Tensor]) -> np.ndarray:
        """Vectors [N, D] float32 of images preprocessed by `pixels`."""
        return np.asarray(self.scorer.encode_pixels(torch.cat(list(pixels))))

    def image(self, image: Image.Image | Path | bytes) -> np.ndarray:
        """Vector [D] of one image. Raises ImageError."""
        opened = image if isinstance(image, Image.Image) else open_image(image, self.max_pixels)
        (vector,) = self.encode([self.scorer.pixels([opened.convert("RGB")])])
        return np.asarray(vector)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [N, D] float32."""
        return np.asarray(self.scorer.text_features(texts))


def fingerprint(scorer: ClipScorer, name: str) -> str:
    """A hash of the weights and the image preprocessing, as 16 hexadecimal digits.

    Weights are hashed as bf16, so that a model loaded in bf16 on a GPU has the same fingerprint as in fp32 on a CPU. One that was
    loaded in fp16 is read again: fp16 has rounded away other bits. name: the folder or hub name that it was loaded from.
    """
    model = scorer.model
    if model.dtype == torch.float16:
        model = type(model).from_pretrained(**pretrained(name), dtype=torch.bfloat16)
    digest = hashlib.blake2b(digest_size=8)
    settings = scorer.image_processor.to_dict()
    digest.update(json.dumps({key: _normalise_setting(settings.get(key)) for key in _IMAGE_PROCESSOR_KEYS}, sort_keys=True).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _normalise_setting(value: object) -> object:
    """A setting in a form that does not depend on the version of transformers: no tuples, no classes, no None entries."""
    if isinstance(value, Mapping):
        return {key: _normalise_setting(member) for key, member in value.items() if member is not None}
    if isinstance(value, list | tuple):
        return [_normalise_setting(member) for member in value]
    return value if value is None or isinstance(value, str | bool) else round(float(value), 9)  # type: ignore[arg-type]
