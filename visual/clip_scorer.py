"""How well texts fit a picture: CLIP, Chinese-CLIP and SigLIP folders as scorers.

In: pictures and texts. Out: logits (scale times cosine, plus SigLIP's bias), one for each pair. Features of pictures are
kept, so that a picture is encoded once however many texts it is asked about.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoTokenizer

from errors import UsageError, loading
from visual.image_processor import load_image_processor

MODEL_TYPES = ("clip", "chinese_clip", "siglip")
"""`model_type` of what can be loaded; SigLIP 2 of fixed resolution calls itself siglip."""


class ClipScorer:
    """Scores texts against pictures. May be shared between threads: the model and what is kept are used by one at a time.

    open_file decodes a picture file to RGB; kept: pictures whose features are kept, the least recently used go first;
    batch_size: pictures, or texts, encoded together.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        open_image: Callable[[Path], Image.Image],
        *,
        cache_size: int = 8192,
        batch_size: int = 64,
    ):
        self.model, self.tokenizer, self.image_processor, self.open_image = model.eval(), tokenizer, image_processor, open_image
        self.cache_size, self.batch_size = cache_size, batch_size
        tokenizer.truncation_side = "left"
        self._feature_cache: OrderedDict[object, torch.Tensor] = OrderedDict()
        self._lock = threading.RLock()

    def score(self, image: Image.Image | Path, texts: Sequence[str]) -> list[float]:
        """A logit for each text; higher fits better. Of a text longer than the text tower the beginning is left out: what
        tells candidates apart, the answer, stands at the end."""
        return self.score_batch([image], [texts])[0]

    def score_batch(self, images: Sequence[Image.Image | Path], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """`score` of each picture with its own texts, all encoded in common batches."""
        vectors = self.image_features(images)
        return [self._logits(image, text_vectors).tolist() for image, text_vectors in zip(vectors, self._encode_groups(texts), strict=True)]

    def score_with_priors(
        self, images: Sequence[Image.Image | Path], texts: Sequence[Sequence[str]], background_means: Sequence[np.ndarray]
    ) -> list[tuple[list[float], list[float]]]:
        """`score_batch`, and beside the scores of each picture the mean scores of its texts over a bank of other pictures.

        backgrounds: for each picture the mean [width] of the bank's `features`. A logit is linear in the picture's vector, so the
        mean vector gives the mean of the logits.
        """
        vectors, text_vectors = self.image_features(images), self._encode_groups(texts)
        return [
            (self._logits(image, group).tolist(), self._logits(torch.from_numpy(background), group).tolist())
            for image, group, background in zip(vectors, text_vectors, background_means, strict=True)
        ]

    def features(self, images: Sequence[Image.Image | Path]) -> np.ndarray:
        """Unit vectors [n, width] float32. Raises what `open_file` raises."""
        return np.asarray(self.image_features(images).numpy(), dtype=np.float32)

    def _encode_groups(self, texts: Sequence[Sequence[str]]) -> list[torch.Tensor]:
        """Unit vectors [n, width] of each group; a text that stands in several groups is encoded once."""
        # Texts of like length share a batch, so that little is padded.
        order = sorted(dict.fromkeys(text for group in texts for text in group), key=len)
        text_vectors, index = self.text_features(order), {text: i for i, text in enumerate(order)}
        return [text_vectors[[index[text] for text in group]] if group else text_vectors[:0] for group in texts]

    def cosine_batch(self, images: Sequence[Image.Image | Path], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """The same as cosines, -1..1: the logits without scale and bias."""
        scale = float(self.model.logit_scale.detach().float().exp())
        bias = getattr(self.model, "logit_bias", None)
        offset = 0.0 if bias is None else float(bias.detach().float())
        return [[(logit - offset) / scale for logit in group] for group in self.score_batch(images, texts)]

    def probabilities(self, image: Image.Image | Path, labels: Sequence[str]) -> list[float]:
        """Softmax of the logits over the labels: which of them fits best. They sum to 1, also when none fits."""
        return torch.softmax(torch.tensor(self.score(image, labels), dtype=torch.float64), dim=0).tolist()

    def image_features(self, images: Sequence[Image.Image | Path]) -> torch.Tensor:
        """Unit vectors [n, width] float32 on the CPU. Raises what `open_file` raises."""
        with self._lock:
            return self._cached_features(images)

    def _cached_features(self, images: Sequence[Image.Image | Path]) -> torch.Tensor:
        keys = [_cache_key(image) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._feature_cache}
        found = {key: self._feature_cache[key] for key in keys if key in self._feature_cache}
        missing = list(new)
        for start in range(0, len(missing), self.batch_size):
            chunk = missing[start : start + self.batch_size]
            found |= zip(chunk, self._encode_images([new[key] for key in chunk]), strict=True)
        for key in keys:
            self._feature_cache[key] = found[key]
            self._feature_cache.move_to_end(key)
        while len(self._feature_cache) > self.cache_size:
            self._feature_cache.popitem(last=False)
        return torch.stack([found[key] for key in keys]) if keys else torch.empty(0, 0)

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors [n, width] float32 on the CPU."""
        with self._lock:
            parts = [self._encode_texts(texts[start : start + self.batch_size]) for start in range(0, len(texts), self.batch_size)]
        return torch.cat(parts) if parts else torch.empty(0, 0)

    def _logits(self, image: torch.Tensor, text_vectors: torch.Tensor) -> torch.Tensor:
        """image: [width], words: [n, width] -> [n]."""
        if not len(text_vectors):
            return torch.empty(0)
        bias = getattr(self.model, "logit_bias", None)
        scale = self.model.logit_scale.detach().float().cpu().exp()
        logits: torch.Tensor = text_vectors @ image * scale
        return logits if bias is None else logits + bias.detach().float().cpu()

    def _encode_images(self, images: Sequence[Image.Image | Path]) -> torch.Tensor:
        opened = [self.open_image(image) if isinstance(image, Path) else image.convert("RGB") for image in images]
        return self.encode_pixels(self.pixels(opened))

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """What the model sees of RGB pictures: [n, 3, height, width]. May be called from any thread."""
        pixels: torch.Tensor = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels

    @torch.inference_mode()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Unit vectors [n, width] float32 on the CPU of what `pixels` gave; they are not kept."""
        with self._lock:
            return _normalized(self.model.get_image_features(pixel_values=pixels.to(self.model.device, self.model.dtype)))

    @torch.inference_mode()
    def _encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        inputs = self.tokenize(texts)
        return _normalized(self.model.get_text_features(**{name: value.to(self.model.device) for name, value in inputs.items()}))

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the text tower reads: input_ids [n, t], and attention_mask where the family uses one."""
        config = self.model.config.text_config
        max_length = int(config.max_position_embeddings)
        # What looks like a control token in a text is only text; CLIP would take the first end token for the end.
        rows = self.tokenizer(list(texts), truncation=True, max_length=max_length, split_special_tokens=True)["input_ids"]
        siglip = self.model.config.model_type == "siglip"
        if self.model.config.model_type == "clip":
            end = self._eos_token_id()
            rows = [row if row[-1:] == [end] else [*row[1 - max_length :], end] for row in rows]
        # SigLIP was trained on padding up to its full length, without a mask.
        width = max_length if siglip else max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        if siglip:
            return {"input_ids": ids}
        return {"input_ids": ids, "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])}

    def _eos_token_id(self) -> int:
        """The token at which CLIP's text tower takes its feature. Old configs say 2 and mean the vocabulary's last."""
        configured = self.model.config.text_config.eos_token_id
        return int(self.tokenizer.eos_token_id if configured == 2 else configured)


def load(
    name: str, open_image: Callable[[Path], Image.Image], *, device: torch.device | str, dtype: torch.dtype, key: str = "rerank.clip"
) -> ClipScorer:
    """A scorer from a folder or hub name. Raises UsageError, which names the configuration's `key`, when it cannot be loaded
    or is of another family."""
    with loading(key, name):
        config = AutoConfig.from_pretrained(name)
    if config.model_type not in MODEL_TYPES:
        raise UsageError(f"{key}: {name} is a {config.model_type} model; CLIP, Chinese-CLIP or SigLIP of fixed resolution is expected")
    with loading(key, name):
        model = AutoModel.from_pretrained(name, config=config, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(name)
        image_processor = load_image_processor(name)
    return ClipScorer(model.to(device), tokenizer, image_processor, open_image)


def _normalized(output: Any) -> torch.Tensor:
    return functional.normalize(output.pooler_output.float(), dim=-1).cpu()


def _cache_key(image: Image.Image | Path) -> object:
    """Files by path, size and time of change; pictures in memory by their pixels."""
    if isinstance(image, Path):
        try:
            state = image.stat()
        except OSError:
            return str(image)
        return str(image), state.st_size, state.st_mtime_ns
    return image.mode, image.size, hashlib.blake2b(image.tobytes(), digest_size=16).digest()
