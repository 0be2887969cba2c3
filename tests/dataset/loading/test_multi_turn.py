"""Multi-turn conversations about one image: no sample is lost, lengths are exact, order and targets depend on the epoch."""

from collections import Counter

import numpy as np
import pytest

from dataset.loading.encoded_sample import IGNORE_INDEX
from dataset.loading.multi_turn import (
    Conversation,
    MeasuredSample,
    balance_by_category,
    conversations,
    num_tokens,
    shuffled_questions,
    to_messages,
)
from dataset.loading.sample_store import SampleStore
from dataset.loading.samplers import SampleKey
from dataset.sample import IMAGE_PLACEHOLDER, Message, Sample
from model.siglip_qwen.processor import Processor
from tests.dataset.raw_files import RawFiles, conversation, vqa_answers
from training.data_loading import SampleLengths, TrainingData, measure_lengths

QUESTIONS = (
    "What color is the circle?",
    "How many squares are there?",
    "Is there a blue star left of the green ring?",
    "这幅图像中有什么？",
    "Where is the white cross?",
)


@pytest.fixture
def store(raw: RawFiles) -> SampleStore:
    """Five questions about an image, the first with two targets, and a conversation about the same image."""
    image = int(raw.image("COCO_train2014_000000000007.jpg").partition(".")[0][-12:])
    answers = [vqa_answers("red", "a red one"), *(vqa_answers(f"answer {i}") for i in range(1, 5))]
    questions = [{"image_id": image, "question": text, "question_id": i} for i, text in enumerate(QUESTIONS)]
    annotations = [
        {"image_id": image, "question_id": i, "answers": entries, "multiple_choice_answer": "x"} for i, entries in enumerate(answers)
    ]
    dialogue = raw.llava([conversation("COCO_train2014_000000000007.jpg", "What color?", "red", "Sure?", "yes")])
    raw.merge(raw.vqav2(questions, annotations), dialogue, vqa_target="sample")
    return SampleStore(raw.merged)


def measured(store: SampleStore, processor: Processor, max_questions: int) -> SampleLengths:
    return measure_lengths(store, np.arange(6), processor, "measuring", max_questions)


@pytest.mark.parametrize("max_questions", [1, 2, 3, 8])
def test_every_sample_is_in_exactly_one_conversation(store: SampleStore, processor: Processor, max_questions: int) -> None:
    lengths = measured(store, processor, max_questions)
    rows = [member.row for conversation in lengths.conversations for member in conversation]
    assert sorted(rows) == list(range(6))
    assert lengths.samples == 6
    assert max(map(len, lengths.conversations)) == min(max_questions, 5)
    # A sample that is a conversation itself is not joined with questions.
    assert [len(group) for group in lengths.conversations if any(store.sample(m.row).task == "conversation" for m in group)] == [1]


def test_lengths_equal_the_encoded_lengths(store: SampleStore, processor: Processor) -> None:
    lengths = measured(store, processor, 3)
    data = TrainingData(store, lengths, processor, seed=5)
    for epoch in range(6):
        encoded = [data[SampleKey(index, epoch)].encoded for index in range(len(data))]
        assert [len(sample) for sample in encoded] == lengths.sampled_lengths(5, epoch).tolist()
        # One image per conversation, and all of its answers are supervised.
        assert all(sample.input_ids.count(processor.image_token_id) == processor.tokens_per_image for sample in encoded)
        ends = sum(label == processor.end_of_turn_id for sample in encoded for label in sample.labels)
        assert ends == 7
        assert all(
            label in (IGNORE_INDEX, token) for sample in encoded for token, label in zip(sample.input_ids, sample.labels, strict=True)
        )


def test_order_and_targets_depend_on_the_epoch_only(store: SampleStore, processor: Processor) -> None:
    group, _ = measured(store, processor, 8).conversations
    orders = {tuple(member.row for member in shuffled_questions(group, 0, epoch)) for epoch in range(20)}
    assert len(orders) > 10
    assert {order[0] for order in orders} == {member.row for member in group}
    assert shuffled_questions(group, 0, 3) == shuffled_questions(group, 0, 3)
    first = to_messages([store.sample(member.row) for member in shuffled_questions(group, 0, 3)], 0, 3)
    assert first == to_messages([store.sample(member.row) for member in shuffled_questions(group, 0, 3)], 0, 3)
    sampled_lengths = {num_tokens(group, 0, epoch) for epoch in range(20)}
    assert len(sampled_lengths) > 1


def test_only_the_first_question_has_the_image() -> None:
    def sample(name: str, text: str) -> Sample:
        return Sample(name, (7,), "vqa", "vqa", "en", "train", (Message("user", text),), (f"answer {name}",))

    messages, target = to_messages([sample("1", f"{IMAGE_PLACEHOLDER}\nWhat?"), sample("2", f"Where?\n{IMAGE_PLACEHOLDER}")], 0, 0)
    assert [message.content for message in messages] == [f"{IMAGE_PLACEHOLDER}\nWhat?", "answer 1", "Where?"]
    assert target == "answer 2"


def test_each_question_of_a_conversation_has_its_own_prompt(store: SampleStore) -> None:
    questions = [store.sample(row) for row in (0, 3)]
    messages, _ = to_messages(questions, 0, 0)
    assert [message.content for message in messages if message.role == "user"] == [
        "<image>\nWhat color is the circle?\nAnswer the question using a single word or phrase.",
        "这幅图像中有什么？\n请用一个词或短语回答。",
    ]


def test_no_conversation_exceeds_the_length_limit() -> None:
    samples = [(MeasuredSample(i, str(i), (10, 12), saved_tokens), 1) for i, saved_tokens in enumerate((4, 6, 2, 5))]
    grouped: list[Conversation] = conversations(samples, 4, 30)
    assert [len(group) for group in grouped] == [3, 1]
    assert max(num_tokens(group, 0, epoch) for group in grouped for epoch in range(50)) <= 30


def test_smaller_categories_are_repeated_until_all_are_as_large_as_the_largest() -> None:
    categories = ["circle", "star", "circle", None, "circle", "ring", "star"]
    single = [(MeasuredSample(row, str(row), (5,)),) for row in range(7)]
    balanced = balance_by_category(single, categories)
    counts = Counter(categories[conversation[0].row] for conversation in balanced)
    assert counts == {"circle": 3, "star": 3, "ring": 3, None: 1}
    assert {conversation[0].row for conversation in balanced} == set(range(7))
    assert balance_by_category(single, [None] * 7) == single
