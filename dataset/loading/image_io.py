"""Reading pictures of every kind right: CMYK, grey, palette, 16-bit, transparent and rotated ones become plain RGB."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dataset.record_validation import Reason
from errors import TesseraError

MAX_PIXELS = 100_000_000
"""Pictures with more pixels are refused where nothing else is said."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is read: picture files, not documents (Pillow would hand an EPS file to Ghostscript)."""

# The limit that callers give decides, before anything is decoded; Pillow's own guess (a warning, an error at twice
# that) would overrule it.
Image.MAX_IMAGE_PIXELS = None

_DECODERS_RAISE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, RuntimeError, MemoryError),
    *(struct.error, zlib.error),
)
"""What Pillow and its decoders meet damaged and hostile files with; not what a defect in the program raises, a wrong name say."""

_ORIENTATION = 0x0112
_UPRIGHT_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture with an EXIF orientation is made upright (EXIF 2.32, tag 0x0112); from 5 on, the sides change places."""


class PictureError(TesseraError):
    """A picture that cannot be used; `reason` is the key it is counted under; `size` its width and height where known."""

    def __init__(self, reason: Reason, message: str, size: tuple[int, int] = (0, 0)):
        super().__init__(message)
        self.reason, self.size = reason, size


def open_picture(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture file (or its bytes) to RGB, upright; of an animation, the first frame.

    Raises PictureError with reason `missing file`, `undecodable or truncated picture` or `over the pixel limit`; the
    limit is checked before anything is decoded.
    """
    name, data = _read(source)
    with _decoding(name), _open(data, name, max_pixels) as picture:
        return to_rgb(picture)


def format_of(data: bytes) -> str | None:
    """The format that a picture's head says, one of FORMATS or a kind of one (MPO); None where a decoder cannot tell.

    `measure_picture` says what is wrong with such a picture.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return picture.format
    except _DECODERS_RAISE:
        return None


def measure_picture(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height, upright, of a picture whose bytes are known to decode to the end.

    Raises PictureError as `open_picture` does. A JPEG is decoded at an eighth of its size: every byte of it is read,
    so that a truncated one is found, but most of the inverse cosine transform is left out.
    """
    with _decoding(name), _open(data, name, max_pixels) as picture:
        width, height = picture.size
        if _orientation(picture) >= 5:
            width, height = height, width
        if picture.format in ("JPEG", "MPO"):
            picture.draft(None, (1, 1))
            picture.load()
        else:
            to_rgb(picture)
        return width, height


def to_rgb(picture: Image.Image) -> Image.Image:
    """Upright RGB; transparency is laid over white; 16-bit, 32-bit and float grey are scaled to 8 bits.

    CMYK is converted without its colour profile, as the vision models' own training pictures were; Pillow has undone
    Adobe's inversion by then.
    """
    turn = _UPRIGHT_BY.get(_orientation(picture))
    if picture.mode.startswith(("I", "F")):
        picture = _scale_to_8_bits(picture)
    elif picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    rgb = picture.convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


def _read(source: Path | bytes) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return f"picture of {len(source)} bytes", source
    return str(source), read_picture_file(source)


def read_picture_file(path: Path) -> bytes:
    """The bytes of a picture file. Raises PictureError with reason `missing file`."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise PictureError(Reason.MISSING_FILE, f"{path}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise PictureError(Reason.MISSING_FILE, f"{path}: cannot be read ({_say(error)})") from error


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """What a decoder raises becomes a PictureError that says so; anything else is a defect of ours and stays."""
    try:
        yield
    except PictureError:
        raise
    except _DECODERS_RAISE as error:
        raise PictureError(Reason.UNDECODABLE, f"{name}: cannot be decoded ({_say(error)})") from error


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    if picture.width * picture.height > max_pixels:
        width, height = picture.size
        message = f"{name}: {width} x {height} pixels, at most {max_pixels:,} are allowed"
        raise PictureError(Reason.TOO_MANY_PIXELS, message, picture.size)
    return picture


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, EOFError, OSError, struct.error):
        # A block of EXIF data that cannot be read says nothing about the pixels: viewers show such a picture as it lies.
        return 1


def _scale_to_8_bits(picture: Image.Image) -> Image.Image:
    """Grey of more than 8 bits. Integers are on a 16-bit scale (65535 is white); floats on 0..1, or on 0..255 where
    they exceed 1."""
    values = np.asarray(picture).astype(np.float64)
    if picture.mode == "F":
        values = np.nan_to_num(values, nan=0.0)
        values *= 255 if values.max(initial=0.0) <= 1 else 1
    else:
        values /= 257
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))


def _say(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        # Pillow would name the buffer by its place in memory, another one in every run.
        return "no picture in a format that is read"
    kind, said = type(error).__name__, " ".join(str(error).split())
    # Those say it in a sentence; of the others the kind says more than the text, which may be a bare number.
    return said if said and isinstance(error, (OSError, SyntaxError, ValueError)) else f"{kind}: {said}".removesuffix(": ")
