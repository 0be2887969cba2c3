"""Streamed sources: every record once an epoch in one stream, counted as a merge counts them, split as a merge splits them."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dataset import sources
from dataset.config import DataConfig, SplitConfig
from dataset.sample import Sample
from dataset.source_config import LlavaSource
from dataset.streaming.held_out import load_held_out, set_aside
from dataset.streaming.sample_reader import ReadSample, SampleReader
from dataset.streaming.source_records import Position, Share
from dataset.streaming.stream_plan import stream_plan
from errors import TesseraError
from tests.dataset.raw_files import RawFiles, conversation, vqa_answers
from tests.object_storage import Bucket


def mixed_sources(raw: RawFiles) -> DataConfig:
    """Three sources with bad records, bad images, repeats, texts alone, Chinese, and splits of their own."""
    names = [raw.image(f"{i}.png", 7 * i) for i in range(12)]
    (raw.images / "broken.png").write_bytes((raw.images / "0.png").read_bytes()[:60])
    captions = [{"image_id": name, "caption": [f"这是{i}"]} for i, name in enumerate([*names[:6], "missing.png"])]
    talks: list[Any] = [conversation(name, "What?", f"answer {i}") for i, name in enumerate([*names[4:], "broken.png", names[0]])]
    talks += [conversation(None, "And now?", "text alone"), {"image": "3.png"}, 5]
    questions = [{"question_id": i, "image_id": i, "question": f"What is {i}?"} for i in (*range(6), 3)]
    annotations = [{"question_id": i, "image_id": i, "answers": vqa_answers("one", "two", "two")} for i in range(6)]
    for i in range(6):
        raw.image(f"COCO_val2014_{i:012d}.jpg", 100 + i)
    return raw.config(
        raw.ai_challenger(captions, repeat=2),
        raw.llava(talks),
        raw.vqav2(questions, annotations, "val2014"),
        split=SplitConfig(validation=0.2, test=0.3),
    )


def read_epoch(reader: SampleReader) -> list[ReadSample]:
    samples = []
    while (sample := reader.read()) is not None:
        samples.append(sample)
    return samples


def readers(config: DataConfig, count: int = 1) -> list[SampleReader]:
    plan = stream_plan(config, {})
    return [SampleReader(plan, Share(i, count)) for i in range(count)]


def content(sample: Sample) -> tuple[Any, ...]:
    return sample.messages, sample.targets, sample.answers, sample.prompt, sample.language, sample.task, sample.source


@pytest.mark.parametrize("count", [1, 3])
def test_the_samples_of_an_epoch_and_all_counts_are_those_of_a_merge(raw: RawFiles, count: int) -> None:
    config = mixed_sources(raw)
    merged = raw.merge(*config.sources, split=config.split)
    streams = readers(config, count)
    samples = [one.checked.sample for stream in streams for one in read_epoch(stream)]
    report = streams[0].report.merged([stream.report for stream in streams[1:]])
    for streamed, expected in zip(report.sources, merged.sources, strict=True):
        assert dataclasses.replace(streamed, examples={}) == dataclasses.replace(expected, examples={}, moved=0)
        assert streamed.examples.keys() == expected.examples.keys()
    assert sum(source.dropped.get("undecodable or truncated picture", 0) for source in report.sources) == 1
    assert (report.by_split, report.by_language, report.samples) == (merged.by_split, merged.by_language, merged.samples)
    training = Counter(content(sample) for sample in raw.samples() if sample.split == "train" and "#copy" not in sample.sample_id)
    assert Counter(map(content, samples)) == training


def test_streams_share_the_files_of_a_source_with_many(raw: RawFiles) -> None:
    for i in range(8):
        raw.write(f"part-{i}.json", [conversation(raw.image(f"{i}-{j}.png", 10 * i + j), "?", f"{i}-{j}") for j in range(3)])
    config = raw.config(LlavaSource(format="llava", annotations=raw.folder / "part-*.json", images=raw.images))
    streams = readers(config, 2)
    first = [[one.checked.sample.targets[0] for one in read_epoch(stream)] for stream in streams]
    assert sorted(first[0] + first[1]) == [f"{i}-{j}" for i in range(8) for j in range(3)]
    assert [len({target[0] for target in targets}) for targets in first] == [4, 4]
    second = [[one.checked.sample.targets[0] for one in read_epoch(stream)] for stream in streams]
    assert sorted(second[0] + second[1]) == sorted(first[0] + first[1])
    assert second != first


@pytest.mark.parametrize("weights", [None, (3.0, 1.0)], ids=["all once", "weighted"])
def test_a_reader_goes_on_where_another_one_was(raw: RawFiles, weights: tuple[float, float] | None) -> None:
    records = [conversation(raw.image(f"{i}.png", i), "?", f"answer {i}") for i in range(30)]
    config = raw.config(*(raw.llava(records[:20], name="a"), raw.llava(records[20:], name="b")))
    if weights:
        config = dataclasses.replace(
            config, sources=tuple(dataclasses.replace(s, weight=w) for s, w in zip(config.sources, weights, strict=True))
        )
    plan = stream_plan(config, {})
    reader = SampleReader(plan, Share(1, 2))
    states, read = [], []
    for _ in range(40):
        states.append(reader.state())
        read.append(reader.read())
    for begin in (0, 3, 9, 14, 15, 27):
        other = SampleReader(plan, Share(1, 2), states[begin])
        assert [other.read() for _ in range(begin, 40)] == read[begin:]
    found = SampleReader(plan, Share(1, 2)).find({(one.source, one.position) for one in read[:9] if one is not None})
    assert [found[one.source, one.position] for one in read[:9] if one is not None] == [one for one in read[:9] if one is not None]


def test_sources_take_turns_in_proportion_to_their_records(raw: RawFiles) -> None:
    records = [conversation(raw.image(f"{i}.png", i), "?", f"answer {i:03d}") for i in range(100)]
    config = raw.config(raw.llava(records[:80], name="large"), raw.llava(records[80:], name="small"))
    order = [one.source for one in read_epoch(readers(config)[0])]
    assert [sum(order[i : i + 25]) for i in range(0, 100, 25)] == [5, 5, 5, 5]


def test_weights_decide_the_shares_and_a_small_source_repeats(raw: RawFiles) -> None:
    records = [conversation(raw.image(f"{i}.png", i), "?", f"answer {i}") for i in range(40)]
    config = raw.config(raw.llava(records[:30], name="a", weight=0.3), raw.llava(records[30:], name="b", weight=0.7))
    reader = readers(config)[0]
    read = [reader.read() for _ in range(100)]
    assert sum(one is not None and one.source == 1 for one in read) == 70
    positions = Counter(one.position.record for one in read if one is not None and one.source == 1)
    assert set(positions.values()) == {7}


def test_what_is_known_of_an_image_decides_before_the_source(raw: RawFiles) -> None:
    raw.merge(raw.llava([conversation(raw.image(f"{i}.png", i), "?", str(i)) for i in range(3)], split="train"))
    digest = next(iter(raw.sha256_by_name().values()))
    config = raw.config(raw.llava([conversation(f"{i}.png", "?", str(i)) for i in range(3)], split="train"))
    plan = dataclasses.replace(stream_plan(config, {}), held_out={digest: "test"})
    reader = SampleReader(plan, Share())
    assert [one.checked.sample.targets for one in read_epoch(reader)] == [("1",), ("2",)]
    assert reader.report.by_split == {"train": 2, "test": 1}


def test_prompts_are_those_of_most_of_the_first_records(raw: RawFiles) -> None:
    config = mixed_sources(raw)
    assert stream_plan(config, {}).prompts == {"vqa": {"en": "Answer the question using a single word or phrase."}}


def test_a_stream_without_a_training_sample_is_an_error(raw: RawFiles) -> None:
    config = raw.config(raw.llava([conversation(raw.image("0.png"), "?", "yes"), {"image": "0.png"}]))
    streams = readers(config, 2)
    assert len(read_epoch(streams[0])) == 1
    with pytest.raises(TesseraError, match=r"no training sample in the share of one of the streams; .*missing field.*use fewer processes"):
        read_epoch(streams[1])


def test_a_record_that_cannot_be_used_any_more_is_named(raw: RawFiles) -> None:
    config = raw.config(raw.llava([conversation(raw.image(f"{i}.png", i), "?", "yes") for i in range(2)]))
    reader = readers(config)[0]
    wanted = {(one.source, one.position) for one in read_epoch(reader)}
    with pytest.raises(TesseraError, match=r"llava, record 7 of file 0: was read before .* any more: it is not there"):
        reader.find({(0, Position(0, 0, 7))})
    Path(raw.images / "1.png").unlink()
    with pytest.raises(TesseraError, match=r"llava, record 1: was read before the run was stopped, and cannot be used any more: .*1\.png"):
        reader.find(wanted)


def test_sources_of_a_bucket_are_streamed_and_set_aside_like_local_ones(raw: RawFiles, bucket: Bucket) -> None:
    local = raw.llava([conversation(raw.image(f"{i}.png", 6 * i), "?", f"answer {i}") for i in range(12)], split=None)
    bucket.upload(raw.folder)
    split = SplitConfig(validation=0.2, test=0.2)
    results = []
    for source, name in ((local, "local"), (bucket.source(local, raw.folder), "remote")):
        config = raw.config(source, split=split, streaming=True)
        report = set_aside(config, raw.folder / name)
        loaded = load_held_out(raw.folder / name, config)
        assert loaded is not None
        reader = SampleReader(stream_plan(config, loaded[1]), Share())
        results.append((report.by_split, [one.checked.sample for one in read_epoch(reader)], [*loaded[0].samples()]))
    assert results[0] == results[1]
    assert len(results[0][2]) > 0


def test_a_source_is_opened_once_for_the_plan_and_empty_records_tell_no_size(raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    config = raw.config(raw.llava([{}, {}], name="empty"), raw.llava([conversation(raw.image("0.png"), "?", "yes")], name="one"))
    opened: list[str | None] = []
    open_part = sources.open_part

    def counted(part: Any, config: DataConfig) -> Any:
        opened.append(part.name)
        return open_part(part, config)

    monkeypatch.setattr("dataset.sources.open_part", counted)
    plan = stream_plan(config, {})
    assert opened == ["empty", "one"]
    assert plan.sizes[0] == plan.sizes[1] > 0
