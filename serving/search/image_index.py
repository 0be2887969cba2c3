"""Pictures that can be found by a text or by another picture: what commands, the HTTP service and the demo use."""

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
    """A library of pictures in one vector database. Objects may be shared between threads; what other processes write is seen
    at the next question."""

    def __init__(self, table: ImageTable, encoder: ClipEncoder, settings: SearchConfig):
        self.table, self.encoder, self.settings = table, encoder, settings

    def __len__(self) -> int:
        """Pictures in the library."""
        return len(self.table)

    def add(self, data: bytes) -> str:
        """Add a picture by its bytes and return its id, the SHA-256 of the bytes; one that is there already is left as it is.

        The bytes are kept in the index itself. Raises PictureError when they are no picture, or one of too many pixels.
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
        """Take a picture out of the index; False where it was not in it. Files are never touched: one that stands in an
        indexed folder comes back with the next indexing of that folder."""
        with self.table.writing():
            existed = bool(self.table.rows([image_id]))
            self.table.delete([image_id])
        return existed

    def search_by_text(self, text: str, k: int = 5) -> list[SearchHit]:
        """The k pictures that fit a text best, best first, with the cosine of text and picture as score."""
        if not text.strip():
            raise TesseraError("the text to search for is empty")
        return self._nearest(self.encoder.texts([text])[0], k)

    def search_by_image(self, image: Image.Image | Path | bytes, k: int = 5) -> list[SearchHit]:
        """The k pictures most like another one, best first; the same picture, where it is in the index, comes first with a
        score of 1. Raises PictureError."""
        return self._nearest(self.encoder.image(image), k)

    def image_bytes(self, found: SearchHit) -> bytes:
        """The bytes of a picture that was found. Raises TesseraError when its file, or the picture, is gone by now."""
        if found.path is not None:
            try:
                return found.path.read_bytes()
            except OSError as error:
                raise TesseraError(f"{found.path}: cannot be read any more ({error.strerror}); index its folder again") from error
        rows = self.table.rows([found.id])
        if not rows or rows[0].upload is None:
            raise TesseraError(f"picture {found.id[:12]} is no longer in the index")
        return rows[0].upload

    def thumbnail(self, found: SearchHit, side: int = THUMBNAIL_SIZE) -> Image.Image:
        """A found picture as RGB with at most `side` pixels a side. Raises TesseraError as `picture_bytes` does, and PictureError."""
        image = open_image(self.image_bytes(found), self.encoder.max_pixels)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return image

    def state(self) -> str:
        """In words: how many pictures there are and how they are searched."""
        measurement = self._measurement()
        return f"exact search over {len(self):,} pictures" if measurement is None else measurement.text()

    def _nearest(self, vector: np.ndarray, k: int) -> list[SearchHit]:
        if k < 1:
            raise TesseraError(f"{k} results were asked for; at least 1 is expected")
        measurement = self._measurement()
        # No more than there is: the database takes no number of any size.
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
    """Load a CLIP, Chinese-CLIP or SigLIP (folder or hub name) and open the index at `place` (a folder, or an address on object
    storage) that it made.

    create: make an index where there is none; reindex: begin a new one where another model made the old one; shelf: shares the
    model with others.
    Raises UsageError when the model cannot be loaded, there is no index, or another model made it.
    """
    scorer = (scorer_cache or ScorerCache()).load(clip, key="search.clip" if settings.clip else "rerank.clip")
    encoder = ClipEncoder(scorer, clip, max_pixels)
    return ImageIndex(open_table(uri, encoder.embedding_model, create=create, reindex=reindex, storage=settings.storage), encoder, settings)
