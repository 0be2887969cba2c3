"""A small model of each family of transformers' own classes (Qwen's have their own folder), and batches for them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.loading.collators import Example, PaddedCollator
from dataset.loading.encoded_sample import IGNORE_INDEX
from dataset.sample import Message
from model.blip2.config import Blip2Config, Blip2LoraConfig
from model.family import Family, LoadOptions, family
from model.family_config import LoraConfig
from model.llava.config import LlavaConfig
from model.resnet_gpt2.config import FusionConfig, ResnetGpt2Config
from tests.small_models import build_blip2, build_llava

ONE_IMAGE: list[tuple[str, str, int]] = [
    ("<image>\nWhat color is the circle?", "red", 1),
    ("<image>\nIs there a blue star?", "no", 1),
    ("<image>\nHow many squares are there?", "2 of them", 1),
]
"""Questions with their answers and numbers of images."""
ANY_IMAGES: list[tuple[str, str, int]] = [ONE_IMAGE[0], ("Is there a blue star?", "no", 0), ("<image>\n<image>\nHow many?", "2 of them", 2)]


@dataclass
class Case:
    """A small model.

    Args:
        name: of the case.
        family: of the model.
        settings: returns model settings, with changes.
        samples: what its batch has.
        groups: those that are trained by default.
    """

    name: str
    family: Family
    settings: Callable[..., Any]
    samples: list[tuple[str, str, int]]
    groups: tuple[Any, ...]

    def __post_init__(self) -> None:
        self.processor: Any = self.family.processor(self.settings())
        self.collate = self.family.collator(self.processor, PaddedCollator(int(self.processor.tokenizer.pad_token_id)))
        self.examples = [self._example(i, *sample) for i, sample in enumerate(self.samples)]
        self.batch = self.processor.normalize(self.collate(self.examples))

    def _example(self, index: int, question: str, answer: str, num_images: int) -> Example:
        # Not Pillow's effect_noise, which cannot be seeded: gradients would depend on the tests that ran before.
        noise = np.random.default_rng(index)
        images = [Image.fromarray(noise.integers(0, 256, (50, 40 + 20 * j, 3), dtype=np.uint8)) for j in range(num_images)]
        encoded = self.processor.encode([Message("user", question)], answer, num_images, task="vqa")
        assert encoded is not None
        return Example(str(index), encoded, self.processor.read(images))

    def model(self, *groups: Any, **changes: Any) -> Any:
        """A model whose groups are trainable; adapters have random weights, so that they change the output."""
        torch.manual_seed(0)
        config = self.settings(**changes)
        model = self.family.build(config, self.processor, LoadOptions(torch.float32))
        model = self.family.configure_trainable(model, config, groups or self.groups, groups or self.groups)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        return model

    @property
    def has_lora(self) -> bool:
        return "lora" in self.settings().groups

    def supervised(self, batch: dict[str, Any] | None = None) -> torch.Tensor:
        """Positions that predict a supervised token."""
        labels = (batch or self.batch)["labels"]
        return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX) != IGNORE_INDEX

    @torch.no_grad()
    def logits(self, model: Any) -> torch.Tensor:
        """At the supervised positions of the batch, in eval mode."""
        return self.family.logits(model.eval(), self.batch, self.supervised())  # type: ignore[attr-defined, no-any-return]


def _settings(make: Callable[..., Any], **defaults: Any) -> Callable[..., Any]:
    return lambda **changes: make(**{**defaults, **changes})


CASES = ("blip2_opt", "blip2_t5", "llava_qwen", "llava_llama", "resnet_gpt2_vector", "resnet_gpt2_grid")


@pytest.fixture(scope="session")
def cases(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Returns a case by its name; each is built once."""
    built: dict[str, Case] = {}

    def case(name: str) -> Case:
        if name not in built:
            built[name] = _build(name, parts, tmp_path_factory.mktemp(name))
        return built[name]

    return case


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    return cases(request.param)


def _build(name: str, parts: Path, folder: Path) -> Case:
    kind, _, variant = name.rpartition("_")
    adapters: tuple[Any, ...] = ("connector", "lora")
    if kind == "blip2":
        lora = Blip2LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0)
        path = parts / "blip2" if variant == "opt" else build_blip2(folder, "t5", parts)
        return Case(name, family(kind), _settings(Blip2Config, family=kind, path=str(path), lora=lora), ONE_IMAGE, adapters)
    if kind == "llava":
        small = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0)
        path = build_llava(folder, parts, {"qwen": "siglip_qwen", "llama": "clip_llama"}[variant])
        settings = _settings(LlavaConfig, family=kind, path=str(path), max_length=256, lora=small)
        return Case(name, family(kind), settings, ANY_IMAGES, adapters)
    settings = _settings(
        ResnetGpt2Config,
        family=kind,
        vision=str(parts / "resnet"),
        language=str(parts / "gpt2"),
        features=variant,
        connector=FusionConfig(hidden_size=64, hidden_dropout_prob=0.0, num_attention_heads=3),
    )
    return Case(name, family(kind), settings, ONE_IMAGE, ("connector", "language"))
