"""Learning-rate schedule: linear warm-up, then a cosine to zero."""

import math


def cosine_with_warmup(step: int, warmup_steps: int, steps: int) -> float:
    """Share of the peak rate that step 0, 1, ... is made with: a rise over `warmup` steps, then a cosine to zero behind the last.

    Unlike transformers' own, the rise begins above zero: no step is made for nothing.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(steps - warmup_steps, 1)))
