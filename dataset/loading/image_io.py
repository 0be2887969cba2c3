"""Reading pictures of every kind right: CMYK, grey, palette, 16-bit, transparent and rotated ones become plain RGB."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dataset.record_validation import DropReason
from errors import TesseraError

MAX_PIXELS = 100_000_000
"""Pictures with more pixels are refused where nothing else is said."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is read: picture files, not documents (Pillow would hand an EPS file to Ghostscript)."""

# The limit that callers give decides, before anything is decoded; Pillow's own guess (a warning, an error at twice
# that) would overrule it.
Image.MAX_IMAGE_PIXELS = None

_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, RuntimeError, MemoryError),
    *(struct.error, zlib.error),
)
"""What Pillow and its decoders meet damaged and hostile files with; not what a defect in the program raises, a wrong name say."""

_ORIENTATION_TAG = 0x0112
_EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture with an EXIF orientation is made upright (EXIF 2.32, tag 0x0112); from 5 on, the sides change places."""


class ImageError(TesseraError):
    """A picture that cannot be used; `reason` is the key it is counted under; `size` its width and height where known."""

    def __init__(self, reason: DropReason, message: str, size: tuple[int, int] = (0, 0)):
        super().__init__(message)
        self.reason, self.size = reason, size


def open_image(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture file (or its bytes) to RGB, upright; of an animation, the first frame.

    Raises PictureError with reason `missing file`, `undecodable or truncated picture` or `over the pixel limit`; the
    limit is checked before anything is decoded.
    """
    name, data = _read(source)
    with _decoder_errors(name), _open(data, name, max_pixels) as image:
        return to_rgb(image)


def detect_format(data: bytes) -> str | None:
    """The format that a picture's head says, one of FORMATS or a kind of one (MPO); None where a decoder cannot tell.

    `measure_picture` says what is wrong with such a picture.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.format
    except _DECODER_ERRORS:
        return None


def measure_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height, upright, of a picture whose bytes are known to decode to the end.

    Raises PictureError as `open_picture` does. A JPEG is decoded at an eighth of its size: every byte of it is read,
    so that a truncated one is found, but most of the inverse cosine transform is left out.
    """
    with _decoder_errors(name), _open(data, name, max_pixels) as image:
        width, height = image.size
        if _orientation(image) >= 5:
            width, height = height, width
        if image.format in ("JPEG", "MPO"):
            image.draft(None, (1, 1))
            image.load()
        else:
            to_rgb(image)
        return width, height


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB; transparency is laid over white; 16-bit, 32-bit and float grey are scaled to 8 bits.

    CMYK is converted without its colour profile, as the vision models' own training pictures were; Pillow has undone
    Adobe's inversion by then.
    """
    transpose_method = _EXIF_TRANSPOSE.get(_orientation(image))
    if image.mode.startswith(("I", "F")):
        image = _scale_to_8_bits(image)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    rgb = image.convert("RGB")
    return rgb if transpose_method is None else rgb.transpose(transpose_method)


def _read(source: Path | bytes) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return f"picture of {len(source)} bytes", source
    return str(source), read_image_file(source)


def read_image_file(path: Path) -> bytes:
    """The bytes of a picture file. Raises PictureError with reason `missing file`."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ImageError(DropReason.MISSING_FILE, f"{path}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise ImageError(DropReason.MISSING_FILE, f"{path}: cannot be read ({_describe_error(error)})") from error


@contextmanager
def _decoder_errors(name: str) -> Iterator[None]:
    """What a decoder raises becomes a PictureError that says so; anything else is a defect of ours and stays."""
    try:
        yield
    except ImageError:
        raise
    except _DECODER_ERRORS as error:
        raise ImageError(DropReason.UNDECODABLE, f"{name}: cannot be decoded ({_describe_error(error)})") from error


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > max_pixels:
        width, height = image.size
        message = f"{name}: {width} x {height} pixels, at most {max_pixels:,} are allowed"
        raise ImageError(DropReason.TOO_MANY_PIXELS, message, image.size)
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, EOFError, OSError, struct.error):
        # A block of EXIF data that cannot be read says nothing about the pixels: viewers show such a picture as it lies.
        return 1


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits. Integers are on a 16-bit scale (65535 is white); floats on 0..1, or on 0..255 where
    they exceed 1."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0)
        values *= 255 if values.max(initial=0.0) <= 1 else 1
    else:
        values /= 257
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))


def _describe_error(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        # Pillow would name the buffer by its place in memory, another one in every run.
        return "no picture in a format that is read"
    kind, text = type(error).__name__, " ".join(str(error).split())
    # Those say it in a sentence; of the others the kind says more than the text, which may be a bare number.
    return text if text and isinstance(error, (OSError, SyntaxError, ValueError)) else f"{kind}: {text}".removesuffix(": ")
