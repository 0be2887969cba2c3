"""Shards of features: keyed by image content, written atomically, shared by processes."""

from pathlib import Path
from threading import Thread

import pytest
import torch

from errors import TesseraError
from training.feature_cache import feature_store
from training.feature_cache.feature_store import FeatureCache

SHAPE = (4, 6)
FEATURES = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
IMAGES = [f"picture{i}" for i in range(5)]


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path, SHAPE)


def shard_file(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def test_features_are_keyed_by_image_content(cache: FeatureCache) -> None:
    cache.write(IMAGES, IMAGES[:3], FEATURES[:3])
    cache.write(IMAGES, IMAGES[3:], FEATURES[3:].float())
    reopened = FeatureCache(cache.folder, SHAPE)
    assert reopened.missing(IMAGES) == IMAGES
    reopened.refresh()
    assert reopened.missing([*IMAGES, "other", "other"]) == ["other"]
    for reader in (cache, reopened):
        assert torch.equal(reader.read(["picture4", "picture0", "picture4"]), FEATURES[[4, 0, 4]])
        assert reader.read([]).shape == (0, *SHAPE)


def test_a_shard_is_a_safetensors_file_with_default_permissions(cache: FeatureCache) -> None:
    from safetensors.torch import load_file

    cache.write(IMAGES, IMAGES, FEATURES)
    assert torch.equal(load_file(shard_file(cache.folder))["features"], FEATURES)
    plain = cache.folder / "plain"
    plain.touch()
    assert shard_file(cache.folder).stat().st_mode == plain.stat().st_mode


def test_shards_are_limited_in_bytes_and_in_images(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.bytes_per_image == 4 * 6 * 2
    assert cache.shards([*IMAGES, *IMAGES]) == [IMAGES]
    monkeypatch.setattr(feature_store, "MAX_SHARD_BYTES", 4 * 6 * 2 * 2)
    assert [len(shard) for shard in cache.shards(IMAGES)] == [2, 2, 1]
    monkeypatch.setattr(feature_store, "MAX_SHARD_IMAGES", 1)
    assert [len(shard) for shard in cache.shards(IMAGES)] == [1] * 5


@pytest.mark.parametrize("length", [0, 4, 40, -1])
def test_a_truncated_shard_is_named_in_the_error(cache: FeatureCache, length: int) -> None:
    cache.write(IMAGES, IMAGES, FEATURES)
    path = shard_file(cache.folder)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(TesseraError, match=rf"{path}: incomplete or damaged shard of features; delete it"):
        FeatureCache(cache.folder, SHAPE).refresh()
    with pytest.raises(TesseraError, match="incomplete or damaged shard"):
        cache.read(IMAGES)


def test_features_of_another_shape_are_an_error(cache: FeatureCache) -> None:
    cache.write(IMAGES, IMAGES, FEATURES)
    with pytest.raises(TesseraError, match="incomplete or damaged shard"):
        FeatureCache(cache.folder, (6, 4)).refresh()


def test_a_missing_shard_is_named_in_the_error(cache: FeatureCache) -> None:
    cache.write(IMAGES, IMAGES, FEATURES)
    path = shard_file(cache.folder)
    path.unlink()
    with pytest.raises(TesseraError, match=rf"{path}: cached features cannot be read \(No such file or directory\)"):
        cache.read(["picture1"])


def test_a_shard_is_locked_by_one_process_at_a_time(cache: FeatureCache) -> None:
    other = FeatureCache(cache.folder, SHAPE)
    with cache.lock_shard(IMAGES[:2], wait=False) as first, other.lock_shard(IMAGES[:2], wait=False) as second:
        assert first and not second
        with other.lock_shard(IMAGES[2:], wait=True) as another:
            assert another
    with other.lock_shard(IMAGES[:2], wait=False) as second:
        assert second


def test_a_waiting_process_gets_the_lock_when_it_is_released(cache: FeatureCache) -> None:
    acquired: list[bool] = []

    def wait_for_lock() -> None:
        with FeatureCache(cache.folder, SHAPE).lock_shard(IMAGES, wait=True) as locked:
            acquired.append(locked)

    with cache.lock_shard(IMAGES, wait=False):
        waiting = Thread(target=wait_for_lock)
        waiting.start()
        # Without waiting for the lock, the thread would have ended by now.
        waiting.join(0.2)
        assert not acquired
    waiting.join()
    assert acquired == [True]


def test_a_failed_write_leaves_no_shard(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.write_bytes

    def disk_full(path: Path, data: bytes) -> int:
        original(path, data[:100])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="no space left"):
        cache.write(IMAGES, IMAGES, FEATURES)
    assert not list(cache.folder.glob("[!.]*.safetensors"))


def test_an_incomplete_shard_is_ignored_and_deleted_unless_its_lock_is_held(cache: FeatureCache) -> None:
    cache.write(IMAGES, IMAGES, FEATURES)
    complete = shard_file(cache.folder)
    partial = complete.with_name(f".{complete.stem}.0a1b2c3d.safetensors")
    complete.rename(partial)
    other = FeatureCache(cache.folder, SHAPE)
    other.refresh()
    assert other.missing(IMAGES) == IMAGES
    with cache.lock_shard(IMAGES, wait=False):
        other.remove_partial_files()
        assert partial.exists()
    other.remove_partial_files()
    assert not partial.exists()
