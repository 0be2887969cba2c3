"""Training throughput: tokens/s, samples/s, peak memory, data wait, TFLOP/s and MFU.

In: the micro-batches that the model processes. Out: rates over the steps since the last reading, summed over all ranks.
A frozen weight costs a forward pass and an input gradient, but no weight gradient.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from peft import PeftModel
from torch import nn

from dataset.loading.encoded_sample import IGNORE_INDEX
from model.lora import base_model
from model.siglip_qwen.connector import num_image_tokens
from model.siglip_qwen.modeling import VisionLanguageModel

PEAK_TFLOPS = (
    ("B200", 2250.0),
    ("H200", 989.0),
    ("H100 NVL", 835.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("H800", 989.0),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("A40", 149.7),
    ("RTX 6000 Ada", 364.2),
    ("RTX A6000", 154.8),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("V100 SXM2", 125.0),
    ("V100 PCIE", 112.0),
    ("T4", 65.0),
    ("Quadro RTX 6000", 130.5),
    ("Quadro RTX 8000", 130.5),
    ("RTX 2080 Ti", 53.8),
)
"""Peak dense 16-bit TFLOP/s (fp32 accumulation) from vendor data sheets, by whole words of the device name; the first match counts.
Cards before Ampere (the last six) reach it in fp16, all others in bf16 and fp16."""

SLOWER_VARIANTS = ("Laptop", "MIG", "D")
"""Words in a device name that mark a slower variant or a slice of a GPU, whose peak is not in the table."""

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = 2, 2, 2
"""FLOPs per weight and token: one multiply-add in the forward pass and one for each kind of gradient."""


def peak_tflops(device_name: str) -> float | None:
    """Peak dense 16-bit TFLOP/s of a device, None when it is not in the table."""
    words = f" {re.sub(r'[^A-Za-z0-9]+', ' ', device_name)} "
    if any(f" {word} " in words for word in SLOWER_VARIANTS):
        return None
    return next((peak for part, peak in PEAK_TFLOPS if f" {part} " in words), None)


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one training step per token, supervised token and image. Attention scores, norms and the recomputation of
    checkpointed activations are not counted, so the rates are a lower bound of what the device does."""

    per_token: float
    """Language model and its adapters."""
    per_supervised_token: float
    """Computed at supervised positions only: the output projection to the vocabulary and the last layer's MLP."""
    per_image: float
    """Vision encoder and connector."""

    def flops(self, tokens: float, supervised: float, images: float) -> float:
        """FLOPs of a step over this many tokens, supervised tokens and images."""
        return self.per_token * tokens + self.per_supervised_token * supervised + self.per_image * images


def count_step_flops(model: nn.Module, patches: int, vision_layers: int, tokens_per_image: int) -> StepFlops:
    """FLOPs of the linear layers of a vision-language model in training.

    Layers are classified by their names: vision_tower, multi_modal_projector, lm_head; all others belong to the language model.
    After the last attention, the language model runs at supervised positions only (see model.siglip_qwen.sparse_last_layer).

    Args:
        patches: Patches per image in the vision encoder.
        vision_layers: Number of vision layers that run.
        tokens_per_image: Image tokens per image, which is the number of positions the connector maps.
    """
    last = max((_language_layer(name) for name, _ in model.named_modules()), default=-1)
    per_token = per_supervised_token = per_image = 0.0
    for name, layer in model.named_modules():
        weights = _weights(layer)
        unused = ".original_module" in name or _vision_layer(name) >= vision_layers
        if not weights or unused:
            continue
        trained = any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        if "vision_tower" in name:
            per_image += FORWARD * weights * patches
            continue
        cost = weights * (FORWARD + INPUT_GRADIENT + (WEIGHT_GRADIENT if trained else 0))
        if "multi_modal_projector" in name:
            per_image += cost * tokens_per_image
        elif "lm_head" in name or (".mlp." in name and _language_layer(name) == last):
            per_supervised_token += cost
        else:
            per_token += cost
    return StepFlops(per_token, per_supervised_token, per_image)


def model_step_flops(model: VisionLanguageModel | PeftModel, features_cached: bool = False) -> StepFlops:
    """`count_step_flops` with the sizes in the model's config. features_cached: the vision encoder does not run."""
    config = base_model(model).config
    vision, layer = config.vision_config, config.vision_feature_layer
    depth = vision.num_hidden_layers if isinstance(layer, str) else layer % (vision.num_hidden_layers + 1)
    depth = 0 if features_cached else depth
    side = vision.image_size // vision.patch_size
    return count_step_flops(model, side**2, depth, num_image_tokens(side, config.pool, config.drop_first_patch))


def _vision_layer(name: str) -> int:
    """Index of the vision layer that a module belongs to, -1 when it belongs to none."""
    match = re.search(r"vision_tower.*\.layers\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _language_layer(name: str) -> int:
    """Index of the language model's layer that a module belongs to, -1 when it belongs to none."""
    match = re.search(r"language_model\.layers\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _weights(layer: nn.Module) -> int:
    """Number of weights of a linear layer, from its feature sizes: a 4-bit tensor stores two weights per byte."""
    return layer.in_features * layer.out_features if isinstance(layer, nn.Linear) else 0


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes so far: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class Rates:
    """Rates on the status line. tflops and mfu are None when the peak of the device in this precision is unknown."""

    supervised_tokens_per_second: float
    samples_per_second: float
    peak_memory_gib: float
    data_wait: float
    """Fraction of the time that the model waited for data."""
    tflops: float | None
    """Useful TFLOP/s per device."""
    mfu: float | None
    """Model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): `tflops` over the device's peak."""


class ThroughputMeter:
    """Counts tokens, samples and images of the training batches and turns them into rates.

    Args:
        cost: FLOPs of the model.
        peak: The device's peak TFLOP/s; None when unknown.
        clock: Returns seconds; tests replace it.
    """

    def __init__(self, cost: StepFlops, device: torch.device, peak: float | None, clock: Callable[[], float] = time.perf_counter):
        self._cost, self._device, self._peak, self._clock = cost, device, peak, clock
        self.start()

    def start(self) -> None:
        """Reset all counts and start the clock."""
        self._reset(self._clock())

    def _reset(self, now: float) -> None:
        self._tokens = self._supervised_tokens = self._images = self._samples = 0
        self._data_wait_seconds = 0.0
        self._started = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside, such as for validation or saving, from the rates."""
        start = self._clock()
        yield
        self._started += self._clock() - start

    def count(self, batch: dict[str, Any]) -> None:
        """Count a micro-batch."""
        supervised = batch["labels"] != IGNORE_INDEX
        if "attention_mask" in batch:
            self._tokens += int(batch["attention_mask"].sum())
        else:
            # A packed row: its last sample ends with a supervised token; padding follows.
            self._tokens += int(supervised[0].nonzero()[-1]) + 1 if supervised.any() else 0
        self._supervised_tokens += int(supervised.sum())
        self._images += len(batch["image_features"] if "image_features" in batch else batch["pixel_values"])
        self._samples += len(batch["sample_ids"])

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time spent inside as waiting for data."""
        start = self._clock()
        yield
        self._data_wait_seconds += self._clock() - start

    def read(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> Rates:
        """Rates since the last reading, over all ranks. gather: from [n] to [world size, n]; called once."""
        now = self._clock()
        seconds = max(now - self._started, 1e-9)
        counts = [self._tokens, self._supervised_tokens, self._images, self._samples, self._data_wait_seconds, peak_memory(self._device)]
        gathered = gather(torch.tensor(counts, dtype=torch.float64))
        tokens, supervised, images, samples, data_wait_seconds, _ = gathered.mean(dim=0).tolist()
        tflops = self._cost.flops(tokens, supervised, images) / seconds / 1e12 if self._peak else None
        self._reset(now)
        return Rates(
            supervised_tokens_per_second=supervised * len(gathered) / seconds,
            samples_per_second=samples * len(gathered) / seconds,
            peak_memory_gib=float(gathered[:, -1].max()) / 2**30,
            data_wait=min(data_wait_seconds / seconds, 1.0),
            tflops=tflops,
            mfu=tflops / self._peak if tflops is not None and self._peak else None,
        )
