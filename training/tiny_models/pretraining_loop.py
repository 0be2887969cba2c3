"""The training loop of one pre-training run: a fixed number of steps, seeded batches, bit-exact resume from a state file."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from atomic_io import atomic_write
from dataset.synthetic.scene import SceneSplit
from errors import TesseraError
from progress import Progress
from training.tiny_models import mixed_precision
from training.tiny_models.data.pretraining_batches import Batch, to_device

BETAS = (0.9, 0.98)
MAX_GRAD_NORM = 1.0
FINAL_LR_FRACTION = 0.02
"""The cosine schedule ends at this fraction of the peak learning rate."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one run; AdamW, cosine schedule with linear warm-up.

    Args:
        steps: optimizer steps.
        batch_size: scenes per step.
        learning_rate: peak learning rate.
        warmup: warm-up steps.
        weight_decay: AdamW's weight decay.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 200
    weight_decay: float = 0.02

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step; steps count from 0."""
        progress_fraction = step / max(1, self.steps)
        cosine = FINAL_LR_FRACTION + (1 - FINAL_LR_FRACTION) * 0.5 * (1 + math.cos(math.pi * progress_fraction))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * cosine


@dataclass(frozen=True)
class Task:
    """A pre-training task.

    Args:
        model: the model to train.
        data: makes the batch of an index and split, on the CPU in a worker process.
        loss: the loss of a batch on the model's device, a scalar.
        measure: computes the metrics on the validation split, whose layouts do not occur in training.
        auxiliary_head: trained together with the model because the loss needs it; not saved with the model.
    """

    model: PreTrainedModel
    data: Callable[[int, SceneSplit], Batch]
    loss: Callable[[PreTrainedModel, Batch], torch.Tensor]
    measure: Callable[[PreTrainedModel], dict[str, float]]
    auxiliary_head: nn.Module | None = None

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters: the model's and the auxiliary head's."""
        return [*self.model.parameters(), *(self.auxiliary_head.parameters() if self.auxiliary_head else ())]


class _BatchDataset(Dataset[Batch]):
    """Training batches by index."""

    def __init__(self, data: Callable[[int, SceneSplit], Batch]):
        self.data = data

    def __getitem__(self, batch_index: int) -> Batch:
        return self.data(batch_index, "train")


def fit(task: Task, recipe: Recipe, state_file: Path, title: str, *, workers: int, save_every: int = 100) -> None:
    """Train `task.model` in place; resumes from `state_file` if an interrupted run of the same recipe left one.

    Args:
        task: the task.
        recipe: its hyperparameters.
        state_file: file for model, optimizer and step; it is not deleted at the end.
        title: name of the run in progress output and errors.
        workers: data loading processes; 0 makes the batches in this process.
        save_every: steps between two writes of the state file.

    Raises: TesseraError when the loss is not finite.
    """
    optimizer = torch.optim.AdamW(task.parameters(), lr=recipe.learning_rate, betas=BETAS, weight_decay=recipe.weight_decay)
    first = _resume(state_file, recipe, task, optimizer)
    device = task.model.device
    loader = DataLoader(
        _BatchDataset(task.data),
        batch_size=None,
        sampler=range(first, recipe.steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
    )
    task.model.train()
    with Progress(title, recipe.steps, "steps") as progress:
        progress.update(first)
        for step, batch in enumerate(loader, first):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step)
            with mixed_precision.autocast(device):
                loss = task.loss(task.model, to_device(batch, device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(task.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            progress.update(1, note=f"loss {_finite(loss, title, step):.3f}" if step % 20 == 0 else "")
            if (step + 1) % save_every == 0:
                _save(state_file, recipe, step + 1, task, optimizer)
    task.model.eval()


def _finite(loss: torch.Tensor, title: str, step: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise TesseraError(f"{title}: the loss is {value} at step {step}; a lower learning rate may help")
    return value


def _state(task: Task, optimizer: torch.optim.Optimizer) -> dict[str, nn.Module | torch.optim.Optimizer]:
    """What a state file holds besides recipe and step."""
    head = {} if task.auxiliary_head is None else {"helper": task.auxiliary_head}
    return {"model": task.model, "optimizer": optimizer, **head}


def _save(path: Path, recipe: Recipe, step: int, task: Task, optimizer: torch.optim.Optimizer) -> None:
    states = {name: part.state_dict() for name, part in _state(task, optimizer).items()}
    with atomic_write(path) as temp_path:
        torch.save({"recipe": vars(recipe), "step": step, **states}, temp_path)


def _resume(path: Path, recipe: Recipe, task: Task, optimizer: torch.optim.Optimizer) -> int:
    """Load the state of an interrupted run of the same recipe; returns its number of completed steps, 0 without one."""
    state: dict[str, Any] = torch.load(path, map_location=task.model.device, weights_only=True) if path.exists() else {}
    if state.get("recipe") != vars(recipe):
        return 0
    for name, part in _state(task, optimizer).items():
        part.load_state_dict(state[name])
    return int(state["step"])
