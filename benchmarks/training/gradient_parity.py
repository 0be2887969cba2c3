"""Are the loss and the gradient of every trained weight those of the plain path? Both are taken on the same samples.

In: two sides with equal weights, and the samples in the layout of each. Out: how far apart they are, relatively.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.training.timed_steps import Batch, TrainedModel

LORA_B_STD = 0.02
"""Standard deviation that the second adapter matrices are given for the comparison: at zero, as they begin, the first ones have no
gradient and neither scale nor dropout would show."""


@dataclass(frozen=True, slots=True)
class GradientParity:
    """Losses of both sides, and the relative distance of their gradients: |ours - stock| / |stock|, over all trained weights
    together and of the weight where it is largest."""

    ours: float
    stock: float
    gradients_off: float
    worst_off: float
    worst: str

    @property
    def loss_off(self) -> float:
        """Relative difference of the losses."""
        return abs(self.ours - self.stock) / abs(self.stock)

    def __str__(self) -> str:
        loss, gradients = f"loss off by {self.loss_off:.1e}", f"all gradients by {self.gradients_off:.1e}"
        return f"{loss}, {gradients}, that of {self.worst} by {self.worst_off:.1e}"


def compare(ours: TrainedModel, stock: TrainedModel, our_batch: Batch, stock_batch: Batch) -> GradientParity:
    """Losses and gradients of a training step, without dropout. Weights and gradients are afterwards what they were: the latter not there.

    Raises ValueError where the two do not train the same weights.
    """
    with _without_dropout(ours.model), _without_dropout(stock.model), _random_lora_b(ours.model), _random_lora_b(stock.model):
        found, wanted = (_gradients(side, batch) for side, batch in ((ours, our_batch), (stock, stock_batch)))
    (our_loss, our_gradients), (stock_loss, stock_gradients) = found, wanted
    if our_gradients.keys() != stock_gradients.keys():
        raise ValueError(f"not trained on both sides: {sorted(our_gradients.keys() ^ stock_gradients.keys())[:3]}")
    distances = {name: float((gradient - stock_gradients[name]).norm()) for name, gradient in our_gradients.items()}
    size = {name: float(gradient.norm()) for name, gradient in stock_gradients.items()}
    off = {name: distances[name] / size[name] if size[name] else float("inf") * bool(distances[name]) for name in distances}
    worst = max(off, key=lambda name: off[name])
    overall = sum(value**2 for value in distances.values()) ** 0.5 / sum(value**2 for value in size.values()) ** 0.5
    return GradientParity(our_loss, stock_loss, overall, off[worst], worst)


def _gradients(side: TrainedModel, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, and the gradient of each trained weight by its name."""
    loss = side.loss(batch)
    loss.backward()
    trained = [(name, parameter) for name, parameter in side.model.named_parameters() if parameter.requires_grad]
    found = {name: parameter.grad for name, parameter in trained if parameter.grad is not None}
    side.optimizer.zero_grad(set_to_none=True)
    return float(loss.detach()), found


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Both sides draw other numbers."""
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    probabilities = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = 0.0
        yield
    finally:
        for layer, probability in zip(layers, probabilities, strict=True):
            layer.p = probability


@contextmanager
def _random_lora_b(model: nn.Module) -> Iterator[None]:
    """The same numbers in the second adapter matrices of either side; afterwards what was there."""
    matrices = {name: parameter for name, parameter in model.named_parameters() if ".lora_B." in name and parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in matrices.items()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(matrices.items()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(LORA_B_STD))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in matrices.items():
                parameter.copy_(before[name])
