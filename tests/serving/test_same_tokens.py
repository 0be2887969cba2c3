"""Equal questions get equal tokens, whichever way they come in: as training data, over HTTP, from the page or a command."""

import argparse
import base64
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx2
import jinja2
import pytest

import config as configuration
from answering.batch_inference import BatchOptions, answer_folder
from answering.prompts import PromptPolicy
from answering.protocol import Decoding, Request
from dataset.loading.sample_store import SampleStore
from dataset.sample import IMAGE_PLACEHOLDER, Message, Prompts
from evaluation.questions import choose
from model.siglip_qwen.processor import Processor
from serving.demo.session import Session, Turn
from tests.dataset.raw_files import RawFiles, conversation, vqa_answers
from tests.fakes import Recorder
from tests.serving.conftest import ask, image_file, serving
from tools import answer as answer_command

PROMPTS: Prompts = {"vqa": {"en": "Answer the question using a single word or phrase.", "zh": "请用一个词或短语回答。"}}
QUESTIONS = {"What is it?": "What is it?\n" + PROMPTS["vqa"]["en"], "这是什么？": "这是什么？\n" + PROMPTS["vqa"]["zh"]}
IMAGE = IMAGE_PLACEHOLDER
PARTS = {
    "the image first": [IMAGE, "What is it?"],
    "the image last": ["What is it?", IMAGE],
    "two images": [IMAGE, IMAGE, "Which is red?"],
    "several texts": [IMAGE, "Look at it.", " What is it?\n"],
    "images between texts": ["Is", IMAGE, "as red as", IMAGE, "?"],
    "Chinese": [IMAGE, "这是什么？"],
    "no image": ["How are you?"],
}
NAMES = ("000000000001.png", "000000000002.png")


Tokens = Callable[..., list[int]]


@pytest.fixture
def asked(processor: Processor) -> Tokens:
    """The tokens of a request to a checkpoint that records `prompts`."""

    def encode(request: Request, prompts: Prompts = PROMPTS) -> list[int]:
        return processor.prompt(PromptPolicy.of_checkpoint(prompts).messages(request), len(request.images))

    return encode


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[httpx2.Client, Recorder]]:
    recorder = Recorder()
    with serving(recorder) as (client, _):
        yield client, recorder


@pytest.fixture
def raw(tmp_path: Path) -> RawFiles:
    raw = RawFiles(tmp_path)
    for i, name in enumerate(NAMES):
        raw.image(name, shade=i)
    return raw


def chat(client: httpx2.Client, parts: Sequence[str]) -> None:
    """Ask by OpenAI's API."""
    urls = (f"data:image/png;base64,{base64.b64encode(image_file(seed)).decode()}" for seed in range(len(parts)))
    content = [
        {"type": "image_url", "image_url": {"url": next(urls)}} if part == IMAGE else {"type": "text", "text": part} for part in parts
    ]
    body = {"model": "fake", "messages": [{"role": "user", "content": content}], "temperature": 0}
    assert client.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize("turn", PARTS.values(), ids=PARTS)
def test_parts_get_the_tokens_that_they_are_trained_with(
    turn: list[str], raw: RawFiles, service: tuple[httpx2.Client, Recorder], processor: Processor, asked: Tokens
) -> None:
    images = list(NAMES[: turn.count(IMAGE)])
    text = "\n".join(part.strip() for part in turn)
    in_parts = [{"type": "image"} if part == IMAGE else {"type": "text", "text": part} for part in turn]
    rows = [
        {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}], "images": images}
        for content in (in_parts, text)
    ]
    llava = conversation(images, text, "x")
    llava["conversations"][0]["value"] = text
    raw.merge(raw.messages(rows), raw.llava([llava]))
    trained = [processor.prompt(sample.prompted_messages, len(images)) for sample in SampleStore(raw.merged).samples()]
    client, recorder = service
    chat(client, turn)
    expected = processor.prompt([Message("user", text)], len(images))
    assert [*trained, asked(recorder.request)] == [expected] * 4
    template = jinja2.Environment().from_string(processor.template_parts.template(IMAGE))
    exported = template.render(messages=[{"role": "user", "content": in_parts}], add_generation_prompt=True)
    assert exported == processor.readable(expected)


@pytest.mark.parametrize("question", QUESTIONS)
def test_short_questions_get_the_tokens_that_they_are_trained_with(
    question: str, raw: RawFiles, processor: Processor, asked: Tokens
) -> None:
    questions = [{"image_id": 1, "question": question, "question_id": 1}]
    annotations = [{"image_id": 1, "question_id": 1, "answers": vqa_answers("cat")}]
    metadata = [{"id": 1, "question": f" {question}\n", "answers": ["cat"], "image_file": NAMES[0]}]
    (raw.images / "COCO_train2014_000000000001.jpg").symlink_to(raw.images / NAMES[0])
    raw.merge(raw.vqav2(questions, annotations, split="test"), raw.vqa_metadata(metadata, split="test"))
    store = SampleStore(raw.merged)
    expected = processor.prompt([Message("user", f"<image>\n{QUESTIONS[question]}")], 1)
    assert [processor.prompt(sample.prompted_messages, 1) for sample in store.samples()] == [expected] * 2
    evaluated = choose(store, "test", None)
    assert [asked(item.request) for item in evaluated] == [expected] * 2
    assert [item.text for item in evaluated] == [question] * 2


@pytest.mark.parametrize("question", QUESTIONS)
def test_short_questions_that_somebody_types_get_the_tokens_of_training(
    question: str,
    raw: RawFiles,
    service: tuple[httpx2.Client, Recorder],
    processor: Processor,
    asked: Tokens,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client, over_http = service
    recorder, image, decoding = Recorder(), raw.images / NAMES[0], Decoding(strategy="greedy", num_candidates=1)
    session = Session("fake", recorder, None, decoding, 8)
    requests = []
    ask(client, f" {question} ")
    requests.append(over_http.request)
    session.ask(image, [], f"{question} ")
    requests.append(recorder.request)
    arguments = argparse.Namespace(long=False, stream=False, save=None)
    answer_command.Session(arguments, recorder, None, configuration.load(configuration.DEFAULT).decoding).ask(f"{question} ", [image])
    requests.append(recorder.request)
    answer_folder(recorder, None, raw.images, BatchOptions("Describe.", question, decoding, 8), raw.folder / "answers.jsonl", {})
    requests.append(recorder.request)
    alone, prompted = (processor.prompt([Message("user", f"<image>\n{text}")], 1) for text in (question, QUESTIONS[question]))
    assert [asked(request) for request in requests] == [prompted] * 4
    assert [asked(request, {}) for request in requests] == [alone] * 4
    assert capsys.readouterr().out.startswith(question)
    # In a conversation the client adds the prompt itself.
    chat(client, [IMAGE, *QUESTIONS[question].split("\n")])
    assert asked(over_http.request) == prompted


def test_every_question_of_a_page_has_the_prompt_of_its_own_kind_and_language(raw: RawFiles, processor: Processor, asked: Tokens) -> None:
    recorder = Recorder()
    turns = [Turn("Describe it.", "A cat.", "caption"), Turn("这是什么？", "猫")]
    Session("fake", recorder, None, Decoding(strategy="greedy", num_candidates=1), 8).ask(raw.images / NAMES[0], turns, "What is it?")
    expected = [
        *(Message("user", "<image>\nDescribe it."), Message("assistant", "A cat.")),
        *(Message("user", QUESTIONS["这是什么？"]), Message("assistant", "猫")),
        Message("user", QUESTIONS["What is it?"]),
    ]
    assert asked(recorder.request) == processor.prompt(expected, 1)


def test_a_conversation_over_http_has_the_prompt_of_conversations_alone(
    service: tuple[httpx2.Client, Recorder], processor: Processor, asked: Tokens
) -> None:
    client, recorder = service
    chat(client, [IMAGE, "Why?"])
    assert asked(recorder.request) == processor.prompt([Message("user", "<image>\nWhy?")], 1)
    trained: Prompts = {**PROMPTS, "conversation": {"en": "Explain it."}}
    assert asked(recorder.request, trained) == processor.prompt([Message("user", "<image>\nWhy?\nExplain it.")], 1)
