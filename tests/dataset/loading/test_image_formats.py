"""Files that are no image say what they are; metadata that Pillow refuses do not make an image unreadable."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from dataset.loading import image_io
from dataset.loading.image_formats import without_large_metadata
from dataset.loading.image_io import ImageError, measure_image, open_image, printable_path, read_image_file
from dataset.record_validation import DropReason

LARGE = "x" * (2 << 20)


def png(**save: Any) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((64, 48)).save(file, "PNG", **save)
    return file.getvalue()


def png_with(add: Callable[[PngImagePlugin.PngInfo], None]) -> bytes:
    info = PngImagePlugin.PngInfo()
    add(info)
    return png(pnginfo=info)


def many_small_texts(info: PngImagePlugin.PngInfo) -> None:
    for i in range(70):
        info.add_text(f"text {i}", "x" * (1 << 20), zip=True)


PNGS = {
    "iTXt, packed": lambda: png_with(lambda info: info.add_itxt("XML:com.adobe.xmp", LARGE, zip=True)),
    "iTXt": lambda: png_with(lambda info: info.add_itxt("XML:com.adobe.xmp", LARGE)),
    "zTXt": lambda: png_with(lambda info: info.add_text("workflow", LARGE, zip=True)),
    "tEXt": lambda: png_with(lambda info: info.add_text("workflow", LARGE)),
    "many": lambda: png_with(many_small_texts),
    "iCCP": lambda: png(icc_profile=b"\0" * (2 << 20)),
    "unknown packing": lambda: after_header(png(), b"zTXt", b"workflow\0\7data"),
    "after the pixels": lambda: before_end(png(), b"zTXt", b"workflow\0\0" + zlib.compress(LARGE.encode())),
}


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def after_header(data: bytes, kind: bytes, content: bytes) -> bytes:
    return data[:33] + chunk(kind, content) + data[33:]


def before_end(data: bytes, kind: bytes, content: bytes) -> bytes:
    return data[:-12] + chunk(kind, content) + data[-12:]


@pytest.mark.parametrize("kind", PNGS)
def test_a_png_with_large_packed_metadata_is_read(kind: str) -> None:
    data = PNGS[kind]()
    assert open_image(data).tobytes() == open_image(png()).tobytes()
    assert measure_image(data, "x").size == (64, 48)


def test_unpacking_metadata_takes_little_memory() -> None:
    bomb = after_header(png(), b"zTXt", b"workflow\0\0" + zlib.compress(bytes(100 << 20), 1))
    tracemalloc.start()
    try:
        assert open_image(bomb).size == (64, 48)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20


def test_small_metadata_and_other_files_stay_as_they_are() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    small = png_with(lambda info: info.add_text("workflow", "x" * 1000, zip=True))
    for data in (small, png(exif=exif), png()[:40], b"\x89PNG\r\n\x1a\n", b"", b"no picture"):
        assert without_large_metadata(data) is data
    rotated = after_header(png(exif=exif), b"zTXt", b"workflow\0\0" + zlib.compress(LARGE.encode()))
    assert open_image(rotated).size == (48, 64)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is HEIC, which is not decoded: convert it to JPEG, for instance with `heif-convert"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "it is HEIC"),
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer: fetch the file itself with `git lfs pull`"),
        (b"\n <!DOCTYPE html><html>404</html>", "it is an HTML page"),
        (b'<?xml version="1.0"?><svg/>', "it is an SVG or XML file"),
        (b"%PDF-1.7", "it is a PDF or PostScript document"),
        (b"8BPS\0\1", "it is a Photoshop file"),
        (b"\xff\x0a\xfa\x7f", "it is JPEG XL"),
        (b"PK\x03\x04", "it is an archive"),
        (b"no picture at all", "not an image in a supported format"),
    ],
)
def test_a_file_that_is_not_decoded_says_what_it_is(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError) as raised:
        open_image(path)
    assert raised.value.reason == DropReason.UNDECODABLE
    assert f"{path}: cannot be decoded ({said}" in str(raised.value)


def test_a_jfif_file_is_a_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jfif", "JPEG")
    assert open_image(tmp_path / "a.jfif").size == (4, 4)


def test_a_file_larger_than_an_image_can_be_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(1 << 42)  # a hole: it takes no space on the disk
    with pytest.raises(ImageError, match=r"huge\.jpg: 4,398,046,511,104 bytes, more than an image of 100,000,000 pixels") as raised:
        open_image(path)
    assert raised.value.reason == DropReason.TOO_LARGE


def test_too_little_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())

    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    for owner, name in ((image_io, "to_rgb"), (Path, "open")):
        monkeypatch.setattr(owner, name, no_memory)
        for read in (open_image, lambda path: measure_image(read_image_file(path), "a.png")):
            with pytest.raises(ImageError, match=r"a\.png: there is not enough memory") as raised:
                read(path)
            assert raised.value.reason == DropReason.TOO_LARGE


def test_a_name_that_is_not_utf8_is_read_and_can_be_printed(tmp_path: Path) -> None:
    path = tmp_path / "照片.png".encode("gbk").decode("utf-8", "surrogateescape")
    path.write_bytes(png())
    assert open_image(path).size == (64, 48)
    assert printable_path(path) == f"{tmp_path}/\\xd5\\xd5Ƭ.png"
    assert printable_path("\ud800.png") == "\\ud800.png"
    path.write_bytes(b"nothing")
    with pytest.raises(ImageError, match="cannot be decoded") as raised:
        open_image(path)
    str(raised.value).encode()
