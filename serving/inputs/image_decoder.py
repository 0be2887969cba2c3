"""From what a client sends to a decoded picture, within limits."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager

from PIL import Image

from dataset.loading.image_io import PictureError, open_picture
from serving.http.error_responses import ServiceError

TYPES = "JPEG, PNG, WebP, GIF or BMP"
"""What is taken for a picture, in words."""

DECODERS = 4
"""Pictures decoded at the same time."""

MAX_SCANS = 64
"""Most scans of a JPEG: encoders write about ten, and each of thousands in a few kilobytes costs a pass over the whole picture."""


def has_picture_type(data: bytes) -> bool:
    """Whether bytes begin as a picture of one of the types does, whatever they are called."""
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return webp or data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM"))


def from_data_url(address: str) -> bytes:
    """The bytes in `data:image/...;base64,...`. Raises ServiceError 422."""
    head, comma, text = address.partition(",")
    if not comma or not head.lower().startswith("data:image/") or not head.lower().endswith(";base64"):
        raise ServiceError(422, "image_url: expected data:image/...;base64,...", "picture_address")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServiceError(422, "image_url: what stands behind base64, is not base64", "picture_address") from error


def read(data: bytes, max_pixels: int) -> Image.Image:
    """Decode to upright RGB. Raises ServiceError: 413 over the pixel limit, which is checked before anything is decoded;
    415 for another type; 422 where it is damaged."""
    _measure(data, max_pixels)
    try:
        return open_picture(data, max_pixels)
    except PictureError as error:
        raise ServiceError(422, str(error), "picture_damaged") from error


def _measure(data: bytes, max_pixels: int) -> int:
    """Pixels of a picture, from its head alone. Raises ServiceError as `read` does."""
    if not has_picture_type(data):
        raise ServiceError(415, f"a picture is expected: {TYPES}", "picture_type")
    # In what is coded these two bytes never follow each other, so that a scan cannot hide.
    if data.startswith(b"\xff\xd8") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ServiceError(422, f"the picture has {scans:,} scans, at most {MAX_SCANS} are read", "picture_damaged")
    width, height = _size(data)
    if width * height > max_pixels:
        message = f"the picture has {width} x {height} pixels, at most {max_pixels:,} are allowed"
        raise ServiceError(413, message, "picture_too_large")
    return width * height


def _size(data: bytes) -> tuple[int, int]:
    """Width and height by a picture's head. Raises ServiceError 422."""
    try:
        # With no pixel allowed, it ends behind the head and says the size.
        open_picture(data, 0)
    except PictureError as error:
        if min(error.size) > 0:
            return error.size
        raise ServiceError(422, f"the picture is damaged: {error}", "picture_damaged") from error
    raise ServiceError(422, "the picture is damaged: it has no pixels", "picture_damaged")


class Decoder:
    """Decodes in threads, and lets in only so many pixels at once: what does not fit waits until others are answered.

    max_pixels: of one picture; room: pixels that may be in memory together, at least one picture's.
    """

    def __init__(self, max_pixels: int, room: int):
        self.max_pixels = max_pixels
        self.room = self.free = max(room, max_pixels)
        self._threads = ThreadPoolExecutor(DECODERS, "pictures")
        self._freed = asyncio.Condition()
        self._freeing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def decoded(self, pictures: list[bytes]) -> AsyncIterator[list[Image.Image]]:
        """The pictures of one request, which stand in memory while the context is open. Raises ServiceError as `read`."""
        loop = asyncio.get_running_loop()
        pixels = sum([await loop.run_in_executor(self._threads, _measure, data, self.max_pixels) for data in pictures])
        if pixels > self.room:
            message = f"the pictures of one request have {pixels:,} pixels together, at most {self.room:,} are allowed"
            raise ServiceError(413, message, "picture_too_large")
        async with self._freed:
            await self._freed.wait_for(lambda: pixels <= self.free)
            self.free -= pixels
        reading = [self._threads.submit(read, data, self.max_pixels) for data in pictures]
        try:
            yield [await asyncio.wrap_future(one) for one in reading]
        finally:
            # A decoder cannot be stopped: where the client has left, its pixels stand in memory until it is done.
            running = [one for one in reading if not one.cancel() and not one.done()]
            freeing = asyncio.create_task(self._free(pixels, running))
            self._freeing.add(freeing)
            freeing.add_done_callback(self._freeing.discard)
            if not running:
                await asyncio.shield(freeing)

    async def _free(self, pixels: int, running: Sequence[Future[Image.Image]]) -> None:
        await asyncio.gather(*map(asyncio.wrap_future, running), return_exceptions=True)
        async with self._freed:
            self.free += pixels
            self._freed.notify_all()
