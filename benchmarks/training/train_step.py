"""Speed of our training step against transformers' LLaVA with PEFT: the same weights, samples, adapters and precision, interleaved.

The Trainer's bookkeeping and reading of images are left out on both sides; every micro-batch is an optimizer step.
"""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.benchmark_report import BenchmarkReport, Machine, format_number, text_or_dash
from benchmarks.full_size_models import Size, build_ours, check_comparable
from benchmarks.timing import OURS, PathResult, TimedPath, Workload, largest_fitting_batch, matmul_tflops, time_interleaved
from benchmarks.training.gradient_parity import GradientParity, compare
from benchmarks.training.trained_models import (
    Batch,
    Setup,
    TrainedModel,
    choose_checkpointing,
    copy_adapters,
    our_batches,
    our_side,
    stock_side,
)
from dataset.loading.collators import Example
from dataset.loading.encoded_sample import IGNORE_INDEX
from errors import TesseraError
from model.kernels.autocast import autocast_dtype, frozen_dtype
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.family import FAMILY
from model.step_flops import StepFlops
from training.config import TrainConfig
from training.out_of_memory import explain_out_of_memory

STOCK, MATMUL = "stock", "matrix product"
STOCK_BATCH = 16
"""Batch size of the stock model where ours has packed rows, halved until it fits into memory."""
NUM_PARITY_SAMPLES = 4
"""Samples on which losses and gradients are compared before the training; at most as many as fit into a row."""
TOLERANCE = {"bf16": 2e-2, "fp16": 2e-2, "fp32": 1e-5}
"""Largest accepted relative difference of losses or gradients."""
COLUMNS = ("path", "batch", "samples/s", "tokens/s", "TFLOP/s", "of product", "peak GiB", "loss", "ours is faster by")


@dataclass(frozen=True, slots=True)
class SampleCounts:
    """Counts of a block without padding: samples (one image each), tokens and supervised tokens."""

    samples: int
    tokens: int
    supervised: int

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "SampleCounts":
        """Counts of these samples."""
        supervised = sum(label != IGNORE_INDEX for example in examples for label in example.encoded.labels)
        return cls(len(examples), sum(len(example.encoded) for example in examples), supervised)

    def operations(self, cost: StepFlops) -> float:
        """Useful floating-point operations of a block (see `StepFlops`)."""
        return cost.flops(self.tokens, self.supervised, self.samples)


@dataclass(frozen=True, slots=True)
class Result(PathResult):
    """Measurements of one path.

    Args:
        samples_per_second: at the median block.
        tokens_per_second: tokens without padding, at the median block.
        useful_tflops: useful TFLOP/s.
        share_of_product: useful TFLOP/s divided by those of the matrix product.
        loss: loss before the training, on the samples of the gradient comparison.
    """

    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    useful_tflops: float | None = None
    share_of_product: float | None = None
    loss: float | None = None

    def cells(self) -> list[str]:
        """A row of the table."""
        speed = format_number(self.samples_per_second) if self.seconds else "out of memory"
        rates = [speed, format_number(self.tokens_per_second, 0), format_number(self.useful_tflops, 3)]
        shares = [format_number(self.share_of_product, percent=True), format_number(self.peak_gib), format_number(self.loss, 5)]
        return [self.path, str(self.batch), *rates, *shares, text_or_dash(self.ours_is_faster_by)]


def measure(size: Size, model: SiglipQwenConfig, train: TrainConfig, workload: Workload, device: torch.device) -> BenchmarkReport:
    """Measure both sides in interleaved blocks, with the settings of the last training stage.

    Args:
        size: size of the models.
        model: `model` section of the configuration.
        train: `train` section of the configuration.
        workload: number of samples and rounds.
        device: device of both models.

    Raises:
        UsageError: settings that cannot be measured.
        TesseraError: ours runs out of memory, or the sides differ in loss or gradients.
    """
    if workload.against_stock:
        check_comparable(model)
    setup = Setup.of(size, model, train, workload.samples, device)
    with explain_out_of_memory("creating the weights"):
        dtype = frozen_dtype(device, setup.precision)
        base = build_ours(size, model, setup.processor, dtype=dtype, device=device, seed=train.seed)
    stock = stock_side(setup, base) if workload.against_stock else None
    ours, compile_choice = our_side(setup, base)
    form, batches = our_batches(setup)
    paths, out_of_memory = [_path(OURS, form, batches, ours)], list[Result]()
    parity: GradientParity | None = None
    with explain_out_of_memory("training"):
        our_settings = f"compile: {compile_choice}; gradient checkpointing: {choose_checkpointing(setup, ours, batches)}"
        if stock is not None:
            copy_adapters(ours, stock)
            parity = _check_parity(setup, ours, stock)
        paths[0].block()
        if stock is not None:
            paths[0].uncounted_bytes = stock.trainable_bytes
            stock_paths, out_of_memory = _stock_paths(setup, stock, ours, batches, workload.stock_batch)
            paths += stock_paths
        for path in paths:
            path.peaks.clear()
        product: list[float] = []
        blocks = {path.name: path.block for path in paths}
        seconds = time_interleaved({**blocks, MATMUL: lambda: _time_matmul(setup, product)}, workload.rounds)
    cost = FAMILY.step_flops(ours.model)
    results = [*(_result(setup, path, seconds, product, parity, cost) for path in paths), *out_of_memory]
    return _report(size, setup, our_settings, parity, product, results)


def _result(
    setup: Setup,
    path: TimedPath,
    seconds: Mapping[str, Sequence[float]],
    product: Sequence[float],
    parity: GradientParity | None,
    cost: StepFlops,
) -> Result:
    result, counts = Result.of(path, seconds), SampleCounts.of(setup.examples)
    median_seconds = statistics.median(result.seconds)
    tflops = counts.operations(cost) / median_seconds / 1e12
    return replace(
        result,
        samples_per_second=counts.samples / median_seconds,
        tokens_per_second=counts.tokens / median_seconds,
        useful_tflops=tflops,
        share_of_product=tflops / statistics.median(product),
        loss=None if parity is None else parity.ours if path.name == OURS else parity.stock,
    )


def _path(
    name: str,
    batch: str,
    batches: list[Batch],
    side: TrainedModel,
    prepare: Callable[[], None] = lambda: None,
    uncounted_bytes: Callable[[], int] = lambda: 0,
) -> TimedPath:
    """Training on all samples. One step before the measurement warms up caches and the memory allocator."""

    def warm_up() -> None:
        prepare()
        side.step(batches[0])

    return TimedPath(name, batch, lambda: [side.step(batch) for batch in batches], side.device, warm_up, uncounted_bytes)


def _check_parity(setup: Setup, ours: TrainedModel, stock: TrainedModel) -> GradientParity:
    """Compare losses and gradients on the same samples, each side in its own layout.

    Raises:
        TesseraError: the loss (in fp32 also the gradient of any weight) differs by more than `TOLERANCE`. In 16 bits gradients are not
            checked, since their rounding noise grows with the depth.
    """
    samples_per_row = setup.batching.packing_length // max(len(example.encoded) for example in setup.examples)
    parity_samples = setup.examples[: min(NUM_PARITY_SAMPLES, samples_per_row) if setup.batching.packed else NUM_PARITY_SAMPLES]
    # Without checkpointing, the logits of a few long samples may not fit into memory.
    _set_checkpointing(stock, setup.device.type == "cuda")
    parity = compare(ours, stock, setup.collate(parity_samples), setup.collate_stock(parity_samples))
    difference = parity.loss_off if setup.precision != "fp32" else max(parity.loss_off, parity.worst_off)
    if not difference <= TOLERANCE[setup.precision]:
        raise TesseraError(
            f"the models differ: on the same samples our loss is {parity.ours:.6f}, the stock model's {parity.stock:.6f} ({parity})"
        )
    return parity


def _stock_paths(
    setup: Setup, stock: TrainedModel, ours: TrainedModel, our_batches: list[Batch], max_batch: int | None
) -> tuple[list[TimedPath], list[Result]]:
    """The stock model without and with checkpointing, with the largest batch size that fits; and results for the sizes that did not fit."""
    paths: list[TimedPath] = []
    out_of_memory: list[Result] = []
    largest = max_batch or (STOCK_BATCH if setup.batching.packed else setup.batching.per_device_train_batch_size)
    for name, checkpointing in ((STOCK, False), (f"{STOCK}, checkpointing", True)):
        prepare = partial(_set_checkpointing, stock, checkpointing)

        def attempt(size: int, name: str = name, prepare: Callable[[], None] = prepare) -> TimedPath:
            stock.optimizer.zero_grad(set_to_none=True)
            path = _path(name, str(size), setup.pin_batches(_padded_batches(setup, size)), stock, prepare, ours.trainable_bytes)
            path.block()
            return path

        path, oom_sizes = largest_fitting_batch(attempt, min(largest, len(setup.examples)))
        out_of_memory += [Result(name, str(size)) for size in oom_sizes]
        paths += [path] if path is not None else []
    stock.optimizer.zero_grad(set_to_none=True)
    if not setup.batching.packed:
        batch, prepare = f"{setup.batching.per_device_train_batch_size}, by length", partial(_set_checkpointing, stock, False)
        paths.append(_path(f"{STOCK}, our batches", batch, our_batches, stock, prepare, ours.trainable_bytes))
    return paths, out_of_memory


def _padded_batches(setup: Setup, size: int) -> list[Batch]:
    """The samples in random order, as in transformers' Trainer."""
    order = random.Random(0).sample(range(len(setup.examples)), len(setup.examples))
    return [setup.collate_stock([setup.examples[i] for i in order[start : start + size]]) for start in range(0, len(order), size)]


def _set_checkpointing(stock: TrainedModel, checkpointing: bool) -> None:
    """Switch activation checkpointing of the stock model on or off."""
    model: Any = stock.model
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


def _time_matmul(setup: Setup, tflops: list[float]) -> float:
    """Append the TFLOP/s of a matrix product to `tflops`. Runs as one of the interleaved blocks; its return value is unused."""
    tflops.append(matmul_tflops(setup.device, autocast_dtype(setup.precision)))
    return 0.0


def _report(
    size: Size, setup: Setup, our_settings: str, parity: GradientParity | None, product: Sequence[float], results: Sequence[Result]
) -> BenchmarkReport:
    counts, machine = SampleCounts.of(setup.examples), Machine.current(setup.device)
    tokens, supervised = (count / counts.samples for count in (counts.tokens, counts.supervised))
    mean = f"{tokens:.0f} tokens, {supervised:.0f} of them supervised"
    facts = {
        **machine.facts(),
        "model": f"{size}, random weights, products in {setup.precision}",
        "ours": our_settings,
        **({} if parity is None else {"before training": str(parity)}),
        "a block": f"{counts.samples} samples of {mean}; {len(product)} interleaved blocks of each path",
        "matrix product": f"{statistics.median(product):,.2f} TFLOP/s ({min(product):,.2f} .. {max(product):,.2f})",
    }
    measured = {
        "size": size,
        "machine": asdict(machine),
        "precision": setup.precision,
        "ours": our_settings,
        "agreement": None if parity is None else {**asdict(parity), "loss_off": parity.loss_off},
        "work": asdict(counts),
        "product_tflops": list(product),
        "results": [asdict(result) for result in results],
        "settings": {"model": asdict(setup.model), "train": asdict(setup.train)},
    }
    return BenchmarkReport(f"Training step, {size}", facts, COLUMNS, [result.cells() for result in results], measured)
