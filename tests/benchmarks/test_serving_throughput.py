"""`tools/benchmark.py serve` asks a real server from many clients and from one."""

from pathlib import Path

import pytest

from benchmarks.serving_throughput import Workload, measure, synthetic_questions
from errors import TesseraError

pytestmark = pytest.mark.xdist_group("server")


def test_many_clients_get_the_answers_of_one(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(experiment)
    report = measure(Path("trial.yaml"), ["rerank.clip=null"], Workload(questions=6, clients=3, rounds=2))
    alone, together = report.measured["results"]
    assert (alone["clients"], together["clients"]) == (1, 3)
    assert (alone["same_answers"], together["same_answers"]) == (6, 6)
    quotients = [one / many for one, many in zip(alone["seconds"], together["seconds"], strict=True)]
    assert together["faster_by"]["median"] == pytest.approx(sum(quotients) / 2)
    assert alone["faster_by"] is None
    assert [row[0] for row in report.rows] == ["1", "3"]


def test_a_server_that_does_not_start_says_why(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(experiment)
    with pytest.raises(TesseraError, match=r"did not start: error: serve\.system: eval\.systems has no other"):
        measure(Path("trial.yaml"), ["serve.system=other"], Workload(1, 2, 1))


def test_each_question_is_about_a_image_of_its_own() -> None:
    questions = synthetic_questions(4)
    assert len({question.image for question in questions}) == 4
    assert all(question.image.startswith(b"\xff\xd8\xff") and question.text for question in questions)
