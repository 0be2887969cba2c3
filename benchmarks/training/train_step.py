"""Speed of our training step against transformers' LLaVA with PEFT: the same weights, samples, adapters and precision, interleaved.

Our side uses the functions of train.py for batches, adapters, parameter groups and all settings. The Trainer's bookkeeping and reading of
images are left out on both sides; every micro-batch is an optimizer step.
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

from benchmarks.benchmark_report import BenchmarkReport, Machine
from benchmarks.full_size_models import Size, build_ours, build_processor, build_stock, check_comparable
from benchmarks.synthetic_samples import demo_samples, reference_samples
from benchmarks.timing import largest_fitting_batch, matmul_tflops, time_interleaved
from benchmarks.training.gradient_parity import GradientParity, compare
from benchmarks.training.timed_steps import Batch, TrainedModel, Variant
from benchmarks.training.train_step_results import Block, Conditions, Result, SampleCounts, report
from dataset.loading.collators import Example, PaddedCollator
from dataset.loading.samplers import LengthGroupedBatching, PackedBatching
from errors import TesseraError, UsageError
from model.kernels.autocast import Precision, autocast_dtype, frozen_dtype
from model.kernels.compile import compile_layers
from model.param_groups import unwrapped
from model.siglip_qwen.adapters import base_model, configure_trainable, peft_lora_config
from model.siglip_qwen.batch_layout import LayoutCollator
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.family import FAMILY
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor
from model.step_flops import StepFlops
from training.compile_policy import MIN_MICRO_BATCHES_TO_COMPILE, CompileDecision, check_step_settings, decide_compile
from training.config import TrainConfig
from training.data_loading import Batching
from training.gradient_checkpointing import CheckpointingPlan, Trial, configure_activation_checkpointing
from training.optimization.optimizers import build_optimizer, optimizer_param_groups
from training.optimization.precision import resolve_precision
from training.out_of_memory import explain_out_of_memory

OURS, STOCK, MATMUL = "ours", "stock", "matrix product"
STOCK_BATCH = 16
"""Batch size of the stock model where ours has packed rows, halved until it fits into memory."""
NUM_PARITY_SAMPLES = 4
"""Samples on which losses and gradients are compared before the training; at most as many as fit into a row."""
TOLERANCE = {"bf16": 2e-2, "fp16": 2e-2, "fp32": 1e-5}
"""Largest accepted relative difference of losses or gradients."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Amount of work.

    Args:
        samples: samples per block.
        rounds: blocks per path.
        stock_batch: largest batch size of the stock model; None: a default.
        against_stock: also run the stock model.
    """

    samples: int
    rounds: int
    stock_batch: int | None = None
    against_stock: bool = True


@dataclass(frozen=True)
class Setup:
    """Settings and samples that both sides share. `precision`: of matrix products; `batching`: batches of our side."""

    model: SiglipQwenConfig
    train: TrainConfig
    device: torch.device
    precision: Precision
    processor: Processor
    examples: Sequence[Example]
    batching: Batching

    @classmethod
    def of(
        cls, size: Size, model: SiglipQwenConfig, train: TrainConfig, samples: int, device: torch.device, drop_long_samples: bool = False
    ) -> "Setup":
        """Create the samples and check the settings.

        Args:
            size: size of the models; `tiny` has samples of the demo, others samples of the reference lengths.
            model: `model` section of the configuration.
            train: `train` section of the configuration.
            samples: number of samples.
            device: device of both models.
            drop_long_samples: drop samples that are longer than a packed row.

        Raises:
            UsageError: settings that cannot be measured.
        """
        if train.cache_vision_features:
            raise UsageError("train.cache_vision_features: the stock model runs its vision encoder, so ours does too; set it to false")
        check_step_settings(train, device, False)
        if "lora" not in train.stages[-1].train or model.lora is None:
            raise UsageError("train.stages: the last stage is measured and must train lora, as the stock model does")
        precision, processor = resolve_precision(train, device), build_processor(size, model)
        examples = demo_samples(processor, samples) if size == "tiny" else reference_samples(processor, samples)
        batching = Batching.of(train, device, precision)
        if drop_long_samples:
            examples = [example for example in examples if len(example.encoded) <= train.packing_length]
        if not examples:
            raise UsageError(f"train.packing_length: {train.packing_length} is less than the shortest sample")
        longest = max(len(example.encoded) for example in examples)
        if batching.packed and longest > train.packing_length:
            raise UsageError(f"train.packing_length: {train.packing_length} is less than the longest sample of {longest} tokens")
        return cls(model, train, device, precision, processor, examples, batching)

    @property
    def collate(self) -> LayoutCollator:
        """From examples to batches of our side."""
        return LayoutCollator(self.batching.collator(self.processor), self.processor.image_token_id)

    def trained(self, model: PeftModel, mean_loss: Callable[[Batch], torch.Tensor]) -> TrainedModel:
        """A model with the optimizer of train.py."""
        model.train()
        unwrapped(model).group_paths = VisionLanguageModel.group_paths  # the stock model has the same layout, and no such attribute
        groups = optimizer_param_groups(model, self.train.stages[-1], self.train)
        optimizer = build_optimizer(self.train, groups, self.device)
        return TrainedModel(model, optimizer, mean_loss, self.processor.pixel_reader, self.device, self.precision, self.train.max_grad_norm)

    def pin_batches(self, batches: Sequence[Batch]) -> list[Batch]:
        """Batches in host memory, pinned if the device is a CUDA device."""
        if self.device.type != "cuda":
            return list(batches)
        return [{k: v.pin_memory() if hasattr(v, "pin_memory") else v for k, v in batch.items()} for batch in batches]


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
    variants, oom_results = [our_variant(setup, ours)], list[Result]()
    parity: GradientParity | None = None
    with explain_out_of_memory("training"):
        our_settings = f"compile: {compile_choice}; gradient checkpointing: {choose_checkpointing(setup, variants[0])}"
        if stock is not None:
            copy_adapters(ours, stock)
            parity = _check_parity(setup, ours, stock)
        variants[0].block()
        if stock is not None:
            variants[0].other_side_bytes = stock.trainable_bytes
            stock_variants, oom_results = _stock_variants(setup, stock, ours, variants[0].batches, workload.stock_batch)
            variants += stock_variants
        for variant in variants:
            variant.peaks.clear()
        product: list[float] = []
        blocks = {variant.name: variant.block for variant in variants}
        seconds = time_interleaved({**blocks, MATMUL: lambda: _time_matmul(setup, product)}, workload.rounds)
    results = _results(setup, variants, seconds, statistics.median(product), parity, FAMILY.step_flops(ours.model))
    settings, counts = {"model": asdict(model), "train": asdict(train)}, SampleCounts.of(setup.examples)
    all_results = [*results, *oom_results]
    conditions = Conditions(size, Machine.current(device), setup.precision, our_settings, settings)
    return report(conditions, parity, counts, product, all_results)


def _results(
    setup: Setup, variants: list[Variant], seconds: dict[str, list[float]], product: float, parity: GradientParity | None, cost: StepFlops
) -> list[Result]:
    sample_counts = SampleCounts.of(setup.examples)
    block = Block(sample_counts, sample_counts.operations(cost), product)
    losses = {} if parity is None else {OURS: parity.ours, STOCK: parity.stock}
    return [
        Result.of(
            variant.name,
            variant.batch,
            seconds[variant.name],
            None if variant.name == OURS else seconds[OURS],
            block,
            variant.peaks,
            losses.get(OURS if variant.name == OURS else STOCK),
        )
        for variant in variants
    ]


def our_side(setup: Setup, base: VisionLanguageModel) -> tuple[TrainedModel, CompileDecision]:
    """Our side, and whether its layers are compiled: decided as for a stage that is long enough to repay the compilation."""
    model = configure_trainable(base, setup.model, setup.train.stages[-1].train)
    base_model(model).logits_memory_gib = setup.train.logits_memory_gib
    FAMILY.fuse(model)
    compile_choice = decide_compile(setup.train, setup.device, MIN_MICRO_BATCHES_TO_COMPILE, False)
    if compile_choice.enabled:
        compile_layers(base_model(model).model)
    return setup.trained(model, lambda batch: model(**batch).loss), compile_choice


def choose_checkpointing(setup: Setup, variant: Variant) -> CheckpointingPlan:
    """Choose the layers with activation checkpointing by a trial step on the largest batch."""
    largest = max(variant.batches, key=lambda batch: (batch["input_ids"].numel(), len(batch["pixel_values"])))
    model: Any = variant.trained.model
    return configure_activation_checkpointing(
        model, setup.train, Trial(lambda: largest, variant.trained.run_trial_step), setup.device, 1, False
    )


def our_variant(setup: Setup, ours: TrainedModel) -> Variant:
    """Our path, with the samples in packed rows or in batches of similar length."""
    batching, lengths = setup.batching, [np.array([len(example.encoded) for example in setup.examples])]
    collate = setup.collate
    plan = (
        PackedBatching(lengths, batching.packing_length, 0)
        if batching.packed
        else LengthGroupedBatching(lengths, batching.per_device_train_batch_size, 0)
    )
    batches = [collate([setup.examples[i] for i in batch]) for batch in plan.batches(0)]
    batch_description = (
        f"rows of {batching.packing_length:,}, {_packing_efficiency(batches):.0%} full"
        if batching.packed
        else f"{batching.per_device_train_batch_size}, by length"
    )
    return Variant(OURS, batch_description, setup.pin_batches(batches), ours, lambda: None)


def _packing_efficiency(rows: Sequence[Batch]) -> float:
    """Share of the positions of packed rows that are occupied by samples. The unused rest of a row is a segment of its own."""
    num_used = sum(int(row["layout"].cu_seqlens[len(row["layout"].sample_ids)]) for row in rows)
    num_positions = sum(int(row["input_ids"].numel()) for row in rows)
    return num_used / num_positions


def stock_side(setup: Setup, base: VisionLanguageModel) -> TrainedModel:
    """The stock model on the same frozen tensors, with the same adapters on the same layers."""
    assert setup.model.lora is not None  # checked in Setup.of
    adapted: Any = peft.get_peft_model(build_stock(base), peft_lora_config(base, setup.model.lora))
    names = ("input_ids", "attention_mask", "labels", "pixel_values")
    return setup.trained(adapted, lambda batch: adapted(**{name: batch[name] for name in names}, use_cache=False).loss)


@torch.no_grad()
def copy_adapters(ours: TrainedModel, stock: TrainedModel) -> None:
    """Copy our trained weights to the stock model. Parameter names agree, since both have the LLaVA key layout."""
    stock_parameters = dict(stock.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        if parameter.requires_grad:
            stock_parameters[name].copy_(parameter)


def _check_parity(setup: Setup, ours: TrainedModel, stock: TrainedModel) -> GradientParity:
    """Compare losses and gradients on the same samples, each side in its own layout.

    Raises:
        TesseraError: the loss (in fp32 also the gradient of any weight) differs by more than `TOLERANCE`. In 16 bits gradients are not
            checked, since their rounding noise grows with the depth.
    """
    samples_per_row = setup.batching.packing_length // max(len(example.encoded) for example in setup.examples)
    parity_samples = setup.examples[: min(NUM_PARITY_SAMPLES, samples_per_row) if setup.batching.packed else NUM_PARITY_SAMPLES]
    # Without checkpointing, the logits of a few long samples may not fit into memory.
    _checkpointing_mode(stock, setup.device.type == "cuda")()
    parity = compare(
        ours,
        stock,
        setup.collate(parity_samples),
        PaddedCollator(_pad_id(setup))(parity_samples),
    )
    difference = parity.loss_off if setup.precision != "fp32" else max(parity.loss_off, parity.worst_off)
    if not difference <= TOLERANCE[setup.precision]:
        raise TesseraError(
            f"the models differ: on the same samples our loss is {parity.ours:.6f}, the stock model's {parity.stock:.6f} ({parity})"
        )
    return parity


def _stock_variants(
    setup: Setup, stock: TrainedModel, ours: TrainedModel, our_batches: list[Batch], max_batch: int | None
) -> tuple[list[Variant], list[Result]]:
    """The stock model without and with checkpointing, with the largest batch size that fits; and results for the sizes that did not fit."""
    variants: list[Variant] = []
    oom_results: list[Result] = []
    largest = max_batch or (STOCK_BATCH if setup.batching.packed else setup.batching.per_device_train_batch_size)
    for checkpointing in (False, True):
        name = f"{STOCK}, checkpointing" if checkpointing else STOCK

        def attempt(size: int, name: str = name, checkpointing: bool = checkpointing) -> Variant:
            stock.optimizer.zero_grad(set_to_none=True)
            batches, prepare_model = setup.pin_batches(_padded_batches(setup, size)), _checkpointing_mode(stock, checkpointing)
            variant = Variant(name, str(size), batches, stock, prepare_model, ours.trainable_bytes)
            variant.block()
            return variant

        variant, oom_sizes = largest_fitting_batch(attempt, min(largest, len(setup.examples)))
        oom_results += [Result(name, str(size)) for size in oom_sizes]
        variants += [variant] if variant is not None else []
    stock.optimizer.zero_grad(set_to_none=True)
    if not setup.batching.packed:
        name, batch = f"{STOCK}, our batches", f"{setup.batching.per_device_train_batch_size}, by length"
        variants.append(Variant(name, batch, our_batches, stock, _checkpointing_mode(stock, False), ours.trainable_bytes))
    return variants, oom_results


def _padded_batches(setup: Setup, size: int) -> list[Batch]:
    """The samples in random order, as in transformers' Trainer."""
    order = random.Random(0).sample(range(len(setup.examples)), len(setup.examples))
    collate = PaddedCollator(_pad_id(setup))
    return [collate([setup.examples[i] for i in order[start : start + size]]) for start in range(0, len(order), size)]


def _checkpointing_mode(stock: TrainedModel, checkpointing: bool) -> Callable[[], None]:
    """Function that switches activation checkpointing of the stock model on or off."""

    def switch() -> None:
        model: Any = stock.model
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()

    return switch


def _time_matmul(setup: Setup, tflops: list[float]) -> float:
    """Append the TFLOP/s of a matrix product to `tflops`. Runs as one of the interleaved blocks; its return value is unused."""
    tflops.append(matmul_tflops(setup.device, autocast_dtype(setup.precision)))
    return 0.0


def _pad_id(setup: Setup) -> int:
    return int(setup.processor.tokenizer.pad_token_id)
