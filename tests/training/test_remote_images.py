"""Training reads images in a bucket, in forked loader processes too."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import config as configuration
from dataset.loading.sample_store import SampleStore
from dataset.sample import IMAGES_SCHEMA
from tests.object_storage import Bucket
from tests.training.test_run import run
from training.run_setup import setup_run, training_loader

DATA = Path("data/toy")


def move_images(bucket: Bucket) -> None:
    """Move the images of the merged data to a bucket."""
    images = pq.read_table(DATA / "images.parquet")
    bucket.upload(DATA)
    urls = [f"{bucket.path}/{Path(name).name}" for name in images["path"].to_pylist()]
    for file in DATA.glob("*.png"):
        file.unlink()
    pq.write_table(images.set_column(1, IMAGES_SCHEMA.field("path"), [urls]), DATA / "images.parquet")


def test_forked_loader_processes_read_the_images_of_a_bucket_as_local_ones(workspace: Callable[..., Path], bucket: Bucket) -> None:
    path = workspace(dataloader_num_workers=2)

    def batches() -> list[torch.Tensor]:
        return [batch["pixel_values"] for batch in training_loader(setup_run(configuration.load(path)), 0)]

    local = batches()
    move_images(bucket)
    # This process has a connection of its own before it forks.
    assert SampleStore(DATA).load_image(0).size == (96, 96)
    remote = batches()
    assert len(remote) == len(local) > 1
    assert all(torch.equal(first, second) for first, second in zip(remote, local, strict=True))


def test_features_of_images_in_a_bucket_are_cached(
    workspace: Callable[..., Path], bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workspace(cache_vision_features=True)
    move_images(bucket)
    run(path)
    assert "7 are missing" in capsys.readouterr().out
    bucket.client.delete_object(Bucket=bucket.name, Key="0.png")
    run(path, "name=again", "data.folder=data/toy")
    assert "features of 7 images are cached" in capsys.readouterr().out


def test_an_image_that_a_bucket_no_longer_has_is_replaced_and_named(
    workspace: Callable[..., Path], bucket: Bucket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataset.loading.image_io.RETRY_SECONDS", ())
    path = workspace(max_unreadable_images=0.2)
    move_images(bucket)
    bucket.client.delete_object(Bucket=bucket.name, Key="0.png")
    run(path)
    assert f"{bucket.path}/0.png: there is no such file" in "".join(capsys.readouterr())
