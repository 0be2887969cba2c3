"""The precision that matrix products run in."""

import torch


def matmul_dtype(x: torch.Tensor) -> torch.dtype:
    """Autocast's precision on the device of x where autocast is on, else that of x."""
    # Asking whether a device has autocast at all would break the graph of compiled layers; among those in use, only meta has none.
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
