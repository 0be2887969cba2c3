"""A small Qwen3-VL and a small Qwen2.5-VL, and batches for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dataset.loading.collators import Example, PaddedCollator
from dataset.sample import Message
from model.family import Collate, LoadOptions
from model.family_config import LoraConfig
from model.qwen_vl.config import QwenVlConfig
from model.qwen_vl.family import FAMILY
from model.qwen_vl.processor import QwenVlProcessor
from tests.answering.systems.test_qwen_vl import build_qwen2_5_vl

Build = Callable[..., Any]


@pytest.fixture(scope="session", params=["qwen3_vl", "qwen2_5_vl"])
def folder(request: pytest.FixtureRequest, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small untrained model."""
    if request.param == "qwen3_vl":
        return parts / "qwen3_vl"
    return build_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl"), parts)


@pytest.fixture(scope="session")
def settings(folder: Path) -> Callable[..., QwenVlConfig]:
    """Returns model settings of the small model, with changes."""

    def make(**changes: Any) -> QwenVlConfig:
        lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0)
        return QwenVlConfig(**{"family": "qwen_vl", "path": str(folder), "max_length": 256, "lora": lora, **changes})

    return make


@pytest.fixture(scope="session")
def processor(settings: Callable[..., QwenVlConfig]) -> QwenVlProcessor:
    return FAMILY.processor(settings())


@pytest.fixture(scope="session")
def trained(settings: Callable[..., QwenVlConfig], processor: QwenVlProcessor) -> Build:
    """Returns a model whose groups are trainable; adapters have random weights, so that they change the output."""

    def make(*groups: Any, **changes: Any) -> Any:
        torch.manual_seed(0)
        config = settings(**changes)
        model = FAMILY.build(config, processor, LoadOptions(torch.float32))
        model = FAMILY.configure_trainable(model, config, groups, groups)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        return model

    return make


SAMPLES: list[tuple[str, str, list[tuple[int, int]]]] = [
    ("<image>What color is the circle?", "red", [(90, 60)]),
    ("Is there a blue star?", "no", []),
    ("<image>First <image>second: how many squares are there?", "2 of them", [(64, 64), (40, 130)]),
]


@pytest.fixture(scope="session")
def examples(processor: QwenVlProcessor) -> list[Example]:
    """Three samples: with one image, none, and two of other sizes."""
    made = []
    for i, (question, answer, sizes) in enumerate(SAMPLES):
        images = [Image.effect_noise(size, 60 + 10 * j).convert("RGB") for j, size in enumerate(sizes)]
        encoded = processor.encode([Message("user", question)], answer, len(sizes), sizes=sizes)
        assert encoded is not None
        made.append(Example(str(i), encoded, processor.read(images)))
    return made


@pytest.fixture(scope="session")
def collate(processor: QwenVlProcessor) -> Collate:
    return FAMILY.collator(processor, PaddedCollator(int(processor.tokenizer.pad_token_id)))


@pytest.fixture(scope="session")
def batch(examples: list[Example], collate: Collate) -> dict[str, Any]:
    """The three samples, padded."""
    return collate(examples)
