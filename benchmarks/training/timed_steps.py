"""Timed training steps: a model with its optimizer, and a block of steps over all samples."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from benchmarks.timing import free_memory, timed
from dataset.loading.image_transform import PixelReader
from model.kernels.autocast import Precision, autocast
from training.gradient_checkpointing import allocate_gradients
from training.monitoring.throughput import peak_memory

Batch = dict[str, Any]


@dataclass(frozen=True)
class TrainedModel:
    """A model with its optimizer.

    Args:
        model: the model.
        optimizer: its optimizer.
        mean_loss: computes the loss of a batch on the device.
        pixel_reader: normalises raw pixels.
        device: device of the model.
        precision: of matrix products.
        max_grad_norm: norm to which gradients are clipped.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    mean_loss: Callable[[Batch], torch.Tensor]
    pixel_reader: PixelReader
    device: torch.device
    precision: Precision
    max_grad_norm: float

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """Scales gradients in fp16; does nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def step(self, *batches: Batch) -> torch.Tensor:
        """Optimizer step over micro-batches in host memory. Returns their mean loss before the update, on the device."""
        total = torch.zeros((), device=self.device)
        for batch in batches:
            loss = self.loss(batch) / len(batches)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self._trainable(), self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def run_trial_step(self, batch: Batch) -> None:
        """Forward and backward pass without an update, with the peak memory of a training step."""
        allocate_gradients(self.model)
        self.loss(batch).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean loss over the supervised tokens of a batch in host memory."""
        moved = {key: value.to(self.device, non_blocking=True) if hasattr(value, "to") else value for key, value in batch.items()}
        moved["pixel_values"] = self.pixel_reader.normalize(moved["pixel_values"])
        with autocast(self.device, self.precision):
            return self.mean_loss(moved)

    def trainable_bytes(self) -> int:
        """Bytes of the trained weights and of the optimizer state."""
        states = [value for state in self.optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self._trainable(), *states))

    def _trainable(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


@dataclass
class Variant:
    """One path that trains on all samples.

    Args:
        name: name of the path.
        batch: description of a batch.
        batches: the samples in batches.
        trained: model and optimizer.
        prepare_model: switches the model to the mode of this path.
        other_side_bytes: bytes that the other side has allocated meanwhile, which are not counted.
        peaks: peak bytes of each block; empty if the device does not report them.
    """

    name: str
    batch: str
    batches: list[Batch]
    trained: TrainedModel
    prepare_model: Callable[[], None]
    other_side_bytes: Callable[[], int] = lambda: 0
    peaks: list[int] = field(default_factory=list)

    def block(self) -> float:
        """Train on all samples; returns the seconds. One step before the measurement warms up caches and the memory allocator."""
        device, on_cuda = self.trained.device, self.trained.device.type == "cuda"
        free_memory()
        self.prepare_model()
        self.trained.step(self.batches[0])
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        seconds = timed(self._train_all, device)
        if on_cuda:
            self.peaks.append(peak_memory(device) - self.other_side_bytes())
        return seconds

    def _train_all(self) -> None:
        for batch in self.batches:
            self.trained.step(batch)
