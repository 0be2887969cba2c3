"""The memory that a training step really takes on a GPU, beside what `benchmarks.memory` reckons for it.

In: a size and an experiment's settings, its quantisation included. Out: a table of bytes. The weights are random, as large as the
real ones, and quantised where they stay; the steps are those of train.py.
"""

import dataclasses
from dataclasses import asdict

import torch

from benchmarks.benchmark_report import Machine, Report, number
from benchmarks.full_size_models import Size, build_ours, build_processor
from benchmarks.memory.memory_estimate import plan
from benchmarks.memory.simulated_gpu.build_library import is_imitated
from benchmarks.timing import free_memory, timed
from benchmarks.training.train_step import Setup, our_side, our_way, settle_memory
from errors import UsageError
from model.siglip_qwen.assembly import default_dtype
from model.siglip_qwen.config import ModelConfig
from training.config import TrainConfig
from training.out_of_memory import naming_memory_settings

STEPS = 3
"""Optimizer steps, of which the first makes the optimizer's state."""
COLUMNS = ("what", "GiB")
IMITATED = "imitated: torch's allocator counted, nothing was computed; context assumed"


def measure(size: Size, model: ModelConfig, train: TrainConfig, device: torch.device) -> Report:
    """Run a few optimizer steps of `train.accumulation` micro-batches each. What a device does not tell is left out (a CPU tells nothing).

    Raises UsageError for settings that cannot be measured, TesseraError where memory runs out.
    """
    if model.quantization == "int8":
        raise UsageError("model.quantization: int8, but the benchmark makes NF4 weights or unquantised ones; set it to nf4 or none")
    plain = dataclasses.replace(model, quantization="none")
    setup = Setup.of(size, plain, train, train.accumulation * _samples_a_row(size, plain, train), device, cut=True)
    on_cuda = device.type == "cuda"
    with naming_memory_settings("making the weights"):
        dtype = default_dtype(device) if setup.bf16 else torch.float32
        four_bits = model.quantization == "nf4"
        base = build_ours(size, plain, setup.processor, dtype=dtype, device=device, seed=train.seed, four_bits=four_bits)
        free_memory()
    ours, compiling = our_side(setup, base)
    way = our_way(setup, ours)
    way.batches = way.batches[: train.accumulation]
    with naming_memory_settings("training"):
        chosen = settle_memory(setup, way)
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device) if on_cuda else 0
        seconds = [timed(lambda: ours.step(*way.batches), device) for _ in range(STEPS)]
    taken = _taken(held, device) if on_cuda else {}
    reckoned = plan(size, model, train).measured["bytes"]["in all"]
    rows = [[what, number(size / 2**30, 2)] for what, size in {**taken, "computed": reckoned}.items()]
    facts = {
        **Machine.here(device).facts(),
        "model": f"{size}, random weights, language model in {model.quantization}, products in {setup.precision}",
        "ours": f"compile: {compiling}; gradient checkpointing: {chosen}",
        **({"card": IMITATED} if is_imitated() else {}),
        "step": f"{len(way.batches)} micro-batches in {way.batch}, {train.optimizer}; {STEPS} steps",
    }
    measured = {
        "size": size,
        "bytes": {**taken, "computed": reckoned},
        "seconds": seconds,
        "settings": {"model": asdict(model), "train": asdict(train)},
    }
    return Report(f"Memory of a training step, {size}, measured", facts, COLUMNS, rows, measured)


def _taken(held: int, device: torch.device) -> dict[str, float]:
    """Bytes of a CUDA device behind a few steps. What torch's allocator has not handed out is the context, libraries, paged
    moments, and whatever other programs hold there."""
    free, whole = torch.cuda.mem_get_info(device)
    reserved, most_reserved = torch.cuda.memory_reserved(device), torch.cuda.max_memory_reserved(device)
    beside = whole - free - reserved
    return {
        "held before the first step": float(held),
        "peak, in tensors": float(torch.cuda.max_memory_allocated(device)),
        "peak, with fragments": float(most_reserved),
        "context, libraries, paged moments": float(beside),
        "in all": float(most_reserved + beside),
    }


def _samples_a_row(size: Size, model: ModelConfig, train: TrainConfig) -> int:
    """As many samples as fill a row, and some of which will be too long for one."""
    return 2 * (1 + train.tokens_per_row // build_processor(size, model).tokens_per_image)
