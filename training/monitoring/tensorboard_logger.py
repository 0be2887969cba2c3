"""TensorBoard: scalars of all metrics in the history, and images with sample predictions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback

from training.monitoring.metrics_history import Row
from training.monitoring.prediction_panels import Panel, render_panel

TAGS = {"loss": "loss/training", "eval_loss": "loss/validation", "grad_norm": "training/grad_norm", "loss_scale": "training/loss_scale"}
"""TensorBoard tag of each metric. Metrics that are not listed go under speed/; learning rates keep their learning_rate/ prefix."""


class TensorBoardLogger(TrainerCallback):
    """Writes event files; for rank 0 only.

    Args:
        folder: Folder of the event files.
        step: Optimizer steps before this run; later events of an earlier run are purged.
        generate_panels: From the model to its sample predictions, called at each evaluation; None logs no images.
    """

    def __init__(self, folder: Path, step: int, generate_panels: Callable[[nn.Module], list[Panel]] | None):
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)
        self._generate_panels, self._step = generate_panels, step

    def on_log(self, *_args: Any, logs: Row, **_kwargs: Any) -> None:
        self._step = int(logs["step"])
        for key, value in logs.items():
            if key not in ("step", "stage", "eval_tokens", "eval_left_out"):
                tag = key if key.startswith("learning_rate/") else TAGS.get(key, f"speed/{key}")
                self._writer.add_scalar(tag, value, self._step)

    def on_evaluate(self, *_args: Any, model: nn.Module, **_kwargs: Any) -> None:
        for i, panel in enumerate(self._generate_panels(model) if self._generate_panels else []):
            self._writer.add_image(f"validation/{i}", np.asarray(render_panel(panel)), self._step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
