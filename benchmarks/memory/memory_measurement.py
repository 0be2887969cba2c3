"""Measured memory of a training step on a GPU, next to the estimate of `memory_estimate`.

The weights are random, have full size, and are created and quantised on the device; the steps are those of train.py.
"""

import dataclasses
from dataclasses import asdict

import torch

from benchmarks.benchmark_report import BenchmarkReport, Machine
from benchmarks.full_size_models import Size, build_ours, build_processor
from benchmarks.memory.memory_estimate import COLUMNS, estimate_memory, gib_rows
from benchmarks.memory.simulated_gpu.build_library import is_simulated
from benchmarks.timing import free_memory, timed
from benchmarks.training.trained_models import Setup, choose_checkpointing, our_batches, our_side
from errors import UsageError
from model.kernels.autocast import frozen_dtype
from model.siglip_qwen.config import SiglipQwenConfig
from training.config import TrainConfig
from training.out_of_memory import explain_out_of_memory

STEPS = 3
"""Optimizer steps; the first one creates the optimizer state."""
SIMULATED_GPU_NOTE = "memory was counted by torch's allocator, nothing was computed; the size of the context is assumed"


def measure(size: Size, model: SiglipQwenConfig, train: TrainConfig, device: torch.device) -> BenchmarkReport:
    """Run optimizer steps of `train.gradient_accumulation_steps` micro-batches each. On a CPU the table has only the estimate.

    Args:
        size: size of the models.
        model: `model` section of the configuration, quantisation included.
        train: `train` section of the configuration.
        device: device of the model.

    Raises:
        UsageError: settings that cannot be measured.
        TesseraError: out of memory.
    """
    if model.quantization == "int8":
        raise UsageError("model.quantization: int8, but the benchmark creates NF4 or unquantised weights; set it to nf4 or none")
    plain = dataclasses.replace(model, quantization="none")
    # An upper estimate of the samples that fill the rows; some of them are longer than a row and are dropped.
    samples_per_row = 2 * (1 + train.packing_length // build_processor(size, plain).tokens_per_image)
    setup = Setup.of(size, plain, train, train.gradient_accumulation_steps * samples_per_row, device, drop_long_samples=True)
    on_cuda = device.type == "cuda"
    with explain_out_of_memory("creating the weights"):
        dtype = frozen_dtype(device, setup.precision)
        load_in_4bit = model.quantization == "nf4"
        base = build_ours(size, plain, setup.processor, dtype=dtype, device=device, seed=train.seed, load_in_4bit=load_in_4bit)
        free_memory()
    ours, compile_choice = our_side(setup, base)
    form, batches = our_batches(setup)
    batches = batches[: train.gradient_accumulation_steps]
    with explain_out_of_memory("training"):
        checkpointing = choose_checkpointing(setup, ours, batches)
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        allocated_before = torch.cuda.memory_allocated(device) if on_cuda else 0
        seconds = [timed(lambda: ours.step(*batches), device) for _ in range(STEPS)]
    measured_bytes = _measured_bytes(allocated_before, device) if on_cuda else {}
    parts = {**measured_bytes, "computed": estimate_memory(size, model, train).measured["bytes"]["in all"]}
    facts = {
        **Machine.current(device).facts(),
        "model": f"{size}, random weights, language model in {model.quantization}, products in {setup.precision}",
        "ours": f"compile: {compile_choice}; gradient checkpointing: {checkpointing}",
        **({"simulated GPU": SIMULATED_GPU_NOTE} if is_simulated() else {}),
        "step": f"{len(batches)} micro-batches in {form}, {train.optim}; {STEPS} steps",
    }
    measured = {
        "size": size,
        "bytes": parts,
        "seconds": seconds,
        "settings": {"model": asdict(model), "train": asdict(train)},
    }
    return BenchmarkReport(f"Memory of a training step, {size}, measured", facts, COLUMNS, gib_rows(parts), measured)


def _measured_bytes(allocated_before: int, device: torch.device) -> dict[str, float]:
    """Bytes of a CUDA device after the steps.

    Memory outside torch's allocator holds the context, libraries, paged optimizer state, and what other programs use.
    """
    free, total = torch.cuda.mem_get_info(device)
    reserved, most_reserved = torch.cuda.memory_reserved(device), torch.cuda.max_memory_reserved(device)
    outside_allocator = total - free - reserved
    return {
        "held before the first step": float(allocated_before),
        "peak, in tensors": float(torch.cuda.max_memory_allocated(device)),
        "peak, with fragments": float(most_reserved),
        "context, libraries, paged moments": float(outside_allocator),
        "in all": float(most_reserved + outside_allocator),
    }
