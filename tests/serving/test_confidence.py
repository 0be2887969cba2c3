"""The service returns the confidence that an evaluation fitted for a system."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import cli
import config as configuration
from answering.config import find_system
from answering.reply import question_request, reply
from dataset.loading.image_io import open_image
from serving.engine import Engine, LoadPlan
from tests.evaluation.fakes import questions, write_store
from tests.fakes import EchoAnswerer
from tests.serving.conftest import ask, image_file, serving, wait_for
from tools import eval_rerank

QUESTION = "What color is it?"


@pytest.fixture(scope="module")
def engine(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A small Qwen3-VL with a reranker fitted on the validation split of a small data set."""
    folder = tmp_path_factory.mktemp("fitted") / "work"
    shutil.copytree(experiment, folder)
    write_store(folder / "data/trial", questions(2) + questions(6, "validation"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            cli.run(eval_rerank.main, eval_rerank.parser, ["--config", "trial.yaml", "rerank.tune=true", "eval.resamples=100"])
        assert ended.value.code == 0
        config = configuration.load(Path("trial.yaml"), ["serve.system=qwen"])
        system = find_system(config.eval.systems, config.serve.system, "serve.system")
        plan = LoadPlan(system.name, system, config.checkpoint_folder, config.result_folder / "plans", config.rerank, config.decoding)
        yield Engine.load(plan)


def test_an_answer_has_the_fitted_confidence(engine: Engine, answerer: EchoAnswerer) -> None:
    assert engine.reranker is not None
    request = question_request("vqa", QUESTION, [open_image(image_file())])
    (expected,) = reply(engine.answerer, engine.reranker, [request], engine.plan.decoding)
    assert expected.confidence is not None
    with serving(answerer, plan=engine.plan, load=lambda _: engine) as (client, service):
        wait_for(lambda: service.engine is not None)
        response, repeated = ask(client, QUESTION), ask(client, QUESTION)
        unranked = ask(client, QUESTION, rerank="false").json()
        two_candidates = ask(client, QUESTION, k=2).json()
    assert response.json()["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    assert 0 < response.json()["confidence"] < 1
    assert response.json()["answer"] == expected.chosen
    assert (repeated.headers["X-Cache"], repeated.json()) == ("hit", response.json())
    assert "confidence" not in unranked
    # The confidence was fitted for three candidates, so it is left out for two; they are still reranked.
    assert "confidence" not in two_candidates and "fused" in two_candidates["candidates"][0]


def test_the_service_abstains_below_the_threshold(engine: Engine, answerer: EchoAnswerer) -> None:
    assert engine.reranker is not None
    strict = Engine(engine.plan, engine.answerer, replace(engine.reranker, abstain_below=1.0))
    with serving(answerer, plan=engine.plan, load=lambda _: strict) as (client, service):
        wait_for(lambda: service.engine is not None)
        answer = ask(client, QUESTION).json()
    assert answer["answer"] == "not sure"
    assert answer["confidence"] < 1 and answer["candidates"]
