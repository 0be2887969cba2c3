"""Pictures that can be found by a text or by another picture: what commands, the HTTP service and the demo use."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from answering.answerer_factory import Shelf
from dataset.loading.image_io import MAX_PIXELS, open_picture
from errors import TesseraError
from serving.search import ann_index
from serving.search.clip_encoder import Encoder
from serving.search.config import SearchConfig
from serving.search.lancedb_table import Found, PictureTable, Row, open_table

THUMBNAIL = 192
"""Longer side of a thumbnail in pixels."""


class PictureIndex:
    """A library of pictures in one vector database. Objects may be shared between threads; what other processes write is seen
    at the next question."""

    def __init__(self, table: PictureTable, encoder: Encoder, settings: SearchConfig):
        self.table, self.encoder, self.settings = table, encoder, settings

    def __len__(self) -> int:
        """Pictures in the library."""
        return len(self.table)

    def add(self, data: bytes) -> str:
        """Add a picture by its bytes and return its id, the SHA-256 of the bytes; one that is there already is left as it is.

        The bytes are kept in the index itself. Raises PictureError when they are no picture, or one of too many pixels.
        """
        picture_id = hashlib.sha256(data).hexdigest()
        if self.table.rows([picture_id]):
            return picture_id
        (vector,) = self.encoder.encode([self.encoder.pixels(data)])
        with self.table.writing():
            if not self.table.rows([picture_id]):
                self.table.put([Row(picture_id, len(data), {}, data, vector)])
        return picture_id

    def remove(self, picture_id: str) -> bool:
        """Take a picture out of the index; False where it was not in it. Files are never touched: one that stands in an
        indexed folder comes back with the next indexing of that folder."""
        with self.table.writing():
            there = bool(self.table.rows([picture_id]))
            self.table.delete([picture_id])
        return there

    def search_text(self, text: str, k: int = 5) -> list[Found]:
        """The k pictures that fit a text best, best first, with the cosine of text and picture as score."""
        if not text.strip():
            raise TesseraError("the text to search for is empty")
        return self._nearest(self.encoder.texts([text])[0], k)

    def search_picture(self, picture: Image.Image | Path | bytes, k: int = 5) -> list[Found]:
        """The k pictures most like another one, best first; the same picture, where it is in the index, comes first with a
        score of 1. Raises PictureError."""
        return self._nearest(self.encoder.picture(picture), k)

    def picture_bytes(self, found: Found) -> bytes:
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

    def thumbnail(self, found: Found, side: int = THUMBNAIL) -> Image.Image:
        """A found picture as RGB with at most `side` pixels a side. Raises TesseraError as `picture_bytes` does, and PictureError."""
        picture = open_picture(self.picture_bytes(found), self.encoder.max_pixels)
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        return picture

    def state(self) -> str:
        """In words: how many pictures there are and how they are searched."""
        measured = self._graph()
        return f"exact search over {len(self):,} pictures" if measured is None else measured.text()

    def _nearest(self, vector: np.ndarray, k: int) -> list[Found]:
        if k < 1:
            raise TesseraError(f"{k} results were asked for; at least 1 is expected")
        measured = self._graph()
        # No more than there is: the database takes no number of any size.
        return self.table.nearest(vector, min(k, max(1, len(self))), None if measured is None else measured.ef or None)

    def _graph(self) -> ann_index.Graph | None:
        return None if len(self.table) <= self.settings.exact_up_to else ann_index.stated(self.table)


def open_index(
    settings: SearchConfig,
    place: str,
    clip: str,
    *,
    create: bool = False,
    reindex: bool = False,
    max_pixels: int = MAX_PIXELS,
    shelf: Shelf | None = None,
) -> PictureIndex:
    """Load a CLIP, Chinese-CLIP or SigLIP (folder or hub name) and open the index at `place` (a folder, or an address on object
    storage) that it made.

    create: make an index where there is none; reindex: begin a new one where another model made the old one; shelf: shares the
    model with others.
    Raises UsageError when the model cannot be loaded, there is no index, or another model made it.
    """
    scorer = (shelf or Shelf()).load(clip, key="search.clip" if settings.clip else "rerank.clip")
    encoder = Encoder(scorer, clip, max_pixels)
    return PictureIndex(open_table(place, encoder.maker, create=create, reindex=reindex, storage=settings.storage), encoder, settings)
