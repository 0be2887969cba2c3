"""The precision that matrix products run in."""

import torch


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """Autocast's precision on the device of x where autocast is on, else that of x."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
