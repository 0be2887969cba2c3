"""Norms in fewer passes are the library's norms."""

from typing import Any

import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from model.kernels.rms_norm import FusedRMSNorm, fuse_rms_norms
from tests.model.conftest import Build

Found = tuple[torch.Tensor, torch.Tensor | None]


def norm_of(kind: type, dtype: torch.dtype = torch.float32, frozen: bool = True) -> Any:
    norm: Any = kind(48, eps=1e-3)
    norm.weight.data.normal_(1, 0.3, generator=torch.Generator().manual_seed(0))
    return norm.to(dtype).requires_grad_(not frozen)


def through(norm: torch.nn.Module, dtype: torch.dtype) -> Found:
    """What a norm makes of heads [2, 5, 3, 48], and the gradient of that."""
    x, gradient = torch.randn(2, 2, 5, 3, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    x = (0.1 * x).requires_grad_()
    y = norm(x)
    y.backward(gradient)
    assert y.dtype == dtype
    return y.detach(), x.grad


@pytest.mark.parametrize("kind", [Qwen2RMSNorm, Qwen3RMSNorm])
def test_values_and_gradients_are_the_library_s(kind: type) -> None:
    norm = norm_of(kind)
    wanted = through(norm, torch.float32)
    assert fuse_rms_norms(norm) == 1 and type(norm) is FusedRMSNorm
    torch.testing.assert_close(through(norm, torch.float32), wanted, atol=1e-5, rtol=1e-5)


def test_fewer_tensors_are_kept_for_the_backward_pass() -> None:
    def kept(norm: torch.nn.Module) -> int:
        sizes: dict[int, int] = {}
        x = (2 * torch.randn(100, 48)).requires_grad_() * 1

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            y = norm(x)
        del y
        return sum(sizes.values())

    norm = norm_of(Qwen3RMSNorm)
    before = kept(norm)
    fuse_rms_norms(norm)
    # The input, a number for each row, and the weight.
    assert kept(norm) == 100 * 48 + 100 + 48 <= before


def test_in_half_precision_and_where_it_is_trained_it_is_the_library_s_to_the_bit() -> None:
    half = norm_of(Qwen3RMSNorm, torch.bfloat16)
    wanted = through(half, torch.bfloat16)
    fuse_rms_norms(half)
    torch.testing.assert_close(through(half, torch.bfloat16), wanted, atol=0, rtol=0)
    trained = norm_of(Qwen3RMSNorm, frozen=False)
    found = through(trained, torch.float32)
    of_weight, trained.weight.grad = trained.weight.grad, None
    fuse_rms_norms(trained)
    torch.testing.assert_close(through(trained, torch.float32), found, atol=0, rtol=0)
    torch.testing.assert_close(trained.weight.grad, of_weight, atol=0, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_operator_that_a_gpu_is_given_computes_the_same(dtype: torch.dtype, tolerance: float) -> None:
    """Its arguments and its gradient; its kernel for CUDA is not run here."""
    norm = norm_of(Qwen3RMSNorm, dtype)

    class AsOnCuda(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            fused: torch.Tensor = torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], norm.weight, norm.variance_epsilon)[0]
            return fused

    torch.testing.assert_close(through(AsOnCuda(), dtype), through(norm, dtype), atol=tolerance, rtol=tolerance)


def test_all_norms_of_the_language_model_are_found(make: Build) -> None:
    model = make()
    assert fuse_rms_norms(model.model.language_model) == 5 * 4 + 1
