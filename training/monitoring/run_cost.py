"""What a run will cost, before any weight is loaded: FLOPs from the shapes of the model and the samples, and the time on known GPUs.

The FLOPs are those of `model.step_flops.StepFlops`. Validation, checkpoints and reading images are not counted.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample
from training.data_loading import TrainingData, evenly_spaced
from training.monitoring.throughput import peak_tflops_of
from training.run_setup import RunSetup, training_sampler

ASSUMED_MFU = 0.3
"""Assumed share of a GPU's peak rate that useful operations reach. Real shares differ with card, model and row length."""

MEASURED_SAMPLES = 200
"""Conversations, evenly spaced, whose supervised tokens and images are counted for the mean."""

UNITS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"))


def print_run_cost(run_setup: RunSetup, remaining: dict[int, int]) -> None:
    """Print what the rest of a run costs; nothing when no step is left. remaining: optimizer steps, by index of the stage."""
    steps = sum(remaining.values())
    if steps and run_setup.partial_state.is_main_process:
        flops = run_flops(run_setup, remaining)
        run_setup.print_once(f"cost: {format_flops(flops)} of useful operations in {steps:,} steps; {_time(run_setup, flops)}")


def run_flops(run_setup: RunSetup, remaining: dict[int, int]) -> float:
    """FLOPs of the remaining steps, over all ranks. remaining: optimizer steps, by index of the stage."""
    tokens, supervised, images = _counts_per_step(run_setup) if run_setup.stream is not None else _counts_per_epoch(run_setup)
    total = 0.0
    for index, steps in remaining.items():
        cost = run_setup.family.step_flops(_model_without_weights(run_setup, index), run_setup.config.train.cache_vision_features)
        stage = run_setup.config.train.stages[index]
        epochs = steps if run_setup.stream is not None else stage.epochs * steps / training_sampler(run_setup, index).steps
        total += cost.flops(tokens, supervised, images) * epochs
    return total


def _model_without_weights(run_setup: RunSetup, stage: int) -> nn.Module:
    """The model of a stage on the meta device. Quantisation is left out; it does not change the operations."""
    config = dataclasses.replace(run_setup.config.model, quantization="none")
    with torch.device("meta"):
        model = run_setup.family.build_without_weights(config, run_setup.processor)
        groups = run_setup.config.train.stages[stage].train
        trained: nn.Module = run_setup.family.configure_trainable(model, config, groups, groups)
        return trained


def _counts_per_epoch(run_setup: RunSetup) -> tuple[float, float, float]:
    """Tokens, supervised tokens and images of an epoch. Tokens are counted; the others are those of some samples, scaled up."""
    lengths, seed = run_setup.lengths, run_setup.config.train.seed
    data = TrainingData(run_setup.store, lengths, run_setup.processor, seed)
    indices = lengths.epoch_indices(seed, 0)
    encoded = [data.encode(int(indices[i]), 0)[1] for i in evenly_spaced(len(indices), MEASURED_SAMPLES)]
    _, supervised, images = _mean_counts(run_setup, encoded)
    return float(lengths.sampled_lengths(seed, 0)[indices].sum()), supervised * len(indices), images * len(indices)


def _counts_per_step(run_setup: RunSetup) -> tuple[float, float, float]:
    """Tokens, supervised tokens and images of an optimizer step over streamed data, as the first samples tell."""
    assert run_setup.stream is not None
    samples = run_setup.stream.samples_per_batch * run_setup.batching.step.batches
    tokens, supervised, images = _mean_counts(run_setup, run_setup.stream.first)
    return tokens * samples, supervised * samples, images * samples


def _mean_counts(run_setup: RunSetup, encoded: Sequence[EncodedSample]) -> tuple[float, float, float]:
    """Mean tokens, supervised tokens and images of some samples."""
    supervised = sum(label != IGNORE_INDEX for sample in encoded for label in sample.labels)
    counts = sum(map(len, encoded)), supervised, sum(map(run_setup.processor.pixel_rows, encoded))
    tokens, supervised_mean, images = (count / len(encoded) for count in counts)
    return tokens, supervised_mean, images


def _time(run_setup: RunSetup, flops: float) -> str:
    """The time that the FLOPs take on this run's devices, with its assumption; or why it is not known."""
    device = run_setup.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    peak = peak_tflops_of(device, run_setup.precision)
    if peak is None:
        return f"how long that takes on {name} in {run_setup.precision} is not known before the first steps"
    count = run_setup.partial_state.num_processes
    seconds = flops / (count * peak * 1e12 * ASSUMED_MFU)
    devices = name if count == 1 else f"{count} x {name}"
    return (
        f"about {format_hours(seconds)} on {devices}, if {ASSUMED_MFU:.0%} of its peak of {peak:g} TFLOP/s are reached "
        "(an assumption; validation and checkpoints come on top)"
    )


def format_flops(flops: float) -> str:
    """A number of operations with its unit, such as 2.7 EFLOP."""
    size, unit = next(((size, unit) for size, unit in UNITS if flops >= size), UNITS[-1])
    return f"{flops / size:.2g} {unit}" if flops < 100 * size else f"{flops / size:,.0f} {unit}"


def format_hours(seconds: float) -> str:
    """A rough duration: minutes below two hours, then hours, from three days on days."""
    minutes = seconds / 60
    if minutes < 120:
        return f"{max(1, round(minutes))} min"
    return f"{minutes / 60:.0f} h" if minutes < 72 * 60 else f"{minutes / 60 / 24:.1f} days"
