"""Images of every mode and format decode to the RGB that a viewer shows; damaged files are detected."""

import contextlib
import io
import random
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset.loading.image_io import MAX_PIXELS, ImageError, measure_image, open_image, to_rgb
from dataset.record_validation import DropReason


def encoded(image: Image.Image, kind: str = "PNG", **save: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **save)
    return file.getvalue()


def photograph(size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return rough.convert(mode)


def pixel(data: bytes, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = open_image(data)
    assert image.mode == "RGB"
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return tuple(int(part) for part in value)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("1", 255, (255, 255, 255)),
        ("1", 0, (0, 0, 0)),
        ("LA", (90, 255), (90, 90, 90)),
        ("LA", (90, 0), (255, 255, 255)),
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("RGBA", (200, 100, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 90, (90, 90, 90)),
        ("I;16", 255, (1, 1, 1)),
        ("I;16", 0, (0, 0, 0)),
    ],
)
def test_a_png_of_any_mode_is_decoded_to_rgb(mode: str, colour: Any, expected: tuple[int, ...]) -> None:
    assert pixel(encoded(Image.new(mode, (3, 2), colour))) == expected


def test_every_16_bit_grey_is_rounded_to_8_bits() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = np.asarray(open_image(encoded(Image.fromarray(values))))[..., 0]
    assert np.array_equal(decoded, np.rint(values / 257).astype(np.uint8))


def test_16_bit_grey_with_a_transparent_value_is_read() -> None:
    assert pixel(encoded(Image.new("I;16", (2, 2), 257 * 90), transparency=3)) == (90, 90, 90)


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_16_bit_tiff_is_read_in_either_byte_order(kind: str) -> None:
    values = np.full((2, 2), 257 * 90, dtype=kind)
    mode = "I;16" if kind == "<u2" else "I;16B"
    assert pixel(encoded(Image.frombytes(mode, (2, 2), values.tobytes()), "TIFF")) == (90, 90, 90)


@pytest.mark.parametrize(("value", "expected"), [(0.5, 128), (0.0, 0), (1.0, 255), (100.0, 100), (float("nan"), 0)])
def test_float_grey_is_scaled_from_0_to_1_or_0_to_255(value: float, expected: int) -> None:
    assert pixel(encoded(Image.fromarray(np.full((2, 2), value, dtype=np.float32)), "TIFF")) == (expected,) * 3


def test_32_bit_grey_beyond_16_bits_is_white() -> None:
    assert pixel(encoded(Image.fromarray(np.full((2, 2), 1_000_000, dtype=np.int32)), "TIFF")) == (255, 255, 255)


@pytest.mark.parametrize("transparency", [None, 0, b"\x00\xff"])
def test_a_palette_is_converted_and_its_transparent_entries_are_white(transparency: Any) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    data = encoded(image) if transparency is None else encoded(image, transparency=transparency)
    assert pixel(data) == ((10, 20, 30) if transparency is None else (255, 255, 255))
    assert pixel(data, (1, 0)) == (200, 100, 50)


def test_a_transparent_colour_of_an_rgb_image_is_white() -> None:
    image = Image.new("RGB", (2, 1), (0, 255, 0))
    image.putpixel((1, 0), (9, 9, 9))
    data = encoded(image, transparency=(0, 255, 0))
    assert (pixel(data), pixel(data, (1, 0))) == ((255, 255, 255), (9, 9, 9))


def test_cmyk_is_converted_and_not_inverted() -> None:
    # Adobe programs store inverted CMYK; Pillow writes and reads this form.
    jpeg = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert b"Adobe" in jpeg
    red, green, blue = pixel(jpeg)
    assert red > 240
    assert max(green, blue) < 15
    assert min(pixel(encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG", quality=100))) > 240
    assert pixel(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF")) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_exif_rotated_image_is_made_upright(orientation: int, kind: str) -> None:
    upright = photograph((64, 32))
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse transposition of each orientation, in the numbering of Pillow
    rotated = upright.transpose(Image.Transpose(turn[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(rotated, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    assert measure_image(data, "x").size == open_image(data).size == (64, 32)
    difference = np.asarray(open_image(data)).astype(int) - np.asarray(upright)
    assert abs(difference).max() <= (12 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 200])
def test_an_invalid_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert open_image(encoded(photograph((64, 32)), "JPEG", exif=exif)).size == (64, 32)


def test_unreadable_exif_data_is_ignored() -> None:
    data = encoded(photograph(), "JPEG", exif=b"Exif\x00\x00garbage that is no TIFF")
    assert open_image(data).size == measure_image(data, "x").size == (64, 48)


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert pixel(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("save", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_measuring_rejects_a_truncated_jpeg_exactly_when_decoding_does(mode: str, save: dict[str, Any]) -> None:
    data = encoded(photograph((129, 65), mode), "JPEG", **save)
    assert measure_image(data, "x").size == (129, 65)
    num_rejected = 0
    for length in [*range(len(data) - 12, len(data)), *range(20, len(data) - 12, len(data) // 40)]:
        outcomes = [is_rejected(open_image, data[:length]), is_rejected(lambda cut: measure_image(cut, "x"), data[:length])]
        assert outcomes[0] == outcomes[1], length
        num_rejected += outcomes[0]
        assert outcomes[0] or length >= len(data) - 2, "only the end-of-image marker may be missing"
    assert num_rejected >= 40


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_an_incomplete_file_of_any_format_is_rejected(kind: str) -> None:
    data = encoded(photograph(), kind)
    assert measure_image(data, "x").size == (64, 48)
    for part in (data[: len(data) // 2], data[:20], b""):
        assert is_rejected(open_image, part)
        assert is_rejected(lambda cut: measure_image(cut, "x"), part)


def is_rejected(function: Any, data: bytes) -> bool:
    try:
        function(data)
    except ImageError as error:
        assert error.reason == DropReason.UNDECODABLE
        return True
    return False


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xff\xd8\xff"])
def test_a_file_that_is_not_an_image_is_rejected(content: bytes) -> None:
    assert is_rejected(open_image, content)


def test_the_message_for_a_damaged_image_is_the_same_in_every_run() -> None:
    messages = []
    for _ in range(2):
        with pytest.raises(ImageError) as raised:
            open_image(b"no picture at all")
        messages.append(str(raised.value))
    assert messages == ["image of 17 bytes: cannot be decoded (not an image in a supported format)"] * 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_a_file_with_corrupted_bytes_is_decoded_or_rejected(kind: str) -> None:
    rng, data = random.Random(kind), encoded(photograph((24, 16)), kind)
    for _ in range(40):
        corrupted = bytearray(data)
        for _ in range(rng.choice((1, 4, 16))):
            corrupted[rng.randrange(len(corrupted))] = rng.randrange(256)
        for read in (lambda w: open_image(w, 10_000), lambda w: measure_image(w, "x", 10_000)):
            with contextlib.suppress(ImageError):
                read(bytes(corrupted))


@pytest.mark.parametrize(
    ("raised", "detail"),
    [
        (struct.error("unpack requires 4 bytes"), "error: unpack requires 4 bytes"),
        (KeyError(256), "KeyError: 256"),
        (EOFError(), "EOFError"),
        (OSError("image file is truncated"), "image file is truncated"),
    ],
)
def test_the_error_of_the_decoder_is_part_of_the_message(monkeypatch: pytest.MonkeyPatch, raised: Exception, detail: str) -> None:
    monkeypatch.setattr(Image, "open", raising(raised))
    for read in (open_image, lambda data: measure_image(data, "x")):
        with pytest.raises(ImageError, match=re.escape(f"cannot be decoded ({detail})")):
            read(b"anything")


def test_a_bug_is_not_reported_as_a_damaged_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", raising(AttributeError("a bug")))
    with pytest.raises(AttributeError, match="a bug"):
        open_image(b"anything")


def raising(error: Exception) -> Callable[..., None]:
    def open_(*_: object, **__: object) -> None:
        raise error

    return open_


def test_the_error_for_a_missing_file_names_it(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path, tmp_path / "with\0nul.jpg"):
        with pytest.raises(ImageError) as raised:
            open_image(path)
        assert raised.value.reason == DropReason.MISSING_FILE
        assert str(path) in str(raised.value)


def test_the_pixel_limit_is_checked_before_decoding() -> None:
    # A header of 30,000 x 30,000 pixels without data: decoding would fail or take gigabytes.
    header = encoded(Image.new("1", (1, 1)))
    huge = header[:16] + (30_000).to_bytes(4, "big") * 2 + header[24:29]
    huge += zlib.crc32(huge[12:29]).to_bytes(4, "big") + header[33:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in (open_image, lambda data: measure_image(data, "x")):
            with pytest.raises(ImageError, match="30000 x 30000 pixels, at most 100,000,000 are allowed") as raised:
                function(huge)
            assert raised.value.reason == DropReason.TOO_MANY_PIXELS
            assert raised.value.size == (30_000, 30_000)


def test_the_given_pixel_limit_replaces_the_one_of_pillow() -> None:
    side = 11_000  # 121 million pixels: above the limit at which Pillow warns
    data = encoded(Image.new("1", (side, side)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure_image(data, "x", max_pixels=side * side).size == (side, side)
        for limit in (MAX_PIXELS, side * side - 1):
            with pytest.raises(ImageError) as raised:
                measure_image(data, "x", max_pixels=limit)
            assert raised.value.reason == DropReason.TOO_MANY_PIXELS


def test_rgb_is_unchanged() -> None:
    image = photograph()
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image))
