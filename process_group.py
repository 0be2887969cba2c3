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

WORLD_HELP = (
    "two CPU processes need ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 --num_machines 1 "
    "--mixed_precision no --dynamo_backend no (with --cpu alone, accelerate starts a single one)"
)


def join(patience: timedelta | None = None) -> PartialState:
    """Join the other processes. patience: how long one waits for another before it gives up; None: as long as torch does.

    Raises UsageError when there are not as many as the launcher started.
    """
    on_cpu = str_to_bool(os.environ.get("ACCELERATE_USE_CPU", "false")) or not torch.accelerator.is_available()
    state = PartialState(cpu=bool(on_cpu), **({} if patience is None else {"timeout": patience}))
    launched = int(os.environ.get("WORLD_SIZE", state.num_processes))
    if state.num_processes != launched:
        raise UsageError(f"the launcher started {launched} processes, but only {state.num_processes} found each other; {WORLD_HELP}")
    return state


@contextlib.contextmanager
def only_main_speaks(main: bool) -> Iterator[None]:
    """Progress of work that every process does is shown once."""
    if main:
        yield
    else:
        with contextlib.redirect_stderr(io.StringIO()):
            yield


@dataclass(frozen=True, slots=True)
class Share:
    """This process among those that do one work together, each the part that falls to it; alone, it does all."""

    place: int = 0
    processes: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes what the others only help with."""
        return self.place == 0

    def takes(self, number: int) -> bool:
        """Whether the piece of work with this number falls to this process."""
        return number % self.processes == self.place

    def gather(self, own: T) -> list[T]:
        """What each process gives, in their order; every process must call this as often as the others."""
        if self.processes == 1:
            return [own]
        found: list[T | None] = [None] * self.processes
        torch.distributed.all_gather_object(found, own)
        return [cast(T, one) for one in found]


@contextlib.contextmanager
def working_together() -> Iterator[Share]:
    """The share of this process, alone or below a launcher. Raises UsageError as `join` does.

    One may be done long before the others, above all where a broken-off run is continued, so they wait for days.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Share()
        return
    state = join(timedelta(days=7))
    yield Share(state.process_index, state.num_processes)
    # Not behind an error: the launcher then ends the others, who may be waiting for this one.
    state.destroy_process_group()
