"""Reading pictures of every kind right: CMYK, grey, palette, 16-bit, transparent and rotated ones become plain RGB."""

import io
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from errors import TesseraError


class PictureError(TesseraError):
    """A picture that cannot be used; `reason` is the key it is counted under."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def open_picture(source: Path | bytes, max_pixels: int | None = None) -> Image.Image:
    """Decode a picture file (or its bytes) to RGB, upright.

    Raises PictureError with reason `missing file`, `undecodable picture` or `over the pixel limit`; the limit is
    checked before anything is decoded.
    """
    name = str(source) if isinstance(source, Path) else f"picture of {len(source)} bytes"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            if max_pixels is not None and picture.width * picture.height > max_pixels:
                raise PictureError(
                    "over the pixel limit", f"{name}: {picture.width} x {picture.height} pixels, at most {max_pixels} are allowed"
                )
            return to_rgb(picture)
    except FileNotFoundError as error:
        raise PictureError("missing file", f"{name}: there is no such file") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError("undecodable picture", f"{name}: cannot be decoded ({error})") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Upright RGB; transparency is laid over white; 16-bit and float grey are scaled to 8 bits."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        picture = _scale_to_8_bits(picture)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return picture.convert("RGB")


def _scale_to_8_bits(picture: Image.Image) -> Image.Image:
    """Grey of more than 8 bits: 16-bit values are divided by 257; 32-bit ones that exceed 16 bits are clipped."""
    wide = picture.convert("F")
    return wide.point(lambda value: value * (1 / 257) + 0.5).convert("L")
