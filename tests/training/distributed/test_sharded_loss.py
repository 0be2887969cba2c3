"""Two processes that share a model's weights (FSDP2, ZeRO-3) have the loss and the gradients of one process with all batches."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.training.distributed.ranks import run_ranks

WORKER = Path(__file__).with_name("sharded_loss_worker.py")


NO_DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch_file", "quantization", "cases"),
    [
        ("fsdp2", "none", 24),
        pytest.param("fsdp2_qlora", "nf4", 8),
        pytest.param("deepspeed_zero3", "none", 24, marks=NO_DEEPSPEED),
    ],
)
def test_any_distribution_of_supervised_tokens_over_ranks_gives_one_process_s_loss_and_gradients(
    parts: Path, tmp_path: Path, launch_file: str, quantization: str, cases: int
) -> None:
    """Also none on a rank, and no image on one of the two; chunks of the loss then differ in number."""
    output = tmp_path / "results.json"
    run_ranks(WORKER, str(parts), f"configs/accelerate/{launch_file}.yaml", str(output), quantization)
    results = json.loads(output.read_text())
    assert len(results) == cases
    for case in results:
        assert case["loss_gap"] < 1e-5, case
        assert case["gradient_gap"] < 1e-5 < case["gradient"], case
