"""The fused RMSNorm equals that of transformers."""

from typing import Any

import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from model.kernels.rms_norm import FusedRMSNorm, fuse_rms_norms
from tests.model.conftest import Build

OutputAndGradient = tuple[torch.Tensor, torch.Tensor | None]


def make_norm(kind: type, dtype: torch.dtype = torch.float32, frozen: bool = True) -> Any:
    """A norm over 48 features with random weights."""
    norm: Any = kind(48, eps=1e-3)
    norm.weight.data.normal_(1, 0.3, generator=torch.Generator().manual_seed(0))
    return norm.to(dtype).requires_grad_(not frozen)


def output_and_gradient(norm: torch.nn.Module, dtype: torch.dtype) -> OutputAndGradient:
    """Output of a norm for random x [2, 5, 3, 48], and the gradient of x for a random gradient of the output."""
    x, gradient = torch.randn(2, 2, 5, 3, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    x = (0.1 * x).requires_grad_()
    y = norm(x)
    y.backward(gradient)
    assert y.dtype == dtype
    return y.detach(), x.grad


def fuse(norm: torch.nn.Module) -> FusedRMSNorm:
    """The fused norm that takes the place of a norm in a model."""
    model = torch.nn.Sequential(norm)
    assert fuse_rms_norms(model) == 1
    fused = model[0]
    assert isinstance(fused, FusedRMSNorm)
    return fused


@pytest.mark.parametrize("kind", [Qwen2RMSNorm, Qwen3RMSNorm])
def test_outputs_and_gradients_equal_those_of_transformers(kind: type) -> None:
    norm = make_norm(kind)
    expected = output_and_gradient(norm, torch.float32)
    fused = fuse(norm)
    assert fused.weight is norm.weight and type(norm) is kind
    torch.testing.assert_close(output_and_gradient(fused, torch.float32), expected, atol=1e-5, rtol=1e-5)


def test_fewer_elements_are_saved_for_the_backward_pass() -> None:
    def saved_elements(norm: torch.nn.Module) -> int:
        sizes: dict[int, int] = {}
        x = (2 * torch.randn(100, 48)).requires_grad_() * 1

        def record(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            y = norm(x)
        del y
        return sum(sizes.values())

    norm = make_norm(Qwen3RMSNorm)
    before = saved_elements(norm)
    # The input, one scale per row, and the weight.
    assert saved_elements(fuse(norm)) == 100 * 48 + 100 + 48 <= before


def test_in_bf16_and_with_a_trained_weight_it_equals_transformers_bit_for_bit() -> None:
    half = make_norm(Qwen3RMSNorm, torch.bfloat16)
    expected = output_and_gradient(half, torch.bfloat16)
    torch.testing.assert_close(output_and_gradient(fuse(half), torch.bfloat16), expected, atol=0, rtol=0)
    trained = make_norm(Qwen3RMSNorm, frozen=False)
    expected = output_and_gradient(trained, torch.float32)
    expected_weight_gradient, trained.weight.grad = trained.weight.grad, None
    torch.testing.assert_close(output_and_gradient(fuse(trained), torch.float32), expected, atol=0, rtol=0)
    torch.testing.assert_close(trained.weight.grad, expected_weight_gradient, atol=0, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_operator_used_on_cuda_gives_the_same_results(dtype: torch.dtype, tolerance: float) -> None:
    """Checks its arguments and gradient; the CUDA kernel itself is not run here."""
    norm = make_norm(Qwen3RMSNorm, dtype)

    class CudaPath(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            fused: torch.Tensor = torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], norm.weight, norm.variance_epsilon)[0]
            return fused

    torch.testing.assert_close(output_and_gradient(CudaPath(), dtype), output_and_gradient(norm, dtype), atol=tolerance, rtol=tolerance)


def test_all_norms_of_the_language_model_are_fused(make: Build) -> None:
    model = make()
    assert fuse_rms_norms(model.model.language_model) == 5 * 4 + 1
