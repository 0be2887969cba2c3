"""Image file formats: which are decoded, what to say about others, and PNG metadata that Pillow refuses."""

import zlib
from collections.abc import Iterator

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that are decoded: raster images, no documents (Pillow would pass an EPS file to Ghostscript)."""

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif", ".heic", ".heif")
)
"""Extensions of image files. HEIC, which is not decoded, is among them so that such files are named with advice, not left out."""

MAX_PNG_TEXT = 1 << 20
"""Largest text or colour profile of a PNG after unpacking, in bytes: that of Pillow, which refuses the whole image above it."""

_METADATA_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_CONVERT = "convert it to JPEG, for instance with `magick in out.jpg`"
_ADVICE: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b"version https://git-lfs",), "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    ((b"<!doctype html", b"<html"), "an HTML page, as servers send in the place of a missing file"),
    ((b"<?xml", b"<svg"), "an SVG or XML file, which has no pixels"),
    ((b"%pdf", b"%!ps"), f"a PDF or PostScript document: {_CONVERT}"),
    ((b"8bps",), f"a Photoshop file: {_CONVERT}"),
    ((b"\xff\x0a", b"\0\0\0\x0cjxl "), f"JPEG XL, which is not decoded: {_CONVERT}"),
    ((b"pk\x03\x04", b"\x1f\x8b"), "an archive: unpack it first"),
)
"""First bytes in lower case, and what the file is."""


def describe_unsupported(data: bytes) -> str:
    """What a file is that no decoder recognises, and what helps."""
    if not data:
        return "the file is empty"
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return "it is HEIC, which is not decoded: convert it to JPEG, for instance with `heif-convert in.heic out.jpg`"
    start = data[:64].lstrip().lower()
    for beginnings, name in _ADVICE:
        if start.startswith(beginnings) or data[:64].lower().startswith(beginnings):
            return f"it is {name}"
    return "not an image in a supported format"


def without_large_metadata(data: bytes) -> bytes:
    """A PNG without the texts and colour profiles that unpack to more than MAX_PNG_TEXT; any other file as it is.

    Nothing here uses them, and Pillow would refuse the image. Small ones stay, since EXIF data may be among them.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    budget, kept, begin = MAX_PNG_TEXT, [], 0
    for kind, start, end in _png_chunks(data):
        if kind not in _METADATA_CHUNKS:
            continue
        length = _unpacked_length(kind, data[start + 8 : end - 4], budget)
        if length > budget:
            kept.append(data[begin:start])
            begin = end
        else:
            budget -= length
    return b"".join([*kept, data[begin:]]) if kept else data


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, begin and end of each chunk: 4 bytes of length, 4 of type, the content, 4 of checksum."""
    start = 8
    while start + 8 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        yield data[start + 4 : start + 8], start, end
        start = end


def _unpacked_length(kind: bytes, content: bytes, limit: int) -> int:
    """Bytes of a text or profile after unpacking, counted up to just above `limit`; `limit + 1` for an unknown way of packing."""
    _, _, rest = content.partition(b"\0")
    if kind == b"iTXt":
        is_packed, method, packed = rest[:1] != b"\0", rest[1:2], rest[2:].split(b"\0", 2)[-1]
    else:
        is_packed, method, packed = kind != b"tEXt", rest[:1], rest[1:]
    if not is_packed:
        return len(content)
    if method not in (b"\0", b""):
        return limit + 1
    try:
        return len(zlib.decompressobj().decompress(packed, limit + 1))
    except zlib.error:
        return len(content)  # Pillow skips it
