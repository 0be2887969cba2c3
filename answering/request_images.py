"""A request's pictures, made ready for a model or for the wire."""

import base64
import hashlib
import io
from pathlib import Path

from PIL import Image

from answering.protocol import ImageInput
from dataset.loading.image_io import open_image, read_image_file, to_rgb

JPEG_QUALITY = 95
"""Of pictures that are sent away."""


def load_image(image: ImageInput) -> Image.Image:
    """The picture as upright RGB. Raises PictureError."""
    return open_image(image) if isinstance(image, Path) else to_rgb(image)


def resize_to_max_side(image: Image.Image, max_side: int) -> Image.Image:
    """The picture with its longer side at most `max_side` pixels, its proportions kept; never enlarged."""
    scale = max_side / max(image.size)
    if scale >= 1:
        return image
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS)


def data_url(image: ImageInput, max_side: int) -> str:
    """The picture, shrunk, as a JPEG in a data URL. What else its file holds (place, camera, thumbnail) is not sent.

    Raises PictureError.
    """
    jpeg = io.BytesIO()
    resize_to_max_side(load_image(image), max_side).save(jpeg, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode("ascii")


def image_digest(image: ImageInput) -> str:
    """Stands for a picture: for the bytes of its file, or for its pixels where it is none. Raises PictureError."""
    if isinstance(image, Path):
        return hashlib.sha256(read_image_file(image)).hexdigest()
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + to_rgb(image).tobytes()).hexdigest()
