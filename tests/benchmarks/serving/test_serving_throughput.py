"""`tools/benchmark.py serve` sends requests of many clients and of one client to a real server, and the same to `transformers serve`."""

import os
from pathlib import Path

import pytest

from benchmarks.serving.serving_throughput import Workload, measure, measure_against_transformers, synthetic_questions
from errors import TesseraError, UsageError

pytestmark = pytest.mark.xdist_group("server")
DEMO = Path(os.environ.get("TESSERA_DEMO", "none"))
WORKLOAD = Workload(questions=6, clients=3, rounds=2)


def test_many_clients_get_the_same_answers_as_one(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(experiment)
    report = measure(Path("trial.yaml"), ["rerank.clip=null"], Workload(questions=6, clients=3, rounds=2))
    single, concurrent = report.measured["results"]
    assert (single["clients"], concurrent["clients"]) == (1, 3)
    assert (single["same_answers"], concurrent["same_answers"]) == (6, 6)
    speedups = [one / many for one, many in zip(single["seconds"], concurrent["seconds"], strict=True)]
    assert concurrent["faster_by"]["median"] == pytest.approx(sum(speedups) / 2)
    assert single["faster_by"] is None
    assert [row[0] for row in report.rows] == ["1", "3"]


@pytest.mark.slow
def test_a_server_that_does_not_start_is_an_error_with_its_message(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(experiment)
    with pytest.raises(TesseraError, match=r"did not start: error: serve\.system: eval\.systems has no other"):
        measure(Path("trial.yaml"), ["serve.system=other"], Workload(1, 2, 1))


def test_each_question_is_about_a_different_image() -> None:
    questions = synthetic_questions(4)
    assert len({question.image for question in questions}) == 4
    assert all(question.image.startswith(b"\xff\xd8\xff") and question.text for question in questions)


def test_a_model_that_is_not_exported_for_transformers_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"^model\.family: --against transformers exports siglip_qwen .* not qwen_vl$"):
        measure_against_transformers(Path("configs/tiny_qwen3_vl.yaml"), [], WORKLOAD)


@pytest.mark.slow
@pytest.mark.skipif(not (DEMO / "checkpoints/tiny").is_dir(), reason="TESSERA_DEMO names no finished demo run")
def test_both_servers_give_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DEMO)
    report = measure_against_transformers(Path("configs/tiny.yaml"), [], WORKLOAD)
    assert [(row["clients"], row["server"]) for row in report.measured["results"]] == [
        (1, "ours"),
        (1, "transformers serve"),
        (3, "ours"),
        (3, "transformers serve"),
    ]
    assert {row["same_answers"] for row in report.measured["results"]} == {WORKLOAD.questions}
    ours, theirs, *_ = report.measured["results"]
    speedups = [their / our for our, their in zip(ours["seconds"], theirs["seconds"], strict=True)]
    assert ours["faster_by"]["median"] == pytest.approx(sum(speedups) / 2)
