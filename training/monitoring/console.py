"""Console output of a run: one status line per log step, and a progress bar on a terminal."""

import sys
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from training.monitoring.metrics_history import Row
from training.monitoring.time_estimate import TimeEstimate


def status_line(row: Row, total: int, times: str) -> str:
    """Status line of a log step or an evaluation. total: optimizer steps of all stages; times: time gone and left, in words."""
    head = f"step {row['step']:,}/{total:,} {row['stage']}"
    if "eval_loss" in row:
        left_out = f", {row['eval_left_out']} samples left out" if row.get("eval_left_out") else ""
        return f"{head} | validation loss {row['eval_loss']:.4f} over {row['eval_tokens']:,} tokens{left_out}"
    rates = " ".join(f"{key.split('/')[1]} {row[key]:.2e}" for key in row if key.startswith("learning_rate/"))
    parts = [
        head,
        f"loss {row['loss']:.4f}",
        f"lr {rates}",
        f"grad norm {row['grad_norm']:.3g}",
        f"{row['supervised_tokens_per_second']:,.0f} supervised tokens/s",
        f"{row['samples_per_second']:,.1f} samples/s",
        f"peak {row['peak_memory_gib']:.2f} GiB",
        f"data wait {row['data_wait']:.0%}",
    ]
    if "loss_scale" in row:
        parts.append(f"loss scale {row['loss_scale']:,.6g}, {row['skipped_steps']} skipped")
    if "unreadable_images" in row:
        parts.append(f"unreadable images {row['unreadable_images']}")
    if "tflops" in row:
        parts.append(f"{row['tflops']:.0f} TFLOP/s, MFU {row['mfu']:.1%}")
    return " | ".join([*parts, times])


class ConsoleLogger(TrainerCallback):
    """Prints status lines, and a progress bar when stderr is a terminal; for rank 0 only.

    done: optimizer steps before this stage's run; total: optimizer steps of all stages; time: of the whole run.
    """

    def __init__(self, done: int, total: int, time: TimeEstimate):
        self._total, self._time = total, time
        time.begin_stage()
        self._bar = tqdm(total=total, initial=done, unit="step", desc="train", leave=False) if sys.stderr.isatty() else None

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        self._time.count_step()
        if self._bar is not None:
            self._bar.update()

    def on_log(self, *_args: Any, logs: Row, **_kwargs: Any) -> None:
        tqdm.write(status_line(logs, self._total, self._time.describe(self._total - int(logs["step"]))), file=sys.stdout)
        sys.stdout.flush()

    def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
