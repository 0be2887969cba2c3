"""How many layers must recompute their activations for a step to fit into memory, found out before the first step.

In: a step that can be tried, and the device's memory. Out: how many layers recompute, and why. A trial leaves nothing
behind: gradients are dropped and random states put back, so a run is the same to the bit with and without it.
"""

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.utils import gather
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader

from errors import TesseraError
from model.lora import base_model, checkpoint_gradients
from model.siglip_qwen.modeling import VisionLanguageModel
from training.config import TrainConfig
from training.optimization.optimizers import bytes_a_weight
from training.out_of_memory import REMEDIES

USABLE = 0.92
"""Share of the free memory that is planned with; the rest is for fragments and for what libraries take later."""

PROBED = 8
"""One layer in so many keeps its activations in the trial from which the memory of one is reckoned."""


class Memory(Protocol):
    """The memory that a trial is measured in."""

    def free(self) -> int:
        """Bytes that this process may hold in all."""
        ...

    def peak(self, step: Callable[[], None]) -> int | None:
        """Most bytes held while `step` runs; None where it runs out of memory."""
        ...


@dataclass(frozen=True)
class CudaMemory:
    """That of a CUDA device, as torch's allocator counts it."""

    device: torch.device

    def free(self) -> int:
        gc.collect()
        torch.cuda.empty_cache()
        left, _ = torch.cuda.mem_get_info(self.device)
        return int(left + torch.cuda.memory_reserved(self.device))

    def peak(self, step: Callable[[], None]) -> int | None:
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            step()
            torch.cuda.synchronize(self.device)
            found: int | None = int(torch.cuda.max_memory_allocated(self.device))
        except torch.OutOfMemoryError:
            found = None
        # Behind the except clause, whose exception holds on to what the step had made.
        gc.collect()
        torch.cuda.empty_cache()
        # The run reports its own peak, not a trial's.
        torch.cuda.reset_peak_memory_stats(self.device)
        return found


@dataclass(frozen=True)
class Recomputing:
    """How many of `layers` recompute their activations, and why."""

    recomputed: int
    layers: int
    why: str

    def __str__(self) -> str:
        share = {0: "none", self.layers: "all"}.get(self.recomputed, "some")
        return f"{share} ({self.recomputed} of {self.layers} layers; {self.why})"


@dataclass(frozen=True)
class Trial:
    """A step to try out. batch: makes the batch that takes the most memory; step: a forward and a backward pass over it."""

    batch: Callable[[], dict[str, Any]]
    step: Callable[[dict[str, Any]], None]


def recompute(
    model: VisionLanguageModel | PeftModel, train: TrainConfig, trial: Trial, device: torch.device, processes: int, shared_out: bool
) -> Recomputing:
    """Set the layers that recompute their activations by train.gradient_checkpointing; `auto` tries the step out.

    processes: how many train together; they settle on the same. shared_out: weights are divided (FSDP, ZeRO-3).
    Raises TesseraError where the step does not fit even if all layers recompute.
    """
    layers = len(base_model(model).model.language_model.layers)
    chosen = _choose(model, train, trial, device, shared_out, layers)
    if processes > 1 and train.gradient_checkpointing == "auto":
        most = int(gather(torch.tensor([chosen.recomputed], device=device)).max())
        if most != chosen.recomputed:
            chosen = Recomputing(most, layers, "auto: as many as the process with the least memory needs")
    if chosen.recomputed or train.gradient_checkpointing == "auto":
        checkpoint_gradients(model, chosen.recomputed)
    return chosen


def _choose(
    model: VisionLanguageModel | PeftModel, train: TrainConfig, trial: Trial, device: torch.device, shared_out: bool, layers: int
) -> Recomputing:
    setting = train.gradient_checkpointing
    if setting != "auto":
        return Recomputing(layers if setting else 0, layers, f"train.gradient_checkpointing={str(setting).lower()}")
    if shared_out:
        return Recomputing(layers, layers, "auto: weights are shared out over processes, nothing was tried")
    memory = memory_of(device)
    if memory is None:
        return Recomputing(0, layers, f"auto on {device.type}")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    usable = int(USABLE * memory.free()) - trained * bytes_a_weight(train)

    batch = trial.batch()

    def peak(recomputed: int) -> int | None:
        checkpoint_gradients(model, recomputed)
        return memory.peak(lambda: trial.step(batch))

    with leaving_nothing_behind(model, device):
        chosen = choose_recomputing(layers, peak, usable)
    if chosen is None:
        raise TesseraError(f"training: out of memory on {device} in a trial with all activations recomputed; {REMEDIES}")
    return chosen


def memory_of(device: torch.device) -> Memory | None:
    """The memory that trials are measured in; None where there is nothing to plan for."""
    return CudaMemory(device) if device.type == "cuda" else None


def choose_recomputing(layers: int, trial: Callable[[int], int | None], usable: int) -> Recomputing | None:
    """The fewest layers that must recompute for a step to fit; None where it does not fit even if all do.

    trial: runs a step in which so many layers recompute and gives its peak in bytes, None where memory ran out.
    usable: bytes that a peak may reach.
    """
    least = trial(layers)
    if least is None:
        return None
    if least > usable:
        return Recomputing(layers, layers, f"auto: {_gib(least)} of the {_gib(usable)} that may be used")
    probed = max(1, layers // PROBED)
    probe = trial(layers - probed)
    if probe is None and probed > 1:
        probed = 1
        probe = trial(layers - 1)
    if probe is None:
        return Recomputing(layers, layers, f"auto: {_gib(least)} of the {_gib(usable)} that may be used, no more fits")
    each = max(probe - least, 1) / probed
    kept = min(layers, int((usable - least) / each))
    whole = least + each * layers
    while kept > 0:
        peak = trial(layers - kept)
        if peak is not None and peak <= usable:
            reckoned = "" if kept == layers else f", {_gib(whole)} with none recomputed"
            return Recomputing(layers - kept, layers, f"auto: {_gib(peak)} of the {_gib(usable)} that may be used{reckoned}")
        kept -= max(1, kept // 8)
    return Recomputing(layers, layers, f"auto: {_gib(least)} of the {_gib(usable)} that may be used, {_gib(whole)} with none recomputed")


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


@contextmanager
def leaving_nothing_behind(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Behind it, random states and gradients are as they were before the first step: the latter not there."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            model.zero_grad(set_to_none=True)
            random.setstate(python)
            np.random.set_state(numpy)


def with_gradients(model: nn.Module) -> None:
    """Give each trained parameter a gradient, as it has in all but the first micro-batch of a step."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def longest_batch(loader: DataLoader, packed: bool) -> dict[str, Any]:
    """The batch of the first epoch that takes the most memory: most padded tokens, or the packed row of most samples."""
    data: Any = loader.dataset
    batches = list(loader.batch_sampler or ())
    lengths = data.lengths.drawn(data.seed, batches[0][0][1])

    def tokens(batch: list[tuple[int, int]]) -> int:
        return len(batch) * (1 if packed else max(int(lengths[place]) for place, _ in batch))

    batch: dict[str, Any] = loader.collate_fn([data[key] for key in max(batches, key=tokens)])
    return batch
