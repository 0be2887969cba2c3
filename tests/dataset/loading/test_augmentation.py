"""Augmentation changes images slightly, depends on the key alone, and mirrors only where that is asked for."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dataset.bounding_box import Box, iou, parse_boxes
from dataset.config import AugmentationConfig
from dataset.loading.augmentation import augment, augment_with_boxes
from dataset.loading.collators import Example
from dataset.loading.sample_store import SampleStore
from dataset.loading.samplers import SampleKey
from dataset.source_config import MessagesSource
from dataset.streaming.source_records import Share
from dataset.streaming.stream_plan import stream_plan
from model.siglip_qwen.processor import Processor
from tests.dataset.raw_files import RawFiles
from training.data_loading import TrainingData, measure_lengths
from training.streaming.batch_stream import BatchStream, StreamSettings


def image() -> Image.Image:
    """Dark on the left, light on the right, red at the bottom, so that flips and rotations can be detected."""
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    pixels[...] = np.linspace(40, 200, 64, dtype=np.uint8)[None, :, None]
    pixels[36:, :, 1:] //= 4
    return Image.fromarray(pixels)


def test_zero_amounts_change_nothing() -> None:
    assert np.array_equal(np.asarray(augment(image(), AugmentationConfig(), "key")), np.asarray(image()))


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation", "rotation"])
def test_each_kind_changes_the_image_as_a_function_of_the_key(kind: str) -> None:
    config = AugmentationConfig(**{kind: 10.0 if kind == "rotation" else 0.4})
    first, again, other = (np.asarray(augment(image(), config, key)) for key in ("0/3/sample", "0/3/sample", "0/4/sample"))
    assert first.shape == (48, 64, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, np.asarray(image()))


def test_amounts_are_bounds_of_the_factors() -> None:
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    values = [np.asarray(augment(grey, AugmentationConfig(brightness=0.2), str(i))).mean() for i in range(200)]
    assert 80 <= min(values) < 85
    assert 115 < max(values) <= 120


def test_images_are_mirrored_as_often_as_asked_and_else_only_changed() -> None:
    config = AugmentationConfig(horizontal_flip=0.25)
    own, mirrored = np.asarray(image()), np.asarray(image())[:, ::-1]
    results = [np.asarray(augment(image(), config, str(i))) for i in range(400)]
    assert all(np.array_equal(result, own) or np.array_equal(result, mirrored) for result in results)
    assert 70 <= sum(np.array_equal(result, mirrored) for result in results) <= 130


def test_images_are_never_flipped_by_default() -> None:
    config = AugmentationConfig(brightness=0.3, contrast=0.3, saturation=0.3, rotation=15.0)
    for i in range(100):
        pixels = np.asarray(augment(image(), config, str(i))).astype(int)
        assert pixels[16:32, :16].mean() < pixels[16:32, -16:].mean()
        redness = pixels[..., 0] - pixels[..., 1]
        assert redness[-6:, 16:48].mean() > redness[:6, 16:48].mean()


def boxed_image() -> tuple[Image.Image, Box]:
    """A bright ellipse on dark ground, and its box."""
    canvas = Image.new("RGB", (200, 120), (10, 10, 10))
    ImageDraw.Draw(canvas).ellipse((20, 30, 79, 69), fill="white")
    return canvas, Box(100, 250, 400, 70 / 0.12)


def bright_box(image: Image.Image) -> Box:
    """The box of the bright pixels."""
    rows, columns = np.nonzero(np.asarray(image.convert("L")) > 127)
    ends = columns.min() / image.width, rows.min() / image.height, (columns.max() + 1) / image.width, (rows.max() + 1) / image.height
    return Box(*(1000 * float(end) for end in ends))


def test_boxes_follow_the_pixels() -> None:
    image, box = boxed_image()
    config = AugmentationConfig(rotation=10, horizontal_flip=0.5, brightness=0.1)
    mirrored = 0
    for i in range(40):
        changed, [moved] = augment_with_boxes(image, config, str(i), [box])
        assert np.array_equal(np.asarray(changed), np.asarray(augment(image, config, str(i)))), "boxes change nothing about the image"
        mirrored += moved.x1 > 400
        # The box around a turned box is somewhat larger than the one around the turned ellipse in it.
        assert iou(moved, bright_box(changed)) > 0.75
        assert moved.x1 <= bright_box(changed).x1 + 5
    assert 5 < mirrored < 35


def test_an_image_is_not_rotated_when_a_box_would_leave_it() -> None:
    image, _ = boxed_image()
    config = AugmentationConfig(rotation=15)
    at_the_corner, inside = Box(0, 0, 4, 6), Box(400, 400, 600, 600)
    kept = [augment_with_boxes(image, config, str(i), [at_the_corner])[1] == [at_the_corner] for i in range(20)]
    assert any(kept)
    assert all(augment_with_boxes(image, config, str(i), [inside])[1] != [inside] for i in range(20))


def boxed_source(raw: RawFiles) -> MessagesSource:
    """One record, the box of the bright ellipse; its left edge is at 10 thousandths, that of its mirror image at 600."""
    image, _ = boxed_image()
    image.save(raw.images / "a.png")
    turns = [{"role": "user", "content": "<image>Where?"}, {"role": "assistant", "content": '{"bbox_2d": <bbox>}'}]
    return raw.messages([{"messages": turns, "images": ["a.png"], "objects": {"bbox": [[2, 30, 80, 70]]}}])


def named_and_mirrored(example: Example, processor: Processor) -> tuple[Box, bool]:
    """The box that the text of an example names, and whether its image is mirrored."""
    [box] = parse_boxes(processor.readable(example.encoded.input_ids))
    pixels = example.images["pixel_values"][0].float()
    return box, bool(pixels[:, :, 60:].mean() > pixels[:, :, :36].mean())


KEPT, MIRRORED = (Box(10, 250, 400, 583), False), (Box(600, 250, 990, 583), True)
HALF = AugmentationConfig(horizontal_flip=0.5)


def test_training_text_names_the_boxes_of_the_changed_image(raw: RawFiles, processor: Processor) -> None:
    raw.merge(boxed_source(raw))
    store, rows = SampleStore(raw.merged), np.arange(1)
    lengths = measure_lengths(store, rows, processor, "measuring", boxes_move=True)
    data = TrainingData(store, lengths, processor, 0, HALF)
    seen = set()
    for epoch in range(12):
        example = data[SampleKey(0, epoch)]
        # There is room for the text of any box.
        assert len(example.encoded) <= lengths.sampled_lengths(0, epoch)[0]
        seen.add(named_and_mirrored(example, processor))
    assert seen == {KEPT, MIRRORED}
    # Without room for another digit, an image keeps its geometry.
    exact = TrainingData(store, measure_lengths(store, rows, processor, "measuring"), processor, 0, HALF)
    assert {named_and_mirrored(exact[SampleKey(0, epoch)], processor) for epoch in range(12)} == {KEPT}


@pytest.mark.parametrize("packed", [False, True])
def test_streamed_text_names_the_boxes_of_the_changed_image(raw: RawFiles, processor: Processor, packed: bool) -> None:
    plan = stream_plan(raw.config(boxed_source(raw)), {})
    size = 200 if packed else 1
    settings = StreamSettings(plan, processor, lambda examples: {"examples": list(examples)}, packed, size, 0, HALF)
    stream = BatchStream(settings, Share())
    batches = [stream.next_batch()["examples"] for _ in range(12)]
    assert {named_and_mirrored(example, processor) for examples in batches for example in examples} == {KEPT, MIRRORED}
    assert all(sum(len(example.encoded) for example in examples) <= 200 for examples in batches)
