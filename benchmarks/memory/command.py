"""The parts `memory` and `loading` of tools/benchmark.py."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import config as configuration
from benchmarks.recipes import FOLDER, SIZES, own_model, show
from errors import UsageError

MEMORY_SIZES = {**SIZES, "qwen3-vl-4b": ("qwen3_vl_4b_qlora.yaml",), "blip2-opt-2.7b": ("blip2_vqav2_qlora.yaml",)}
"""The sizes whose memory is computed."""

COMMAND = Path(__file__).parent.parent.parent / "tools" / "benchmark.py"


def add_parts(parser: Any) -> None:
    """Add both parts to the subcommands of a command."""
    what = "GPU memory of a training step: estimated from shapes and settings, or measured with --run"
    memory = parser.add_part("memory", what, run_memory)
    memory.add_argument("--size", choices=MEMORY_SIZES, default="4b", help="size of the model (default: %(default)s)")
    memory.add_argument("--run", action="store_true", help="run a few steps on the GPU, with random weights in the configured quantisation")
    what = "run them on a simulated GPU of this size, which counts memory and computes nothing (Linux, CUDA build of torch, C compiler)"
    memory.add_argument("--simulated-gpu", type=float, metavar="GIB", help=what)
    memory.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="folder of the table (default: %(default)s)")
    memory.add_argument("settings", nargs="*", metavar="key=value", help="override a key of the size's recipe in configs/")
    what = "host memory of each rank while a sharded model is loaded (FSDP2, CPU processes, Linux)"
    loading = parser.add_part("loading", what, run_loading)
    loading.add_number("--layers", 24, "layers of the language model")
    loading.add_number("--width", 768, "its hidden size")
    loading.add_number("--processes", 2, "number of ranks")


def run_memory(parsed: argparse.Namespace) -> None:
    """Estimate or measure the memory of a step with the unchanged configuration of the size; print and save the table."""
    config, gib = configuration.load(configuration.DEFAULT.parent / MEMORY_SIZES[parsed.size][0], parsed.settings), parsed.simulated_gpu
    if gib is None and not parsed.run:
        from benchmarks.memory.memory_estimate import estimate_memory

        show(parsed, estimate_memory(parsed.size, config.model, config.train), f"memory_{parsed.size}")
        return
    if gib is not None:
        _run_on_simulated_gpu(parsed)
    from benchmarks.gpu_targets import check_device
    from benchmarks.memory.memory_measurement import measure

    name = f"memory_{parsed.size}_measured" if gib is None else f"memory_{parsed.size}_card_{gib:g}"
    show(parsed, measure(parsed.size, own_model(config), config.train, check_device("memory --run")), name)


def _run_on_simulated_gpu(parsed: argparse.Namespace) -> None:
    """Run this command again on a simulated GPU; returns at once in the process that runs on it.

    Raises:
        UsageError: no GPU can be simulated here.
        SystemExit: the run has ended, with its exit status.
    """
    from benchmarks.memory.simulated_gpu.build_library import check, is_simulated, run

    if is_simulated():
        return
    gib = parsed.simulated_gpu
    if not (math.isfinite(gib) and gib > 0):
        raise UsageError(f"--simulated-gpu {gib:g}: expected a number of GiB above 0")
    check()
    options = ["--size", parsed.size, "--simulated-gpu", str(gib), "--out", str(parsed.out)]
    raise SystemExit(run([str(COMMAND), "memory", *options, *parsed.settings], gib))


def run_loading(parsed: argparse.Namespace) -> None:
    """Load and shard a random model, with its weights read by rank 0 alone and by every rank, and print the memory of each rank."""
    if sys.platform != "linux":
        raise UsageError("loading: the memory of a process is read from /proc, which only Linux has")
    from benchmarks.memory.sharded_loading_memory import measure, table

    print("\n".join(table(measure(parsed.layers, parsed.width, parsed.processes))))
