"""Kept features: training does without the trunk and learns the same; only what has changed is computed again."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import config as configuration
from errors import TesseraError, UsageError
from model.siglip_qwen.assembly import load_encoder
from model.siglip_qwen.modeling import VisionLanguageModel
from tests.training.test_run import losses, run
from training.feature_cache import feature_extraction, feature_store
from training.feature_cache.feature_extraction import with_cached_features
from training.run_setup import RunSetup, setup_run, training_loader

Workplace = Callable[..., Path]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each shard was computed for."""
    counts: list[int] = []
    usual = feature_extraction._FeatureExtractor._compute

    def counting(builder: Any, digests: Sequence[str], progress: Any) -> torch.Tensor:
        counts.append(len(digests))
        return usual(builder, digests, progress)

    monkeypatch.setattr(feature_extraction._FeatureExtractor, "_compute", counting)
    return counts


def kept(path: Path, *overrides: str) -> RunSetup:
    return with_cached_features(setup_run(configuration.load(path, ["train.cache_vision_features=true", *overrides])))


def shards(folder: Path = Path("data/toy")) -> list[Path]:
    return sorted(folder.glob("cache/features/*/[!.]*.safetensors"))


def images_in(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        images: list[str] = file.metadata()["pictures"].split()
        assert file.get_slice("features").get_shape()[0] == len(images)
    return images


@pytest.mark.parametrize(
    ("model", "train"),
    [
        ({}, {"batching": "padded"}),
        ({}, {"batching": "packed", "tokens_per_row": 512}),
        ({"connector": {"pool": 3}, "feature_layer": "last_hidden_state"}, {"batching": "packed", "tokens_per_row": 512, "workers": 1}),
        ({"drop_first_patch": True}, {"precision": "bf16"}),
    ],
    ids=["padded", "packed", "pooled", "bf16"],
)
def test_losses_are_those_of_training_with_the_trunk(
    workspace: Workplace, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], train: dict[str, Any]
) -> None:
    stage = {"name": "align", "train": ["connector"], "max_steps": 4, "learning_rate": 1e-3}
    path = workspace(model, **{"stages": [stage], "evaluate_steps": 2, **train})
    plain = run(path)
    plain = plain.parent.rename("plain") / plain.name
    monkeypatch.setattr(VisionLanguageModel, "encode_images", None)  # the trunk cannot be run
    cached = run(path, "train.cache_vision_features=true")
    for key in ("loss", "eval_loss"):
        assert losses(cached, key) == pytest.approx(losses(plain, key), rel=2e-3)
    assert losses(cached, "grad_norm") == pytest.approx(losses(plain, "grad_norm"), rel=2e-2)


def test_each_image_gets_the_features_of_its_own_content(workspace: Workplace) -> None:
    run_setup = kept(workspace())
    assert run_setup.features is not None and run_setup.validation is not None
    encoder = load_encoder(run_setup.config.model, dtype=torch.float32, device="cpu")
    image_ids = [11, 0, 5]
    pixels = run_setup.processor.pixels([run_setup.store.load_image(image_id) for image_id in image_ids])
    torch.testing.assert_close(run_setup.features.read(image_ids), encoder(pixels).to(torch.bfloat16))


def test_batches_hold_features_in_place_of_pixels(workspace: Workplace) -> None:
    run_setup = kept(workspace(per_device_train_batch_size=1))
    counts = []
    for batch in training_loader(run_setup, 0):
        assert "pixel_values" not in batch and batch["image_features"].shape[1:] == (36, 128)
        counts.append(len(batch["image_features"]))
    assert sorted(counts) == [0, *[1] * 7]  # one sample has no picture


def test_a_second_run_computes_nothing_and_another_model_everything(
    workspace: Workplace, computed: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    path = workspace()
    kept(path)
    # Four of the eleven pictures hold the same as others.
    assert computed == [7]
    assert "they take" in capsys.readouterr().out
    kept(path, "train.learning_rate=5", "model.max_length=200")
    assert computed == [7]
    assert "features of 7 pictures are kept" in capsys.readouterr().out
    kept(path, "model.vision_feature_layer=-1")
    assert computed == [7, 7]
    assert "features of other models or settings take" in capsys.readouterr().out


def test_other_weights_are_another_model(workspace: Workplace, computed: list[int], parts: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = workspace()
    kept(path)
    shutil.copytree(parts / "siglip", "siglip")
    weights = load_file("siglip/model.safetensors")
    name = next(name for name in weights if "vision_model" in name and name.endswith("layers.0.mlp.fc1.bias"))
    weights[name] = weights[name] + 1e-3
    save_file(weights, "siglip/model.safetensors", metadata={"format": "pt"})
    kept(path, "model.vision=siglip")
    assert computed == [7, 7]


def test_pixels_of_other_values_and_another_precision_give_other_features(workspace: Workplace, computed: list[int], parts: Path) -> None:
    path = workspace()
    before = kept(path).features
    shutil.copytree(parts / "siglip", "siglip")
    settings = json.loads(Path("siglip/preprocessor_config.json").read_text())
    Path("siglip/preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.1, 0.2, 0.3]}))
    other = kept(path, "model.vision=siglip").features
    rounded = kept(path, "train.precision=bf16").features
    assert computed == [7, 7, 7]
    assert before is not None and other is not None and rounded is not None
    assert not torch.equal(other.read([5]), before.read([5])) and not torch.equal(rounded.read([5]), before.read([5]))


def test_only_a_changed_image_is_computed_again(workspace: Workplace, computed: list[int]) -> None:
    path = workspace()
    before = kept(path).features
    changed = Path("data/toy/5.png")
    Image.new("RGB", (50, 70), "pink").save(changed)
    later = Path("data/toy/images.parquet").stat().st_mtime_ns + 10**9
    os.utime(changed, ns=(later, later))
    after = kept(path).features
    assert computed == [7, 1]
    assert before is not None and after is not None
    assert not torch.equal(after.read([5]), before.read([5]))
    assert torch.equal(after.read([0, 1, 2]), before.read([0, 1, 2]))
    kept(path)
    assert computed == [7, 1]


def test_a_image_that_is_not_the_merged_one_is_an_error(workspace: Workplace) -> None:
    path = workspace()
    merged = Path("data/toy/images.parquet").stat().st_mtime_ns
    Image.new("RGB", (50, 70), "pink").save("data/toy/5.png")
    os.utime("data/toy/5.png", ns=(merged, merged))
    with pytest.raises(TesseraError, match=r"5\.png: is not the picture that was merged; run python tools/preprocess\.py again"):
        kept(path)


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_a_image_that_cannot_be_read_is_named(workspace: Workplace, damage: str) -> None:
    path = workspace()
    image = Path("data/toy/5.png")
    if damage == "missing":
        image.unlink()
    else:
        image.write_bytes(image.read_bytes()[:200])
        later = Path("data/toy/images.parquet").stat().st_mtime_ns + 10**9
        os.utime(image, ns=(later, later))
    with pytest.raises(TesseraError, match=r"5\.png"):
        kept(path)


def test_a_killed_run_goes_on_where_it_was(workspace: Workplace, computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "MAX_SHARD_IMAGES", 3)
    path = workspace()
    usual = feature_extraction._FeatureExtractor._raw_pixels
    started = iter(range(10))

    def killed(builder: Any, digests: Sequence[str]) -> Any:
        if next(started) == 1:
            raise KeyboardInterrupt
        return usual(builder, digests)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(feature_extraction._FeatureExtractor, "_raw_pixels", killed)
        kept(path)
    assert [len(images_in(shard)) for shard in shards()] == [3]
    computed.clear()
    kept(path)
    assert computed == [3, 1]


def test_without_room_it_is_refused_before_anything_is_computed(
    workspace: Workplace, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000))
    with pytest.raises(UsageError, match=r"train\.cache_features: 64\.5 kB are needed for 7 pictures, 50 kB are free in .*make room"):
        kept(workspace())
    assert not computed and not shards()


def test_changed_images_cannot_be_kept(workspace: Workplace) -> None:
    path = workspace()
    with pytest.raises(UsageError, match=r"train\.cache_features: .*data\.augmentation"):
        setup_run(configuration.load(path, ["train.cache_vision_features=true", "data.augmentation={rotation: 5.0}"]))


def _build(path: Path, per_shard: int) -> int:
    torch.set_num_threads(1)
    feature_store.MAX_SHARD_IMAGES = per_shard
    run_setup = kept(path)
    assert run_setup.features is not None
    return len(run_setup.features.read(range(6)))


def test_several_processes_share_the_work_and_compute_nothing_twice(workspace: Workplace) -> None:
    path = workspace()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_build, path, 1) for _ in range(2)]
        assert [job.result() for job in jobs] == [6] * 2
    found = [image for shard in shards() for image in images_in(shard)]
    assert len(found) == len(set(found)) == 7
