"""Gradient parity: relative differences of loss and gradients between our training step and the stock model, on the same samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import nn

from benchmarks.training.trained_models import Batch, TrainedModel

LORA_B_STD = 0.02
"""Standard deviation of the random lora_B matrices during the comparison. At their initial zero, lora_A has no gradient, and an error in
the LoRA scaling would not show."""


@dataclass(frozen=True, slots=True)
class GradientParity:
    """Losses and relative differences of gradients, |ours - stock| / |stock|.

    Args:
        ours: loss of our side.
        stock: loss of the stock model.
        gradients_off: relative difference over all trained weights together.
        worst_off: largest relative difference of a single weight.
        worst: name of this weight.
    """

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
        loss, gradients = f"loss differs by {self.loss_off:.1e}", f"all gradients by {self.gradients_off:.1e}"
        return f"{loss}, {gradients}, that of {self.worst} by {self.worst_off:.1e}"


def compare(ours: TrainedModel, stock: TrainedModel, our_batch: Batch, stock_batch: Batch) -> GradientParity:
    """Compare losses and gradients of a training step, without dropout. Weights are restored afterwards and gradients are cleared.

    Args:
        ours: our side.
        stock: the stock model with equal weights.
        our_batch: the samples in the layout of our side.
        stock_batch: the same samples, padded.

    Raises:
        ValueError: the two sides do not train the same weights.
    """
    with _without_dropout(ours.model), _without_dropout(stock.model), _random_lora_b(ours.model), _random_lora_b(stock.model):
        our_result, stock_result = (_gradients(side, batch) for side, batch in ((ours, our_batch), (stock, stock_batch)))
    (our_loss, our_gradients), (stock_loss, stock_gradients) = our_result, stock_result
    if our_gradients.keys() != stock_gradients.keys():
        raise ValueError(f"not trained on both sides: {sorted(our_gradients.keys() ^ stock_gradients.keys())[:3]}")
    distances = {name: float((gradient - stock_gradients[name]).norm()) for name, gradient in our_gradients.items()}
    norms = {name: float(gradient.norm()) for name, gradient in stock_gradients.items()}
    relative = {name: distances[name] / norms[name] if norms[name] else float("inf") * bool(distances[name]) for name in distances}
    worst = max(relative, key=lambda name: relative[name])
    overall = sum(value**2 for value in distances.values()) ** 0.5 / sum(value**2 for value in norms.values()) ** 0.5
    return GradientParity(our_loss, stock_loss, overall, relative[worst], worst)


def _gradients(side: TrainedModel, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, and the gradients of the trained weights by name."""
    loss = side.loss(batch)
    loss.backward()
    trained = [(name, parameter) for name, parameter in side.model.named_parameters() if parameter.requires_grad]
    gradients = {name: parameter.grad for name, parameter in trained if parameter.grad is not None}
    side.optimizer.zero_grad(set_to_none=True)
    return float(loss.detach()), gradients


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Context without dropout, since the two sides sample different masks."""
    before = {module: module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    try:
        for layer in before:
            layer.p = 0.0
        yield
    finally:
        for layer, probability in before.items():
            layer.p = probability


@contextmanager
def _random_lora_b(model: nn.Module) -> Iterator[None]:
    """Context in which the lora_B matrices have the same random values on both sides; they are restored afterwards."""
    matrices = [(name, weight) for name, weight in model.named_parameters() if ".lora_B." in name and weight.requires_grad]
    before = [weight.detach().clone() for _, weight in matrices]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, weight in sorted(matrices, key=itemgetter(0)):
            weight.copy_(torch.randn(weight.shape, generator=generator).mul_(LORA_B_STD))
    try:
        yield
    finally:
        with torch.no_grad():
            for (_, weight), values in zip(matrices, before, strict=True):
                weight.copy_(values)
