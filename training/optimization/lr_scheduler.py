"""Learning-rate schedules: linear warm-up, then decay to zero, as a cosine or linearly."""

import math
from typing import Literal

from torch.optim.lr_scheduler import LambdaLR


def num_warmup_steps(warmup_steps: float, steps: int) -> int:
    """Steps of the warm-up: `warmup_steps` itself, or that share of `steps` where it is below 1, as transformers 5 reads it."""
    return math.ceil(warmup_steps * steps) if warmup_steps < 1 else int(warmup_steps)


def rate_factor(step: int, kind: Literal["cosine", "linear"], warmup_steps: int, steps: int) -> float:
    """Factor on the peak learning rate at step 0, 1, ...; it reaches zero at `steps`, after the last one. kind: train.lr_scheduler_type.

    Unlike transformers' own schedules, warm-up starts above zero, so the first step is not wasted.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    gone, length = step - warmup_steps, max(steps - warmup_steps, 1)
    return 1 - gone / length if kind == "linear" else 0.5 * (1 + math.cos(math.pi * gone / length))


def move_to_schedule(scheduler: LambdaLR) -> tuple[dict[str, float], dict[str, float]]:
    """Set the learning rates to the schedule's own at its present step; those loaded from a checkpoint may be of a shorter schedule.

    Returns the rates before and after, by the parameter group's name.
    """
    groups = scheduler.optimizer.param_groups
    before = {group["name"]: float(group["lr"]) for group in groups}
    for group, peak, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = peak * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in groups]
    return before, {group["name"]: float(group["lr"]) for group in groups}
