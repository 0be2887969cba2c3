"""What a device can, by its compute capability, which stands in for the devices themselves."""

import pytest
import torch

from model.kernels import device_capability
from model.kernels.autocast import Precision, autocast, frozen_dtype, matmul_dtype
from model.kernels.device_capability import DeviceCapability, default_dtype, half_dtype
from model.kernels.varlen_attention import can_use_varlen

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.mark.parametrize(
    ("card", "capability", "native", "dtype"),
    [("V100", (7, 0), False, torch.float16), ("T4", (7, 5), False, torch.float16), ("A100", (8, 0), True, torch.bfloat16)],
)
def test_cards_before_ampere_have_fp16_alone(
    card: str, capability: tuple[int, int], native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_capability, "compute_capability", lambda _: capability)
    assert device_capability.device_capability(CUDA) == DeviceCapability(bf16=native, varlen_attention=native), card
    assert half_dtype(CUDA) == default_dtype(CUDA) == default_dtype("cuda") == dtype


def test_a_cpu_holds_fp32_and_has_no_packed_attention() -> None:
    assert default_dtype("cpu") == default_dtype("meta") == torch.float32
    assert not device_capability.device_capability("cpu").varlen_attention
    assert not can_use_varlen(torch.zeros(1))


def test_frozen_weights_have_the_dtype_of_matrix_products_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_capability, "compute_capability", lambda device: (7, 5) if torch.device(device).type == "cuda" else None)
    assert [frozen_dtype(CUDA, precision) for precision in ("bf16", "fp16", "fp32")] == [torch.bfloat16, torch.float16, torch.float32]
    assert {frozen_dtype(CPU, precision) for precision in ("bf16", "fp16", "fp32")} == {torch.float32}


def test_autocast_takes_the_precision_and_leaves_fp32_alone() -> None:
    dtypes: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    for precision, dtype in dtypes.items():
        with autocast(CPU, precision):
            assert matmul_dtype(torch.zeros(1)) == dtype
