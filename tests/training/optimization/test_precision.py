"""train.precision on each kind of device; the compute capability stands in for the cards."""

import pytest
import torch

from errors import UsageError
from model.kernels import device_capability
from training.config import TrainConfig
from training.data_loading import Batching
from training.optimization.optimizers import build_optimizer
from training.optimization.precision import resolve_precision

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def t4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_capability, "compute_capability", lambda _: (7, 5))


@pytest.fixture
def a100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_capability, "compute_capability", lambda _: (8, 0))


@pytest.mark.usefixtures("t4")
def test_a_t4_trains_in_fp16_on_padded_batches() -> None:
    assert resolve_precision(TrainConfig(), CUDA) == "fp16"
    assert str(Batching.of(TrainConfig(), CUDA, "fp16")).endswith("padded (auto on cuda without variable-length attention in fp16)")
    with pytest.raises(UsageError, match=r"cuda:0 does not compute in bf16; set train.precision=fp16"):
        resolve_precision(TrainConfig(precision="bf16"), CUDA)


@pytest.mark.usefixtures("a100")
def test_an_a100_trains_in_bf16_on_packed_rows_and_pads_in_fp32() -> None:
    assert resolve_precision(TrainConfig(), CUDA) == "bf16"
    assert Batching.of(TrainConfig(), CUDA, "bf16").packed
    assert Batching.of(TrainConfig(), CUDA, "fp16").packed
    assert not Batching.of(TrainConfig(), CUDA, "fp32").packed


def test_a_cpu_trains_in_fp32_unless_told_otherwise() -> None:
    assert [resolve_precision(TrainConfig(precision=wanted), CPU) for wanted in ("auto", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]


@pytest.mark.usefixtures("t4")
@pytest.mark.parametrize(("variable", "library"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")])
def test_fp16_with_sharding_is_refused_with_the_launch_files_that_do(variable: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UsageError, match=rf"fp16 does not work with {library} here; launch with .*multi_gpu.yaml"):
        resolve_precision(TrainConfig(), CUDA)


def test_scaled_gradients_do_not_get_the_fused_optimizer_which_hides_skipped_steps() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))]}]
    assert build_optimizer(TrainConfig(), groups, CUDA).defaults["fused"]
    assert not build_optimizer(TrainConfig(), groups, CUDA, scaled=True).defaults["fused"]
