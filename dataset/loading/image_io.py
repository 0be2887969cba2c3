"""Decode image files to upright 8-bit RGB: CMYK, grey, palette, 16-bit, float, transparent and EXIF-rotated ones included."""

import io
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from dataset.loading.image_formats import FORMATS, describe_unsupported, without_large_metadata
from dataset.loading.packed_images import PackedImage
from dataset.object_storage import StorageError
from dataset.record_validation import DropReason
from dataset.remote_files import FilePath, RemotePath
from errors import TesseraError

T = TypeVar("T")

RETRY_SECONDS = (0.1, 0.5, 2.0)
"""Waiting times before an image is read once more: network file systems lose a file for moments."""

MAX_PIXELS = 100_000_000
"""Default pixel limit: larger images are rejected before they are decoded."""

PREVIEW_SIDE = 32
"""Least width and height of a preview in pixels, unless the image itself is smaller."""

# The caller's limit is checked before decoding. Pillow's own limit (a warning, and an error at twice the size) would
# override it.
Image.MAX_IMAGE_PIXELS = None

_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, RuntimeError),
    *(struct.error, zlib.error),
)
"""Exceptions that Pillow and its decoders raise on damaged or hostile files. AttributeError and NameError are left out: they show
a bug in this program."""

_MAX_BYTES_PER_PIXEL, _MAX_METADATA_BYTES = 8, 1 << 26
"""What a file may have at most: four channels of 16 bits without compression, and metadata."""

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
"""Transposition that makes an image of an EXIF orientation upright (EXIF 2.32, tag 0x0112). From 5 on, width and height swap."""


class ImageError(TesseraError):
    """An image cannot be used.

    Args:
        reason: Reason that the merge counts the sample under.
        message: Names the file and what is wrong.
        size: Width and height in pixels; zeros when unknown.
    """

    def __init__(self, reason: DropReason, message: str, size: tuple[int, int] = (0, 0)):
        super().__init__(message)
        self.reason, self.size = reason, size


def open_image(source: FilePath | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file (or its bytes) to upright RGB; of an animation, the first frame.

    Raises ImageError with reason MISSING_FILE, UNDECODABLE, TOO_MANY_PIXELS or TOO_LARGE. The pixel limit is checked before decoding.
    """
    name = f"image of {len(source)} bytes" if isinstance(source, bytes) else printable_path(source)
    data = source if isinstance(source, bytes) else read_image_file(source, max_pixels)
    with _decoder_errors(name), _open(data, name, max_pixels) as image:
        return to_rgb(image)


@dataclass(frozen=True, slots=True)
class MeasuredImage:
    """An image that was decoded once to check it.

    Args:
        size: Upright width and height in pixels.
        preview: Upright RGB, reduced by 1, 2, 4 or 8 to sides of at least PREVIEW_SIDE.
        is_exact: Whether the preview was made of all pixels; that of a JPEG is rounded otherwise.
        orientation: EXIF orientation of the stored image, 1 to 8.
    """

    size: tuple[int, int]
    preview: Image.Image
    is_exact: bool
    orientation: int


def detect_format(data: bytes) -> str | None:
    """The format stated by the header: one of FORMATS or a variant of one (MPO). None when no decoder recognises it.

    `measure_image` then raises the error that says why.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.format
    except (*_DECODER_ERRORS, MemoryError):
        return None


def measure_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> MeasuredImage:
    """Size and preview of an image, after decoding all of its data.

    A JPEG is decoded at the size of its preview, mostly one eighth: all bytes are read, so truncation is detected, but most of the
    inverse cosine transform is skipped. What is left of a block of 8 x 8 pixels is its mean, and `reduce` takes the same mean of other
    formats, so that the same pixels have about the same preview in every format. Raises ImageError as `open_image` does.
    """
    with _decoder_errors(name), _open(data, name, max_pixels) as image:
        width, height = image.size
        orientation = _orientation(image)
        if orientation >= 5:
            width, height = height, width
        if image.format in ("JPEG", "MPO"):
            image.draft(None, (PREVIEW_SIDE, PREVIEW_SIDE))
            image.load()
            # Most photographs need no conversion, which would copy them.
            is_upright_rgb = image.mode == "RGB" and orientation not in _EXIF_TRANSPOSE
            return MeasuredImage((width, height), image if is_upright_rgb else to_rgb(image), is_exact=False, orientation=orientation)
        scale = min(width, height) // PREVIEW_SIDE
        factor = next((factor for factor in (8, 4, 2) if scale >= factor), 1)
        return MeasuredImage((width, height), to_rgb(image).reduce(factor), is_exact=True, orientation=orientation)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to upright RGB: transparency is composited over white; 16-bit, 32-bit and float grey are scaled to 8 bits.

    CMYK is converted without its colour profile, as in the pre-training of the vision models; Pillow has already undone
    Adobe's inversion.
    """
    transpose_method = _EXIF_TRANSPOSE.get(_orientation(image))
    if image.mode.startswith(("I", "F")):
        image = _scale_to_8_bits(image)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    rgb = image.convert("RGB")
    return rgb if transpose_method is None else rgb.transpose(transpose_method)


def printable_path(path: FilePath | str) -> str:
    """A path as text that can be written: bytes of a file name that are not UTF-8 become `\\xd5`."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair of \\u escapes, which is no byte of a name
        return str(path).encode("utf-8", "backslashreplace").decode()


def read_image_file(path: FilePath, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of an image file.

    Raises ImageError with reason MISSING_FILE, or TOO_LARGE for a file that is larger than an image of `max_pixels` can be or that does
    not fit into memory. Its cause is a StorageError when object storage cannot be used.
    """
    name, limit = printable_path(path), max_pixels * _MAX_BYTES_PER_PIXEL + _MAX_METADATA_BYTES
    try:
        if isinstance(path, RemotePath):
            data = path.read(limit + 1)
            if len(data) > limit:
                raise _too_large(name, path.size(), max_pixels)
            return data
        if (packed := PackedImage.parse(path)) is not None:
            return packed.read()
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise _too_large(name, size, max_pixels)
            return file.readall()
    except StorageError as error:
        raise ImageError(DropReason.MISSING_FILE, str(error)) from error
    except MemoryError as error:
        raise ImageError(DropReason.TOO_LARGE, f"{name}: there is not enough memory to read the file") from error
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ImageError(DropReason.MISSING_FILE, f"{name}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise ImageError(DropReason.MISSING_FILE, f"{name}: cannot be read ({_describe_error(error)})") from error


def _too_large(name: str, size: int, max_pixels: int) -> ImageError:
    message = f"{name}: {size:,} bytes, more than an image of {max_pixels:,} pixels, which is the limit, can have"
    return ImageError(DropReason.TOO_LARGE, message)


def read_with_retries(read: Callable[[], T]) -> T:
    """What `read` returns, called again after each of RETRY_SECONDS while it raises ImageError. Raises the last ImageError."""
    for seconds in RETRY_SECONDS:
        try:
            return read()
        except ImageError:
            time.sleep(seconds)
    return read()


@contextmanager
def _decoder_errors(name: str) -> Iterator[None]:
    """Turn decoder exceptions into ImageError with reason UNDECODABLE or TOO_LARGE; other exceptions are bugs and propagate."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(DropReason.TOO_LARGE, f"{name}: there is not enough memory to decode it") from error
    except _DECODER_ERRORS as error:
        raise ImageError(DropReason.UNDECODABLE, f"{name}: cannot be decoded ({_describe_error(error)})") from error


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(without_large_metadata(data)), formats=FORMATS)
    except UnidentifiedImageError as error:
        # Not Pillow's message: it holds the address of the buffer, which differs in every run.
        raise ImageError(DropReason.UNDECODABLE, f"{name}: cannot be decoded ({describe_unsupported(data)})") from error
    if image.width * image.height > max_pixels:
        message = f"{name}: {image.width} x {image.height} pixels, at most {max_pixels:,} are allowed"
        raise ImageError(DropReason.TOO_MANY_PIXELS, message, image.size)
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, EOFError, OSError, struct.error):
        # Unreadable EXIF data does not make the pixels unusable: like image viewers, show the image as it is stored.
        return 1


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey of more than 8 bits. Integers have 16 bits (65535 is white); floats are in 0..1, or in 0..255 when any
    value exceeds 1."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0)
        values *= 255 if values.max(initial=0.0) <= 1 else 1
    else:
        values /= 257
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))


def _describe_error(error: Exception) -> str:
    kind, text = type(error).__name__, " ".join(str(error).split())
    # These have a readable message; for the others the type says more than the text, which may be a bare number.
    return text if text and isinstance(error, (OSError, SyntaxError, ValueError)) else f"{kind}: {text}".removesuffix(": ")
