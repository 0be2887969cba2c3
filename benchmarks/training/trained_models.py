"""Both sides of a comparison of training steps: models with their optimizers, on the same weights, samples, adapters and precision.

Our side uses the functions of train.py for batches, adapters, parameter groups and all settings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import peft
import torch
from peft import PeftModel
from torch import nn

from benchmarks.full_size_models import Size, build_processor, build_stock
from benchmarks.synthetic_samples import demo_samples, reference_samples
from dataset.loading.collators import Example, PaddedCollator
from dataset.loading.image_transform import PixelReader
from dataset.loading.samplers import LengthGroupedBatching, PackedBatching
from errors import UsageError
from model.kernels.autocast import Precision, autocast
from model.kernels.compile import compile_layers
from model.param_groups import unwrapped
from model.siglip_qwen.adapters import base_model, configure_trainable, peft_lora_config
from model.siglip_qwen.batch_layout import LayoutCollator
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.family import FAMILY
from model.siglip_qwen.modeling import GROUP_PATHS, VisionLanguageModel
from model.siglip_qwen.processor import Processor
from training.compile_policy import MIN_MICRO_BATCHES_TO_COMPILE, CompileDecision, check_step_settings, decide_compile
from training.config import TrainConfig
from training.data_loading import Batching
from training.gradient_checkpointing import CheckpointingPlan, Trial, allocate_gradients, configure_activation_checkpointing
from training.optimization.optimizers import build_optimizer, optimizer_param_groups
from training.optimization.precision import resolve_precision

Batch = dict[str, Any]


@dataclass(frozen=True)
class TrainedModel:
    """A model with its optimizer.

    Args:
        model: the model.
        optimizer: its optimizer.
        mean_loss: computes the loss of a batch on the device.
        pixel_reader: normalises raw pixels.
        device: device of the model.
        precision: of matrix products.
        max_grad_norm: norm to which gradients are clipped.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    mean_loss: Callable[[Batch], torch.Tensor]
    pixel_reader: PixelReader
    device: torch.device
    precision: Precision
    max_grad_norm: float

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """Scales gradients in fp16; does nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def step(self, *batches: Batch) -> torch.Tensor:
        """Optimizer step over micro-batches in host memory. Returns their mean loss before the update, on the device."""
        total = torch.zeros((), device=self.device)
        for batch in batches:
            loss = self.loss(batch) / len(batches)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self._trainable(), self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def run_trial_step(self, batch: Batch) -> None:
        """Forward and backward pass without an update, with the peak memory of a training step."""
        allocate_gradients(self.model)
        self.loss(batch).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean loss over the supervised tokens of a batch in host memory."""
        moved = {key: value.to(self.device, non_blocking=True) if hasattr(value, "to") else value for key, value in batch.items()}
        moved["pixel_values"] = self.pixel_reader.normalize(moved["pixel_values"])
        with autocast(self.device, self.precision):
            return self.mean_loss(moved)

    def trainable_bytes(self) -> int:
        """Bytes of the trained weights and of the optimizer state."""
        states = [value for state in self.optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self._trainable(), *states))

    def _trainable(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


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

    @property
    def collate_stock(self) -> PaddedCollator:
        """From examples to batches of the stock model."""
        return PaddedCollator(int(self.processor.tokenizer.pad_token_id))

    def trained(self, model: PeftModel, mean_loss: Callable[[Batch], torch.Tensor]) -> TrainedModel:
        """A model with the optimizer of train.py."""
        model.train()
        if not hasattr(unwrapped(model), "group_paths"):
            unwrapped(model).group_paths = GROUP_PATHS  # the stock model has the same layout, and no such attribute
        groups = optimizer_param_groups(model, self.train.stages[-1], self.train)
        optimizer = build_optimizer(self.train, groups, self.device)
        return TrainedModel(model, optimizer, mean_loss, self.processor.pixel_reader, self.device, self.precision, self.train.max_grad_norm)

    def pin_batches(self, batches: Sequence[Batch]) -> list[Batch]:
        """Batches in host memory, pinned if the device is a CUDA device."""
        if self.device.type != "cuda":
            return list(batches)
        return [{k: v.pin_memory() if hasattr(v, "pin_memory") else v for k, v in batch.items()} for batch in batches]


def our_side(setup: Setup, base: VisionLanguageModel) -> tuple[TrainedModel, CompileDecision]:
    """Our side, and whether its layers are compiled: decided as for a stage that is long enough to repay the compilation."""
    model = configure_trainable(base, setup.model, setup.train.stages[-1].train)
    base_model(model).logits_memory_gib = setup.train.logits_memory_gib
    FAMILY.fuse(model)
    compile_choice = decide_compile(setup.train, setup.device, MIN_MICRO_BATCHES_TO_COMPILE, False)
    if compile_choice.enabled:
        compile_layers(base_model(model).model)
    return setup.trained(model, lambda batch: model(**batch).loss), compile_choice


def choose_checkpointing(setup: Setup, ours: TrainedModel, batches: Sequence[Batch]) -> CheckpointingPlan:
    """Choose the layers with activation checkpointing by a trial step on the largest batch."""
    largest = max(batches, key=lambda batch: (batch["input_ids"].numel(), len(batch["pixel_values"])))
    trial, model = Trial(lambda: largest, ours.run_trial_step), ours.model
    return configure_activation_checkpointing(model, setup.train, trial, setup.device, 1, False)


def our_batches(setup: Setup) -> tuple[str, list[Batch]]:
    """What a batch of our side is, and all samples in packed rows or in batches of similar length."""
    packed, row, size = setup.batching.packed, setup.batching.packing_length, setup.batching.per_device_train_batch_size
    lengths = [np.array([len(example.encoded) for example in setup.examples])]
    plan = PackedBatching(lengths, row, 0) if packed else LengthGroupedBatching(lengths, size, 0)
    collate = setup.collate
    batches = [collate([setup.examples[i] for i in batch]) for batch in plan.batches(0)]
    form = f"rows of {row:,}, {_packing_efficiency(batches):.0%} full" if packed else f"{size}, by length"
    return form, setup.pin_batches(batches)


def _packing_efficiency(rows: Sequence[Batch]) -> float:
    """Share of the positions of packed rows that are occupied by samples. The unused rest of a row is a segment of its own."""
    num_used = sum(int(row["layout"].cu_seqlens[len(row["layout"].sample_ids)]) for row in rows)
    num_positions = sum(int(row["input_ids"].numel()) for row in rows)
    return num_used / num_positions


def stock_side(setup: Setup, base: VisionLanguageModel) -> TrainedModel:
    """The stock model on the same frozen tensors, with the same adapters on the same layers."""
    assert setup.model.lora is not None  # checked in Setup.of
    adapted: Any = peft.get_peft_model(build_stock(base), peft_lora_config(base, setup.model, ["lora"]))
    names = ("input_ids", "attention_mask", "labels", "pixel_values")
    return setup.trained(adapted, lambda batch: adapted(**{name: batch[name] for name in names}, use_cache=False).loss)


@torch.no_grad()
def copy_adapters(ours: TrainedModel, stock: TrainedModel) -> None:
    """Copy our trained weights to the stock model. Parameter names agree, since both have the LLaVA key layout."""
    stock_parameters = dict(stock.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        if parameter.requires_grad:
            stock_parameters[name].copy_(parameter)
