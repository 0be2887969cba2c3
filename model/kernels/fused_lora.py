"""LoRA's product y = W x + s B A x (Hu et al. 2021, arXiv:2106.09685, section 4.1) in few passes over the tokens.

PEFT copies x into the adapter's precision for every layer, makes three products, scales one and adds it: each is a pass
over all tokens, and each layer keeps a copy of x. Here the product with B adds onto that with W while it is made, the
gradients of x likewise, and layers with the same input keep one x together. Small matrices in fp32 on a CPU are added up
first. In: a model that PEFT has wrapped. Out: the same model and weights; saving, loading and merging stay PEFT's.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as PeftLinear
from torch import nn
from torch.nn import functional

from model.kernels.autocast import product_dtype


def fuse_adapters(model: nn.Module) -> int:
    """Let the adapters on unquantised linear layers compute in this way; how many there are. A projector stage has none."""
    if not isinstance(model, PeftModel):
        return 0
    fused = [module for module in model.modules() if type(module) is PeftLinear]
    for module in fused:
        module.__class__ = FusedLinear
    return len(fused)


class FusedLinear(PeftLinear):
    """PEFT's adapter on a frozen linear layer; what is not plain LoRA is left to PEFT."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base = self.get_base_layer()
        name = self._single_adapter()
        if name is None or args or kwargs or type(base) is not nn.Linear or base.weight.requires_grad:
            result: torch.Tensor = super().forward(x, *args, **kwargs)
            return result
        dtype = product_dtype(x)
        # s times B is a small product; s times what B or A meets would be one over all tokens.
        down, up = self.lora_A[name].weight.to(dtype), (self.lora_B[name].weight * self.scaling[name]).to(dtype)
        bias = None if base.bias is None else base.bias.to(dtype)
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        dropout = self.lora_dropout[name]
        dropped = dropout(flat) if self.training and not isinstance(dropout, nn.Identity) else None
        if dropped is None and _adding_pays(flat, base.weight):
            added: torch.Tensor = _Added.apply(flat, base.weight, bias, down, up)
            return added.view(*x.shape[:-1], added.shape[-1])
        product: torch.Tensor = _Product.apply(flat, dropped, base.weight.to(dtype), bias, down, up)
        return product.view(*x.shape[:-1], product.shape[-1])

    def _single_adapter(self) -> str | None:
        """The one active adapter where it is plain LoRA and switched on."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(names) != 1:
            return None
        name: str = names[0]
        special = name in self.lora_variant or self.lora_bias[name] or self.fan_in_fan_out
        return None if special else name


SMALL = 1 << 20
"""Weights of a frozen matrix up to which a sum with the adapter's may be kept until the backward pass, in place of passes."""


def _adding_pays(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether W + s B A is worth making: fp32 on a CPU (bf16 would round small updates away), and tokens enough to repay it."""
    if x.is_cuda or x.dtype != torch.float32 or weight.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    outputs, inputs = weight.shape
    return weight.numel() <= SMALL and len(x) * (inputs + outputs) > inputs * outputs


class _Added(torch.autograd.Function):
    """As `_Product` without dropout, by one product with W + s B A in either direction."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
    ) -> torch.Tensor:
        both = torch.addmm(weight, up, down)
        ctx.save_for_backward(x, both, down, up)
        return functional.linear(x, both, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, both, down, up = ctx.saved_tensors
        of_x = gradient @ both if ctx.needs_input_grad[0] else None
        return of_x, None, None, (gradient @ up).T @ x, gradient.T @ (x @ down.T)


class _Product(torch.autograd.Function):
    """x [n, in], x behind dropout [n, in] (None without dropout), frozen weight [out, in] and bias [out], A [r, in],
    s B [out, r] -> [n, out], all of one precision."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
    ) -> torch.Tensor:
        product = forward_in_graph if torch.compiler.is_compiling() else _forward
        y, hidden = product(x, dropped, weight, bias, down, up)
        ctx.save_for_backward(x if dropped is None else dropped, weight, down, up, hidden)
        ctx.apart = dropped is not None
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        adapted, weight, down, up, hidden = ctx.saved_tensors
        product = backward_in_graph if torch.compiler.is_compiling() else _backward
        found = product(gradient.contiguous(), adapted, weight, down, up, hidden, ctx.apart)
        of_x, of_dropped, of_down, of_up = found
        return of_x, of_dropped if ctx.apart else None, None, None, of_down, of_up


def _forward(
    x: torch.Tensor,
    dropped: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y, and what A makes of x."""
    hidden = (x if dropped is None else dropped) @ down.T
    return functional.linear(x, weight, bias).addmm_(hidden, up.T), hidden


def _backward(
    gradient: torch.Tensor,
    adapted: torch.Tensor,
    weight: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    hidden: torch.Tensor,
    apart: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, of x behind dropout (empty unless it stands apart), of A and of s B. adapted: what A was applied to."""
    of_hidden = gradient @ up
    of_x = gradient @ weight
    of_dropped = of_hidden @ down if apart else of_x.new_empty(0)
    if not apart:
        of_x.addmm_(of_hidden, down)
    return of_x, of_dropped, of_hidden.T @ adapted, gradient.T @ hidden


# In a compiled layer they are operators of their own: taken apart, the sums would become passes again.
forward_in_graph = torch.library.custom_op("tessera::lora_forward", _forward, mutates_args=())
backward_in_graph = torch.library.custom_op("tessera::lora_backward", _backward, mutates_args=())


@forward_in_graph.register_fake
def _(
    x: torch.Tensor, _dropped: torch.Tensor | None, weight: torch.Tensor, _bias: torch.Tensor | None, down: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], down.shape[0])


@backward_in_graph.register_fake
def _(
    _gradient: torch.Tensor,
    adapted: torch.Tensor,
    _weight: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    _hidden: torch.Tensor,
    apart: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    of_dropped = torch.empty_like(adapted) if apart else adapted.new_empty(0)
    return torch.empty_like(adapted), of_dropped, torch.empty_like(down), torch.empty_like(up)
