"""TensorBoard: scalars of all metrics in the history, and images with sample predictions."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from atomic_io import naming_full_disk
from training.monitoring.metrics_history import Row
from training.monitoring.sample_predictions import Panel, render_panel

TAGS = {"loss": "loss/training", "eval_loss": "loss/validation", "grad_norm": "training/grad_norm", "loss_scale": "training/loss_scale"}
"""TensorBoard tag of each metric. Metrics that are not listed go under speed/; learning rates keep their learning_rate/ prefix."""


class TensorBoardLogger:
    """Writes event files; for rank 0 only. A `Tracker` (see training.monitoring.trackers).

    step: optimizer steps before this run; later events of an earlier run are purged. Raises TesseraError when the disk is full.
    """

    name = "tensorboard"
    run_id = ""

    def __init__(self, folder: Path, step: int):
        _hide_writer_thread_errors()
        with naming_full_disk(folder):
            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def begin_stage(self, *_args: Any) -> None:
        """Nothing to do: the events of all stages go into one file."""

    def log_row(self, row: Row, *_args: Any) -> None:
        for key, value in row.items():
            if key not in ("step", "stage", "eval_tokens", "eval_left_out"):
                tag = key if key.startswith("learning_rate/") else TAGS.get(key, f"speed/{key}")
                self._writer.add_scalar(tag, value, int(row["step"]))

    def log_panels(self, panels: Sequence[Panel], step: int) -> None:
        for i, panel in enumerate(panels):
            self._writer.add_image(f"validation/{i}", np.asarray(render_panel(panel)), step, dataformats="HWC")
        self._writer.flush()

    def close(self, _status: str) -> None:
        self._writer.close()


def _hide_writer_thread_errors() -> None:
    """Do not print the traceback of TensorBoard's writer thread: the next call of the writer raises the same error again."""
    shown = threading.excepthook

    def show(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            shown(args)

    threading.excepthook = show
