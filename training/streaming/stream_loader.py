"""Loads the batches of a stage from several streams, in the workers of all ranks, and keeps the state from which a run goes on.

Batch b of a run comes from stream b modulo the number of streams, and rank r of R takes the batches r, r + R, r + 2R ...; a worker of a
rank reads the streams of its own batches. So every sample is in one stream alone, whatever the numbers of ranks and workers.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from atomic_io import write_text
from dataset.streaming.source_records import Share
from errors import TesseraError, UsageError
from process_group import ProcessGroup
from training.interruption.stop_signals import ignore_stop_signals
from training.streaming.batch_stream import BatchStream, StreamSettings

STATE = "stream_state"
"""Key of a batch with the number of its stream and the stream's state after it."""
ERROR = "stream_error"
"""Key of what a worker hands over in the place of a batch when the data cannot be read on: one sentence."""


@dataclass(frozen=True)
class StreamLayout:
    """Which streams a rank reads.

    Args:
        group: Rank and world size.
        streams: Number of streams of the run: as where it began.
        first_batch: Batches that all ranks have trained on before.
        states: State of each stream after these, by number; empty where the run begins.
    """

    group: ProcessGroup
    streams: int
    first_batch: int = 0
    states: dict[int, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def new(cls, group: ProcessGroup, workers: int) -> "StreamLayout":
        """The layout of a new stage: one stream for each worker of all ranks. workers: of one rank, 0 = it loads itself."""
        return cls(group, group.world_size * max(1, workers))

    @classmethod
    def saved(cls, group: ProcessGroup, folder: Path) -> "StreamLayout":
        """The layout that `StreamLoader.save` wrote, for the same or another world size. Raises UsageError when it cannot be had."""
        files = sorted(folder.glob("stream_*.json"))
        try:
            contents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
            states = {int(number): state for content in contents for number, state in content["states"].items()}
            streams, batches = contents[0]["streams"], contents[0]["batches"]
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise UsageError(
                f"--resume: {folder}/stream_*.json cannot be read ({type(error).__name__}); take an earlier checkpoint"
            ) from error
        if streams % group.world_size:
            raise UsageError(
                f"train.num_processes: the run reads its data in {streams} streams, which {group.world_size} processes cannot share; "
                f"resume with a number that divides {streams}"
            )
        return cls(group, streams, batches, states)

    def workers(self, wanted: int) -> int:
        """Number of workers of a rank: at most as many as wanted, and so that each reads whole streams."""
        per_rank = self.streams // self.group.world_size
        return max((count for count in range(1, wanted + 1) if per_rank % count == 0), default=0)

    def batches_of(self, worker: int, workers: int) -> Iterator[int]:
        """Numbers of the batches that a worker of this rank makes, in order."""
        return itertools.count(self.first_batch + self.group.rank + worker * self.group.world_size, workers * self.group.world_size)


class StreamDataset(IterableDataset[dict[str, Any]]):
    """The batches of one rank, each with the state of its stream."""

    def __init__(self, settings: StreamSettings, layout: StreamLayout):
        self.settings, self.layout = settings, layout

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        layout, streams = self.layout, dict[int, BatchStream]()
        for batch in layout.batches_of(number, workers):
            stream = batch % layout.streams
            try:
                if stream not in streams:
                    streams[stream] = BatchStream(self.settings, Share(stream, layout.streams), layout.states.get(stream))
                yield {**streams[stream].next_batch(), STATE: (stream, streams[stream].state())}
            except TesseraError as error:
                # As an exception, torch would add the traceback of the worker to it.
                yield {ERROR: str(error)}
                return


class StreamLoader(DataLoader):
    """This rank's batches, without end. `states` are those of the streams after the last batch that was taken.

    Args:
        dataset: The streams.
        workers: Number of worker processes; 0 = none.
        prefetch: Batches that each prepares in advance.
        pin_memory: Whether batches go to pinned memory.
    """

    def __init__(self, dataset: StreamDataset, workers: int, prefetch: int, pin_memory: bool):
        self.layout, self.states, self.taken = dataset.layout, dict(dataset.layout.states), 0
        super().__init__(
            dataset,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            worker_init_fn=ignore_stop_signals,
            prefetch_factor=prefetch if workers else None,
            pin_memory=pin_memory,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        for batch in super().__iter__():
            if message := batch.get(ERROR):
                raise TesseraError(message)
            stream, state = batch.pop(STATE)
            self.states[stream] = state
            self.taken += 1
            yield batch

    def own_states(self) -> dict[int, dict[str, Any]]:
        """States of the streams that this rank reads; each stream is read by one rank alone."""
        group = self.layout.group
        return {
            number: state for number, state in self.states.items() if (number - self.layout.first_batch) % group.world_size == group.rank
        }

    def save(self, folder: Path) -> None:
        """Write this rank's part of the state to the trainer folder of a checkpoint."""
        batches = self.layout.first_batch + self.taken * self.layout.group.world_size
        content = {"streams": self.layout.streams, "batches": batches, "states": self.own_states()}
        write_text(folder / f"stream_{self.layout.group.rank}.json", json.dumps(content))


def _unchanged(batch: Any) -> Any:
    return batch
