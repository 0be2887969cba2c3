"""Resuming with another number of processes: an optimizer step keeps its samples, only their distribution over ranks changes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dataset.loading.samplers import StepShape
from errors import UsageError
from training.checkpointing.resume import STEP_KEYS
from training.config import TrainConfig
from training.data_loading import Batching
from training.distributed.launch import uses_deepspeed
from training.run_setup import Machine


def with_resumed_batching(machine: Machine, train: TrainConfig, before: Mapping[str, Any]) -> Machine:
    """The machine with `resumed_batching`, which is printed where it differs.

    Raises UsageError also when the optimizer state is one that only as many processes as before can read (ZeRO).
    """
    processes, accumulation, _ = (before[key] for key in STEP_KEYS)
    if uses_deepspeed() and machine.batching.world_size != processes:
        raise UsageError(f"train.num_processes: DeepSpeed's optimizer state of {processes} processes can be read by {processes} only")
    batching = resumed_batching(machine.batching, train, before)
    if (batching.step.micro_batches, batching.world_size) != (accumulation, processes):
        machine.print_once(
            f"an optimizer step keeps its samples: {batching.step.micro_batches} micro-batches on each of {batching.world_size} processes, "
            f"where the run began {accumulation} on each of {processes}"
        )
    return dataclasses.replace(machine, batching=batching)


def resumed_batching(batching: Batching, train: TrainConfig, before: Mapping[str, Any]) -> Batching:
    """The batching of a resumed run: its steps are planned as where it began, in the micro-batches of this launch.

    If train.gradient_accumulation_steps is as in the checkpoint, it is adapted to the world size.

    batching: as for a new run with this launch's settings; before: settings in the checkpoint.

    Raises UsageError when the samples of a step cannot be divided in this way; it names settings that would do.
    """
    processes, accumulation, batch_size = (int(before[key]) for key in STEP_KEYS)
    planned = accumulation * processes
    # Packed rows are not divided, so they are counted instead of samples.
    per_batch, per_micro_batch = (1, 1) if batching.packed else (batch_size, train.per_device_train_batch_size)
    total, each = planned * per_batch, per_micro_batch * batching.world_size
    micro_batches = train.gradient_accumulation_steps
    if micro_batches == accumulation and total % each == 0:
        micro_batches = total // each
    if micro_batches * each != total:
        raise UsageError(_advice(batching, train, total, before))
    return dataclasses.replace(batching, per_device_train_batch_size=batch_size, step=StepShape(planned, micro_batches))


def _advice(batching: Batching, train: TrainConfig, total: int, before: Mapping[str, Any]) -> str:
    processes, accumulation, batch_size = (int(before[key]) for key in STEP_KEYS)
    rows, world_size = batching.packed, batching.world_size
    factors = f"{processes} processes x train.gradient_accumulation_steps={accumulation}"
    if not rows:
        factors += f" x train.per_device_train_batch_size={batch_size}"
    step = f"an optimizer step of this run has {total} {'packed rows' if rows else 'samples'} ({factors})"
    if total % world_size:
        return f"train.num_processes: {step}, which {world_size} processes cannot share; resume with a number that divides {total}"
    share = total // world_size
    if rows:
        return f"train.gradient_accumulation_steps: {step}; with {world_size} processes, set train.gradient_accumulation_steps={share}"
    largest = max(size for size in range(1, min(share, train.per_device_train_batch_size) + 1) if share % size == 0)
    return (
        f"train.per_device_train_batch_size: {step}; with {world_size} processes, set "
        f"train.per_device_train_batch_size={largest} train.gradient_accumulation_steps={share // largest}"
    )
