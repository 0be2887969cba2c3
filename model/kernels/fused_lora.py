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

from model.kernels.autocast import matmul_dtype


def fuse_lora(model: nn.Module) -> int:
    """Let the adapters on unquantised linear layers compute in this way; how many there are. A projector stage has none."""
    if not isinstance(model, PeftModel):
        return 0
    fused = [module for module in model.modules() if type(module) is PeftLinear]
    for module in fused:
        module.__class__ = FusedLoraLinear
    return len(fused)


class FusedLoraLinear(PeftLinear):
    """PEFT's adapter on a frozen linear layer; what is not plain LoRA is left to PEFT."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base = self.get_base_layer()
        name = self._active_plain_adapter()
        if name is None or args or kwargs or type(base) is not nn.Linear or base.weight.requires_grad:
            result: torch.Tensor = super().forward(x, *args, **kwargs)
            return result
        dtype = matmul_dtype(x)
        # s times B is a small product; s times what B or A meets would be one over all tokens.
        lora_a, lora_b = self.lora_A[name].weight.to(dtype), (self.lora_B[name].weight * self.scaling[name]).to(dtype)
        bias = None if base.bias is None else base.bias.to(dtype)
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        dropout = self.lora_dropout[name]
        x_dropped = dropout(flat) if self.training and not isinstance(dropout, nn.Identity) else None
        if x_dropped is None and _merging_is_faster(flat, base.weight):
            added: torch.Tensor = _MergedLoraFunction.apply(flat, base.weight, bias, lora_a, lora_b)
            return added.view(*x.shape[:-1], added.shape[-1])
        product: torch.Tensor = _LoraFunction.apply(flat, x_dropped, base.weight.to(dtype), bias, lora_a, lora_b)
        return product.view(*x.shape[:-1], product.shape[-1])

    def _active_plain_adapter(self) -> str | None:
        """The one active adapter where it is plain LoRA and switched on."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(names) != 1:
            return None
        name: str = names[0]
        is_special = name in self.lora_variant or self.lora_bias[name] or self.fan_in_fan_out
        return None if is_special else name


MAX_MERGED_WEIGHTS = 1 << 20
"""Weights of a frozen matrix up to which a sum with the adapter's may be kept until the backward pass, in place of passes."""


def _merging_is_faster(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether W + s B A is worth making: fp32 on a CPU (bf16 would round small updates away), and tokens enough to repay it."""
    if x.is_cuda or x.dtype != torch.float32 or weight.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    outputs, inputs = weight.shape
    return weight.numel() <= MAX_MERGED_WEIGHTS and len(x) * (inputs + outputs) > inputs * outputs


class _MergedLoraFunction(torch.autograd.Function):
    """As `_Product` without dropout, by one product with W + s B A in either direction."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
    ) -> torch.Tensor:
        merged_weight = torch.addmm(weight, lora_b, lora_a)
        ctx.save_for_backward(x, merged_weight, lora_a, lora_b)
        return functional.linear(x, merged_weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, merged_weight, lora_a, lora_b = ctx.saved_tensors
        grad_x = grad_output @ merged_weight if ctx.needs_input_grad[0] else None
        return grad_x, None, None, (grad_output @ lora_b).T @ x, grad_output.T @ (x @ lora_a.T)


class _LoraFunction(torch.autograd.Function):
    """x [n, in], x behind dropout [n, in] (None without dropout), frozen weight [out, in] and bias [out], A [r, in],
    s B [out, r] -> [n, out], all of one precision."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        x_dropped: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
    ) -> torch.Tensor:
        product = forward_in_graph if torch.compiler.is_compiling() else _forward
        y, hidden = product(x, x_dropped, weight, bias, lora_a, lora_b)
        ctx.save_for_backward(x if x_dropped is None else x_dropped, weight, lora_a, lora_b, hidden)
        ctx.has_dropout = x_dropped is not None
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        lora_input, weight, lora_a, lora_b, hidden = ctx.saved_tensors
        product = backward_in_graph if torch.compiler.is_compiling() else _backward
        gradients = product(grad_output.contiguous(), lora_input, weight, lora_a, lora_b, hidden, ctx.has_dropout)
        grad_x, grad_dropped, grad_lora_a, grad_lora_b = gradients
        return grad_x, grad_dropped if ctx.has_dropout else None, None, None, grad_lora_a, grad_lora_b


def _forward(
    x: torch.Tensor,
    x_dropped: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y, and what A makes of x."""
    hidden = (x if x_dropped is None else x_dropped) @ lora_a.T
    return functional.linear(x, weight, bias).addmm_(hidden, lora_b.T), hidden


def _backward(
    grad_output: torch.Tensor,
    lora_input: torch.Tensor,
    weight: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    hidden: torch.Tensor,
    has_dropout: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, of x behind dropout (empty unless it stands apart), of A and of s B. adapted: what A was applied to."""
    grad_hidden = grad_output @ lora_b
    grad_x = grad_output @ weight
    grad_dropped = grad_hidden @ lora_a if has_dropout else grad_x.new_empty(0)
    if not has_dropout:
        grad_x.addmm_(grad_hidden, lora_a)
    return grad_x, grad_dropped, grad_hidden.T @ lora_input, grad_output.T @ hidden


# In a compiled layer they are operators of their own: taken apart, the sums would become passes again.
forward_in_graph = torch.library.custom_op("tessera::lora_forward", _forward, mutates_args=())
backward_in_graph = torch.library.custom_op("tessera::lora_backward", _backward, mutates_args=())


@forward_in_graph.register_fake
def _(
    x: torch.Tensor, _dropped: torch.Tensor | None, weight: torch.Tensor, _bias: torch.Tensor | None, lora_a: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], lora_a.shape[0])


@backward_in_graph.register_fake
def _(
    _gradient: torch.Tensor,
    lora_input: torch.Tensor,
    _weight: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    _hidden: torch.Tensor,
    has_dropout: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_dropped = torch.empty_like(lora_input) if has_dropout else lora_input.new_empty(0)
    return torch.empty_like(lora_input), grad_dropped, torch.empty_like(lora_a), torch.empty_like(lora_b)
