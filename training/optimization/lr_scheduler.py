"""Learning-rate schedule: linear warm-up, then cosine decay to zero."""

import math


def num_warmup_steps(warmup_steps: float, steps: int) -> int:
    """Steps of the warm-up: `warmup_steps` itself, or that share of `steps` where it is below 1, as transformers 5 reads it."""
    return math.ceil(warmup_steps * steps) if warmup_steps < 1 else int(warmup_steps)


def cosine_with_warmup(step: int, warmup_steps: int, steps: int) -> float:
    """Factor on the peak learning rate at step 0, 1, ...; it reaches zero at `steps`, after the last one.

    Unlike transformers' own schedule, warm-up starts above zero, so the first step is not wasted.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(steps - warmup_steps, 1)))
