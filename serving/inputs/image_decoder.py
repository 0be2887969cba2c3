"""From what a client sends to a decoded picture, within limits."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager

from PIL import Image

from dataset.loading.image_io import ImageError, open_image
from serving.http.error_responses import ServiceError

SUPPORTED_FORMATS = "JPEG, PNG, WebP, GIF or BMP"
"""What is taken for a picture, in words."""

NUM_DECODER_THREADS = 4
"""Pictures decoded at the same time."""

MAX_SCANS = 64
"""Most scans of a JPEG: encoders write about ten, and each of thousands in a few kilobytes costs a pass over the whole picture."""


def has_image_type(data: bytes) -> bool:
    """Whether bytes begin as a picture of one of the types does, whatever they are called."""
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return webp or data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM"))


def decode_data_url(url: str) -> bytes:
    """The bytes in `data:image/...;base64,...`. Raises ServiceError 422."""
    head, comma, text = url.partition(",")
    if not comma or not head.lower().startswith("data:image/") or not head.lower().endswith(";base64"):
        raise ServiceError(422, "image_url: expected data:image/...;base64,...", "image_address")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServiceError(422, "image_url: what stands behind base64, is not base64", "image_address") from error


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode to upright RGB. Raises ServiceError: 413 over the pixel limit, which is checked before anything is decoded;
    415 for another type; 422 where it is damaged."""
    _count_pixels(data, max_pixels)
    try:
        return open_image(data, max_pixels)
    except ImageError as error:
        raise ServiceError(422, str(error), "image_damaged") from error


def _count_pixels(data: bytes, max_pixels: int) -> int:
    """Pixels of a picture, from its head alone. Raises ServiceError as `read` does."""
    if not has_image_type(data):
        raise ServiceError(415, f"a picture is expected: {SUPPORTED_FORMATS}", "image_type")
    # In what is coded these two bytes never follow each other, so that a scan cannot hide.
    if data.startswith(b"\xff\xd8") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ServiceError(422, f"the picture has {scans:,} scans, at most {MAX_SCANS} are read", "image_damaged")
    width, height = _image_size(data)
    if width * height > max_pixels:
        message = f"the picture has {width} x {height} pixels, at most {max_pixels:,} are allowed"
        raise ServiceError(413, message, "image_too_large")
    return width * height


def _image_size(data: bytes) -> tuple[int, int]:
    """Width and height by a picture's head. Raises ServiceError 422."""
    try:
        # With no pixel allowed, it ends behind the head and says the size.
        open_image(data, 0)
    except ImageError as error:
        if min(error.size) > 0:
            return error.size
        raise ServiceError(422, f"the picture is damaged: {error}", "image_damaged") from error
    raise ServiceError(422, "the picture is damaged: it has no pixels", "image_damaged")


class ImageDecoder:
    """Decodes in threads, and lets in only so many pixels at once: what does not fit waits until others are answered.

    max_pixels: of one picture; room: pixels that may be in memory together, at least one picture's.
    """

    def __init__(self, max_pixels: int, max_total_pixels: int):
        self.max_pixels = max_pixels
        self.max_total_pixels = self.free_pixels = max(max_total_pixels, max_pixels)
        self._threads = ThreadPoolExecutor(NUM_DECODER_THREADS, "pictures")
        self._pixels_released = asyncio.Condition()
        self._release_tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def decoded(self, images: list[bytes]) -> AsyncIterator[list[Image.Image]]:
        """The pictures of one request, which stand in memory while the context is open. Raises ServiceError as `read`."""
        loop = asyncio.get_running_loop()
        pixels = sum([await loop.run_in_executor(self._threads, _count_pixels, data, self.max_pixels) for data in images])
        if pixels > self.max_total_pixels:
            message = f"the pictures of one request have {pixels:,} pixels together, at most {self.max_total_pixels:,} are allowed"
            raise ServiceError(413, message, "image_too_large")
        async with self._pixels_released:
            await self._pixels_released.wait_for(lambda: pixels <= self.free_pixels)
            self.free_pixels -= pixels
        decode_futures = [self._threads.submit(decode_image, data, self.max_pixels) for data in images]
        try:
            yield [await asyncio.wrap_future(one) for one in decode_futures]
        finally:
            # A decoder cannot be stopped: where the client has left, its pixels stand in memory until it is done.
            unfinished = [one for one in decode_futures if not one.cancel() and not one.done()]
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
