"""Decodes images that clients send, with limits on type, pixels and memory."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import unquote

from PIL import Image

from dataset.loading.image_io import ImageError, open_image
from serving.http.error_responses import ServiceError

URL_SAFE_BASE64 = str.maketrans("-_", "+/")
"""Characters of the URL-safe alphabet of base64, and those of the standard one (RFC 4648)."""

NUM_DECODER_THREADS = 4
"""Number of images decoded at the same time."""

_SMALL_FILE = 65_536
"""In bytes: largest file whose header is read in the event loop."""

MAX_SCANS = 64
"""Largest number of scans of a JPEG. Encoders write about ten; a small file may have thousands, and each costs a pass over all pixels."""


def has_image_type(data: bytes) -> bool:
    """Whether the first bytes are those of an accepted image format."""
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return webp or data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM"))


def decode_data_url(url: str) -> bytes:
    """The bytes in `data:image/...;base64,...`. Raises ServiceError 422.

    Line breaks and spaces (as in e-mail), the URL-safe alphabet, percent-encoding and missing padding are read, as clients send them.
    """
    head, comma, text = url.partition(",")
    if not comma or not head.lower().startswith("data:image/") or not head.lower().endswith(";base64"):
        raise ServiceError(422, "image_url: expected data:image/...;base64,...", "image_address")
    text = "".join((unquote(text) if "%" in text else text).translate(URL_SAFE_BASE64).split()).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServiceError(422, "image_url: the data after 'base64,' is not valid base64", "image_address") from error


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode to RGB, rotated upright.

    Raises ServiceError: 413 over the pixel limit, which is checked before decoding; 415 for another format; 422 for a damaged image.
    """
    _count_pixels(data, max_pixels)
    try:
        return open_image(data, max_pixels)
    except ImageError as error:
        raise ServiceError(422, str(error), "image_damaged") from error


def _count_pixels(data: bytes, max_pixels: int) -> int:
    """Pixels of an image, from its header alone. Raises ServiceError as `decode_image` does."""
    if not has_image_type(data):
        raise ServiceError(415, "expected an image: JPEG, PNG, WebP, GIF or BMP", "image_type")
    # In entropy-coded data these two bytes never follow each other, so every match is the marker of a scan.
    if data.startswith(b"\xff\xd8") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ServiceError(422, f"the image has {scans:,} scans, at most {MAX_SCANS} are allowed", "image_damaged")
    width, height = _image_size(data)
    if width * height > max_pixels:
        message = f"the image has {width} x {height} pixels, at most {max_pixels:,} are allowed"
        raise ServiceError(413, message, "image_too_large")
    return width * height


def _image_size(data: bytes) -> tuple[int, int]:
    """Width and height from the header of an image. Raises ServiceError 422."""
    try:
        # With a limit of 0 pixels it fails after the header, with the size in the error.
        open_image(data, 0)
    except ImageError as error:
        if min(error.size) > 0:
            return error.size
        raise ServiceError(422, f"the image is damaged: {error}", "image_damaged") from error
    raise ServiceError(422, "the image is damaged: it has no pixels", "image_damaged")


class ImageDecoder:
    """Decodes images in threads, with a limit on the pixels in memory: a request that does not fit waits until others end.

    max_pixels: of one image; max_total_pixels: of all images in memory, at least `max_pixels`.
    """

    def __init__(self, max_pixels: int, max_total_pixels: int):
        self.max_pixels = max_pixels
        self.max_total_pixels = self.free_pixels = max(max_total_pixels, max_pixels)
        self._threads = ThreadPoolExecutor(NUM_DECODER_THREADS, "images")
        self._pixels_released = asyncio.Condition()
        self._release_tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def decoded(self, images: list[bytes]) -> AsyncIterator[list[Image.Image]]:
        """The images of one request, which count as in memory while the context is open. Raises ServiceError as `decode_image` does."""
        loop = asyncio.get_running_loop()
        pixels = 0
        for data in images:
            count = partial(_count_pixels, data, self.max_pixels)
            # The header of a small file is read faster than another thread is woken.
            pixels += count() if len(data) <= _SMALL_FILE else await loop.run_in_executor(self._threads, count)
        if pixels > self.max_total_pixels:
            message = f"the images of one request have {pixels:,} pixels in total, at most {self.max_total_pixels:,} are allowed"
            raise ServiceError(413, message, "image_too_large")
        async with self._pixels_released:
            await self._pixels_released.wait_for(lambda: pixels <= self.free_pixels)
            self.free_pixels -= pixels
        decode_futures = [self._threads.submit(decode_image, data, self.max_pixels) for data in images]
        try:
            yield [await asyncio.wrap_future(future) for future in decode_futures]
        finally:
            # A running decoder cannot be stopped: if the client disconnects, its pixels are in memory until it is done.
            unfinished = [future for future in decode_futures if not future.cancel() and not future.done()]
            release_task = asyncio.create_task(self._release(pixels, unfinished))
            self._release_tasks.add(release_task)
            release_task.add_done_callback(self._release_tasks.discard)
            if not unfinished:
                await asyncio.shield(release_task)

    async def _release(self, pixels: int, unfinished: Sequence[Future[Image.Image]]) -> None:
        await asyncio.gather(*map(asyncio.wrap_future, unfinished), return_exceptions=True)
        async with self._pixels_released:
            self.free_pixels += pixels
            self._pixels_released.notify_all()
