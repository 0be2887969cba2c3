"""Two processes that share a model's weights (FSDP2) have the loss and the gradients of one process with all batches."""

import json
from pathlib import Path

from tests.training.distributed.ranks import run_ranks

WORKER = Path(__file__).with_name("sharded_loss_worker.py")


def test_any_distribution_of_supervised_tokens_over_ranks_gives_one_process_s_loss_and_gradients(parts: Path, tmp_path: Path) -> None:
    """Also none on a rank, and no image on one of the two; chunks of the loss then differ in number."""
    run_ranks(WORKER, str(parts), "configs/accelerate/fsdp2.yaml", str(tmp_path / "results.json"))
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == 16
    for case in results:
        assert case["loss_gap"] < 1e-5, case
        assert case["gradient_gap"] < 1e-5 < case["gradient"], case
