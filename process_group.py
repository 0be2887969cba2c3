"""Rank and world size of the processes that `accelerate launch` starts: initialisation, main-process output, all-gather of objects."""

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import str_to_bool

from errors import UsageError

T = TypeVar("T")

LAUNCH_HELP = (
    "for two CPU processes, use ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 --num_machines 1 "
    "--mixed_precision no --dynamo_backend no (with --cpu alone, accelerate starts a single process)"
)


def init_distributed(timeout: timedelta | None = None) -> PartialState:
    """Initialise torch.distributed through accelerate.

    Args:
        timeout: timeout of collective operations; None: torch's default.

    Raises:
        UsageError: the world size is not the number of processes that the launcher started.
    """
    on_cpu = str_to_bool(os.environ.get("ACCELERATE_USE_CPU", "false")) or not torch.accelerator.is_available()
    state = PartialState(cpu=bool(on_cpu), **({} if timeout is None else {"timeout": timeout}))
    launched = int(os.environ.get("WORLD_SIZE", state.num_processes))
    if state.num_processes != launched:
        raise UsageError(f"the launcher started {launched} processes, but the world size is {state.num_processes}; {LAUNCH_HELP}")
    return state


def main_process_only(is_main_process: bool) -> contextlib.AbstractContextManager[object]:
    """Context that discards standard error on all ranks but 0, so that the progress of work that every rank does is shown once."""
    return contextlib.nullcontext() if is_main_process else contextlib.redirect_stderr(io.StringIO())


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """Rank and world size. Work items are distributed round-robin over the ranks; a single process has rank 0 and world size 1."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which writes the results."""
        return self.rank == 0

    def owns(self, index: int) -> bool:
        """Whether this rank handles the work item with this index."""
        return index % self.world_size == self.rank

    def gather(self, value: T) -> list[T]:
        """All-gather a picklable object: the values of all ranks, by rank. A collective operation: every rank must call it."""
        if self.world_size == 1:
            return [value]
        gathered: list[T | None] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, value)
        return [cast(T, item) for item in gathered]


@contextlib.contextmanager
def init_process_group() -> Iterator[ProcessGroup]:
    """Context with this process's rank and world size, with or without a launcher.

    The timeout is seven days: ranks may finish far apart, above all when an interrupted run is resumed.

    Raises:
        UsageError: see `init_distributed`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ProcessGroup()
        return
    state = init_distributed(timedelta(days=7))
    yield ProcessGroup(state.process_index, state.num_processes)
    # Not in a `finally`: after an error the launcher terminates the other ranks, which may be waiting for this one.
    state.destroy_process_group()
