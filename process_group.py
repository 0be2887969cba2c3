"""The processes that `accelerate launch` starts: whether they found each other, what one of them says, and what each hands round."""

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
    "two CPU processes need ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 --num_machines 1 "
    "--mixed_precision no --dynamo_backend no (with --cpu alone, accelerate starts a single one)"
)


def init_distributed(timeout: timedelta | None = None) -> PartialState:
    """Join the other processes. patience: how long one waits for another before it gives up; None: as long as torch does.

    Raises UsageError when there are not as many as the launcher started.
    """
    on_cpu = str_to_bool(os.environ.get("ACCELERATE_USE_CPU", "false")) or not torch.accelerator.is_available()
    state = PartialState(cpu=bool(on_cpu), **({} if timeout is None else {"timeout": timeout}))
    launched = int(os.environ.get("WORLD_SIZE", state.num_processes))
    if state.num_processes != launched:
        raise UsageError(f"the launcher started {launched} processes, but only {state.num_processes} found each other; {LAUNCH_HELP}")
    return state


@contextlib.contextmanager
def main_process_only(is_main_process: bool) -> Iterator[None]:
    """Progress of work that every process does is shown once."""
    if is_main_process:
        yield
    else:
        with contextlib.redirect_stderr(io.StringIO()):
            yield


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """This process among those that do one work together, each the part that falls to it; alone, it does all."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes what the others only help with."""
        return self.rank == 0

    def owns(self, index: int) -> bool:
        """Whether the piece of work with this number falls to this process."""
        return index % self.world_size == self.rank

    def gather(self, value: T) -> list[T]:
        """What each process gives, in their order; every process must call this as often as the others."""
        if self.world_size == 1:
            return [value]
        gathered: list[T | None] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, value)
        return [cast(T, one) for one in gathered]


@contextlib.contextmanager
def init_process_group() -> Iterator[ProcessGroup]:
    """The share of this process, alone or below a launcher. Raises UsageError as `join` does.

    One may be done long before the others, above all where a broken-off run is continued, so they wait for days.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ProcessGroup()
        return
    state = init_distributed(timedelta(days=7))
    yield ProcessGroup(state.process_index, state.num_processes)
    # Not behind an error: the launcher then ends the others, who may be waiting for this one.
    state.destroy_process_group()
