"""How fast a training step is: tokens, samples, memory, waiting for data, and the arithmetic done for it.

In: the model's batches as they go by. Out: rates over the steps since the last reading, summed over all processes.
Frozen weights are counted as what they cost: they take a forward and an input gradient, but no weight gradient.
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
)
"""Dense bf16 TFLOP/s (fp32 accumulation) from the vendors' data sheets, by whole words of the device's name; first match counts."""

SLOWER_VARIANTS = ("Laptop", "MIG", "D")
"""Words that mark a slower variant or a slice of a chip, whose rate is another one."""

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = 2, 2, 2
"""Operations for each weight and token: a multiply-add in the forward pass and one in each kind of gradient."""


def peak_tflops(device_name: str) -> float | None:
    """Peak dense bf16 rate of a device, None when it is not in the table."""
    words = f" {re.sub(r'[^A-Za-z0-9]+', ' ', device_name)} "
    if any(f" {word} " in words for word in SLOWER_VARIANTS):
        return None
    return next((peak for part, peak in PEAK_TFLOPS if f" {part} " in words), None)


@dataclass(frozen=True)
class StepFlops:
    """Operations of one training step by what they are counted over. Attention scores, norms and recomputation of
    checkpointed activations are left out, so the rates are a lower bound of what the device does."""

    per_token: float
    """Language model and its adapters, for each token."""
    per_supervised_token: float
    """What is multiplied at supervised positions only: the vocabulary matrix and the last layer's perceptron."""
    per_image: float
    """Vision trunk and projector, for each picture."""

    def flops(self, tokens: float, supervised: float, images: float) -> float:
        """Operations of a step over this many tokens, supervised tokens and pictures."""
        return self.per_token * tokens + self.per_supervised_token * supervised + self.per_image * images


def count_step_flops(model: nn.Module, patches: int, vision_layers: int, tokens_per_image: int) -> StepFlops:
    """Count the linear layers of a vision-language model by what training does with them.

    patches: positions of the vision trunk a picture; vision_layers: how many of its layers are run;
    tokens_per_image: positions that the projector maps.
    Layers are told apart by the parts of their names: vision_tower, multi_modal_projector, lm_head, the rest is language. Behind
    the last attention, the language model is needed at supervised positions only (see model.last_layer).
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
    """`step_cost` by the sizes that the model's own config names. features_kept: the trunk is not run at all."""
    config = base_model(model).config
    vision, layer = config.vision_config, config.vision_feature_layer
    depth = vision.num_hidden_layers if isinstance(layer, str) else layer % (vision.num_hidden_layers + 1)
    depth = 0 if features_cached else depth
    side = vision.image_size // vision.patch_size
    return count_step_flops(model, side**2, depth, num_image_tokens(side, config.pool, config.drop_first_patch))


def _vision_layer(name: str) -> int:
    """Number of the vision trunk's layer that a module belongs to, -1 when it belongs to none."""
    found = re.search(r"vision_tower.*\.layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _language_layer(name: str) -> int:
    """Number of the language model's layer that a module belongs to, -1 when it belongs to none."""
    found = re.search(r"language_model\.layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _weights(layer: nn.Module) -> int:
    """Weights of a linear layer; taken from its sizes, since a 4-bit weight holds two of them in a byte."""
    return layer.in_features * layer.out_features if isinstance(layer, nn.Linear) else 0


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class Rates:
    """What the status line shows. The last two are None on a device or in a precision whose peak is not known."""

    supervised_tokens_per_second: float
    samples_per_second: float
    peak_memory_gib: float
    data_wait: float
    """Share of the time in which the model waited for data."""
    tflops: float | None
    """Useful TFLOP/s of one device."""
    mfu: float | None
    """Model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): `tflops` over the device's peak."""


class ThroughputMeter:
    """Adds up what passes through training and turns it into rates.

    peak: the device's peak TFLOP/s, or None; clock: seconds (a test may bring its own).
    """

    def __init__(self, cost: StepFlops, device: torch.device, peak: float | None, clock: Callable[[], float] = time.perf_counter):
        self._cost, self._device, self._peak, self._clock = cost, device, peak, clock
        self.start()

    def start(self) -> None:
        """Count from zero, from now on."""
        self._reset(self._clock())

    def _reset(self, now: float) -> None:
        self._tokens = self._supervised_tokens = self._images = self._samples = 0
        self._data_wait_seconds = 0.0
        self._started = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside (validation, saving) is not training: its time is left out."""
        start = self._clock()
        yield
        self._started += self._clock() - start

    def count(self, batch: dict[str, Any]) -> None:
        """A micro-batch goes into the model."""
        supervised = batch["labels"] != IGNORE_INDEX
        if "attention_mask" in batch:
            self._tokens += int(batch["attention_mask"].sum())
        else:
            # A packed row: its last sample ends with a supervised token; what stands behind it is empty room.
            self._tokens += int(supervised[0].nonzero()[-1]) + 1
        self._supervised_tokens += int(supervised.sum())
        self._images += len(batch["image_features"] if "image_features" in batch else batch["pixel_values"])
        self._samples += len(batch["sample_ids"])

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the model stands still for want of data."""
        start = self._clock()
        yield
        self._data_wait_seconds += self._clock() - start

    def read(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> Rates:
        """Rates since the last reading, over all processes. gather: [n] -> [processes, n]; called once."""
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
