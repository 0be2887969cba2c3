"""The printed tokens are the ones that the model gets."""

import re

import pytest

from dataset.loading.sample_store import SampleStore
from model.sample_inspection import describe_sample, token_runs
from model.siglip_qwen.processor import Processor
from tests.dataset.raw_files import RawFiles, conversation


@pytest.fixture
def store(raw: RawFiles) -> SampleStore:
    raw.image("a.png", size=(40, 30))
    raw.image("b.png", shade=1)
    captions = raw.ai_challenger([{"image_id": "a.png", "caption": ["一只猫", "猫"]}])
    raw.merge(captions, raw.llava([conversation(["a.png", "b.png"], "<image>What color?", "red", "Sure?", "yes")]))
    return SampleStore(raw.merged)


def test_image_tokens_are_collapsed_per_image_and_every_token_is_shown(store: SampleStore, processor: Processor) -> None:
    sample = store.sample(1)
    encoded = processor.encode(sample.messages, "yes", 2)
    assert encoded is not None
    runs = token_runs(processor, encoded)
    assert sum(run.count for run in runs) == len(encoded)
    assert [run.token_id for run in runs for _ in range(run.count)] == encoded.input_ids
    assert [run.position for run in runs] == [sum(run.count for run in runs[:i]) for i in range(len(runs))]
    assert [run.count for run in runs if run.token_id == processor.image_token_id] == [processor.tokens_per_image] * 2
    assert [run.supervised for run in runs if run.token_id == processor.image_token_id] == [False, False]
    end = processor.tokenizer.convert_ids_to_tokens(processor.end_of_turn_id)
    assert processor.decode([run.token_id for run in runs if run.supervised]).replace(end, "") == "redyes"


def test_the_lines_name_sizes_targets_and_answers(store: SampleStore, processor: Processor) -> None:
    lines = list(describe_sample(store, store.sample(0), processor, seed=0, epoch=0, color=False))
    assert lines[0] == "ai_challenger/0: caption, zh, train, from ai_challenger"
    assert re.fullmatch(r"image 0: .*a\.png, 40 x 30 -> 96 x 96, values -0\.98 to -0\.02", lines[1])
    assert re.fullmatch(r"\d+ tokens of at most 512, \d+ supervised", lines[2])
    assert any(line.endswith("'<|image_pad|>' x 36") for line in lines)
    current = store.sample(0).target(0, 0)
    assert [line for line in lines if line.startswith("target: ")] == [
        f"target: {text!r}{' (of this epoch)' if text == current else ''}" for text in ("一只猫", "猫")
    ]
    assert [line for line in lines if line.startswith("answer: ")] == ["answer: '一只猫'", "answer: '猫'"]


def test_boxes_are_named_with_their_images(raw: RawFiles, processor: Processor) -> None:
    raw.image("a.png", size=(100, 50))
    turns = [{"role": "user", "content": "<image>What is in <bbox>?"}, {"role": "assistant", "content": '{"bbox_2d": <bbox>}'}]
    objects = {"bbox": [[10, 5, 30, 15], [50, 0, 100, 50]]}
    raw.merge(raw.messages([{"messages": turns, "images": ["a.png"], "objects": objects}]))
    merged = SampleStore(raw.merged)
    lines = list(describe_sample(merged, merged.sample(0), processor, 0, 0, color=False))
    assert [line for line in lines if line.startswith("box")] == [
        "box [100, 100, 300, 300] of image 0, in the messages",
        "box [500, 0, 1000, 1000] of image 0, in a target",
    ]


def test_supervised_tokens_are_marked_or_colored(store: SampleStore, processor: Processor) -> None:
    plain = list(describe_sample(store, store.sample(1), processor, 0, 0, color=False))
    colored = list(describe_sample(store, store.sample(1), processor, 0, 0, color=True))
    marked = [i for i, line in enumerate(plain) if line.startswith("+")]
    assert [i for i, line in enumerate(colored) if line.startswith("\033[32m")] == marked
    assert len(marked) == int(plain[3].split()[-2])
    assert plain[marked[-1]].endswith("'<|im_end|>'")


def test_a_token_that_is_part_of_a_character_shows_its_bytes(store: SampleStore, processor: Processor) -> None:
    encoded = processor.encode(store.sample(1).messages, "龘", 2)
    assert encoded is not None
    assert any(run.text.startswith("bytes ") for run in token_runs(processor, encoded))


def test_a_sample_that_training_skips_is_reported(store: SampleStore, processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "max_length", 20)
    assert list(describe_sample(store, store.sample(1), processor, 0, 0, color=False))[-1].startswith(
        "skipped in training: no supervised token"
    )
