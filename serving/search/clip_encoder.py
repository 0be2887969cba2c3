"""From picture files and texts to CLIP vectors, and a fingerprint of what makes them.

Reading, hashing and decoding may run in threads; the scorer sees to it that its model is used by one at a time.
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

_IMAGE_PROCESSOR_KEYS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
    "do_normalize", "image_mean", "image_std",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """What makes the vectors of an index: a name to show, the fingerprint that tells it from others, the width of a vector."""

    name: str
    fingerprint: str
    embedding_dim: int


class ClipEncoder:
    """Unit vectors of pictures and texts from one CLIP. `max_pixels`: larger pictures are refused before they are decoded."""

    def __init__(self, scorer: ClipScorer, name: str, max_pixels: int = MAX_PIXELS):
        self.scorer, self.max_pixels = scorer, max_pixels
        self.embedding_model = EmbeddingModel(name, fingerprint(scorer), self.texts(["a"]).shape[1])

    def pixels(self, data: bytes) -> torch.Tensor:
        """What the model sees of the bytes of a picture file: [1, 3, height, width]. Needs no model, so it may run in any thread.

        Raises PictureError.
        """
        return self.scorer.pixels([open_image(data, self.max_pixels)])

    def encode(self, pixels: Sequence[torch.Tensor]) -> np.ndarray:
        """Vectors [n, width] float32 of what `pixels` gave."""
        return np.asarray(self.scorer.encode_pixels(torch.cat(list(pixels))))

    def image(self, image: Image.Image | Path | bytes) -> np.ndarray:
        """Vector [width] of one picture. Raises PictureError."""
        opened = image if isinstance(image, Image.Image) else open_image(image, self.max_pixels)
        (vector,) = self.encode([self.scorer.pixels([opened.convert("RGB")])])
        return np.asarray(vector)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [n, width] float32."""
        return np.asarray(self.scorer.text_features(texts))


def fingerprint(scorer: ClipScorer) -> str:
    """Sixteen hexadecimal digits that change with any weight of the model and with how it is shown pictures.

    Weights are hashed as bf16, so that a model loaded in bf16 on a GPU has the fingerprint of its fp32 form on a CPU.
    """
    digest = hashlib.blake2b(digest_size=8)
    settings = scorer.image_processor.to_dict()
    digest.update(json.dumps({key: _normalise_setting(settings.get(key)) for key in _IMAGE_PROCESSOR_KEYS}, sort_keys=True).encode())
    for name, weight in sorted(scorer.model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _normalise_setting(value: object) -> object:
    """Settings as any version of the library would write them: no tuples, no classes, no entries that say nothing."""
    if isinstance(value, Mapping):
        return {key: _normalise_setting(member) for key, member in value.items() if member is not None}
    if isinstance(value, list | tuple):
        return [_normalise_setting(member) for member in value]
    return value if value is None or isinstance(value, str | bool) else round(float(value), 9)  # type: ignore[arg-type]
