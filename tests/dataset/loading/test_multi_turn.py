"""Questions about one picture in one conversation: nothing is lost, lengths are exact, order and targets follow the epoch."""

import numpy as np
import pytest

from dataset.loading.encoded_sample import IGNORE_INDEX
from dataset.loading.multi_turn import Conversation, MeasuredSample, conversations, num_tokens, shuffled_questions, to_messages
from dataset.loading.sample_store import SampleStore
from dataset.sample import IMAGE_PLACEHOLDER, Message, Sample
from model.siglip_qwen.processor import Processor
from tests.dataset.raw_files import RawFiles, conversation, ten
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
    """Five questions about a picture, the first with two answers to draw from, and a conversation about the same one."""
    image = int(raw.image("COCO_train2014_000000000007.jpg").partition(".")[0][-12:])
    answers = [ten("red", "a red one"), *(ten(f"answer {i}") for i in range(1, 5))]
    questions = [{"image_id": image, "question": text, "question_id": i} for i, text in enumerate(QUESTIONS)]
    annotations = [
        {"image_id": image, "question_id": i, "answers": found, "multiple_choice_answer": "x"} for i, found in enumerate(answers)
    ]
    talk = raw.llava([conversation("COCO_train2014_000000000007.jpg", "What color?", "red", "Sure?", "yes")])
    raw.merge(raw.vqav2(questions, annotations), talk, vqa_target="sample")
    return SampleStore(raw.merged)


def measured(store: SampleStore, processor: Processor, together: int) -> SampleLengths:
    return measure_lengths(store, np.arange(6), processor, "measuring", together)


@pytest.mark.parametrize("together", [1, 2, 3, 8])
def test_every_sample_stands_in_one_conversation_of_at_most_so_many(store: SampleStore, processor: Processor, together: int) -> None:
    lengths = measured(store, processor, together)
    rows = [member.row for conversation in lengths.conversations for member in conversation]
    assert sorted(rows) == list(range(6))
    assert lengths.samples == 6
    assert max(map(len, lengths.conversations)) == min(together, 5)
    # A conversation of its own is never joined.
    assert [len(one) for one in lengths.conversations if any(store.sample(m.row).task == "conversation" for m in one)] == [1]


def test_lengths_are_those_of_what_is_encoded(store: SampleStore, processor: Processor) -> None:
    lengths = measured(store, processor, 3)
    data = TrainingData(store, lengths, processor, seed=5)
    for epoch in range(6):
        encoded = [data[place, epoch].encoded for place in range(len(data))]
        assert [len(one) for one in encoded] == lengths.sampled_lengths(5, epoch).tolist()
        # One picture a conversation, and every answer of it supervised.
        assert all(one.input_ids.count(processor.image_token_id) == processor.tokens_per_image for one in encoded)
        ends = sum(label == processor.end_of_turn_id for one in encoded for label in one.labels)
        assert ends == 7
        assert all(label in (IGNORE_INDEX, token) for one in encoded for token, label in zip(one.input_ids, one.labels, strict=True))


def test_order_and_targets_change_with_the_epoch_and_with_nothing_else(store: SampleStore, processor: Processor) -> None:
    together, _ = measured(store, processor, 8).conversations
    orders = {tuple(member.row for member in shuffled_questions(together, 0, epoch)) for epoch in range(20)}
    assert len(orders) > 10
    assert {order[0] for order in orders} == {member.row for member in together}
    assert shuffled_questions(together, 0, 3) == shuffled_questions(together, 0, 3)
    first = to_messages([store.sample(member.row) for member in shuffled_questions(together, 0, 3)], 0, 3)
    assert first == to_messages([store.sample(member.row) for member in shuffled_questions(together, 0, 3)], 0, 3)
    sampled_lengths = {num_tokens(together, 0, epoch) for epoch in range(20)}
    assert len(sampled_lengths) > 1


def test_the_image_is_shown_once_in_front_of_all_questions() -> None:
    def sample(name: str, text: str) -> Sample:
        return Sample(name, (7,), "vqa", "vqa", "en", "train", (Message("user", text),), (f"answer {name}",))

    messages, target = to_messages([sample("1", f"{IMAGE_PLACEHOLDER}\nWhat?"), sample("2", f"Where?\n{IMAGE_PLACEHOLDER}")], 0, 0)
    assert [message.content for message in messages] == [f"{IMAGE_PLACEHOLDER}\nWhat?", "answer 1", "Where?"]
    assert target == "answer 2"


def test_no_conversation_can_be_longer_than_the_limit() -> None:
    samples = [(MeasuredSample(i, str(i), (10, 12), saved_tokens), 1) for i, saved_tokens in enumerate((4, 6, 2, 5))]
    made: list[Conversation] = conversations(samples, 4, 30)
    assert [len(one) for one in made] == [3, 1]
    assert max(num_tokens(one, 0, epoch) for one in made for epoch in range(50)) <= 30
