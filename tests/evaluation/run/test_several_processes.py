"""Evaluation with several ranks: each answers its share, all get all predictions, and one file remains."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from answering.config import RerankConfig
from evaluation.run.evaluation_run import score_evaluation
from evaluation.run.question_runner import NamedScorer
from evaluation.run.system_runner import EvaluationRun, run_all_systems
from process_group import ProcessGroup
from tests.evaluation.fakes import COLORS, evaluate, experiment, mostly_right, questions, write_store
from tests.fakes import FakeAnswerer, FakeScorer

T = TypeVar("T")
TUNED = RerankConfig(tune=True)


@dataclass(frozen=True, slots=True)
class ThreadGroup(ProcessGroup):
    """A process group whose ranks are threads."""

    table: Any = None
    barrier: Any = None

    def gather(self, value: T) -> list[T]:
        self.table[self.rank] = value
        self.barrier.wait(60)
        gathered = [self.table[rank] for rank in range(self.world_size)]
        self.barrier.wait(60)
        return gathered


def run_ranks(world_size: int, work: Callable[[ThreadGroup], T]) -> list[T]:
    table: dict[int, Any] = {}
    barrier = threading.Barrier(world_size)
    with ThreadPoolExecutor(world_size) as threads:
        return list(threads.map(lambda rank: work(ThreadGroup(rank, world_size, table, barrier)), range(world_size)))


def test_two_ranks_write_the_same_files_as_one_and_share_the_questions(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(10) + questions(6, "validation"))
    single, shared = (
        experiment(store, tmp_path / name, controls=("shuffled_images",), rerank=TUNED, corruptions=("dark",))
        for name in ("alone", "shared")
    )
    answerer = FakeAnswerer(mostly_right)
    expected = evaluate(single, lambda _: answerer, lambda _: answerer, [NamedScorer("clip", FakeScorer(*COLORS))])
    by_rank = [FakeAnswerer(mostly_right) for _ in range(2)]

    def work(process_group: ProcessGroup) -> EvaluationRun:
        rank_answerer = by_rank[process_group.rank]
        return run_all_systems(
            shared, lambda _: rank_answerer, lambda _: rank_answerer, [NamedScorer("clip", FakeScorer(*COLORS))], process_group
        )

    main, other = run_ranks(2, work)
    assert [item.predictions for item in main.systems.values()] == [item.predictions for item in other.systems.values()]
    assert len(by_rank[0].asked) + len(by_rank[1].asked) == len(answerer.asked)
    assert min(len(item.asked) for item in by_rank) > len(answerer.asked) / 3
    result = score_evaluation(shared, main)
    records = [evaluation_result.record() for evaluation_result in (expected, result)]
    for record in records:
        for figures in record["systems"].values():
            assert figures.pop("questions_per_second") > 0
    assert records[0] == records[1]
    written = [{str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.jsonl*")} for out in (single.out, shared.out)]
    assert written[0] == written[1]
    assert "predictions/ours.jsonl" in written[1]


def test_answers_of_other_ranks_of_a_killed_run_are_reused(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(10)), tmp_path / "out")
    scorer = NamedScorer("clip", FakeScorer(*COLORS))

    def killed(process_group: ThreadGroup) -> None:
        # Rank 1 dies in its second chunk; rank 0 waits for it until the barrier breaks, as under a launcher.
        answerer = FakeAnswerer(mostly_right, interrupt_after=8 if process_group.rank else None)
        try:
            run_all_systems(planned, lambda _: answerer, lambda _: answerer, [scorer], process_group)
        except KeyboardInterrupt:
            process_group.barrier.abort()
        except threading.BrokenBarrierError:
            pass

    run_ranks(2, killed)
    folder = planned.out / "predictions"
    assert {path.name for path in folder.iterdir() if "timing" not in path.name} == {"ours.jsonl", "ours.jsonl.part1"}
    again = FakeAnswerer(mostly_right)
    evaluate(planned, lambda _: again, lambda _: again, [scorer])
    # Rank 1 owns chunks of 8, 6 and 2 questions, and had answered only the first.
    assert len(again.asked) == 8
    assert {path.name for path in folder.iterdir() if "timing" not in path.name} == {"ours.jsonl"}
    assert len(folder.joinpath("ours.jsonl").read_text(encoding="utf-8").splitlines()) == 40


def test_the_speed_is_that_of_the_slowest_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(4)), tmp_path / "out")
    ticks = threading.local()

    def clock() -> float:
        # A chunk takes one second on rank 0 and three seconds on rank 1.
        ticks.now = getattr(ticks, "now", 0.0) + getattr(ticks, "step", 1.0)
        return float(ticks.now)

    monkeypatch.setattr("evaluation.run.question_runner.time.monotonic", clock)

    def work(process_group: ProcessGroup) -> float | None:
        ticks.step = 3.0 if process_group.rank else 1.0
        answerer = FakeAnswerer(mostly_right)
        return run_all_systems(planned, lambda _: answerer, lambda _: answerer, (), process_group).systems["ours"].questions_per_second

    # Two chunks of eight: 16 questions, the slower rank took 3 seconds.
    assert run_ranks(2, work) == [pytest.approx(16 / 3)] * 2
    saved = json.loads((planned.out / "predictions" / "ours.timing.json").read_text(encoding="utf-8"))
    assert (saved["questions"], saved["seconds"]) == (16, 3.0)
