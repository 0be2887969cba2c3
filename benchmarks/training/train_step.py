"""A training step of ours against transformers' LLaVA with PEFT: the same weights, samples, adapters and precision, by turns.

Ours goes through the functions of train.py: batches, adapters, optimizer groups and whatever the configuration says. What
surrounds a step (the Trainer's bookkeeping, reading pictures) is left out on both sides; every micro-batch is a step.
"""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import peft
import torch
from peft import PeftModel

from benchmarks.benchmark_report import Machine, Report
from benchmarks.full_size_models import Size, build_ours, build_processor, build_stock, check_comparable
from benchmarks.synthetic_samples import demo_samples, reference_samples
from benchmarks.timing import by_turns, largest_that_fits, product_tflops
from benchmarks.training.gradient_parity import Agreement, compare
from benchmarks.training.timed_steps import Batch, Trained, Way
from benchmarks.training.train_step_results import Result, Work, report
from dataset.loading.collators import Example, PaddedCollator
from dataset.loading.samplers import PackedPlan, PaddedPlan
from errors import TesseraError, UsageError
from model.kernels.compile import compile_layers
from model.lora import attach, base_model, lora_settings
from model.siglip_qwen.assembly import default_dtype
from model.siglip_qwen.config import ModelConfig
from model.siglip_qwen.fused_modules import fuse
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor
from training.compile_policy import REPAID_AFTER, Choice, check_step, choose_compiling
from training.config import TrainConfig
from training.data_loading import Batching
from training.gradient_checkpointing import Recomputing, Trial, recompute
from training.monitoring.throughput import StepCost, cost_of
from training.optimization.optimizers import build_optimizer, optimizer_groups
from training.out_of_memory import naming_memory_settings
from training.run_setup import use_bf16

OURS, STOCK, PRODUCT = "ours", "stock", "matrix product"
STOCK_BATCH = 16
"""Samples in a batch of the stock model where ours are packed rows, if they fit."""
COMPARED = 4
"""Samples on which losses and gradients are compared, before anything is trained; fewer where a row holds fewer."""
TOLERANCE = {"bf16": 2e-2, "fp32": 1e-5}
"""Relative difference beyond which losses or gradients are not those of the same model."""


@dataclass(frozen=True, slots=True)
class Effort:
    """samples: how many every block trains on; rounds: blocks of each path; stock_batch: most samples in a batch of the stock
    model, or its default; against_stock: whether that runs at all."""

    samples: int
    rounds: int
    stock_batch: int | None = None
    against_stock: bool = True


@dataclass(frozen=True)
class Setup:
    """What both sides share."""

    model: ModelConfig
    train: TrainConfig
    device: torch.device
    bf16: bool
    processor: Processor
    examples: Sequence[Example]
    batching: Batching

    @classmethod
    def of(cls, size: Size, model: ModelConfig, train: TrainConfig, samples: int, device: torch.device, cut: bool = False) -> "Setup":
        """cut: leave out samples that are longer than a row. Raises UsageError for settings that cannot be measured."""
        if train.cache_features:
            raise UsageError("train.cache_features: the stock model runs its vision trunk, so ours does; set it to false")
        check_step(train, device, False)
        if "lora" not in train.stages[-1].train or model.lora is None:
            raise UsageError("train.stages: the last one is measured and must train lora, as the stock model does")
        bf16, processor = use_bf16(train, device), build_processor(size, model)
        examples = demo_samples(processor, samples) if size == "tiny" else reference_samples(processor, samples)
        batching = Batching.of(train, device)
        if cut:
            examples = [example for example in examples if len(example.encoded) <= train.tokens_per_row]
        if not examples:
            raise UsageError(f"train.tokens_per_row: {train.tokens_per_row} is less than the shortest sample")
        longest = max(len(example.encoded) for example in examples)
        if batching.packed and longest > train.tokens_per_row:
            raise UsageError(f"train.tokens_per_row: {train.tokens_per_row} is less than the longest sample of {longest} tokens")
        return cls(model, train, device, bf16, processor, examples, batching)

    @property
    def precision(self) -> str:
        """Of the matrix products."""
        return "bf16" if self.bf16 else "fp32"

    def trained(self, model: PeftModel, mean_loss: Callable[[Batch], torch.Tensor]) -> Trained:
        """A side, with an optimizer like that of train.py."""
        model.train()
        groups = optimizer_groups(model, self.train.stages[-1], self.train)
        optimizer = build_optimizer(self.train, groups, self.device)
        return Trained(model, optimizer, mean_loss, self.processor.pictures, self.device, self.bf16, self.train.max_grad_norm)

    def hold(self, batches: Sequence[Batch]) -> list[Batch]:
        """Batches on the host as a loader hands them over: pinned where they go to a CUDA device."""
        if self.device.type != "cuda":
            return list(batches)
        return [{k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in batch.items()} for batch in batches]


def measure(size: Size, model: ModelConfig, train: TrainConfig, effort: Effort, device: torch.device) -> Report:
    """Train both by turns on the settings of train.py, of whose stages the last is measured.

    Raises UsageError for settings that do not fit, TesseraError where ours runs out of memory.
    """
    if effort.against_stock:
        check_comparable(model)
    setup = Setup.of(size, model, train, effort.samples, device)
    with naming_memory_settings("making the weights"):
        dtype = default_dtype(device) if setup.bf16 else torch.float32
        base = build_ours(size, model, setup.processor, dtype=dtype, device=device, seed=train.seed)
    stock = stock_side(setup, base) if effort.against_stock else None
    ours, compiling = our_side(setup, base)
    ways, refused = [our_way(setup, ours)], list[Result]()
    agreement: Agreement | None = None
    with naming_memory_settings("training"):
        how = f"compile: {compiling}; gradient checkpointing: {settle_memory(setup, ways[0])}"
        if stock is not None:
            same_adapters(ours, stock)
            agreement = _agreement(setup, ours, stock)
        ways[0].block()
        if stock is not None:
            ways[0].beside = stock.own_bytes
            found, refused = _stock_ways(setup, stock, ours, ways[0].batches, effort.stock_batch)
            ways += found
        for way in ways:
            way.peaks.clear()
        product: list[float] = []
        blocks = {way.name: way.block for way in ways}
        seconds = by_turns({**blocks, PRODUCT: lambda: _multiply(setup, product)}, effort.rounds)
    results = _results(setup, ways, seconds, statistics.median(product), agreement, cost_of(ours.model))
    settings = {"model": asdict(model), "train": asdict(train)}
    return report(
        size, Machine.here(device), setup.precision, how, agreement, Work.of(setup.examples), product, [*results, *refused], settings
    )


def _results(
    setup: Setup, ways: list[Way], seconds: dict[str, list[float]], product: float, agreement: Agreement | None, cost: StepCost
) -> list[Result]:
    work = Work.of(setup.examples)
    losses = {} if agreement is None else {OURS: agreement.ours, STOCK: agreement.stock}
    return [
        Result.of(
            way.name,
            way.batch,
            seconds[way.name],
            None if way.name == OURS else seconds[OURS],
            peaks=way.peaks,
            loss=losses.get(OURS if way.name == OURS else STOCK),
            work=work,
            operations=work.operations(cost),
            product=product,
        )
        for way in ways
    ]


def our_side(setup: Setup, base: VisionLanguageModel) -> tuple[Trained, Choice]:
    """Our side, and whether its layers are compiled, as in a stage that is long enough to repay it."""
    model = attach(base, setup.model, setup.train.stages[-1].train)
    base_model(model).logits_memory_gib = setup.train.logits_memory_gib
    fuse(model)
    compiling = choose_compiling(setup.train, setup.device, REPAID_AFTER, False)
    if compiling.on:
        compile_layers(base_model(model).model)
    return setup.trained(model, lambda batch: model(**batch).loss), compiling


def settle_memory(setup: Setup, way: Way) -> Recomputing:
    """Choose the layers that recompute their activations, by the batch that takes the most memory."""
    most = max(way.batches, key=lambda batch: (batch["input_ids"].numel(), len(batch["pixel_values"])))
    model: Any = way.trained.model
    return recompute(model, setup.train, Trial(lambda: most, way.trained.try_step), setup.device, 1, False)


def our_way(setup: Setup, ours: Trained) -> Way:
    batching, lengths = setup.batching, [np.array([len(example.encoded) for example in setup.examples])]
    collate = batching.collator(setup.processor)
    plan = PackedPlan(lengths, batching.tokens_per_row, 0) if batching.packed else PaddedPlan(lengths, batching.batch_size, 0)
    batches = [collate([setup.examples[i] for i in batch]) for batch in plan.batches(0)]
    called = f"rows of {batching.tokens_per_row:,}, {_full(batches):.0%} full" if batching.packed else f"{batching.batch_size}, by length"
    return Way(OURS, called, setup.hold(batches), ours, lambda: None)


def _full(rows: Sequence[Batch]) -> float:
    """Share of the positions of packed rows at which a sample stands. What is left over is a segment of its own."""
    taken = sum(int(row["cu_seqlens"][len(row["sample_ids"])]) for row in rows)
    places = sum(int(row["input_ids"].numel()) for row in rows)
    return taken / places


def stock_side(setup: Setup, base: VisionLanguageModel) -> Trained:
    """The stock model around the same frozen tensors, with the same adapters on the same layers."""
    assert setup.model.lora is not None  # checked in Setup.of
    adapted: Any = peft.get_peft_model(build_stock(base), lora_settings(base, setup.model.lora))
    names = ("input_ids", "attention_mask", "labels", "pixel_values")
    return setup.trained(adapted, lambda batch: adapted(**{name: batch[name] for name in names}, use_cache=False).loss)


@torch.no_grad()
def same_adapters(ours: Trained, stock: Trained) -> None:
    """Begin with equal trained weights. The names agree, since both have the LLaVA key layout."""
    theirs = dict(stock.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        if parameter.requires_grad:
            theirs[name].copy_(parameter)


def _agreement(setup: Setup, ours: Trained, stock: Trained) -> Agreement:
    """Losses and gradients on the same samples, each side in its own layout. Raises TesseraError where they are not those of the
    same model: in fp32 where one gradient is off, in bf16, whose noise grows with the depth, by the loss."""
    fit = setup.batching.tokens_per_row // max(len(example.encoded) for example in setup.examples)
    few = setup.examples[: min(COMPARED, fit) if setup.batching.packed else COMPARED]
    # Without, the scores of a few long samples may not fit.
    _mode(stock, setup.device.type == "cuda")()
    found = compare(ours, stock, setup.batching.collator(setup.processor)(few), PaddedCollator(_pad_id(setup))(few))
    off = found.loss_off if setup.bf16 else max(found.loss_off, found.worst_off)
    if not off <= TOLERANCE[setup.precision]:
        raise TesseraError(
            f"not the same model: on the same samples our loss is {found.ours:.6f}, the stock model's {found.stock:.6f} ({found})"
        )
    return found


def _stock_ways(setup: Setup, stock: Trained, ours: Trained, our_batches: list[Batch], most: int | None) -> tuple[list[Way], list[Result]]:
    """The stock model without and with checkpointing, in the largest batch that fits; and what did not fit."""
    ways: list[Way] = []
    refused: list[Result] = []
    largest = most or (STOCK_BATCH if setup.batching.packed else setup.batching.batch_size)
    for checkpointing in (False, True):
        name = f"{STOCK}, checkpointing" if checkpointing else STOCK

        def attempt(size: int, name: str = name, checkpointing: bool = checkpointing) -> Way:
            stock.optimizer.zero_grad(set_to_none=True)
            way = Way(name, str(size), setup.hold(_padded(setup, size)), stock, _mode(stock, checkpointing), ours.own_bytes)
            way.block()
            return way

        way, too_large = largest_that_fits(attempt, min(largest, len(setup.examples)))
        refused += [Result(name, str(size)) for size in too_large]
        ways += [way] if way is not None else []
    stock.optimizer.zero_grad(set_to_none=True)
    if not setup.batching.packed:
        ways.append(
            Way(f"{STOCK}, our batches", f"{setup.batching.batch_size}, by length", our_batches, stock, _mode(stock, False), ours.own_bytes)
        )
    return ways, refused


def _padded(setup: Setup, size: int) -> list[Batch]:
    """The samples in random order, as the stock Trainer takes them."""
    order = random.Random(0).sample(range(len(setup.examples)), len(setup.examples))
    collate = PaddedCollator(_pad_id(setup))
    return [collate([setup.examples[i] for i in order[start : start + size]]) for start in range(0, len(order), size)]


def _mode(stock: Trained, checkpointing: bool) -> Callable[[], None]:
    """What puts the stock model into the mode of a block."""

    def switch() -> None:
        model: Any = stock.model
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()

    return switch


def _multiply(setup: Setup, found: list[float]) -> float:
    """Add the rate of a matrix product to `found`; the product takes its turn like a block."""
    found.append(product_tflops(setup.device, torch.bfloat16 if setup.bf16 else torch.float32))
    return 0.0


def _pad_id(setup: Setup) -> int:
    return int(setup.processor.tokenizer.pad_token_id)
