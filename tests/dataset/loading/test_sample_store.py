"""Merged data is read back as it was written."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset.loading.image_io import ImageError
from dataset.loading.sample_store import SampleStore
from errors import UsageError
from tests.dataset.raw_files import RawFiles, conversation


@pytest.fixture
def merged(raw: RawFiles) -> RawFiles:
    for i in range(3):
        raw.image(f"{i}.jpg", shade=i)
    train = raw.llava([conversation(f"{i}.jpg", f"{i}?", f"{i}") for i in range(3)], name="train")
    raw.merge(train, raw.llava([conversation(None, "?", "x")], name="test", split="test"))
    return raw


def test_samples_are_found_by_row_split_and_id(merged: RawFiles) -> None:
    store = SampleStore(merged.merged)
    assert len(store) == 4
    assert [sample.targets[0] for sample in store.samples()] == ["0", "1", "2", "x"]
    assert store.indices("train").tolist() == [0, 1, 2]
    assert store.indices("test").tolist() == [3]
    assert [sample.sample_id for sample in store.samples(np.array([2, 0]))] == ["train/2", "train/0"]
    assert store.row_index("train/1") == 1
    assert store.sample(1).image_ids == (1,)
    assert store.column("task") == ["conversation"] * 4
    with pytest.raises(UsageError, match="no sample has the id 'train/9'"):
        store.row_index("train/9")


def test_rows_are_found_in_any_number_of_row_groups(merged: RawFiles) -> None:
    expected = [sample.targets[0] for sample in SampleStore(merged.merged).samples()]
    path = merged.merged / "samples.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=1)
    store = SampleStore(merged.merged)
    assert [sample.targets[0] for sample in store.samples()] == expected
    assert [store.sample(i).targets[0] for i in range(4)] == expected
    order = np.array([3, 0, 0, 2, 1])
    assert [sample.targets[0] for sample in store.samples(order)] == [expected[i] for i in order]
    assert list(store.samples(order[:0])) == []
    assert store.prompt_counts("train") == [{"task": "conversation", "language": "en", "prompt": None, "count": 3}]
    pq.write_table(table.slice(0, 0), path)
    assert (len(SampleStore(merged.merged)), list(SampleStore(merged.merged).samples())) == (0, [])


@pytest.mark.slow
def test_text_beyond_2_gib_is_read(merged: RawFiles) -> None:
    path = merged.merged / "samples.parquet"
    table = pq.read_table(path).slice(0, 1)
    row = {**table.to_pylist()[0], "messages": [{"role": "user", "content": "x" * (1 << 20)}]}
    group = pa.Table.from_pylist([row] * 256, schema=table.schema)
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(9):
            writer.write_table(group)
    store = SampleStore(merged.merged)
    assert (len(store), len(store.sample(9 * 256 - 1).messages[0].content)) == (9 * 256, 1 << 20)
    assert [len(sample.messages[0].content) for sample in store.samples(np.array([2200, 5]))] == [1 << 20] * 2
    assert store.indices("train").tolist() == list(range(9 * 256))


def test_images_are_found_by_id_and_a_missing_file_is_named(merged: RawFiles) -> None:
    store = SampleStore(merged.merged)
    assert store.load_image(2).size == (12, 8)
    assert [row.image_id for row in store.images()] == [0, 1, 2]
    (merged.images / "2.jpg").unlink()
    with pytest.raises(ImageError, match=r"2\.jpg: there is no such file"):
        store.load_image(2)


def test_an_image_above_the_default_pixel_limit_that_the_merge_accepted_is_read(merged: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset.loading.sample_store.MAX_PIXELS", 50)
    assert SampleStore(merged.merged).load_image(0).size == (12, 8)


def test_the_error_for_a_folder_without_merged_data_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not exist; run python tools/preprocess\.py first"):
        SampleStore(tmp_path)


def test_tables_with_other_columns_are_an_error(merged: RawFiles) -> None:
    pq.write_table(pa.table({"image_id": [1]}), merged.merged / "images.parquet")
    with pytest.raises(UsageError, match="expected the columns"):
        SampleStore(merged.merged)
