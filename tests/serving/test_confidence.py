"""What an evaluation taught of a system's credibility stands in the service's answers."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import cli
import config as configuration
from answering.reply import question_request, reply
from dataset.loading.image_io import open_image
from serving.engine import Engine, LoadPlan
from serving.server import select_system
from tests.evaluation.planted import questions, write_store
from tests.serving.conftest import FakeAnswerer, ask, image_file, serving, wait_for
from tools import eval_rerank

QUESTION = "What color is it?"


@pytest.fixture(scope="module")
def engine(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A small Qwen3-VL with a plan that was fitted on the validation split of a small store."""
    folder = tmp_path_factory.mktemp("judged") / "work"
    shutil.copytree(experiment, folder)
    write_store(folder / "data/trial", questions(2) + questions(6, "validation"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            cli.run(eval_rerank.main, eval_rerank.parser, ["--config", "trial.yaml", "rerank.tune=true", "eval.bootstrap=100"])
        assert ended.value.code == 0
        config = configuration.load(Path("trial.yaml"), ["serve.system=qwen"])
        system = select_system(config.serve, config.eval.systems, config.name)
        plan = LoadPlan(system.name, system, config.checkpoint_folder, config.result_folder / "plans", config.rerank, config.decoding)
        yield Engine.load(plan)


def test_an_answer_says_how_likely_it_is_right(engine: Engine, planted: FakeAnswerer) -> None:
    assert engine.reranker is not None
    request = question_request("vqa", QUESTION, [open_image(image_file())])
    (expected,) = reply(engine.answerer, engine.reranker, [request], engine.plan.decoding)
    assert expected.confidence is not None
    with serving(planted, plan=engine.plan, load=lambda _: engine) as (client, service):
        wait_for(lambda: service.engine is not None)
        found, again = ask(client, QUESTION), ask(client, QUESTION)
        bare = ask(client, QUESTION, rerank="false").json()
        other = ask(client, QUESTION, k=2).json()
    assert found.json()["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    assert 0 < found.json()["confidence"] < 1
    assert found.json()["answer"] == expected.chosen
    assert (again.headers["X-Cache"], again.json()) == ("hit", found.json())
    assert "confidence" not in bare
    # What was fitted for three candidates says nothing of two; they are reranked all the same.
    assert "confidence" not in other and "fused" in other["candidates"][0]


def test_an_answer_that_is_not_trusted_is_not_given(engine: Engine, planted: FakeAnswerer) -> None:
    assert engine.reranker is not None
    strict = Engine(engine.plan, engine.answerer, replace(engine.reranker, abstain_below=1.0))
    with serving(planted, plan=engine.plan, load=lambda _: strict) as (client, service):
        wait_for(lambda: service.engine is not None)
        found = ask(client, QUESTION).json()
    assert found["answer"] == "not sure"
    assert found["confidence"] < 1 and found["candidates"]
