"""Cached features: training learns the same without running the vision encoder; only changed images are computed again."""

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
from dataset.loading import image_io
from dataset.loading.collators import UNREADABLE_IMAGES
from errors import TesseraError, UsageError
from model.siglip_qwen.assembly import load_encoder
from model.siglip_qwen.config import siglip_qwen_settings
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor
from tests.training.test_run import losses, run
from training.feature_cache import feature_extraction, feature_store
from training.feature_cache.feature_extraction import with_cached_features
from training.run_setup import RunSetup, setup_run, training_loader

Workspace = Callable[..., Path]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of images computed for each shard."""
    counts: list[int] = []
    original = feature_extraction._FeatureExtractor._compute

    def counting_compute(builder: Any, digests: Sequence[str], progress: Any) -> tuple[list[str], torch.Tensor]:
        counts.append(len(digests))
        return original(builder, digests, progress)

    monkeypatch.setattr(feature_extraction._FeatureExtractor, "_compute", counting_compute)
    return counts


def cached_setup(path: Path, *overrides: str) -> RunSetup:
    return with_cached_features(setup_run(configuration.load(path, ["train.cache_vision_features=true", *overrides])))


def shards(folder: Path = Path("data/toy")) -> list[Path]:
    return sorted(folder.glob("cache/features/*/[!.]*.safetensors"))


def images_in(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        images: list[str] = file.metadata()["images"].split()
        assert file.get_slice("features").get_shape()[0] == len(images)
    return images


@pytest.mark.parametrize(
    ("model", "train"),
    [
        ({}, {"batching": "padded"}),
        pytest.param({}, {"batching": "packed", "packing_length": 512}, marks=pytest.mark.slow),
        pytest.param(
            {"connector": {"kind": "mlp_pool", "pool": 3}, "vision_feature_layer": "last_hidden_state"},
            {"batching": "packed", "packing_length": 512, "dataloader_num_workers": 1},
            marks=pytest.mark.slow,
        ),
        pytest.param({"drop_first_patch": True}, {"precision": "bf16"}, marks=pytest.mark.slow),
    ],
    ids=["padded", "packed", "pooled", "bf16"],
)
def test_losses_equal_those_of_training_with_the_vision_encoder(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], train: dict[str, Any]
) -> None:
    stage = {"name": "align", "train": ["connector"], "max_steps": 4, "learning_rate": 1e-3}
    path = workspace(model, **{"stages": [stage], "eval_steps": 2, **train})
    plain = run(path)
    plain = plain.parent.rename("plain") / plain.name
    monkeypatch.setattr(VisionLanguageModel, "encode_images", None)  # calling the vision encoder fails
    cached = run(path, "train.cache_vision_features=true")
    for key in ("loss", "eval_loss"):
        assert losses(cached, key) == pytest.approx(losses(plain, key), rel=2e-3)
    assert losses(cached, "grad_norm") == pytest.approx(losses(plain, "grad_norm"), rel=2e-2)


def test_each_image_id_reads_the_features_of_its_image(workspace: Workspace) -> None:
    run_setup = cached_setup(workspace())
    assert run_setup.features is not None and run_setup.validation is not None
    encoder = load_encoder(siglip_qwen_settings(run_setup.config.model, "a cache"), dtype=torch.float32, device="cpu")
    image_ids = [11, 0, 5]
    assert isinstance(run_setup.processor, Processor)
    read = run_setup.processor.read([run_setup.store.load_image(image_id) for image_id in image_ids])
    pixels = run_setup.processor.normalize(read)["pixel_values"]
    torch.testing.assert_close(run_setup.features.read(image_ids), encoder(pixels).to(torch.bfloat16))


def test_batches_contain_features_instead_of_pixels(workspace: Workspace) -> None:
    run_setup = cached_setup(workspace(per_device_train_batch_size=1))
    counts = []
    for batch in training_loader(run_setup, 0):
        assert "pixel_values" not in batch and batch["image_features"].shape[1:] == (36, 128)
        counts.append(len(batch["image_features"]))
    assert sorted(counts) == [0, *[1] * 7]  # one sample has no image


def test_a_second_run_computes_no_features_and_another_model_computes_all(
    workspace: Workspace, computed: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    path = workspace()
    cached_setup(path)
    # Four of the eleven images are duplicates of others.
    assert computed == [7]
    assert "they need" in capsys.readouterr().out
    cached_setup(path, "train.learning_rate=5", "model.max_length=200")
    assert computed == [7]
    assert "features of 7 images are cached" in capsys.readouterr().out
    cached_setup(path, "model.vision_feature_layer=-1")
    assert computed == [7, 7]
    assert "features of other models or settings take" in capsys.readouterr().out


def test_changed_encoder_weights_are_another_model(workspace: Workspace, computed: list[int], parts: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = workspace()
    cached_setup(path)
    shutil.copytree(parts / "siglip", "siglip")
    weights = load_file("siglip/model.safetensors")
    name = next(name for name in weights if "vision_model" in name and name.endswith("layers.0.mlp.fc1.bias"))
    weights[name] = weights[name] + 1e-3
    save_file(weights, "siglip/model.safetensors", metadata={"format": "pt"})
    cached_setup(path, "model.vision=siglip")
    assert computed == [7, 7]


def test_other_image_preprocessing_or_precision_gives_other_features(workspace: Workspace, computed: list[int], parts: Path) -> None:
    path = workspace()
    before = cached_setup(path).features
    shutil.copytree(parts / "siglip", "siglip")
    settings = json.loads(Path("siglip/preprocessor_config.json").read_text())
    Path("siglip/preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.1, 0.2, 0.3]}))
    other = cached_setup(path, "model.vision=siglip").features
    rounded = cached_setup(path, "train.precision=bf16").features
    assert computed == [7, 7, 7]
    assert before is not None and other is not None and rounded is not None
    assert not torch.equal(other.read([5]), before.read([5])) and not torch.equal(rounded.read([5]), before.read([5]))


def test_only_a_changed_image_is_computed_again(workspace: Workspace, computed: list[int]) -> None:
    path = workspace()
    before = cached_setup(path).features
    changed = Path("data/toy/5.png")
    Image.new("RGB", (50, 70), "pink").save(changed)
    later = Path("data/toy/images.parquet").stat().st_mtime_ns + 10**9
    os.utime(changed, ns=(later, later))
    after = cached_setup(path).features
    assert computed == [7, 1]
    assert before is not None and after is not None
    assert not torch.equal(after.read([5]), before.read([5]))
    assert torch.equal(after.read([0, 1, 2]), before.read([0, 1, 2]))
    cached_setup(path)
    assert computed == [7, 1]


def test_an_image_that_differs_from_the_preprocessed_one_is_an_error(workspace: Workspace) -> None:
    path = workspace()
    merged = Path("data/toy/images.parquet").stat().st_mtime_ns
    Image.new("RGB", (50, 70), "pink").save("data/toy/5.png")
    os.utime("data/toy/5.png", ns=(merged, merged))
    with pytest.raises(TesseraError, match=r"5\.png: differs from the preprocessed image; run python tools/preprocess\.py again"):
        cached_setup(path)


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_an_unreadable_image_gets_no_features_and_another_sample_takes_its_place(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], computed: list[int], damage: str
) -> None:
    monkeypatch.setattr(image_io, "RETRY_SECONDS", ())
    path = workspace()
    image = Path("data/toy/5.png")
    if damage == "missing":
        image.unlink()
    else:
        image.write_bytes(image.read_bytes()[:200])
        later = Path("data/toy/images.parquet").stat().st_mtime_ns + 10**9
        os.utime(image, ns=(later, later))
    run_setup = cached_setup(path)
    assert computed == [7]
    assert "no features: data/toy/5.png: " in capsys.readouterr().out.replace(str(Path.cwd()) + "/", "")
    batches = list(training_loader(run_setup, 0))
    (unreadable,) = [image for batch in batches for image in batch.get(UNREADABLE_IMAGES, ())]
    assert unreadable.path.endswith("5.png")
    assert [name for batch in batches for name in batch["layout"].sample_ids].count(unreadable.replaced_by) == 2
    with pytest.raises(TesseraError, match=r"1 of 11 images cannot be read any more.*5\.png"):
        cached_setup(path, "train.max_unreadable_images=0")


def test_an_image_whose_features_are_cached_is_not_needed_any_more(workspace: Workspace, computed: list[int]) -> None:
    path = workspace()
    before = cached_setup(path).features
    Path("data/toy/5.png").unlink()
    after = cached_setup(path).features
    assert computed == [7]
    assert before is not None and after is not None
    assert torch.equal(after.read([5]), before.read([5]))


def test_a_killed_run_resumes_with_the_missing_shards(workspace: Workspace, computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "MAX_SHARD_IMAGES", 3)
    path = workspace()
    original = feature_extraction._FeatureExtractor._raw_pixels
    started = iter(range(10))

    def interrupted(builder: Any, digests: Sequence[str]) -> Any:
        if next(started) == 1:
            raise KeyboardInterrupt
        return original(builder, digests)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(feature_extraction._FeatureExtractor, "_raw_pixels", interrupted)
        cached_setup(path)
    assert [len(images_in(shard)) for shard in shards()] == [3]
    computed.clear()
    cached_setup(path)
    assert computed == [3, 1]


def test_too_little_disk_space_is_an_error_before_anything_is_computed(
    workspace: Workspace, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000))
    with pytest.raises(UsageError, match=r"train\.cache_vision_features: 7 images need 64\.5 kB, 50 kB are free in .*free disk space"):
        cached_setup(workspace())
    assert not computed and not shards()


def test_features_of_augmented_images_cannot_be_cached(workspace: Workspace) -> None:
    path = workspace()
    with pytest.raises(UsageError, match=r"train\.cache_vision_features: .*data\.augmentation"):
        setup_run(configuration.load(path, ["train.cache_vision_features=true", "data.augmentation={rotation: 5.0}"]))


def _build(path: Path, per_shard: int) -> int:
    torch.set_num_threads(1)
    feature_store.MAX_SHARD_IMAGES = per_shard
    run_setup = cached_setup(path)
    assert run_setup.features is not None
    return len(run_setup.features.read(range(6)))


@pytest.mark.slow
def test_two_processes_share_the_work_and_compute_no_image_twice(workspace: Workspace) -> None:
    path = workspace()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_build, path, 1) for _ in range(2)]
        assert [job.result() for job in jobs] == [6] * 2
    images = [image for shard in shards() for image in images_in(shard)]
    assert len(images) == len(set(images)) == 7
