"""A record of any source may name its category, which reaches the merged samples."""

import pyarrow.parquet as pq
import pytest

from dataset import sources
from dataset.config import DataConfig
from dataset.loading.sample_store import SampleStore
from dataset.sources.record import RawSample
from tests.dataset.raw_files import RawFiles, conversation


@pytest.mark.parametrize(
    ("value", "category"), [("circle", "circle"), (" star ", "star"), (7, "7"), (None, None), ("", None), (["a", "b"], None), (True, None)]
)
def test_a_text_or_a_whole_number_is_a_category(raw: RawFiles, value: object, category: str | None) -> None:
    raw.image("a.jpg")
    [sample] = sources.read(raw.llava([{**conversation("a.jpg", "What?", "red"), "category": value}]), DataConfig())
    assert isinstance(sample, RawSample) and sample.category == category


def test_the_category_is_a_column_of_the_merged_samples(raw: RawFiles) -> None:
    raw.image("a.jpg")
    raw.image("b.jpg")
    records = [{**conversation("a.jpg", "What?", "red"), "category": "circle"}, conversation("b.jpg", "What?", "blue")]
    raw.merge(raw.llava(records))
    assert SampleStore(raw.merged).column("category") == ["circle", None]
    assert SampleStore(raw.merged).sample(0).category == "circle"


def test_tables_of_earlier_merges_have_none(raw: RawFiles) -> None:
    raw.image("a.jpg")
    raw.merge(raw.llava([conversation("a.jpg", "What?", "red")]))
    path = raw.merged / "samples.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["category"]), path)
    assert SampleStore(raw.merged).sample(0).category is None
