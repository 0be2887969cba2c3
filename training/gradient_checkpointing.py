"""Activation checkpointing: find the fewest layers that must recompute their activations for a training step to fit into memory.

Trial steps run before the first optimizer step. They leave no trace: gradients are discarded and random states restored, so a run
is the same bit for bit with and without them.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather
from accelerate.utils.memory import clear_device_cache
from torch import nn
from torch.utils.data import DataLoader

from dataset.loading.samplers import SampleKey
from errors import TesseraError
from model.lora import checkpointed_layers, enable_gradient_checkpointing
from training.config import TrainConfig
from training.optimization.optimizers import optimizer_bytes_per_parameter
from training.out_of_memory import REMEDIES, format_gib

USABLE_MEMORY_FRACTION = 0.92
"""Fraction of the free memory that a step may use; the rest is left for fragmentation and for libraries that allocate later."""

PROBE_EVERY = 8
"""In the trial that measures the activation memory of a layer, one layer in PROBE_EVERY stores its activations."""


@dataclass(frozen=True)
class CudaMemoryProbe:
    """Memory of a CUDA device, as counted by torch's caching allocator."""

    device: torch.device

    def free(self) -> int:
        """Bytes that this process could allocate in total."""
        clear_device_cache(garbage_collection=True)
        free_bytes, _ = torch.cuda.mem_get_info(self.device)
        return int(free_bytes + torch.cuda.memory_reserved(self.device))

    def peak(self, step: Callable[[], None]) -> int | None:
        """Peak bytes allocated while `step` runs; None when it runs out of memory."""
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            step()
            torch.cuda.synchronize(self.device)
            peak_bytes: int | None = int(torch.cuda.max_memory_allocated(self.device))
        except torch.OutOfMemoryError:
            peak_bytes = None
        # After the except clause: its exception keeps the tensors of the step alive.
        clear_device_cache(garbage_collection=True)
        # The run reports its own peak, not that of a trial.
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak_bytes


@dataclass(frozen=True)
class CheckpointingPlan:
    """How many of the language model's `layers` recompute their activations, and the reason in words."""

    checkpointed_layers: int
    layers: int
    reason: str

    def __str__(self) -> str:
        extent = {0: "none", self.layers: "all"}.get(self.checkpointed_layers, "some")
        return f"{extent} ({self.checkpointed_layers} of {self.layers} layers; {self.reason})"


@dataclass(frozen=True)
class Trial:
    """A trial step. batch: makes the batch that needs the most memory; step: a forward and a backward pass over it."""

    batch: Callable[[], dict[str, Any]]
    step: Callable[[dict[str, Any]], None]


def configure_activation_checkpointing(
    model: nn.Module, train: TrainConfig, trial: Trial, device: torch.device, num_processes: int, sharded: bool
) -> CheckpointingPlan:
    """Set the layers that recompute their activations from train.gradient_checkpointing; `auto` runs trial steps.

    Args:
        trial: Step to run for `auto`.
        num_processes: World size; all ranks use the largest number of layers that one of them needs.
        sharded: Weights are sharded over ranks (FSDP, ZeRO-3); `auto` then means all layers.

    Raises TesseraError when the step does not fit into memory even with all layers recomputed.
    """
    chosen = _plan_checkpointing(model, train, trial, device, sharded)
    if num_processes > 1 and train.gradient_checkpointing == "auto":
        max_checkpointed = int(gather(torch.tensor([chosen.checkpointed_layers], device=device)).max())
        if max_checkpointed != chosen.checkpointed_layers:
            chosen = CheckpointingPlan(max_checkpointed, chosen.layers, "auto: as many as the process with the least free memory needs")
    if chosen.checkpointed_layers or train.gradient_checkpointing == "auto":
        enable_gradient_checkpointing(model, chosen.checkpointed_layers)
    return chosen


def _plan_checkpointing(model: nn.Module, train: TrainConfig, trial: Trial, device: torch.device, sharded: bool) -> CheckpointingPlan:
    setting, layers = train.gradient_checkpointing, len(checkpointed_layers(model))
    if setting != "auto":
        return CheckpointingPlan(layers if setting else 0, layers, f"train.gradient_checkpointing={str(setting).lower()}")
    if sharded:
        return CheckpointingPlan(layers, layers, "auto: weights are sharded over processes, no trial step was run")
    memory = memory_probe(device)
    if memory is None:
        return CheckpointingPlan(0, layers, f"auto on {device.type}")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    memory_budget = int(USABLE_MEMORY_FRACTION * memory.free()) - trained * optimizer_bytes_per_parameter(train)
    batch = trial.batch()

    def peak(checkpointed_layers: int) -> int | None:
        enable_gradient_checkpointing(model, checkpointed_layers)
        return memory.peak(lambda: trial.step(batch))

    with restore_rng_and_gradients(model, device):
        chosen = fewest_checkpointed_layers(layers, peak, memory_budget)
    if chosen is None:
        raise TesseraError(f"training: out of memory on {device} in a trial step with all activations recomputed; {REMEDIES}")
    return chosen


def memory_probe(device: torch.device) -> CudaMemoryProbe | None:
    """Measures the memory of trial steps; None on devices other than CUDA, where `auto` runs none."""
    return CudaMemoryProbe(device) if device.type == "cuda" else None


def fewest_checkpointed_layers(layers: int, trial: Callable[[int], int | None], memory_budget: int) -> CheckpointingPlan | None:
    """The fewest of `layers` that must recompute for a step to fit; None when it runs out of memory even if all do.

    trial: runs a step with this many layers recomputed and returns its peak in bytes, None when it runs out of memory;
    memory_budget: bytes that the peak may reach.
    """
    min_peak = trial(layers)
    if min_peak is None:
        return None
    budget = f"of the {format_gib(memory_budget)} that may be used"
    if min_peak > memory_budget:
        return CheckpointingPlan(layers, layers, f"auto: {format_gib(min_peak)} {budget}")
    probed_layers = max(1, layers // PROBE_EVERY)
    probe_peak = trial(layers - probed_layers)
    if probe_peak is None and probed_layers > 1:
        probed_layers = 1
        probe_peak = trial(layers - 1)
    if probe_peak is None:
        return CheckpointingPlan(layers, layers, f"auto: {format_gib(min_peak)} {budget}, no more fits")
    bytes_per_layer = max(probe_peak - min_peak, 1) / probed_layers
    stored_layers = min(layers, int((memory_budget - min_peak) / bytes_per_layer))
    full_peak = min_peak + bytes_per_layer * layers
    while stored_layers > 0:
        peak = trial(layers - stored_layers)
        if peak is not None and peak <= memory_budget:
            note = "" if stored_layers == layers else f", {format_gib(full_peak)} with none recomputed"
            return CheckpointingPlan(layers - stored_layers, layers, f"auto: {format_gib(peak)} {budget}{note}")
        stored_layers -= max(1, stored_layers // 8)
    return CheckpointingPlan(layers, layers, f"auto: {format_gib(min_peak)} {budget}, {format_gib(full_peak)} with none recomputed")


@contextmanager
def restore_rng_and_gradients(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore random states and remove all gradients on exit, as before the first optimizer step."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            model.zero_grad(set_to_none=True)
            random.setstate(python)
            np.random.set_state(numpy)


def allocate_gradients(model: nn.Module) -> None:
    """Allocate a gradient for each trained parameter, as in all but the first micro-batch of an optimizer step."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def longest_batch(loader: DataLoader, packed: bool) -> dict[str, Any]:
    """The batch of the first epoch that needs the most memory: the most tokens with padding, or the packed row with most samples."""
    data: Any = loader.dataset
    batches = list(itertools.takewhile(lambda batch: batch[0].epoch == 0, loader.batch_sampler or ()))
    lengths = data.lengths.sampled_lengths(data.seed, 0)

    def tokens(batch: list[SampleKey]) -> int:
        return len(batch) * (1 if packed else max(int(lengths[key.index]) for key in batch))

    batch: dict[str, Any] = loader.collate_fn([data[key] for key in max(batches, key=tokens)])
    return batch
