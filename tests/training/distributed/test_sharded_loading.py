"""Sharded models are loaded once: rank 0 reads the weights, the other ranks get their shards from it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.memory.sharded_loading_memory import measure
from model.siglip_qwen import checkpoint
from tests.training.distributed.ranks import run_ranks

WORKER = Path(__file__).with_name("sharded_loading_worker.py")


@pytest.mark.slow
def test_a_model_whose_weights_rank_0_alone_loads_is_complete_on_all_ranks(parts: Path, tmp_path: Path) -> None:
    run_ranks(WORKER, str(parts), "configs/accelerate/fsdp2.yaml", str(tmp_path))
    for name in ("lora", "language"):
        loaded, sharded = (load_file(tmp_path / f"{name}_{state}.safetensors") for state in ("loaded", "sharded"))
        assert loaded.keys() == sharded.keys()
        assert all(torch.equal(value, sharded[key]) for key, value in loaded.items())
        # Rotary frequencies and position numbers are in no file; without them losses would differ.
        losses = [float((tmp_path / f"{name}_loss_{rank}.txt").read_text()) for rank in range(2)]
        model = checkpoint.load(tmp_path / name)
        ids, labels = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[-100, 6, 7, 8]])
        expected = float(model(input_ids=ids, labels=labels).loss)
        assert losses == pytest.approx([expected, expected], abs=1e-5)


@pytest.mark.slow
def test_the_second_rank_holds_little_more_than_its_shard_while_it_loads() -> None:
    measured = measure(layers=24, width=768)
    assert measured["once"][1].beyond_shard <= 0.25 < measured["every rank"][1].beyond_shard
