"""Load and resize the images of a request, and encode them for an endpoint."""

import base64
import hashlib
import io

from PIL import Image

from answering.protocol import ImageInput
from dataset.loading.image_io import open_image, read_image_file, to_rgb

JPEG_QUALITY = 95
"""JPEG quality of images sent to an endpoint."""


def load_image(image: ImageInput) -> Image.Image:
    """The image as RGB, rotated upright. Raises ImageError."""
    return to_rgb(image) if isinstance(image, Image.Image) else open_image(image)


def resize_to_max_side(image: Image.Image, max_side: int) -> Image.Image:
    """The image resized so that its longer side is at most `max_side` pixels. Keeps the aspect ratio and never enlarges."""
    return image if max(image.size) <= max_side else scale_to_side(image, max_side)


def scale_to_side(image: Image.Image, side: int) -> Image.Image:
    """The image scaled so that its longer side has `side` pixels."""
    scale = side / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS)


def data_url(image: ImageInput, max_side: int) -> str:
    """The resized image as a JPEG data URL. Metadata of the file (location, camera, thumbnail) is not sent.

    Raises ImageError.
    """
    jpeg = io.BytesIO()
    resize_to_max_side(load_image(image), max_side).save(jpeg, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode("ascii")


def image_digest(image: ImageInput) -> str:
    """SHA-256 of an image: of the bytes of its file, or of its pixels if it is not a file. Raises ImageError."""
    if isinstance(image, Image.Image):
        return hashlib.sha256(f"{image.mode} {image.size}".encode() + to_rgb(image).tobytes()).hexdigest()
    return hashlib.sha256(read_image_file(image)).hexdigest()
