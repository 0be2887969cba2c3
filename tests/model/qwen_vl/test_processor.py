"""Tokens and pixels of Qwen vision-language models, known from the sizes of images alone."""

import pytest
from PIL import Image

from dataset.loading.encoded_sample import EncodingError
from dataset.sample import Message
from model.qwen_vl.processor import QwenVlProcessor

SIZES = [(90, 60), (64, 64), (300, 41), (31, 800)]


def test_the_tokens_of_an_image_are_known_from_its_size(processor: QwenVlProcessor) -> None:
    merged = processor.image_processor.merge_size**2
    for size, tokens in zip(SIZES, processor.image_tokens(len(SIZES), SIZES), strict=True):
        grid = processor.read([Image.new("RGB", size)])["image_grid_thw"]
        assert tokens == int(grid.prod()) // merged


def test_prompt_and_sample_begin_with_the_same_tokens(processor: QwenVlProcessor) -> None:
    messages, images = [Message("user", "<image>What?\n<image>")], [Image.new("RGB", size) for size in SIZES[:2]]
    prompt = processor.prompt_with_images(messages, images)
    encoded = processor.encode(messages, "red", 2, sizes=SIZES[:2])
    assert encoded is not None
    assert encoded.input_ids[: len(prompt.ids)] == prompt.ids
    assert prompt.visual_tokens == sum(processor.image_tokens(2, SIZES[:2]))
    assert processor.pixel_rows(encoded) == len(prompt.images["pixel_values"])
    assert prompt.text.count("<image>") == 2 and "<|vision" not in prompt.text


def test_a_sample_that_is_too_long_loses_its_last_turns_and_never_a_part_of_an_image(processor: QwenVlProcessor) -> None:
    turns = [
        Message("user", "<image>What color is the circle?"),
        Message("assistant", "red"),
        Message("user", "How many squares are there?"),
    ]
    whole = processor.encode(turns, "2", 1, sizes=SIZES[:1])
    assert whole is not None
    shorter = processor.encode(turns, "2", 1, max_length=len(whole) - 1, sizes=SIZES[:1])
    assert shorter is not None and processor.pixel_rows(shorter) == processor.pixel_rows(whole)
    assert shorter.input_ids == whole.input_ids[: len(shorter)]
    assert processor.encode(turns, "2", 1, max_length=processor.image_tokens(1, SIZES[:1])[0], sizes=SIZES[:1]) is None


def test_an_image_that_is_too_thin_is_refused(processor: QwenVlProcessor) -> None:
    with pytest.raises(EncodingError, match="aspect ratio"):
        processor.image_tokens(1, [(2000, 1)])


def test_blank_images_take_the_place_of_others(processor: QwenVlProcessor) -> None:
    blank = processor.blank_images(2, SIZES[:2])
    assert processor.image_tokens(2, [image.size for image in blank]) == processor.image_tokens(2, SIZES[:2])
    assert len(processor.read([])["pixel_values"]) == 0
    assert processor.read([])["pixel_values"].shape[1:] == processor.read(blank)["pixel_values"].shape[1:]
