"""Pixels from the data loaders, and the pixels that the model sees."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import SiglipImageProcessorPil

import config as configuration
from dataset.loading.sample_store import SampleStore
from model.siglip_qwen.modeling import VisionLanguageModel
from tests.training.test_run import run
from training.run_setup import setup_run, training_loader

Workspace = Callable[..., Path]


def stock_pixels(parts: Path, store: SampleStore) -> list[torch.Tensor]:
    """Pixels of each image in the store, from the stock image processor."""
    processor = SiglipImageProcessorPil.from_pretrained(parts / "siglip")
    return [processor(images=[store.load_image(row.image_id)], return_tensors="pt")["pixel_values"][0] for row in store.images()]


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_loaders_yield_uint8_pixels(workspace: Workspace, batching: str) -> None:
    run_setup = setup_run(configuration.load(workspace(batching=batching, packing_length=512)))
    for batch in training_loader(run_setup, 0):
        assert batch["pixel_values"].dtype == torch.uint8


@pytest.mark.parametrize("dataloader_num_workers", [0, 1])
def test_the_model_sees_the_pixels_of_the_stock_image_processor(
    workspace: Workspace, parts: Path, monkeypatch: pytest.MonkeyPatch, dataloader_num_workers: int
) -> None:
    seen: list[torch.Tensor] = []
    original = VisionLanguageModel.encode_images

    def recording_encode(model: VisionLanguageModel, pixel_values: torch.Tensor) -> torch.Tensor:
        seen.extend(pixel_values)
        return original(model, pixel_values)

    monkeypatch.setattr(VisionLanguageModel, "encode_images", recording_encode)
    config = workspace(dataloader_num_workers=dataloader_num_workers)
    run(config)
    expected = stock_pixels(parts, SampleStore(Path("data/toy")))
    # Seven training samples with an image, and four validation samples.
    assert len(seen) == 11
    assert all(any(torch.equal(pixels, other) for other in expected) for pixels in seen)


def test_an_image_processor_with_a_center_crop_is_called_itself_and_a_message_says_so(
    workspace: Workspace, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workspace()
    shutil.copytree(parts / "siglip", "siglip")
    settings = Path("siglip/preprocessor_config.json")
    crop = {"do_center_crop": True, "crop_size": {"height": 96, "width": 96}}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **crop}))
    run_setup = setup_run(configuration.load(path, ["model.vision=siglip"]))
    assert "does more than a plain resize" in capsys.readouterr().out
    assert {batch["pixel_values"].dtype for batch in training_loader(run_setup, 0)} == {torch.float32}
    setup_run(configuration.load(path))
    assert "plain resize" not in capsys.readouterr().out
