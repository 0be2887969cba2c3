"""The export of a finished demo run gives our greedy answers in other programs. TESSERA_DEMO names the folder of that run."""

import base64
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionContentPartParam

from answering.answerer_factory import build_answerer
from answering.config import CheckpointSystem
from answering.protocol import Answerer, Decoding
from dataset.loading.sample_store import SampleStore
from evaluation.questions import Question, choose
from model.checkpoint_manifest import latest_checkpoint
from model.hub.llava_export import export
from model.siglip_qwen.processor import Processor
from tests.model.hub.card_example import load_example

FOLDER = Path(os.environ.get("TESSERA_DEMO", "none"))
ADDRESS = re.compile(r"running on (http://\S+)")
GREEDY = Decoding(num_candidates=1, strategy="greedy", max_new_tokens=64, batch_size=1)

pytestmark = pytest.mark.skipif(
    not (FOLDER / "results/tiny/predictions/ours.jsonl").is_file(), reason="TESSERA_DEMO names no finished demo run"
)


@pytest.fixture(scope="module")
def questions() -> Sequence[Question]:
    """Short-answer questions of the test split, each about one image."""
    with chdir(FOLDER):
        chosen = choose(SampleStore(Path("data/tiny")), "test", None)
    return [question for question in chosen if question.short and len(question.images) == 1][:700]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The latest checkpoint of the run in the LLaVA format."""
    folder = tmp_path_factory.mktemp("export") / "demo"
    with chdir(FOLDER):
        checkpoint = latest_checkpoint(Path("checkpoints/tiny"))
        export(checkpoint, folder, "llava", Processor.load(checkpoint))
    return folder


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    """Our own answerer of the checkpoint that was exported."""
    with chdir(FOLDER):
        return build_answerer(CheckpointSystem(name="ours", kind="checkpoint"), checkpoint_folder=Path("checkpoints/tiny"))


@pytest.fixture(scope="module")
def our_answers(answerer: Answerer, questions: Sequence[Question]) -> list[str]:
    with chdir(FOLDER):
        return [answer.first.text for answer in answerer.answer([question.request for question in questions], GREEDY)]


def image_path(question: Question) -> Path:
    (path,) = question.request.images
    assert isinstance(path, Path)
    return FOLDER / path


def test_the_cards_example_gives_our_greedy_answers(exported: Path, questions: Sequence[Question], our_answers: list[str]) -> None:
    ask = load_example(exported)
    theirs = [ask(image_path(question), question.text).strip() for question in questions]
    assert len(theirs) >= 300 and len(set(theirs)) > 20
    assert theirs == our_answers


@pytest.fixture(scope="module")
def transformers_serve(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """Client of a `transformers serve` process with the export; the process runs in its folder and serves it as `.`."""
    command = [str(Path(sys.executable).with_name("transformers")), "serve", ".", "--port", "0", "--device", "cpu"]
    output = tmp_path_factory.mktemp("serve") / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=exported, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=file, stderr=file)
    try:
        while not (found := ADDRESS.search(output.read_text())):
            assert process.poll() is None, f"transformers serve did not start: {output.read_text()}"
            time.sleep(0.2)
        with openai.OpenAI(base_url=f"{found[1]}/v1", api_key="none") as client:
            yield client
    finally:
        process.kill()
        process.wait()


def test_transformers_serve_gives_our_greedy_answers(
    transformers_serve: openai.OpenAI, questions: Sequence[Question], our_answers: list[str]
) -> None:
    theirs = []
    for question in questions[:100]:
        image = base64.b64encode(image_path(question).read_bytes()).decode()
        content: list[ChatCompletionContentPartParam] = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}},
            {"type": "text", "text": question.text},
        ]
        completion = transformers_serve.chat.completions.create(model=".", messages=[{"role": "user", "content": content}], max_tokens=64)
        theirs.append((completion.choices[0].message.content or "").strip())
    assert len(theirs) == 100
    assert theirs == our_answers[:100]
