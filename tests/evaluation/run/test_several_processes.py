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
from evaluation.run.evaluation_run import evaluate, score_evaluation
from evaluation.run.question_runner import NamedScorer
from evaluation.run.system_runner import EvaluationRun, run_all_systems
from process_group import ProcessGroup
from tests.evaluation.planted import COLORS, PlantedAnswerer, PlantedScorer, experiment, mostly_right, questions, write_store

T = TypeVar("T")
TUNED = RerankConfig(tune=True)


@dataclass(frozen=True, slots=True)
class Meeting(ProcessGroup):
    """A share of threads in the place of processes."""

    table: Any = None
    barrier: Any = None

    def gather(self, own: T) -> list[T]:
        self.table[self.rank] = own
        self.barrier.wait(60)
        found = [self.table[rank] for rank in range(self.world_size)]
        self.barrier.wait(60)
        return found


def together(world_size: int, work: Callable[[Meeting], T]) -> list[T]:
    table: dict[int, Any] = {}
    barrier = threading.Barrier(world_size)
    with ThreadPoolExecutor(world_size) as threads:
        return list(threads.map(lambda rank: work(Meeting(rank, world_size, table, barrier)), range(world_size)))


def test_two_processes_write_what_one_writes_and_each_asks_half(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(10) + questions(6, "validation"))
    alone, shared = (
        experiment(store, tmp_path / name, controls=("shuffled_images",), rerank=TUNED, corruptions=("dark",))
        for name in ("alone", "shared")
    )
    one = PlantedAnswerer(mostly_right)
    expected = evaluate(alone, lambda _: one, lambda _: one, [NamedScorer("clip", PlantedScorer(*COLORS))])
    each = [PlantedAnswerer(mostly_right) for _ in range(2)]

    def work(process_group: ProcessGroup) -> EvaluationRun:
        own = each[process_group.rank]
        return run_all_systems(shared, lambda _: own, lambda _: own, [NamedScorer("clip", PlantedScorer(*COLORS))], process_group)

    main, helper = together(2, work)
    assert [said.predictions for said in main.systems.values()] == [said.predictions for said in helper.systems.values()]
    assert len(each[0].asked) + len(each[1].asked) == len(one.asked)
    assert min(len(answerer.asked) for answerer in each) > len(one.asked) / 3
    found = score_evaluation(shared, main)
    for evaluation_result in (expected, found):
        for figures in evaluation_result.summary["systems"].values():
            assert figures.pop("questions_per_second") > 0
    assert found.summary == expected.summary
    written = [{str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.jsonl*")} for out in (alone.out, shared.out)]
    assert written[0] == written[1]
    assert "predictions/ours.jsonl" in written[1]


def test_what_helpers_had_answered_when_they_were_killed_is_not_asked_again(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(10)), tmp_path / "out")
    scorer = NamedScorer("clip", PlantedScorer(*COLORS))

    def killed(process_group: Meeting) -> None:
        # The helper dies in its second chunk; the others wait for it in vain, as they do until their launcher ends them.
        answerer = PlantedAnswerer(mostly_right, interrupt_after=8 if process_group.rank else None)
        try:
            run_all_systems(planned, lambda _: answerer, lambda _: answerer, [scorer], process_group)
        except KeyboardInterrupt:
            process_group.barrier.abort()
        except threading.BrokenBarrierError:
            pass

    together(2, killed)
    folder = planned.out / "predictions"
    assert {path.name for path in folder.iterdir() if "timing" not in path.name} == {"ours.jsonl", "ours.jsonl.part1"}
    again = PlantedAnswerer(mostly_right)
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
        ticks.now = getattr(ticks, "current_settings", 0.0) + getattr(ticks, "step", 1.0)
        return float(ticks.now)

    monkeypatch.setattr("evaluation.run.question_runner.time.monotonic", clock)

    def work(process_group: ProcessGroup) -> float | None:
        ticks.step = 3.0 if process_group.rank else 1.0
        answerer = PlantedAnswerer(mostly_right)
        return run_all_systems(planned, lambda _: answerer, lambda _: answerer, (), process_group).systems["ours"].questions_per_second

    # Two chunks of eight: 16 questions, the slower process took 3 seconds.
    assert together(2, work) == [pytest.approx(16 / 3)] * 2
    saved = json.loads((planned.out / "predictions" / "ours.timing.json").read_text(encoding="utf-8"))
    assert (saved["questions"], saved["seconds"]) == (16, 3.0)
