"""Questions are asked with the prompt of their kind; cleaning applies to short answers alone and never changes a correct one."""

from pathlib import Path

import pytest

from answering.answer_cleaning import clean_answer
from answering.config import CheckpointSystem, QwenVlSystem
from answering.prompts import PromptPolicy
from answering.protocol import Request
from dataset.sample import Language, Message, Prompts, Task
from dataset.source_config import VqaMetadataSource

POLICY = PromptPolicy.from_config(QwenVlSystem(name="q", kind="qwen3_vl", path="x"))


def request(content: str, task: Task = "vqa", language: Language = "en") -> Request:
    return Request("a", (), (Message("user", "Hello"), Message("assistant", "Hi"), Message("user", content)), task, language)


def test_the_prompt_follows_every_question_of_a_conversation() -> None:
    messages = POLICY.messages(request("<image>\nWhat is it?"))
    assert messages[-1].content == "<image>\nWhat is it?\nAnswer the question using a single word or phrase."
    assert messages[0].content == "Hello\nAnswer the question using a single word or phrase."
    assert messages[1].content == "Hi"
    assert POLICY.messages(request("这是什么？", language="zh"))[-1].content == "这是什么？\n请用一个词或短语回答。"


def test_an_image_after_the_question_stays_last() -> None:
    content = POLICY.messages(request("What is it?\n<image>"))[-1].content
    assert content == "What is it?\nAnswer the question using a single word or phrase.\n<image>"


@pytest.mark.parametrize("task", ["caption", "conversation"])
def test_other_tasks_are_unchanged(task: Task) -> None:
    unchanged = request("<image>\nDescribe the brand.", task)
    assert POLICY.messages(unchanged) == unchanged.messages
    assert POLICY.clean("The brand is X.", unchanged) == "The brand is X."


def test_earlier_questions_of_another_kind_or_language_keep_theirs() -> None:
    turns = [Message("user", "这是什么？"), Message("assistant", "狗"), Message("user", "Describe it."), Message("assistant", "A dog.")]
    asked = Request("a", (), (*turns, Message("user", "What?")), "vqa", "en", earlier_tasks=("vqa", "caption"))
    contents = [turn.content for turn in POLICY.messages(asked) if turn.role == "user"]
    assert contents == ["这是什么？\n请用一个词或短语回答。", "Describe it.", "What?\nAnswer the question using a single word or phrase."]


OURS = CheckpointSystem(name="ours", kind="checkpoint")


def test_checkpoints_that_record_no_prompt_are_asked_the_question_alone() -> None:
    policy = PromptPolicy.of_checkpoint({}, OURS)
    assert policy.messages(request("What is it?")) == request("What is it?").messages
    assert policy.clean("The answer is red.", request("What is it?")) == "The answer is red."
    assert policy.settings() == {"short_answer_prompt": None, "short_answer_prompt_zh": None, "clean_answers": False}


def test_checkpoints_are_asked_with_the_prompts_that_they_record() -> None:
    policy = PromptPolicy.of_checkpoint({"vqa": {"zh": "一个词。"}, "caption": {"en": "One sentence."}}, OURS)
    asked: list[tuple[str, Task, Language]] = [
        ("What?", "vqa", "en"),
        ("什么？", "vqa", "zh"),
        ("Describe it.", "caption", "en"),
        ("Why?", "conversation", "en"),
    ]
    last = [policy.messages(Request("a", (), (Message("user", text),), task, language))[0].content for text, task, language in asked]
    assert last == ["What?", "什么？\n一个词。", "Describe it.\nOne sentence.", "Why?"]
    assert policy.settings()["other_prompts"] == {"caption": {"en": "One sentence."}}


def test_the_configuration_of_a_system_replaces_the_recorded_prompts() -> None:
    recorded: Prompts = {"vqa": {"en": "One word.", "zh": "一个词。"}}
    system = CheckpointSystem(name="ours", kind="checkpoint", short_answer_prompt=None, short_answer_prompt_zh="请简短回答。")
    policy = PromptPolicy.of_checkpoint(recorded, system)
    assert (policy.short_answer_prompt, policy.short_answer_prompt_zh) == (None, "请简短回答。")


def test_the_default_prompt_of_the_data_is_that_of_the_other_systems() -> None:
    source = VqaMetadataSource(format="vqa_metadata", annotations=Path("a.json"))
    assert (POLICY.short_answer_prompt, POLICY.short_answer_prompt_zh) == (source.prompt_in("en"), source.prompt_in("zh"))


@pytest.mark.parametrize(
    ("question", "raw", "answer"),
    [
        ("What is the brand of this camera?", "The brand is X.", "X"),
        ("What is the brand of this camera?", "The brand of this camera is Canon.", "Canon"),
        ("What color is the car?", "The car is red.", "red"),
        ("What is it?", "The answer is: 42", "42"),
        ("What is it?", "Answer: 42", "42"),
        ("What does the sign say?", 'The sign says "STOP".', '"STOP"'),
        ("How many dogs are there?", "There are 3 dogs.", "3"),
        ("How many dogs are there?", "There are three dogs in the picture.", "three"),
        ("Is the man tall?", "Yes, the man is tall.", "Yes"),
        ("Is it open?", "The answer is no.", "no"),
        ("这是什么品牌？", "答案是X。", "X"),
        ("相机的品牌是什么？", "图中相机的品牌是佳能。", "佳能"),
        ("牌子上写的是什么？", "牌子上写的是停。", "停"),
        ("图中有狗吗？", "有，图中有一只狗。", "有"),
        ("What color is it?", "red.", "red"),
        ("这是什么？", "一只狗。", "一只狗"),
    ],
)
def test_the_answer_is_extracted_from_its_sentence(question: str, raw: str, answer: str) -> None:
    assert clean_answer(raw, question) == answer
    assert POLICY.clean(raw, request(question)) == answer


ABOUT_TEXT = [
    "What does the sign say?", "What is written on the shirt?", "What is the title of the book?", "What is the name of this place?",
    "What word is on the poster?", "What is he reading?", "牌子上写着什么？", "这本书的名字是什么？",
]  # fmt: skip
OTHER_QUESTIONS = [
    "Who is the author?", "What color is it?", "How many?", "Is it red or blue?", "Is this a dog?", "What is the answer?",
    "What time is it?", "这是什么？", "有几个人？", "图中有狗吗？", "她是谁？",
]  # fmt: skip
PLAIN = [
    "red", "yes", "no", "2", "2.5", "10:30", "U.S.", "a.m.", "Samuel L.", "J. R. R. Tolkien", "Dr. Pepper", "St.", "Samsung Inc.", "X",
    "red and white", "10%", "$5", "-3", "...", "no parking", "The Art of War", "红色", "两个", "停", "是", "不是", "没有", "3只狗", "答案",
]  # fmt: skip
SENTENCE_LIKE = [
    "The end is near", "This shirt is illegal", "It is time", "What is life", "life is good", "The Times They Are a-Changin'",
    "there is hope", "time is money", "all you need is love", "no, thanks for all the fish", "left: exit", "to be continued...",
    "yes we can", "there are places I remember", "This is Spinal Tap", "Who is who", "The sign of four is here", "this place is ours",
    "时间就是金钱", "生命是美好的", "我是谁", "禁止停车", "为人民服务", "这里是北京",
]  # fmt: skip


@pytest.mark.parametrize("answer", PLAIN)
def test_cleaning_never_changes_a_correct_short_answer(answer: str) -> None:
    assert {question: clean_answer(answer, question) for question in ABOUT_TEXT + OTHER_QUESTIONS} == dict.fromkeys(
        ABOUT_TEXT + OTHER_QUESTIONS, answer
    )


@pytest.mark.parametrize("answer", SENTENCE_LIKE)
def test_cleaning_keeps_written_text_that_looks_like_a_sentence(answer: str) -> None:
    assert {question: clean_answer(answer, question) for question in ABOUT_TEXT} == dict.fromkeys(ABOUT_TEXT, answer)
