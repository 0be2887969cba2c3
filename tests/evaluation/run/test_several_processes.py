"""Several processes that evaluate together: each asks its share, all get everything, and one file is left."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from answering.config import RerankConfig
from evaluation.run.evaluation_run import conclude, evaluate
from evaluation.run.question_runner import NamedScorer
from evaluation.run.system_runner import Everything, ask_everything
from process_group import Share
from tests.evaluation.planted import COLORS, PlantedAnswerer, PlantedScorer, by_the_book, experiment, questions, write_store

T = TypeVar("T")
TUNED = RerankConfig(tune=True)


@dataclass(frozen=True, slots=True)
class Meeting(Share):
    """A share of threads in the place of processes."""

    table: Any = None
    barrier: Any = None

    def gather(self, own: T) -> list[T]:
        self.table[self.place] = own
        self.barrier.wait(60)
        found = [self.table[place] for place in range(self.processes)]
        self.barrier.wait(60)
        return found


def together(processes: int, work: Callable[[Meeting], T]) -> list[T]:
    table: dict[int, Any] = {}
    barrier = threading.Barrier(processes)
    with ThreadPoolExecutor(processes) as threads:
        return list(threads.map(lambda place: work(Meeting(place, processes, table, barrier)), range(processes)))


def test_two_processes_write_what_one_writes_and_each_asks_half(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(10) + questions(6, "validation"))
    alone, shared = (
        experiment(store, tmp_path / name, controls=("shuffled_pictures",), rerank=TUNED, corruptions=("dark",))
        for name in ("alone", "shared")
    )
    one = PlantedAnswerer(by_the_book)
    expected = evaluate(alone, lambda _: one, lambda _: one, [NamedScorer("clip", PlantedScorer(*COLORS))])
    each = [PlantedAnswerer(by_the_book) for _ in range(2)]

    def work(share: Share) -> Everything:
        own = each[share.place]
        return ask_everything(shared, lambda _: own, lambda _: own, [NamedScorer("clip", PlantedScorer(*COLORS))], share)

    main, helper = together(2, work)
    assert [said.predictions for said in main.systems.values()] == [said.predictions for said in helper.systems.values()]
    assert len(each[0].asked) + len(each[1].asked) == len(one.asked)
    assert min(len(answerer.asked) for answerer in each) > len(one.asked) / 3
    found = conclude(shared, main)
    for outcome in (expected, found):
        for figures in outcome.summary["systems"].values():
            assert figures.pop("questions_per_second") > 0
    assert found.summary == expected.summary
    written = [{str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.jsonl*")} for out in (alone.out, shared.out)]
    assert written[0] == written[1]
    assert "predictions/ours.jsonl" in written[1]


def test_what_helpers_had_answered_when_they_were_killed_is_not_asked_again(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(10)), tmp_path / "out")
    scorer = NamedScorer("clip", PlantedScorer(*COLORS))

    def killed(share: Meeting) -> None:
        # The helper dies in its second chunk; the others wait for it in vain, as they do until their launcher ends them.
        answerer = PlantedAnswerer(by_the_book, dies_after=8 if share.place else None)
        try:
            ask_everything(planned, lambda _: answerer, lambda _: answerer, [scorer], share)
        except KeyboardInterrupt:
            share.barrier.abort()
        except threading.BrokenBarrierError:
            pass

    together(2, killed)
    folder = planned.out / "predictions"
    assert {path.name for path in folder.iterdir() if "timing" not in path.name} == {"ours.jsonl", "ours.jsonl.part1"}
    again = PlantedAnswerer(by_the_book)
    evaluate(planned, lambda _: again, lambda _: again, [scorer])
    # The helper had the first of its three chunks; the others hold six and two.
    assert len(again.asked) == 8
    assert {path.name for path in folder.iterdir() if "timing" not in path.name} == {"ours.jsonl"}
    assert len(folder.joinpath("ours.jsonl").read_text(encoding="utf-8").splitlines()) == 40


def test_of_processes_that_answer_side_by_side_the_slowest_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(4)), tmp_path / "out")
    ticks = threading.local()

    def clock() -> float:
        # Each chunk takes a second, and a second process's take three.
        ticks.now = getattr(ticks, "now", 0.0) + getattr(ticks, "step", 1.0)
        return float(ticks.now)

    monkeypatch.setattr("evaluation.run.question_runner.time.monotonic", clock)

    def work(share: Share) -> float | None:
        ticks.step = 3.0 if share.place else 1.0
        answerer = PlantedAnswerer(by_the_book)
        return ask_everything(planned, lambda _: answerer, lambda _: answerer, (), share).systems["ours"].questions_per_second

    # Two chunks of eight: 16 questions, the slower process took 3 seconds.
    assert together(2, work) == [pytest.approx(16 / 3)] * 2
    saved = json.loads((planned.out / "predictions" / "ours.timing.json").read_text(encoding="utf-8"))
    assert (saved["questions"], saved["seconds"]) == (16, 3.0)
