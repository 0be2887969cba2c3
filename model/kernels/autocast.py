"""The dtype in which matrix products run."""

import torch


def matmul_dtype(x: torch.Tensor) -> torch.dtype:
    """Autocast's dtype if autocast is enabled on the device of x, else the dtype of x."""
    # torch.amp.is_autocast_available would break the graph of compiled layers. Of the devices in use only meta has no autocast.
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
