"""Images with the same pixels are one, whatever their bytes; images that look alike are counted between splits or kept together."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from dataset.build.perceptual_hash import appearance, near_duplicates
from dataset.config import SplitConfig
from dataset.loading.image_io import measure_image, open_image
from dataset.loading.sample_store import SampleStore
from tests.dataset.raw_files import RawFiles, conversation

HALVES = SplitConfig(validation=0.25, test=0.25)
TOGETHER = SplitConfig(validation=0.25, test=0.25, near_duplicates="together")


def photograph(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A colourful image with structure of all sizes, as photographs have."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC), np.float32
        )
        for side in (3, 6, 12, 48)
    ]
    return Image.fromarray(np.average(layers, axis=0, weights=(8, 4, 2, 1)).round().astype(np.uint8))


def encoded(image: Image.Image, kind: str, **save: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **save)
    return file.getvalue()


def write(raw: RawFiles, name: str, data: bytes) -> dict[str, Any]:
    """Write an image file; returns a record about it."""
    (raw.images / name).write_bytes(data)
    return conversation(name, "?", name)


def comment(jpeg: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xfe\0\x06note" + jpeg[2:]


class TestSamePixels:
    @pytest.mark.parametrize("size", [(320, 240), (64, 48), (12, 8), (257, 300)])
    def test_files_with_the_same_pixels_in_other_bytes_are_one_image(self, raw: RawFiles, size: tuple[int, int]) -> None:
        jpeg = encoded(photograph(0, size), "JPEG", quality=80)
        pixels = open_image(jpeg)
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = pixels.transpose(Image.Transpose.ROTATE_90)
        records = [
            write(raw, "a.jpg", jpeg),
            write(raw, "with_comment.jpg", comment(jpeg)),
            write(raw, "a.png", encoded(pixels, "PNG")),
            write(raw, "smaller.png", encoded(pixels, "PNG", optimize=True)),
            write(raw, "a.bmp", encoded(pixels, "BMP")),
            write(raw, "a.webp", encoded(pixels, "WEBP", lossless=True)),
            write(raw, "rgba.png", encoded(pixels.convert("RGBA"), "PNG")),
            write(raw, "turned.png", encoded(turned, "PNG", exif=exif)),
            write(raw, "copy.jpg", jpeg),
        ]
        report = raw.merge(raw.llava(records))
        assert report.images == 1
        assert (report.image_files.checked, report.image_files.same_bytes, report.image_files.same_pixels) == (9, 1, 7)
        assert "9 image files checked, 8 of them equal to another one (1 in their bytes, 7 in their pixels only)" in report.table()
        assert {sample.image_ids for sample in raw.samples()} == {(0,)}
        assert SampleStore(raw.merged).image(0).path.name == "a.jpg"

    def test_a_jpeg_whose_preview_is_rounded_otherwise_is_found(self, raw: RawFiles) -> None:
        # Black and white at full contrast: a decoder cuts off what lies beyond, so the means of blocks are not those of the pixels.
        noise = np.random.default_rng(0).integers(0, 2, (80, 107), dtype=np.uint8) * 255
        jpeg = encoded(Image.fromarray(noise).resize((320, 240), Image.Resampling.NEAREST).convert("RGB"), "JPEG", quality=30)
        png = encoded(open_image(jpeg), "PNG")
        previews = [np.asarray(measure_image(data, "x").preview) for data in (jpeg, png)]
        assert not np.array_equal(previews[0], previews[1])
        assert raw.merge(raw.llava([write(raw, "a.jpg", jpeg), write(raw, "a.png", png)])).images == 1

    def test_one_other_pixel_makes_another_image(self, raw: RawFiles) -> None:
        image = photograph(0)
        changed = image.copy()
        changed.putpixel((5, 5), (1, 2, 3))
        report = raw.merge(raw.llava([write(raw, "a.png", encoded(image, "PNG")), write(raw, "b.png", encoded(changed, "PNG"))]))
        assert (report.images, report.image_files.same_pixels) == (2, 0)

    def test_images_of_one_colour_are_equal_only_in_the_same_colour_and_size(self, raw: RawFiles) -> None:
        red, blue = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")
        records = [
            write(raw, "a.png", encoded(red, "PNG")),
            write(raw, "a.bmp", encoded(red, "BMP")),
            write(raw, "b.png", encoded(blue, "PNG")),
            write(raw, "c.png", encoded(red.resize((40, 41)), "PNG")),
        ]
        assert raw.merge(raw.llava(records)).images == 3

    def test_the_pixels_are_read_once_and_a_merge_from_the_cache_gives_the_same(
        self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        jpeg = encoded(photograph(0), "JPEG")
        source = raw.llava([write(raw, "a.jpg", jpeg), write(raw, "a.png", encoded(open_image(jpeg), "PNG"))])
        raw.merge(source)
        first = raw.parquet()

        def fail(*_: object) -> None:
            raise AssertionError("an image was decoded again")

        monkeypatch.setattr("dataset.build.image_validation.open_image", fail)
        assert raw.merge(source, seed=1).images == 1
        assert raw.parquet()[0] == first[0]
        copy = raw.llava([conversation("a.jpg", "?", "x"), conversation("a.png", "?", "y"), write(raw, "b.jpg", jpeg)])
        report = raw.merge(copy)
        assert (report.images, report.image_files.same_bytes, report.image_files.same_pixels) == (1, 1, 1)

    def test_the_same_pixels_are_in_the_same_split_of_whatever_order(self, raw: RawFiles) -> None:
        jpegs = [encoded(photograph(i, (64, 48)), "JPEG") for i in range(30)]
        first = raw.llava([write(raw, f"{i}.jpg", data) for i, data in enumerate(jpegs)], name="first")
        second = raw.llava([write(raw, f"{i}.png", encoded(open_image(data), "PNG")) for i, data in enumerate(jpegs)], name="second")
        splits = []
        for order in ((first, second), (second, first)):
            assert raw.merge(*order, split=HALVES).images == 30
            by_name = {sample.targets[0]: sample.split for sample in raw.samples()}
            assert all(by_name[f"{i}.jpg"] == by_name[f"{i}.png"] for i in range(30))
            splits.append(by_name)
        assert splits[0] == splits[1]
        assert len(set(splits[0].values())) == 3


CHANGES = {
    "compressed": lambda image: open_image(encoded(image, "JPEG", quality=40)),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "double the size": lambda image: image.resize((image.width * 2, image.height * 2)),
    "cropped by 1 %": lambda image: image.crop((image.width // 100, 0, image.width, image.height)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.9),
}


def looks_alike(first: Image.Image, second: Image.Image) -> bool:
    looks = [appearance(measure_image(encoded(image, "PNG"), "x").preview) for image in (first, second)]
    hashes = np.array([perceptual_hash for perceptual_hash, _ in looks])
    thumbnails = np.stack([np.frombuffer(thumbnail, dtype=np.uint8) for _, thumbnail in looks])
    return bool(len(near_duplicates(hashes, thumbnails)))


class TestNearDuplicates:
    @pytest.mark.parametrize("change", CHANGES)
    def test_changed_copies_look_alike(self, change: str) -> None:
        for seed in range(10):
            image = photograph(seed)
            assert looks_alike(image, CHANGES[change](image)), seed

    def test_other_images_and_other_colours_do_not(self) -> None:
        images = [photograph(seed) for seed in range(40)]
        looks = [appearance(image) for image in images]
        thumbnails = np.stack([np.frombuffer(thumbnail, dtype=np.uint8) for _, thumbnail in looks])
        assert len(near_duplicates(np.array([perceptual_hash for perceptual_hash, _ in looks]), thumbnails)) == 0
        red, green, blue = images[0].split()
        assert not looks_alike(images[0], Image.merge("RGB", (blue, red, green)))
        for first, second in (("red", "blue"), ("black", "white"), ("black", "grey")):
            assert not looks_alike(Image.new("RGB", (64, 64), first), Image.new("RGB", (64, 64), second))

    def test_all_pairs_within_six_bits_are_found(self) -> None:
        rng = np.random.default_rng(0)
        hashes = rng.integers(-(2**63), 2**63, 400, dtype=np.int64)
        for i in range(0, 400, 2):
            flipped = rng.choice(64, size=i // 2 % 9, replace=False)
            hashes[i + 1] = hashes[i] ^ np.bitwise_or.reduce(np.left_shift(np.uint64(1), flipped.astype(np.uint64))).astype(np.int64)
        thumbnails = np.zeros((400, 192), dtype=np.uint8)
        expected = [[i, i + 1] for i in range(0, 400, 2) if i // 2 % 9 <= 6]
        assert near_duplicates(hashes, thumbnails).tolist() == expected
        assert near_duplicates(hashes[:0], thumbnails[:0]).shape == (0, 2)

    def sources(self, raw: RawFiles) -> Any:
        images = [photograph(i, (160, 120)) for i in range(40)]
        records = [write(raw, f"{i}.jpg", encoded(image, "JPEG")) for i, image in enumerate(images)]
        compressed = [write(raw, f"small{i}.jpg", encoded(image, "JPEG", quality=40)) for i, image in enumerate(images)]
        return raw.llava([*records, *compressed])

    def splits(self, raw: RawFiles) -> list[tuple[str, str]]:
        by_name = {Path(sample.targets[0]).stem: sample.split for sample in raw.samples()}
        return [(by_name[f"{i}"], by_name[f"small{i}"]) for i in range(40)]

    def test_they_are_counted_between_splits(self, raw: RawFiles) -> None:
        report = raw.merge(self.sources(raw), split=HALVES)
        apart = [{"test", "validation", "train"} - (set(pair) if len(set(pair)) == 2 else set()) for pair in self.splits(raw)]
        counted = {(entry.split, entry.other): entry.images for entry in report.near_duplicates}
        assert counted == {
            ("test", "train"): apart.count({"validation"}),
            ("test", "validation"): apart.count({"train"}),
            ("validation", "train"): apart.count({"test"}),
        }
        assert sum(counted.values()) > 10
        assert report.images == 80
        first = report.near_duplicates[0]
        assert f"{first.images} test images look like images of validation (data.split.near_duplicates=together" in report.table()
        assert 1 <= len(first.examples) <= 3
        assert ".jpg looks like " in first.examples[0]

    def test_they_can_be_kept_together(self, raw: RawFiles) -> None:
        report = raw.merge(self.sources(raw), split=TOGETHER)
        assert report.near_duplicates == []
        assert "no two images of different splits look alike" in report.table()
        assert all(first == second for first, second in self.splits(raw))
        assert len({split for split, _ in self.splits(raw)}) == 3

    def test_kept_together_a_copy_of_a_test_image_leaves_the_training_split(self, raw: RawFiles) -> None:
        image = photograph(0)
        train = raw.llava([write(raw, "a.jpg", encoded(image, "JPEG"))], split="train", name="train")
        test = raw.llava([write(raw, "b.jpg", encoded(image.resize((160, 120)), "JPEG"))], split="test", name="test")
        assert [entry.images for entry in raw.merge(train, test).near_duplicates] == [1]
        report = raw.merge(train, test, split=SplitConfig(validation=0.0, test=0.0, near_duplicates="together"))
        assert [source.moved for source in report.sources] == [1, 0]
        assert report.by_split == {"train": 0, "validation": 0, "test": 2}
