"""`data.pack`: image files are packed into shards, reduced on request, and read from there."""

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from dataset.build import image_packing
from dataset.loading.image_io import read_image_file
from dataset.loading.packed_images import file_of_image
from dataset.loading.sample_store import SampleStore
from errors import TesseraError
from tests.dataset.raw_files import RawFiles, conversation


def merged_images(raw: RawFiles, **settings: object) -> SampleStore:
    raw.merge(raw.llava([conversation("a.png", "?", "x"), conversation("b.jpg", "?", "y")]), pack=True, **settings)
    return SampleStore(raw.merged)


def write_images(raw: RawFiles) -> None:
    raw.image("a.png")
    raw.image("b.jpg", 1, (64, 40))


def test_files_are_packed_as_they_are_and_no_longer_needed(raw: RawFiles) -> None:
    write_images(raw)
    files = [(raw.images / name).read_bytes() for name in ("a.png", "b.jpg")]
    store = merged_images(raw)
    for name in ("a.png", "b.jpg"):
        (raw.images / name).unlink()
    assert [read_image_file(row.path) for row in store.images()] == files
    assert {file_of_image(str(row.path)) for row in store.images()} == {raw.merged / "packed" / "images-00000.tar"}
    assert [store.load_image(i).size for i in (0, 1)] == [(12, 8), (64, 40)]


def test_larger_images_are_reduced(raw: RawFiles) -> None:
    write_images(raw)
    small = (raw.images / "a.png").read_bytes()
    first, second = merged_images(raw, pack_max_side=32).images()
    assert read_image_file(first.path) == small and (first.width, first.height) == (12, 8)
    data = read_image_file(second.path)
    assert (second.width, second.height) == (32, 20) and second.sha256 == hashlib.sha256(data).hexdigest()
    with Image.open(raw.images / "b.jpg") as original:
        expected = original.resize((32, 20), Image.Resampling.LANCZOS)
    reduced = SampleStore(raw.merged).load_image(1)
    difference = sum(abs(a - b) for a, b in zip(reduced.tobytes(), expected.tobytes(), strict=True)) / len(expected.tobytes())
    assert difference < 2


def test_a_repeated_merge_packs_nothing_again(raw: RawFiles) -> None:
    write_images(raw)
    before = list(merged_images(raw, pack_max_side=32).images())
    shard = (raw.merged / "packed" / "images-00000.tar").read_bytes()
    assert list(merged_images(raw, pack_max_side=32, seed=1).images()) == before
    assert [path.name for path in sorted((raw.merged / "packed").iterdir())] == ["images-00000.parquet", "images-00000.tar"]
    assert (raw.merged / "packed" / "images-00000.tar").read_bytes() == shard


def test_too_little_space_is_said_before_anything_is_packed(raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(raw)
    monkeypatch.setattr(image_packing, "free_bytes", lambda _path: 10)
    with pytest.raises(TesseraError, match=r"data\.pack: the images take [\d,]+ bytes, and 10 are free in"):
        merged_images(raw)
    assert not (raw.merged / "packed").exists()


def test_an_image_that_has_vanished_is_an_error(raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(raw)

    def missing(path: Path, max_pixels: int) -> bytes:
        return read_image_file(path.with_name("none.png"), max_pixels)

    monkeypatch.setattr(image_packing, "read_image_file", missing)
    with pytest.raises(TesseraError, match=r"data\.pack: .*none\.png: there is no such file"):
        merged_images(raw)
