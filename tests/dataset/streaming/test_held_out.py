"""Validation and test samples are set aside before training, and the streams leave the same samples out as a merge would."""

import dataclasses
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset.config import DataConfig, SplitConfig
from dataset.loading.sample_store import SampleStore
from dataset.source_config import MessagesSource
from dataset.streaming.held_out import load_held_out, set_aside
from dataset.streaming.sample_reader import SampleReader
from dataset.streaming.source_records import Share
from dataset.streaming.stream_plan import stream_plan
from errors import UsageError
from tests.dataset.raw_files import RawFiles, conversation
from tests.dataset.streaming.test_sample_reader import content, mixed_sources, read_epoch


def streamed_and_set_aside(config: DataConfig, folder: Path) -> tuple[list[Any], list[Any]]:
    """The contents of all training samples that one stream reads, and of those that were set aside."""
    loaded = load_held_out(folder, config)
    assert loaded is not None
    store, held_out = loaded
    reader = SampleReader(stream_plan(config, held_out), Share())
    aside = [(sample.split, content(sample)) for sample in store.samples()]
    return [content(one.checked.sample) for one in read_epoch(reader)], aside


@pytest.mark.parametrize("seed", range(4))
def test_together_they_are_the_samples_of_a_merge(raw: RawFiles, seed: int) -> None:
    config = dataclasses.replace(mixed_sources(raw), streaming=True, seed=seed)
    # One image links two others, of which one is tested on; the same text stands in two splits.
    links = {"id": "x", "image": ["1.png", "2.png"], **conversation(None, "<image><image>Both?", "linked")}
    linked = [raw.messages([links]), raw.llava([conversation("2.png", "?", "tested")], name="tested", split="test")]
    texts = [raw.llava([conversation(None, "And now?", "text alone")], name=split, split=split) for split in ("train", "test")]
    config = dataclasses.replace(config, sources=(*config.sources, *linked, *texts))  # type: ignore[arg-type]  # mypy joins the types
    expected = raw.merge(*config.sources, split=config.split, seed=seed)
    merged = [(sample.split, content(sample)) for sample in raw.samples() if "#copy" not in sample.sample_id]
    folder = raw.folder / "aside"
    report = set_aside(config, folder)
    training, aside = streamed_and_set_aside(config, folder)
    assert Counter(training) == Counter(found for split, found in merged if split == "train")
    assert Counter(aside) == Counter((split, found) for split, found in merged if split != "train")
    assert len(pq.read_table(folder / "held_out.parquet")) > 0
    assert [source.moved for source in report.sources] == [source.moved for source in expected.sources]
    # A training image is decoded while it is trained on, not before.
    undecoded = report.by_split["train"] - expected.by_split["train"]
    assert 0 <= undecoded <= 1
    assert (report.samples, report.by_split["test"]) == (expected.samples + undecoded, expected.by_split["test"])
    assert report.by_language["zh"] == expected.by_language["zh"]
    assert sum(source.kept for source in report.sources) == sum(source.kept for source in expected.sources) + undecoded
    assert json.loads((folder / "report.json").read_text())["by_split"] == report.by_split


def test_images_inside_a_file_are_copied_only_for_what_is_set_aside(raw: RawFiles) -> None:
    rows = []
    for i in range(20):
        data = (raw.images / raw.image(f"{i}.png", 5 * i)).read_bytes()
        turns = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": f"answer {i}"}]
        rows.append({"messages": turns, "images": [{"bytes": data, "path": None}]})
    pq.write_table(pa.Table.from_pylist(rows), raw.folder / "rows.parquet")
    source = MessagesSource(format="messages", path=raw.folder / "rows.parquet")
    config = raw.config(source, split=SplitConfig(validation=0.1, test=0.2), streaming=True)
    report = set_aside(config, raw.merged)
    store = SampleStore(raw.merged)
    assert 0 < len(store) == report.by_split["validation"] + report.by_split["test"] < 12
    assert len(list(store.images())) == len(store)
    with tarfile.open(raw.merged / "packed" / "images-00000.tar") as shard:
        assert len(shard.getnames()) == len(store)
    assert all(store.load_image(row.image_id).size == (12, 8) for row in store.images())
    training, aside = streamed_and_set_aside(config, raw.merged)
    assert len(training) + len(aside) == 20


def test_other_files_or_settings_must_be_set_aside_again(raw: RawFiles) -> None:
    source = raw.llava([conversation(raw.image(f"{i}.png", 9 * i), "?", "yes") for i in range(20)])
    config = raw.config(source, split=SplitConfig(validation=0.2, test=0.2), streaming=True)
    assert load_held_out(raw.merged, config) is None
    set_aside(config, raw.merged)
    assert load_held_out(raw.merged, dataclasses.replace(config, shuffle_buffer_size=7)) is not None
    for changed in (dataclasses.replace(config, seed=1), config):
        if changed is config:
            raw.llava([conversation("0.png", "?", "no")])
        with pytest.raises(UsageError, match=r"was set aside of other settings or files; run .*preprocess.py.* again"):
            load_held_out(raw.merged, changed)


def test_nothing_to_set_aside_is_no_error(raw: RawFiles) -> None:
    config = raw.config(raw.llava([conversation(raw.image("0.png"), "?", "yes")]), streaming=True)
    assert set_aside(config, raw.merged).by_split == {"train": 1, "validation": 0, "test": 0}
    training, aside = streamed_and_set_aside(config, raw.merged)
    assert (len(training), aside) == (1, [])
