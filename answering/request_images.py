"""A request's pictures, made ready for a model or for the wire."""

import base64
import hashlib
import io
from pathlib import Path

from PIL import Image

from answering.protocol import Picture
from dataset.loading.image_io import open_picture, read_picture_file, to_rgb

JPEG_QUALITY = 95
"""Of pictures that are sent away."""


def opened(picture: Picture) -> Image.Image:
    """The picture as upright RGB. Raises PictureError."""
    return open_picture(picture) if isinstance(picture, Path) else to_rgb(picture)


def shrunk(picture: Image.Image, max_side: int) -> Image.Image:
    """The picture with its longer side at most `max_side` pixels, its proportions kept; never enlarged."""
    scale = max_side / max(picture.size)
    if scale >= 1:
        return picture
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS)


def data_url(picture: Picture, max_side: int) -> str:
    """The picture, shrunk, as a JPEG in a data URL. What else its file holds (place, camera, thumbnail) is not sent.

    Raises PictureError.
    """
    jpeg = io.BytesIO()
    shrunk(opened(picture), max_side).save(jpeg, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode("ascii")


def picture_digest(picture: Picture) -> str:
    """Stands for a picture: for the bytes of its file, or for its pixels where it is none. Raises PictureError."""
    if isinstance(picture, Path):
        return hashlib.sha256(read_picture_file(picture)).hexdigest()
    return hashlib.sha256(f"{picture.mode} {picture.size}".encode() + to_rgb(picture).tobytes()).hexdigest()
