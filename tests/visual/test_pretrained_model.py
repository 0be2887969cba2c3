"""Image processors are loaded in their Pillow variant, whatever class a folder names."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, Qwen2VLImageProcessorPil, SiglipImageProcessorPil

from errors import UsageError
from visual.pretrained_model import load_image_processor


@pytest.mark.parametrize(
    ("part", "kind"), [("siglip", SiglipImageProcessorPil), ("clip", CLIPImageProcessorPil), ("qwen3_vl", Qwen2VLImageProcessorPil)]
)
def test_each_model_gets_the_pillow_variant(parts: Path, part: str, kind: type) -> None:
    assert type(load_image_processor("key", str(parts / part))) is kind


@pytest.mark.parametrize(
    "settings",
    [
        {"image_processor_type": "CLIPImageProcessorFast"},
        {"image_processor_type": "CLIPImageProcessor"},
        {"feature_extractor_type": "CLIPFeatureExtractor"},
    ],
)
def test_older_class_names_map_to_the_pillow_variant(tmp_path: Path, settings: dict[str, str]) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert type(load_image_processor("key", str(tmp_path))) is CLIPImageProcessorPil


def test_dinov3_gets_a_processor_with_the_same_steps(tmp_path: Path) -> None:
    settings = {"size": {"height": 32, "width": 48}, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2}
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"image_processor_type": "DINOv3ViTImageProcessorFast", "do_rescale": True, **settings}), encoding="utf-8")
    image = Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 20).convert("RGB")
    values = load_image_processor("key", str(tmp_path))(images=[image], return_tensors="np")["pixel_values"][0]
    resized = np.asarray(image.resize((48, 32), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    expected = (resized - np.array(settings["image_mean"])) / np.array(settings["image_std"])
    np.testing.assert_allclose(values, expected.transpose(2, 0, 1), atol=1e-5)


def test_a_processor_without_a_pillow_variant_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "OurImageProcessor"}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"^key: .*OurImageProcessor has no Pillow variant"):
        load_image_processor("key", str(tmp_path))
