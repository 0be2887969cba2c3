"""Pixel values equal those of the transformers image processor bit for bit, for all settings and image modes."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from dataset.loading.image_transform import PixelReader
from errors import UsageError

SIZES = [(640, 480), (480, 640), (384, 384), (1, 1), (3, 500), (383, 385), (1600, 900), (96, 96)]
SMALL = {"height": 48, "width": 48}


def noise(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Uniform noise over all byte values."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    rgba = Image.fromarray(values)
    return rgba if mode == "RGBA" else rgba.convert("RGB").convert(mode)


def processed(processor: Any, images: list[Image.Image]) -> torch.Tensor:
    values: torch.Tensor = processor(images=images, return_tensors="pt")["pixel_values"]
    return values


def composite_over_white(image: Image.Image) -> Image.Image:
    """RGB, with transparency composited over white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def processor_composites_over_white() -> bool:
    """Whether the processor composites over white; older versions drop the alpha channel."""
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    return bool((processed(SiglipImageProcessorPil(size=SMALL), [clear]) == 1).all())


def check_same(processor: Any, images: list[Image.Image]) -> PixelReader:
    """Check that the reader equals the processor on images composited over white, which newer processors do themselves."""
    reader = PixelReader(processor)
    raw, expected = reader.read(images), processed(processor, [composite_over_white(image) for image in images])
    if processor_composites_over_white():
        assert torch.equal(processed(processor, images), expected)
    actual = reader.normalize(raw)
    assert actual.dtype == expected.dtype and actual.is_contiguous()
    assert torch.equal(actual, expected)
    return reader


@pytest.mark.parametrize("size", SIZES)
def test_images_of_any_size_equal_the_processors_output(size: tuple[int, int]) -> None:
    processor = SiglipImageProcessorPil(size={"height": 384, "width": 384}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    assert check_same(processor, [noise(size)]).lookup_table is not None


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "YCbCr"])
def test_images_of_any_mode_equal_the_processors_output(mode: str) -> None:
    assert check_same(SiglipImageProcessorPil(size=SMALL), [noise((70, 50), mode), noise((20, 90), "RGB", 1)]).lookup_table is not None


def test_a_transparent_colour_is_composited_over_white() -> None:
    image = noise((64, 40), "P")
    image.info["transparency"] = 3
    rgb = noise((64, 40))
    rgb.info["transparency"] = rgb.getpixel((1, 1))
    check_same(SiglipImageProcessorPil(size=SMALL), [image, rgb])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]},
        {"image_mean": 0.1, "image_std": 3.7},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        {"rescale_factor": 0.1234567890123},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"do_convert_rgb": False},
        {"do_convert_rgb": None},
        {"resample": Image.Resampling.BILINEAR},
        {"resample": 0},
        {"resample": Image.Resampling.LANCZOS},
        {"resample": 4},
        {"size": {"height": 30, "width": 70}},
        {"size": 40, "default_to_square": True},
    ],
    ids=str,
)
def test_all_processor_settings_are_reproduced(settings: dict[str, Any], tmp_path: Any) -> None:
    SiglipImageProcessorPil(**{"size": SMALL, **settings}).save_pretrained(tmp_path)
    processor = SiglipImageProcessorPil.from_pretrained(tmp_path)
    assert check_same(processor, [noise((70, 50)), noise((33, 99), seed=1)]).lookup_table is not None


class Brighter(SiglipImageProcessorPil):
    """A derived class, whose methods may do anything."""

    def rescale(self, *args: Any, **kwargs: Any) -> np.ndarray:
        brighter: np.ndarray = super().rescale(*args, **kwargs) + 1
        return brighter


@pytest.mark.parametrize(
    "processor",
    [
        SiglipImageProcessorPil(size=SMALL, do_center_crop=True, crop_size={"height": 24, "width": 24}),
        SiglipImageProcessorPil(size={"shortest_edge": 40}),
        SiglipImageProcessorPil(size=SMALL, do_resize=False),
        SiglipImageProcessorPil(size=SMALL, do_pad=True, pad_size={"height": 60, "width": 60}),
        Brighter(size=SMALL),
        CLIPImageProcessorPil(),
    ],
    ids=["crop", "shortest edge", "no resize", "padding", "subclass", "another class"],
)
def test_other_processors_run_without_the_lookup_table(processor: Any) -> None:
    images = [noise((64, 48))]
    reader = PixelReader(processor)
    assert reader.lookup_table is None
    assert torch.equal(reader.normalize(reader.read(images)), processed(processor, images))


def test_a_processor_that_differs_from_its_settings_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original_resize = SiglipImageProcessorPil.resize
    monkeypatch.setattr(SiglipImageProcessorPil, "resize", lambda *args, **kwargs: 255 - original_resize(*args, **kwargs))
    assert PixelReader(SiglipImageProcessorPil(size=SMALL)).lookup_table is None


def test_a_processor_that_cannot_process_an_image_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"model\.vision: its image processor cannot process an image: .*mean must have 3"):
        PixelReader(SiglipImageProcessorPil(size=SMALL, image_mean=[0.5, 0.5]))


def test_raw_pixels_are_uint8_and_the_reader_can_be_pickled() -> None:
    processor = SiglipImageProcessorPil(size=SMALL)
    reader = pickle.loads(pickle.dumps(PixelReader(processor)))
    raw = reader.read([noise((70, 50)), noise((20, 20))])
    assert raw.dtype == torch.uint8 and raw.shape == (2, 3, 48, 48)
    joined = torch.cat([reader.read([]), raw[:1], raw[1:]])
    assert torch.equal(reader.normalize(joined), processed(processor, [noise((70, 50)), noise((20, 20))]))


def test_an_empty_batch_has_the_shape_and_dtype_of_others() -> None:
    for processor in (SiglipImageProcessorPil(size=SMALL), Brighter(size=SMALL)):
        reader = PixelReader(processor)
        one, none = (reader.normalize(reader.read(images)) for images in ([noise((9, 9))], []))
        assert none.shape == (0, 3, 48, 48) and none.dtype == one.dtype
