"""Image search by text or by image, used by the commands, the HTTP service and the demo."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from answering.answerer_factory import ScorerCache
from dataset.loading.image_io import MAX_PIXELS, open_image
from errors import TesseraError
from serving.search import ann_index
from serving.search.clip_encoder import ClipEncoder
from serving.search.config import SearchConfig
from serving.search.lancedb_table import ImageRow, ImageTable, SearchHit, open_table

THUMBNAIL_SIZE = 192
"""Longer side of a thumbnail in pixels."""


class ImageIndex:
    """A searchable collection of images. Thread-safe; each search sees the latest commit of other processes."""

    def __init__(self, table: ImageTable, encoder: ClipEncoder, settings: SearchConfig):
        self.table, self.encoder, self.settings = table, encoder, settings

    def __len__(self) -> int:
        """Number of images."""
        return len(self.table)

    def add(self, data: bytes) -> str:
        """Add an image by its bytes, which the index stores, and return its id, their SHA-256. An indexed image is not changed.

        Raises ImageError if the bytes are not an image or it has too many pixels.
        """
        image_id = hashlib.sha256(data).hexdigest()
        if self.table.rows([image_id]):
            return image_id
        (vector,) = self.encoder.encode([self.encoder.pixels(data)])
        with self.table.writing():
            if not self.table.rows([image_id]):
                self.table.put([ImageRow(image_id, len(data), {}, data, vector)])
        return image_id

    def remove(self, image_id: str) -> bool:
        """Remove an image from the index; False if it is not in the index. Files are not deleted: an image of an indexed folder
        is added again by the next indexing of that folder."""
        with self.table.writing():
            existed = bool(self.table.rows([image_id]))
            self.table.delete([image_id])
        return existed

    def search_by_text(self, text: str, k: int = 5) -> list[SearchHit]:
        """The k images that fit a text best, best first. Score: cosine similarity of text and image."""
        if not text.strip():
            raise TesseraError("the text to search for is empty")
        return self._nearest(self.encoder.texts([text])[0], k)

    def search_by_image(self, image: Image.Image | Path | bytes, k: int = 5) -> list[SearchHit]:
        """The k images most similar to an image, best first; the same image, if indexed, comes first with score 1.

        Raises ImageError.
        """
        return self._nearest(self.encoder.image(image), k)

    def image_bytes(self, hit: SearchHit) -> bytes:
        """The bytes of a found image. Raises TesseraError if its file or its row was removed since."""
        if hit.path is not None:
            try:
                return hit.path.read_bytes()
            except OSError as error:
                raise TesseraError(f"{hit.path}: can no longer be read ({error.strerror}); index its folder again") from error
        rows = self.table.rows([hit.id])
        if not rows or rows[0].upload is None:
            raise TesseraError(f"image {hit.id[:12]} is no longer in the index")
        return rows[0].upload

    def thumbnail(self, hit: SearchHit, side: int = THUMBNAIL_SIZE) -> Image.Image:
        """A found image as RGB with sides of at most `side` pixels. Raises TesseraError as `image_bytes` does, and ImageError."""
        image = open_image(self.image_bytes(hit), self.encoder.max_pixels)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return image

    def state(self) -> str:
        """The number of images and how they are searched, as text."""
        measurement = self._measurement()
        return f"exact search over {len(self):,} images" if measurement is None else measurement.text()

    def _nearest(self, vector: np.ndarray, k: int) -> list[SearchHit]:
        if k < 1:
            raise TesseraError(f"k is {k}: at least 1 result is expected")
        measurement = self._measurement()
        # At most the number of images: the database does not accept arbitrarily large numbers.
        return self.table.nearest(vector, min(k, max(1, len(self))), None if measurement is None else measurement.ef or None)

    def _measurement(self) -> ann_index.AnnMeasurement | None:
        return None if len(self.table) <= self.settings.exact_search_limit else ann_index.load_measurement(self.table)


def open_index(
    settings: SearchConfig,
    uri: str,
    clip: str,
    *,
    create: bool = False,
    reindex: bool = False,
    max_pixels: int = MAX_PIXELS,
    scorer_cache: ScorerCache | None = None,
) -> ImageIndex:
    """Load a CLIP model and open its index.

    Args:
        settings: the section `search`.
        uri: folder of the index, or its URI on object storage.
        clip: folder or hub name of a CLIP, Chinese-CLIP or SigLIP.
        create: create the index if there is none.
        reindex: create a new index if the existing one was built with another model.
        max_pixels: larger images are refused before they are decoded.
        scorer_cache: shares the loaded model with the reranker.

    Raises:
        UsageError: the model cannot be loaded, the index is missing, or it was built with another model.
    """
    scorer = (scorer_cache or ScorerCache()).load(clip, key="search.clip" if settings.clip else "rerank.clip")
    encoder = ClipEncoder(scorer, clip, max_pixels)
    return ImageIndex(open_table(uri, encoder.embedding_model, create=create, reindex=reindex, storage=settings.storage), encoder, settings)
