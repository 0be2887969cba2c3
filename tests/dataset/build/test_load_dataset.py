"""The merged tables are plain Parquet that other tools can read."""

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.sample import SAMPLES_SCHEMA


def test_samples_load_with_hugging_face_datasets(tmp_path: Path) -> None:
    row = {
        "sample_id": "vqa/1",
        "image_ids": [4],
        "source": "vqa",
        "task": "vqa",
        "language": "zh",
        "split": "test",
        "messages": [{"role": "user", "content": "<image>\n有几个？"}],
        "targets": ["两个"],
        "answers": ["两个"] * 10,
        "prompt": "请用一个词或短语回答。",
        "category": "cat",
        "regions": [{"image": 0, "turn": 1, "start": 0, "box": [100.5, 0.0, 1000.0, 20.0]}],
    }
    pq.write_table(pa.Table.from_pylist([row], SAMPLES_SCHEMA), tmp_path / "samples.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "samples.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded[0] == row
