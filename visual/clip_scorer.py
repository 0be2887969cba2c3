"""Image-text scores of CLIP, Chinese-CLIP and SigLIP.

The score is the model's logit: scale times cosine, plus SigLIP's bias. Image features are cached, so an image is encoded
once however many texts it is scored against.

Shapes: N images, M texts, D embedding size, T tokens of the longest text, H height and W width in pixels. Embeddings are
L2-normalised.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoModel

from errors import UsageError, loading
from visual.hub_name import pretrained
from visual.pretrained_model import load_image_processor, read_config
from visual.text_tokenizer import load_text_tokenizer

MODEL_TYPES = ("clip", "chinese_clip", "siglip")
"""Supported values of `model_type`; SigLIP 2 of fixed resolution has the type siglip."""


class ClipScorer:
    """Scores texts against images. Thread-safe: a lock guards the model and the feature cache.

    Args:
        model: The dual encoder; set to eval mode.
        tokenizer: Its tokenizer; set to truncate on the left.
        image_processor: Its image processor.
        open_image: Decodes an image file to RGB.
        cache_size: Number of images whose features are cached; the least recently used are evicted.
        batch_size: Number of images or texts encoded at a time.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        open_image: Callable[[Any], Image.Image],
        *,
        cache_size: int = 8192,
        batch_size: int = 64,
    ):
        self.model, self.tokenizer, self.image_processor, self.open_image = model.eval(), tokenizer, image_processor, open_image
        self.cache_size, self.batch_size = cache_size, batch_size
        tokenizer.truncation_side = "left"
        self._feature_cache: OrderedDict[object, torch.Tensor] = OrderedDict()
        self._lock = threading.RLock()

    def score(self, image: Image.Image | PathLike[str], texts: Sequence[str]) -> list[float]:
        """Logit of each text, [M]; higher is a better match.

        A text longer than the context of the text encoder is truncated on the left, because candidates differ in the answer
        at the end.
        """
        return self.score_batch([image], [texts])[0]

    def score_batch(self, images: Sequence[Image.Image | PathLike[str]], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """`score` of each image with its own texts. Images and texts are encoded in shared batches."""
        vectors = self.image_features(images)
        return [self._logits(image, text_vectors).tolist() for image, text_vectors in zip(vectors, self._encode_groups(texts), strict=True)]

    def score_with_priors(
        self, images: Sequence[Image.Image | PathLike[str]], texts: Sequence[Sequence[str]], background_means: Sequence[np.ndarray]
    ) -> list[tuple[list[float], list[float]]]:
        """Scores as in `score_batch`, each with its prior: the mean scores of the same texts over background images.

        A logit is linear in the image embedding, so the mean embedding gives the mean logit.

        background_means: for each image, the mean [D] of the background images' `features`.
        """
        vectors, text_vectors = self.image_features(images), self._encode_groups(texts)
        return [
            (self._logits(image, group).tolist(), self._logits(torch.from_numpy(background), group).tolist())
            for image, group, background in zip(vectors, text_vectors, background_means, strict=True)
        ]

    def features(self, images: Sequence[Image.Image | PathLike[str]]) -> np.ndarray:
        """Image embeddings as an array, float32 [N, D]. Raises what `open_image` raises."""
        return np.asarray(self.image_features(images).numpy(), dtype=np.float32)

    def _encode_groups(self, texts: Sequence[Sequence[str]]) -> list[torch.Tensor]:
        """Text embeddings [M, D] of each group; a text that is in several groups is encoded once."""
        # Texts of similar length share a batch, to reduce padding.
        order = sorted(dict.fromkeys(text for group in texts for text in group), key=len)
        text_vectors, index = self.text_features(order), {text: i for i, text in enumerate(order)}
        return [text_vectors[[index[text] for text in group]] if group else text_vectors[:0] for group in texts]

    def cosine_batch(self, images: Sequence[Image.Image | PathLike[str]], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Cosine similarities, -1..1: the scores of `score_batch` without scale and bias."""
        scale = float(self.model.logit_scale.detach().float().exp())
        bias = getattr(self.model, "logit_bias", None)
        offset = 0.0 if bias is None else float(bias.detach().float())
        return [[(logit - offset) / scale for logit in group] for group in self.score_batch(images, texts)]

    def probabilities(self, image: Image.Image | PathLike[str], labels: Sequence[str]) -> list[float]:
        """Zero-shot classification: softmax of the logits over the labels. Sums to 1, even if no label matches."""
        return torch.softmax(torch.tensor(self.score(image, labels), dtype=torch.float64), dim=0).tolist()

    def image_features(self, images: Sequence[Image.Image | PathLike[str]]) -> torch.Tensor:
        """Image embeddings, float32 [N, D] on the CPU. Raises what `open_image` raises."""
        keys = [_cache_key(image) for image in images]
        with self._lock:
            new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._feature_cache}
            features = {key: self._feature_cache[key] for key in keys if key in self._feature_cache}
            missing = list(new)
            for start in range(0, len(missing), self.batch_size):
                chunk = missing[start : start + self.batch_size]
                features |= zip(chunk, self._encode_images([new[key] for key in chunk]), strict=True)
            for key in keys:
                self._feature_cache[key] = features[key]
                self._feature_cache.move_to_end(key)
            while len(self._feature_cache) > self.cache_size:
                self._feature_cache.popitem(last=False)
        return torch.stack([features[key] for key in keys]) if keys else torch.empty(0, 0)

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Text embeddings, float32 [M, D] on the CPU."""
        with self._lock:
            parts = [self._encode_texts(texts[start : start + self.batch_size]) for start in range(0, len(texts), self.batch_size)]
        return torch.cat(parts) if parts else torch.empty(0, 0)

    def _logits(self, image: torch.Tensor, text_vectors: torch.Tensor) -> torch.Tensor:
        """Logits [M] of an image embedding [D] and text embeddings [M, D]."""
        if not len(text_vectors):
            return torch.empty(0)
        bias = getattr(self.model, "logit_bias", None)
        scale = self.model.logit_scale.detach().float().cpu().exp()
        logits: torch.Tensor = text_vectors @ image * scale
        return logits if bias is None else logits + bias.detach().float().cpu()

    def _encode_images(self, images: Sequence[Image.Image | PathLike[str]]) -> torch.Tensor:
        opened = [image.convert("RGB") if isinstance(image, Image.Image) else self.open_image(image) for image in images]
        return self.encode_pixels(self.pixels(opened))

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Preprocessed pixels of RGB images, [N, 3, H, W]. Needs no lock."""
        pixels: torch.Tensor = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels

    @torch.inference_mode()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Image embeddings, float32 [N, D] on the CPU, of preprocessed pixels [N, 3, H, W]. Bypasses the cache."""
        with self._lock:
            return _normalized(self.model.get_image_features(pixel_values=pixels.to(self.model.device, self.model.dtype)))

    @torch.inference_mode()
    def _encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        inputs = self.tokenize(texts)
        return _normalized(self.model.get_text_features(**{name: value.to(self.model.device) for name, value in inputs.items()}))

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Inputs of the text encoder: input_ids [M, T], and attention_mask [M, T] except for SigLIP."""
        config = self.model.config.text_config
        max_length = int(config.max_position_embeddings)
        # Special tokens in a text are tokenized as plain text: CLIP reads its feature at the first end token.
        rows = self.tokenizer(list(texts), truncation=True, max_length=max_length, split_special_tokens=True)["input_ids"]
        siglip = self.model.config.model_type == "siglip"
        if self.model.config.model_type == "clip":
            # The token whose hidden state is CLIP's text feature. Old configurations state 2 and mean the tokenizer's end token.
            end = int(self.tokenizer.eos_token_id if config.eos_token_id == 2 else config.eos_token_id)
            rows = [row if row[-1:] == [end] else [*row[1 - max_length :], end] for row in rows]
        # SigLIP was trained with padding to its full length and no attention mask.
        width = max_length if siglip else max(map(len, rows))
        pad = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        if siglip:
            return {"input_ids": ids}
        return {"input_ids": ids, "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])}


def load(
    name: str, open_image: Callable[[Any], Image.Image], *, device: torch.device | str, dtype: torch.dtype, key: str = "rerank.clip"
) -> ClipScorer:
    """Load a scorer.

    Args:
        name: Local folder or hub name.
        open_image: Decodes an image file to RGB.
        device: Device of the model.
        dtype: Data type of the weights.
        key: Configuration key that error messages name.

    Raises UsageError when the model cannot be loaded or is of an unsupported type.
    """
    config = read_config(key, name)
    if config.model_type not in MODEL_TYPES:
        raise UsageError(f"{key}: {name} is a {config.model_type} model; expected CLIP, Chinese-CLIP or SigLIP of fixed resolution")
    tokenizer = load_text_tokenizer(name, config.model_type, key)
    with loading(key, name):
        model = AutoModel.from_pretrained(**pretrained(name), config=config, dtype=dtype)
    return ClipScorer(model.to(device), tokenizer, load_image_processor(key, name), open_image)


def _normalized(output: Any) -> torch.Tensor:
    return functional.normalize(output.pooler_output.float(), dim=-1).cpu()


def _cache_key(image: Image.Image | PathLike[str]) -> object:
    """Files by path, size and modification time; images in memory by a digest of their pixels."""
    if isinstance(image, Image.Image):
        return image.mode, image.size, hashlib.blake2b(image.tobytes(), digest_size=16).digest()
    try:
        state = Path(image).stat()
    except OSError:
        return str(image)
    return str(image), state.st_size, state.st_mtime_ns
