"""Streams are divided over ranks and workers: no sample twice in an epoch, and the same batches after a change of both."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import config as configuration
from errors import UsageError
from process_group import ProcessGroup
from training.run_setup import setup_run
from training.streaming.stream_loader import ERROR, STATE, StreamDataset, StreamLayout
from training.streaming.stream_setup import StreamSetup

STAGES = [{"name": "tune", "train": ["connector", "lora"], "max_steps": 9}]


@pytest.fixture
def stream(streamed: Callable[..., Path]) -> StreamSetup:
    setup = setup_run(configuration.load(streamed(stages=STAGES)))
    assert setup.stream is not None
    return setup.stream


def batches(stream: StreamSetup, layouts: list[StreamLayout], workers: int, count: int, patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """`count` batches in the order of the run, as all ranks with their workers make them."""
    iterators = []
    for layout in layouts:
        per_worker = []
        for number in range(workers):
            patch.setattr("training.streaming.stream_loader.get_worker_info", lambda n=number: SimpleNamespace(id=n, num_workers=workers))
            worker = iter(StreamDataset(stream.settings, layout))
            per_worker.append(itertools.chain([next(worker)], worker))
        iterators.append(itertools.cycle(per_worker))
    return [next(next(iterators[number % len(layouts)])) for number in range(count)]


def layouts(world_size: int, **kept: Any) -> list[StreamLayout]:
    return [StreamLayout(ProcessGroup(rank, world_size), **{"streams": 4, **kept}) for rank in range(world_size)]


def sample_ids(made: list[dict[str, Any]]) -> list[list[str]]:
    assert not [batch[ERROR] for batch in made if ERROR in batch]
    return [list(batch["layout"].sample_ids) for batch in made]


@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (2, 2), (4, 1), (1, 4)])
def test_the_batches_of_a_run_are_the_same_for_any_ranks_and_workers(
    stream: StreamSetup, world_size: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = batches(stream, layouts(world_size), workers, 8, monkeypatch)
    assert sample_ids(made) == sample_ids(batches(stream, layouts(1), 1, 8, monkeypatch))
    # Each of the four streams has six samples an epoch, in batches of four and two.
    assert Counter(name for batch in sample_ids(made) for name in batch) == {f"llava/{i}": 1 for i in range(24)}


@pytest.mark.parametrize(("world_size", "workers"), [(1, 2), (2, 1), (4, 1)])
@pytest.mark.parametrize("done", [4, 8, 12])
def test_another_launch_goes_on_with_the_same_batches(
    stream: StreamSetup, world_size: int, workers: int, done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = batches(stream, layouts(2), 2, 24, monkeypatch)
    for rank in range(2):
        loader = stream.loader(0, ProcessGroup(rank, 2), 2, None, False)
        loader.states = {number: state for number, state in (batch[STATE] for batch in expected[:done]) if number % 2 == rank}
        loader.taken = done // 2
        loader.save(tmp_path)
    saved = [StreamLayout.saved(ProcessGroup(rank, world_size), tmp_path) for rank in range(world_size)]
    assert [layout.workers(3) for layout in saved] == [4 // world_size if 4 // world_size < 3 else 2] * world_size
    assert sample_ids(batches(stream, saved, workers, 24 - done, monkeypatch)) == sample_ids(expected[done:])


def test_processes_that_cannot_share_the_streams_are_refused(tmp_path: Path) -> None:
    (tmp_path / "stream_0.json").write_text('{"streams": 4, "batches": 8, "states": {}}')
    with pytest.raises(
        UsageError, match="reads its data in 4 streams, which 3 processes cannot share; resume with a number that divides 4"
    ):
        StreamLayout.saved(ProcessGroup(0, 3), tmp_path)
    (tmp_path / "stream_0.json").write_text("{")
    with pytest.raises(UsageError, match=r"stream_\*\.json cannot be read .JSONDecodeError.; take an earlier checkpoint"):
        StreamLayout.saved(ProcessGroup(0, 1), tmp_path)


def test_rows_of_short_samples_are_full_from_the_first_on(streamed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.streaming.batch_stream.FIRST_SAMPLES", 1)
    monkeypatch.setattr("training.streaming.batch_stream.SAMPLES_PER_BATCH", 0)
    setup = setup_run(configuration.load(streamed(stages=STAGES, batching="packed", packing_length=512)))
    assert setup.stream is not None
    lengths = {len(encoded) for encoded in setup.stream.first}
    batch = next(iter(StreamDataset(setup.stream.settings, StreamLayout(ProcessGroup(), 1))))
    assert len(batch["layout"].sample_ids) >= 512 // max(lengths) - 1 > 3
