"""Training reads images in a bucket, in forked loader processes too."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch

import config as configuration
from dataset.loading.sample_store import SampleStore
from dataset.sample import IMAGES_SCHEMA
from tests.object_storage import Bucket
from training.run_setup import setup_run, training_loader


def test_forked_loader_processes_read_the_images_of_a_bucket_as_local_ones(workspace: Callable[..., Path], bucket: Bucket) -> None:
    path = workspace(dataloader_num_workers=2)
    data = Path("data/toy")

    def batches() -> list[torch.Tensor]:
        return [batch["pixel_values"] for batch in training_loader(setup_run(configuration.load(path)), 0)]

    local = batches()
    images = pq.read_table(data / "images.parquet")
    bucket.upload(data)
    urls = [f"{bucket.path}/{Path(name).name}" for name in images["path"].to_pylist()]
    for file in data.glob("*.png"):
        file.unlink()
    pq.write_table(images.set_column(1, IMAGES_SCHEMA.field("path"), [urls]), data / "images.parquet")
    # This process has a connection of its own before it forks.
    assert SampleStore(data).load_image(0).size == (96, 96)
    remote = batches()
    assert len(remote) == len(local) > 1
    assert all(torch.equal(first, second) for first, second in zip(remote, local, strict=True))
