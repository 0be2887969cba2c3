"""Decoding of images: formats, limits checked before decoding, damaged files, data URLs, and the limit of pixels in memory."""

import asyncio
import base64
import io
import struct
import threading
import zlib

import pytest
from PIL import Image

from serving.http.error_responses import ServiceError
from serving.inputs import image_decoder
from serving.inputs.image_decoder import MAX_SCANS, NUM_DECODER_THREADS, ImageDecoder, decode_data_url, decode_image
from tests.serving.conftest import TIMEOUT_SECONDS, image_file


def refused(data: bytes, max_pixels: int = 10_000) -> tuple[int, str]:
    with pytest.raises(ServiceError) as caught:
        decode_image(data, max_pixels)
    return caught.value.status_code, caught.value.code


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header has a size but that has no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">II", zlib.crc32(chunk), 1000) + b"IDAT"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_accepted_formats_are_decoded(kind: str) -> None:
    image = decode_image(image_file(kind=kind), 10_000)
    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "PDF", "EPS"])
def test_other_formats_are_refused_by_their_content(kind: str) -> None:
    assert refused(image_file(kind=kind, size=(32, 32))) == (415, "image_type")


def test_too_many_pixels_are_refused_before_decoding() -> None:
    assert refused(png_header(60_000, 60_000)) == (413, "image_too_large")
    assert refused(png_header(50, 50)) == (422, "image_damaged")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("length", [14, 60, 0.5, 0.95])
def test_truncated_files_are_damaged(kind: str, length: float) -> None:
    """length: bytes that are left; below 1 as a share of the file."""
    file = image_file(kind=kind, size=(64, 64))
    assert refused(file[: int(length * len(file)) if length < 1 else int(length)]) == (422, "image_damaged")


def test_a_jpeg_with_too_many_scans_is_refused_before_decoding() -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(image_file(size=(64, 64)))).save(file, "JPEG", progressive=True)
    jpeg = file.getvalue()
    last_scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    assert decode_image(jpeg, 10_000).size == (64, 64)
    assert refused(jpeg[:-2] + MAX_SCANS * last_scan + b"\xff\xd9") == (422, "image_damaged")


def test_a_data_url_holds_an_image() -> None:
    text = base64.b64encode(image_file()).decode()
    assert decode_data_url(f"data:image/png;base64,{text}") == image_file()
    for wrong in ("data:image/png;base64", f"data:text/html;base64,{text}", f"data:image/png,{text}", f"data:image/png;base64,{text}*"):
        with pytest.raises(ServiceError) as caught:
            decode_data_url(wrong)
        assert caught.value.status_code == 422
        assert text not in str(caught.value.detail)


def test_images_over_the_pixel_limit_wait_until_others_are_released() -> None:
    async def scenario() -> list[str]:
        decoder, order = ImageDecoder(5000, 2500), []

        async def decode(name: str, until: asyncio.Event) -> None:
            async with decoder.decoded([image_file(size=(60, 50))]) as (image,):
                assert isinstance(image, Image.Image)
                order.append(name)
                await until.wait()

        first, others = asyncio.Event(), asyncio.Event()
        others.set()
        async with asyncio.timeout(TIMEOUT_SECONDS), asyncio.TaskGroup() as tasks:
            tasks.create_task(decode("first", first))
            while not order:
                await asyncio.sleep(0.001)
            waiting = tasks.create_task(decode("second", others))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            order.append("released")
            first.set()
        assert decoder.free_pixels == 5000
        return order

    assert asyncio.run(scenario()) == ["first", "released", "second"]


def test_pixels_of_a_cancelled_request_are_released_when_its_decoders_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    released, started = threading.Event(), threading.Semaphore(0)

    def slow(data: bytes, max_pixels: int) -> Image.Image:
        started.release()
        assert released.wait(TIMEOUT_SECONDS)
        return decode_image(data, max_pixels)

    monkeypatch.setattr(image_decoder, "decode_image", slow)

    async def scenario() -> None:
        decoder = ImageDecoder(1200, 1200 * (NUM_DECODER_THREADS + 2))

        async def decode() -> None:
            async with decoder.decoded([image_file()]):
                raise AssertionError("it was decoded")

        tasks = [asyncio.create_task(decode()) for _ in range(NUM_DECODER_THREADS + 2)]
        while decoder.free_pixels:
            await asyncio.sleep(0.001)
        assert all([await asyncio.to_thread(started.acquire, timeout=TIMEOUT_SECONDS) for _ in range(NUM_DECODER_THREADS)])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert decoder.free_pixels == 2 * 1200, "only of those that had not started"
        released.set()
        while decoder.free_pixels < 1200 * (NUM_DECODER_THREADS + 2):
            await asyncio.sleep(0.001)
        assert not started.acquire(blocking=False), "nothing is decoded for a cancelled request"

    asyncio.run(scenario())


def test_pixels_of_damaged_images_are_released() -> None:
    async def scenario() -> None:
        decoder = ImageDecoder(5000, 5000)
        damaged = io.BytesIO(image_file()).getvalue()[:-40]
        for _ in range(3):
            with pytest.raises(ServiceError):
                async with decoder.decoded([damaged]):
                    raise AssertionError("it was decoded")
        assert decoder.free_pixels == 5000

    asyncio.run(scenario())


def test_images_with_more_pixels_in_total_than_the_limit_are_refused() -> None:
    async def scenario() -> None:
        decoder = ImageDecoder(1200, 2000)
        with pytest.raises(ServiceError, match="413"):
            async with decoder.decoded([image_file(), image_file(1)]):
                raise AssertionError("they were decoded")

    asyncio.run(scenario())
