"""Validation and test samples of data that are streamed: set aside before training by tools/preprocess.py, if it was run."""

from pathlib import Path

import pyarrow.parquet as pq

from dataset.build.fingerprint import matches_fingerprint
from dataset.config import DataConfig
from dataset.loading.sample_store import SampleStore
from dataset.streaming.checked_sample import HeldOut
from errors import UsageError, command

HELD_OUT_FILE = "held_out.parquet"
"""SHA-256 of the images, and of texts without images, whose split another sample or source decides, with that split."""


def load_held_out(folder: Path, config: DataConfig) -> tuple[SampleStore, HeldOut] | None:
    """The samples that were set aside, and what is known of images in several splits; None where tools/preprocess.py was not run.

    Raises UsageError when they are of other settings or files.
    """
    if not (folder / HELD_OUT_FILE).is_file():
        return None
    if not matches_fingerprint(folder / "cache" / "inputs.parquet", config):
        raise UsageError(f"{folder}: was set aside of other settings or files; run {command('tools/preprocess.py')} again")
    table = pq.read_table(folder / HELD_OUT_FILE)
    return SampleStore(folder), dict(zip(table["sha256"].to_pylist(), table["split"].to_pylist(), strict=True))
