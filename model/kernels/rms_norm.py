"""RMS norms (Zhang and Sennrich 2019, arXiv:1910.07467) of the frozen language model in few passes over the tokens.

Written out in single operations, a norm makes a copy of its input in fp32 and passes over it about a dozen times, backward pass
included. In: a model whose norms are those of Qwen 2 or 3. Out: the same model and weights.
"""

from typing import Any

import torch
from torch import nn
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm


def fuse_rms_norms(model: nn.Module) -> int:
    """Let the norms of the language model compute in this way; how many there are."""
    norms = [module for module in model.modules() if type(module) in (Qwen2RMSNorm, Qwen3RMSNorm)]
    for module in norms:
        module.__class__ = FusedRMSNorm
    return len(norms)


class FusedRMSNorm(nn.Module):
    """A norm of the library under another forward pass. Compiled layers, trained norms and other precisions have its own."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> the same, in the precision of x."""
        weight, epsilon = self.weight, self.variance_epsilon
        use_reference = torch.compiler.is_compiling() or weight.requires_grad or x.dtype != weight.dtype
        if x.is_cuda and not use_reference:
            # Not functional.rms_norm, which autocast would give a copy in fp32.
            fused: torch.Tensor = torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], weight, epsilon)[0]
            return fused
        if x.dtype == torch.float32 and not use_reference:
            normed: torch.Tensor = _RMSNormFunction.apply(x, weight, epsilon)
            return normed
        x_fp32 = x.float()
        reference: torch.Tensor = weight * (x_fp32 * torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)
        return reference


class _RMSNormFunction(torch.autograd.Function):
    """x [..., D] and a frozen weight [D], both fp32 -> [..., D]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        normed: torch.Tensor = (x * scale).mul_(weight)
        return normed

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        grad_normed = grad_output * weight
        x_component = torch.linalg.vecdot(grad_normed, x).unsqueeze(-1).mul_(scale.pow(3)).div_(-x.shape[-1])
        return grad_normed.mul_(scale).addcmul_(x, x_component), None, None
