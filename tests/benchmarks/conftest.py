"""A stock model with a different weight."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import full_size_models
from model.siglip_qwen.modeling import VisionLanguageModel
from tests.serving.conftest import experiment as experiment


@pytest.fixture
def different_stock() -> Callable[[VisionLanguageModel], Any]:
    """Replacement of `build_stock` in which one frozen weight differs."""

    def build(model: VisionLanguageModel) -> Any:
        stock = full_size_models.build_stock(model)
        norm = stock.model.language_model.norm
        norm.weight = torch.nn.Parameter(torch.linspace(-2, 2, len(norm.weight)), requires_grad=False)
        return stock

    return build
