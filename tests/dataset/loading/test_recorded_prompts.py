"""Which prompts a model that is trained on merged data is asked with again."""

from typing import Any

import pyarrow.parquet as pq

from dataset.loading.recorded_prompts import conflicting_prompts, recorded_prompts
from dataset.loading.sample_store import SampleStore
from dataset.source_config import VqaMetadataSource
from tests.dataset.raw_files import RawFiles, conversation

EN, ZH = "Answer the question using a single word or phrase.", "请用一个词或短语回答。"


def vqa(raw: RawFiles, name: str, *questions: str, **settings: Any) -> VqaMetadataSource:
    records = [{"id": i, "question": text, "answers": ["x"], "image_file": "a.jpg"} for i, text in enumerate(questions)]
    path = raw.write(f"{name}.json", records)
    return VqaMetadataSource(format="vqa_metadata", annotations=path, images=raw.images, name=name, **settings)


def merged(raw: RawFiles, *sources: Any) -> SampleStore:
    raw.image("a.jpg")
    raw.merge(*sources)
    return SampleStore(raw.merged)


def test_prompts_are_recorded_by_kind_and_language(raw: RawFiles) -> None:
    chat = raw.llava([conversation("a.jpg", "Why?", "So.")])
    store = merged(raw, vqa(raw, "vqa", "What?", "什么？"), chat)
    assert recorded_prompts(store) == {"vqa": {"en": EN, "zh": ZH}}
    assert conflicting_prompts(store) == []


def test_where_sources_disagree_the_prompt_of_most_samples_is_recorded_and_a_line_says_so(raw: RawFiles) -> None:
    one, two = vqa(raw, "one", "A?", "什么？"), vqa(raw, "two", "A?", "B?", prompt="Briefly!")
    store = merged(raw, one, two)
    assert recorded_prompts(store) == {"vqa": {"en": "Briefly!", "zh": ZH}}
    [line] = conflicting_prompts(store)
    assert line == (
        "data.sources: vqa samples (en) have 2 different prompts; the trained model will be asked with that of most of them: "
        '"Briefly!" (2 samples)'
    )


def test_no_prompt_counts_as_one_and_repeats_count(raw: RawFiles) -> None:
    store = merged(raw, vqa(raw, "one", "A?", prompt=None, repeat=2), vqa(raw, "two", "A?"))
    assert recorded_prompts(store) == {}
    assert "that of most of them: none (2 samples)" in conflicting_prompts(store)[0]


def test_validation_and_test_samples_do_not_count(raw: RawFiles) -> None:
    raw.image("b.jpg", shade=1)
    records = [{"id": i, "question": "A?", "answers": ["x"], "image_file": "b.jpg"} for i in range(3)]
    tested = raw.vqa_metadata(records, name="tested", prompt="Briefly!", split="test")
    assert recorded_prompts(merged(raw, vqa(raw, "one", "A?"), tested)) == {"vqa": {"en": EN}}


def test_merged_data_of_earlier_versions_have_no_prompts(raw: RawFiles) -> None:
    merged(raw, vqa(raw, "one", "A?"))
    path = raw.merged / "samples.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["prompt"]), path)
    store = SampleStore(raw.merged)
    assert store.sample(0).prompt is None
    assert recorded_prompts(store) == {}
