"""Host memory of each rank while a model is loaded and sharded (FSDP2 with the values of the launch file, CPU processes).

Run as a module it is one rank: python -m benchmarks.memory.sharded_loading_memory FOLDER LOAD_ONCE RESULT
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from benchmarks.launch_file import fsdp_plugin, shard
from errors import TesseraError
from model.family import LoadOptions
from model.siglip_qwen.adapters import configure_trainable
from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig
from training.distributed.sharding import prepare_for_weights

LAUNCH_FILE = Path("configs/accelerate/fsdp2.yaml")
MIB = 2**20


@dataclass(frozen=True)
class LoadingMemory:
    """Memory of one rank in bytes: of all weights, of its shard of them, and its peak above what it used before loading."""

    model: int
    shard: int
    peak: int

    @property
    def beyond_shard(self) -> float:
        """Peak beyond the rank's own shard, as a fraction of the model."""
        return (self.peak - self.shard) / self.model


def write_models(folder: Path, layers: int, width: int) -> None:
    """A random Qwen3 of `layers` layers and a small SigLIP, in folders that `build` can load."""
    language = Qwen3Config(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=8,
        head_dim=width // 8, vocab_size=8192, tie_word_embeddings=True,
    )  # fmt: skip
    vision = SiglipVisionConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, image_size=32)
    Qwen3ForCausalLM(language).save_pretrained(folder / "qwen3")
    SiglipVisionModel(vision).save_pretrained(folder / "siglip")


def measure(layers: int, width: int, world_size: int = 2) -> dict[str, list[LoadingMemory]]:
    """Memory by rank when rank 0 alone loads the weights ("once"), and when every rank does ("every rank")."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", __spec__.name, "write", folder, str(layers), str(width)], check=True)
        return {name: _launch(Path(folder), load_once, world_size) for name, load_once in (("once", True), ("every rank", False))}


def _launch(folder: Path, load_once: bool, world_size: int) -> list[LoadingMemory]:
    meeting = folder / f"meeting_{load_once}"
    # Tensors that were sent and freed go back to the system; on a CPU they share the heap with the shards, which glibc would not shrink.
    env = {**os.environ, "WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**19)}
    command = [sys.executable, "-m", __spec__.name, "rank", str(folder), str(int(load_once)), f"file://{meeting}"]
    ranks = [subprocess.Popen(command, env={**env, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True) for rank in range(world_size)]
    failures = [error for rank, error in ((rank, rank.communicate()[1]) for rank in ranks) if rank.returncode]
    if failures:
        raise TesseraError(f"a rank failed while it loaded the model: {failures[0].strip().splitlines()[-1]}")
    return [LoadingMemory(**json.loads((folder / f"memory_{rank}.json").read_text())) for rank in range(world_size)]


def run_rank(folder: Path, load_once: bool, meeting: str) -> LoadingMemory:
    """Load and shard the model as one rank, and measure its memory (Linux)."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size, timeout=timedelta(minutes=10))
    plugin = fsdp_plugin(LAUNCH_FILE)
    plugin.cpu_ram_efficient_loading = load_once
    config = SiglipQwenConfig(vision=str(folder / "siglip"), language=str(folder / "qwen3"), lora=LoraConfig(r=8, lora_alpha=16))
    build(config, image_token_id=5, options=LoadOptions(torch.float32, load_weights=False))  # imports what loading needs
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    model = build(config, image_token_id=5, options=LoadOptions(torch.float32, load_weights=not (load_once and rank)))
    trained = configure_trainable(model, config, ("connector", "lora"))
    if load_once:
        prepare_for_weights(trained, rank, sends_all=False)
    sharded = shard(trained, plugin)
    peak = _resident_bytes("VmHWM") - before
    parameters: list[Any] = list(sharded.parameters())
    size, local = (sum(p.numel() * p.element_size() for p in tensors) for tensors in (parameters, [p.to_local() for p in parameters]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return LoadingMemory(size, local, peak)


def _resident_bytes(key: str) -> int:
    """VmRSS (memory in use) or VmHWM (its peak) of this process."""
    line = next(line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def table(measured: dict[str, list[LoadingMemory]]) -> list[str]:
    """One line a rank."""
    return [
        f"weights loaded by {'rank 0' if name == 'once' else name}: rank {rank} of {len(ranks)}: peak {memory.peak / MIB:,.0f} MiB, "
        f"own shard {memory.shard / MIB:,.0f} of {memory.model / MIB:,.0f} MiB, {memory.beyond_shard:.2f} of the model beyond it"
        for name, ranks in measured.items()
        for rank, memory in enumerate(ranks)
    ]


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write_models(Path(sys.argv[2]), *map(int, sys.argv[3:]))
    else:
        where = Path(sys.argv[2])
        result = asdict(run_rank(where, sys.argv[3] == "1", sys.argv[4]))
        (where / f"memory_{os.environ['RANK']}.json").write_text(json.dumps(result), encoding="utf-8")
