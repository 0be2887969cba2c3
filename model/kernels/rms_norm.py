"""Fused RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) for frozen norms of Qwen 2 and 3.

y = w * x / sqrt(mean(x^2) + eps). Written in single operations, as in transformers, a norm copies its input to fp32 and reads or
writes it about a dozen times, backward pass included. Weights and state dict keys stay. Expected of the operator that a GPU uses: three
passes instead. Its time was not measured on a GPU.

Shapes: D size of the normalised dimension (hidden size, or head size for Qwen3's query and key norms).
"""

from typing import Any

import torch
from torch import nn
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from model.kernels.module_replacement import replace_modules


def fuse_rms_norms(model: nn.Module) -> int:
    """Replace all Qwen RMSNorm modules in a model by fused ones with the same weights. Returns their number."""
    return replace_modules(
        model,
        lambda norm: FusedRMSNorm(norm.weight, norm.variance_epsilon) if isinstance(norm, Qwen2RMSNorm | Qwen3RMSNorm) else None,
    )


class FusedRMSNorm(nn.Module):
    """Qwen's RMSNorm with a fused forward and backward pass.

    In compiled layers, with a trained weight, with different dtypes of x and weight, or on a CPU in bf16 or fp16, it computes
    transformers' formula instead.
    """

    def __init__(self, weight: nn.Parameter, variance_epsilon: float):
        super().__init__()
        self.weight, self.variance_epsilon = weight, variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D], in the dtype of x."""
        weight, epsilon = self.weight, self.variance_epsilon
        use_reference = torch.compiler.is_compiling() or weight.requires_grad or x.dtype != weight.dtype
        if x.is_cuda and not use_reference:
            # Not functional.rms_norm: autocast casts its input to fp32.
            fused: torch.Tensor = torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], weight, epsilon)[0]
            return fused
        if x.dtype == torch.float32 and not use_reference:
            normed: torch.Tensor = _RMSNormFunction.apply(x, weight, epsilon)
            return normed
        x_fp32 = x.float()
        reference: torch.Tensor = weight * (x_fp32 * torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)
        return reference


class _RMSNormFunction(torch.autograd.Function):
    """x [..., D] and frozen weight [D], both fp32 -> [..., D]. Saves x and scale = 1 / sqrt(mean(x^2) + eps), [..., 1]."""

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
