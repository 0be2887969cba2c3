"""LoRA linear layers, y = W x + s B A x with s = lora_alpha / r (Hu et al. 2021, arXiv:2106.09685, section 4.1), fused.

PEFT casts x to the adapter's dtype in every layer, computes three matrix products, scales one and adds it. Each step reads and
writes all tokens, and every layer saves its own copy of x for the backward pass. Here the product with B is accumulated into
that with W (addmm), the same for the gradient of x, and layers with the same input save one x. On a CPU in fp32, small matrices
are merged to W + s B A first. Weights, saving, loading and merging remain PEFT's.

Shapes: N tokens (batch and sequence flattened), I input features, O output features, R rank. W [O, I], A [R, I], B [O, R].
`lora_b` is s B. `hidden` [N, R] is A x.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import nn
from torch.nn import functional

from model.kernels.autocast import matmul_dtype
from model.kernels.module_replacement import replace_modules, with_forward_of


def fuse_lora(model: nn.Module) -> int:
    """Replace all LoRA layers on unquantised linear layers by fused ones with the same weights. Returns their number."""
    return replace_modules(model, lambda module: with_forward_of(module, FusedLoraLinear) if type(module) is PeftLinear else None)


class FusedLoraLinear(PeftLinear):
    """PEFT's LoRA on a frozen linear layer. Everything but plain LoRA (DoRA, several adapters, LoRA bias) falls back to PEFT."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[..., I] -> [..., O]."""
        base = self.get_base_layer()
        name = self._active_plain_adapter()
        if name is None or args or kwargs or type(base) is not nn.Linear or base.weight.requires_grad:
            result: torch.Tensor = super().forward(x, *args, **kwargs)
            return result
        dtype = matmul_dtype(x)
        # Scaling B [O, R] is cheap; scaling an activation would read and write all tokens.
        lora_a, lora_b = self.lora_A[name].weight.to(dtype), (self.lora_B[name].weight * self.scaling[name]).to(dtype)
        bias = None if base.bias is None else base.bias.to(dtype)
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        dropout = self.lora_dropout[name]
        x_dropped = dropout(flat) if self.training and not isinstance(dropout, nn.Identity) else None
        if x_dropped is None and _merging_is_faster(flat, base.weight):
            merged_output: torch.Tensor = _MergedLoraFunction.apply(flat, base.weight, bias, lora_a, lora_b)
            return merged_output.view(*x.shape[:-1], merged_output.shape[-1])
        output: torch.Tensor = _LoraFunction.apply(flat, x_dropped, base.weight.to(dtype), bias, lora_a, lora_b)
        return output.view(*x.shape[:-1], output.shape[-1])

    def _active_plain_adapter(self) -> str | None:
        """Name of the active adapter if there is exactly one, enabled, unmerged and plain LoRA; else None."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(names) != 1:
            return None
        name: str = names[0]
        is_special = name in self.lora_variant or self.lora_bias[name] or self.fan_in_fan_out
        return None if is_special else name


MAX_MERGED_WEIGHTS = 1 << 20
"""Largest frozen matrix, in elements, for which the merged W + s B A may be saved for the backward pass."""


def _merging_is_faster(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether to compute W + s B A: only in fp32 on a CPU (bf16 rounds small updates away), and if N is large enough to pay.

    Merging costs about 2 O I R operations; it saves the products with A and B, about 2 N R (I + O).
    """
    if x.is_cuda or x.dtype != torch.float32 or weight.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    outputs, inputs = weight.shape
    return weight.numel() <= MAX_MERGED_WEIGHTS and len(x) * (inputs + outputs) > inputs * outputs


class _MergedLoraFunction(torch.autograd.Function):
    """y = (W + s B A) x: like `_LoraFunction` without dropout, with one matrix product forward and one for the gradient of x."""

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
    """y [N, O] = W x + bias + s B A dropout(x), with frozen W and bias; all tensors have one dtype.

    Inputs: x [N, I], x_dropped [N, I] (x after dropout; None without dropout), weight [O, I], bias [O], lora_a [R, I],
    lora_b = s B [O, R].
    """

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
    """Returns y [N, O] and A x [N, R]."""
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
    """Gradients of x, of x after dropout (empty without dropout), of A and of s B.

    Args:
        grad_output: gradient of y, [N, O].
        lora_input: input of A, [N, I]: x, or x after dropout.
        weight: frozen W [O, I].
        lora_a: [R, I].
        lora_b: s B [O, R].
        hidden: A x [N, R] from the forward pass.
        has_dropout: lora_input is not x; its gradient is then returned separately.
    """
    grad_hidden = grad_output @ lora_b
    grad_x = grad_output @ weight
    grad_dropped = grad_hidden @ lora_a if has_dropout else grad_x.new_empty(0)
    if not has_dropout:
        grad_x.addmm_(grad_hidden, lora_a)
    return grad_x, grad_dropped, grad_hidden.T @ lora_input, grad_output.T @ hidden


# Compiled layers call these as custom operators: traced, each accumulating addmm_ would become a separate pass over the tokens.
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
