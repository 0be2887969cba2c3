"""Worker processes end with the process that started them, and one that the system kills costs one item."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dataset import worker_pool
from dataset.worker_pool import WorkerMap, map_in_workers
from errors import TesseraError
from tests.pipeline import ROOT

PROGRAM = """
import sys, threading
from dataset.worker_pool import worker_pool
from dataset.loading.image_io import printable_path

if __name__ == "__main__":
    with worker_pool(2) as pool:
        list(pool.map(printable_path, "ab"))
        print("started", flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_when_their_parent_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "started\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    parent.send_signal(number)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    parent.communicate()


def square_or_die(number: int) -> int:
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_an_item_that_kills_its_process_costs_itself_alone() -> None:
    items = [*range(10), -1, *range(20, 30), -2]
    results = list(map_in_workers(square_or_die, items, workers=2, chunk=2, killed=lambda number: 1000 + number))
    assert results == [1000 + item if item < 0 else item * item for item in items]


def test_workers_that_cannot_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "end_with_parent", die)
    with pytest.raises(TesseraError, match="worker processes cannot be started"):
        list(map_in_workers(square_or_die, [1, 2], workers=1, chunk=1, killed=lambda number: number))


def die() -> None:
    os._exit(1)


def mark_and_square(item: tuple[Path, int]) -> int:
    (item[0] / str(item[1])).touch()
    return item[1] ** 2


def test_work_begins_while_items_are_still_added(tmp_path: Path) -> None:
    with WorkerMap(mark_and_square, 2, 2, killed=lambda item: item[1]) as worker_map:
        for number in range(4):
            worker_map.add((tmp_path, number))
        while len(list(tmp_path.iterdir())) < 4:
            time.sleep(0.01)
        worker_map.add((tmp_path, 4))
        assert list(worker_map.results()) == [0, 1, 4, 9, 16]


def test_what_was_computed_before_an_error_is_not_lost(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), WorkerMap(mark_and_square, 1, 1, killed=lambda item: item[1]) as worker_map:
        for number in range(3):
            worker_map.add((tmp_path, number))
        while not (tmp_path / "1").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert list(worker_map.completed())[:2] == [0, 1]


def test_a_process_that_is_killed_while_items_are_added_costs_its_item_alone() -> None:
    with WorkerMap(square_or_die, 2, 1, killed=lambda number: 1000 + number) as worker_map:
        for number in [1, -1, *range(2, 40)]:
            worker_map.add(number)
            time.sleep(0.01)
        assert list(worker_map.results()) == [1, 999, *(number**2 for number in range(2, 40))]
