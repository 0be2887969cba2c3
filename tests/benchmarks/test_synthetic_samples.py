"""Synthetic samples have the length distribution of the reference data and the layout of the Processor."""

import statistics

import pytest

from benchmarks.full_size_models import build_processor
from benchmarks.synthetic_samples import demo_samples, reference_samples
from dataset.loading.encoded_sample import IGNORE_INDEX
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.processor import Processor


@pytest.fixture(scope="module")
def large() -> Processor:
    return build_processor("1.7b", SiglipQwenConfig())


def test_the_mean_length_is_that_of_the_reference_data(large: Processor) -> None:
    encoded = [example.encoded for example in reference_samples(large, 4000)]
    assert statistics.mean(map(len, encoded)) == pytest.approx(879, rel=0.005)
    assert statistics.mean(sum(label != IGNORE_INDEX for label in sample.labels) for sample in encoded) == pytest.approx(105, rel=0.01)


def test_samples_have_one_image_and_end_like_those_of_the_processor(large: Processor) -> None:
    for example in reference_samples(large, 40):
        ids, labels = example.encoded.input_ids, example.encoded.labels
        assert ids.count(large.image_token_id) == 729
        assert ids[-1] == labels[-1] == large.end_of_turn_id
        first = next(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
        assert labels[first:] == ids[first:]
        assert large.tokenizer.decode(ids[:first]).endswith("<think>\n\n</think>\n\n")
        assert example.images["pixel_values"].shape == (1, 3, 384, 384)


def test_every_token_id_can_be_decoded(large: Processor) -> None:
    assert len(large.tokenizer) == 151_936
    texts = [large.decode([token]) for token in (2_000, 150_000, 151_935)]
    assert len(set(texts)) == 3 and all(texts)


def test_demo_samples_are_about_scenes_in_two_languages() -> None:
    processor = build_processor("tiny", SiglipQwenConfig(max_length=512))
    examples = demo_samples(processor, 24)
    texts = [processor.readable(example.encoded.input_ids) for example in examples]
    assert sum(any("一" <= c <= "鿿" for c in text) for text in texts) == 12
    assert all(example.encoded.input_ids.count(processor.image_token_id) == 36 for example in examples)
    answers = [sum(label != IGNORE_INDEX for label in example.encoded.labels) for example in examples]
    assert statistics.median(answers) <= 3 < max(answers)
