"""Console output of a run: one status line per log step with the time gone and left, and a progress bar on a terminal."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from training.monitoring.metrics_history import Row


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


class TimeEstimate:
    """Time since this command began to train, and the time that its remaining steps will take.

    A step takes as long as the steps of its stage took on average, evaluations and checkpoints included, without the stage's first
    step, which also fills the loaders and compiles. Later stages are taken to be as fast. After a resume both count from there.

    clock: Returns seconds; tests replace it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._began = clock, clock()
        self._seconds_per_step: float | None = None
        self.begin_stage()

    def begin_stage(self) -> None:
        """Measure anew; until its second step, a stage is taken to be as fast as the one before."""
        self._first_step_end: float | None = None
        self._steps = 0

    def count_step(self) -> None:
        """To be called at the end of each optimizer step."""
        if self._first_step_end is None:
            self._first_step_end = self._clock()
        else:
            self._steps += 1

    def describe(self, steps_left: int) -> str:
        """Such as "0:01:23 gone, 0:12:10 left"; only the time gone as long as nothing was measured."""
        now = self._clock()
        if self._steps and self._first_step_end is not None:
            self._seconds_per_step = (now - self._first_step_end) / self._steps
        gone = f"{hours(now - self._began)} gone"
        return gone if self._seconds_per_step is None else f"{gone}, {hours(self._seconds_per_step * steps_left)} left"


def hours(seconds: float) -> str:
    """Hours, minutes and seconds, such as 0:12:10 or 103:00:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class ConsoleLogger(TrainerCallback):
    """Prints status lines, and a progress bar when stderr is a terminal; for rank 0 only.

    done: optimizer steps before this stage's run; total: optimizer steps of all stages; time_estimate: of the whole run.
    """

    def __init__(self, done: int, total: int, time_estimate: TimeEstimate):
        self._total, self._time = total, time_estimate
        time_estimate.begin_stage()
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
