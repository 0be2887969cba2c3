"""Shards of features: found by content, written whole, shared by processes."""

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


def test_features_are_found_by_what_a_image_holds(cache: FeatureCache) -> None:
    cache.write(IMAGES, IMAGES[:3], FEATURES[:3])
    cache.write(IMAGES, IMAGES[3:], FEATURES[3:].float())
    again = FeatureCache(cache.folder, SHAPE)
    assert again.missing(IMAGES) == IMAGES
    again.refresh()
    assert again.missing([*IMAGES, "other", "other"]) == ["other"]
    for found in (cache, again):
        assert torch.equal(found.read(["picture4", "picture0", "picture4"]), FEATURES[[4, 0, 4]])
        assert found.read([]).shape == (0, *SHAPE)


def test_a_shard_is_a_file_that_any_reader_of_safetensors_opens_and_others_may_read(cache: FeatureCache) -> None:
    from safetensors.torch import load_file

    cache.write(IMAGES, IMAGES, FEATURES)
    assert torch.equal(load_file(shard_file(cache.folder))["features"], FEATURES)
    plain = cache.folder / "plain"
    plain.touch()
    assert shard_file(cache.folder).stat().st_mode == plain.stat().st_mode


def test_shards_are_cut_by_bytes_or_by_images(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.bytes_per_image == 4 * 6 * 2
    assert cache.shards([*IMAGES, *IMAGES]) == [IMAGES]
    monkeypatch.setattr(feature_store, "MAX_SHARD_BYTES", 4 * 6 * 2 * 2)
    assert [len(shard) for shard in cache.shards(IMAGES)] == [2, 2, 1]
    monkeypatch.setattr(feature_store, "MAX_SHARD_IMAGES", 1)
    assert [len(shard) for shard in cache.shards(IMAGES)] == [1] * 5


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_a_damaged_shard_is_named(cache: FeatureCache, kept: int) -> None:
    cache.write(IMAGES, IMAGES, FEATURES)
    path = shard_file(cache.folder)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(TesseraError, match=rf"{path}: not a whole shard of features; delete it"):
        FeatureCache(cache.folder, SHAPE).refresh()
    with pytest.raises(TesseraError, match="not a whole shard"):
        cache.read(IMAGES)


def test_features_of_another_shape_are_not_taken(cache: FeatureCache) -> None:
    cache.write(IMAGES, IMAGES, FEATURES)
    with pytest.raises(TesseraError, match="not a whole shard"):
        FeatureCache(cache.folder, (6, 4)).refresh()


def test_a_shard_that_has_gone_is_named(cache: FeatureCache) -> None:
    cache.write(IMAGES, IMAGES, FEATURES)
    path = shard_file(cache.folder)
    path.unlink()
    with pytest.raises(TesseraError, match=rf"{path}: kept features cannot be read \(No such file or directory\)"):
        cache.read(["picture1"])


def test_a_shard_is_claimed_by_one_at_a_time(cache: FeatureCache) -> None:
    other = FeatureCache(cache.folder, SHAPE)
    with cache.lock_shard(IMAGES[:2], wait=False) as first, other.lock_shard(IMAGES[:2], wait=False) as second:
        assert first and not second
        with other.lock_shard(IMAGES[2:], wait=True) as another:
            assert another
    with other.lock_shard(IMAGES[:2], wait=False) as second:
        assert second


def test_whoever_waits_for_a_shard_has_it_when_the_other_is_done(cache: FeatureCache) -> None:
    found: list[bool] = []

    def claim() -> None:
        with FeatureCache(cache.folder, SHAPE).lock_shard(IMAGES, wait=True) as mine:
            found.append(mine)

    with cache.lock_shard(IMAGES, wait=False):
        waiting = Thread(target=claim)
        waiting.start()
        # One that does not wait would be done by now.
        waiting.join(0.2)
        assert not found
    waiting.join()
    assert found == [True]


def test_a_shard_that_could_not_be_written_is_not_there(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        usual(path, data[:100])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        cache.write(IMAGES, IMAGES, FEATURES)
    assert not list(cache.folder.glob("[!.]*.safetensors"))


def test_half_a_shard_is_no_shard_and_is_removed_unless_somebody_is_writing_it(cache: FeatureCache) -> None:
    cache.write(IMAGES, IMAGES, FEATURES)
    whole = shard_file(cache.folder)
    half = whole.with_name(f".{whole.stem}.0a1b2c3d.safetensors")
    whole.rename(half)
    other = FeatureCache(cache.folder, SHAPE)
    other.refresh()
    assert other.missing(IMAGES) == IMAGES
    with cache.lock_shard(IMAGES, wait=False):
        other.remove_partial_files()
        assert half.exists()
    other.remove_partial_files()
    assert not half.exists()
