"""Full-size models, and a stock model that shares their tensors."""

import pytest
import torch

from benchmarks.full_size_models import Size, build_ours, build_processor, build_stock, check_comparable
from errors import UsageError
from model.siglip_qwen.config import ConnectorConfig, SiglipQwenConfig
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def processor() -> Processor:
    return build_processor("tiny", SiglipQwenConfig(max_length=512))


@pytest.fixture
def ours(processor: Processor) -> VisionLanguageModel:
    return build_ours("tiny", SiglipQwenConfig(), processor, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize(("size", "billions"), [("1.7b", 1.72), ("4b", 4.02), ("8b", 8.19)])
def test_parameter_counts_are_those_of_qwen3_and_siglip(processor: Processor, size: Size, billions: float) -> None:
    model = build_ours(size, SiglipQwenConfig(), processor, dtype=torch.bfloat16, device=torch.device("meta"))
    language = {parameter for name, parameter in model.named_parameters() if "language_model" in name or "lm_head" in name}
    assert sum(parameter.numel() for parameter in language) / 1e9 == pytest.approx(billions, abs=0.006)
    assert sum(parameter.numel() for parameter in model.model.vision_tower.parameters()) / 1e6 == pytest.approx(413, abs=1)
    assert {parameter.dtype for parameter in language} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.model.multi_modal_projector.parameters()} == {torch.float32}


def test_both_models_share_tensors_but_not_modules(ours: VisionLanguageModel) -> None:
    stock = build_stock(ours)
    stock_parameters = dict(stock.named_parameters())
    assert {name: parameter.data_ptr() for name, parameter in ours.named_parameters()} == {
        name: parameter.data_ptr() for name, parameter in stock_parameters.items()
    }
    assert not set(map(id, ours.modules())) & set(map(id, stock.modules()))
    stock.model.language_model.config._attn_implementation = "eager"
    assert ours.model.language_model.config._attn_implementation != "eager"


def test_weights_depend_on_the_seed(processor: Processor, ours: VisionLanguageModel) -> None:
    same_seed = build_ours("tiny", SiglipQwenConfig(), processor, dtype=torch.float32, device=CPU)
    other_seed = build_ours("tiny", SiglipQwenConfig(), processor, dtype=torch.float32, device=CPU, seed=1)
    for model, same in ((same_seed, True), (other_seed, False)):
        assert torch.equal(model.lm_head.weight, ours.lm_head.weight) == same
        weights = [side.get_parameter("model.multi_modal_projector.linear_1.weight") for side in (model, ours)]
        assert torch.equal(*weights) == same


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (SiglipQwenConfig(quantization="nf4"), "model.quantization"),
        (SiglipQwenConfig(connector=ConnectorConfig(kind="mlp_pool", pool=3)), "model.connector.kind"),
        (SiglipQwenConfig(drop_first_patch=True), "model.drop_first_patch"),
    ],
)
def test_settings_that_stock_does_not_support_are_rejected(settings: SiglipQwenConfig, key: str) -> None:
    with pytest.raises(UsageError, match=key):
        check_comparable(settings)


def test_without_stock_our_model_may_have_settings_that_stock_does_not_support(processor: Processor) -> None:
    pooled = SiglipQwenConfig(connector=ConnectorConfig(kind="mlp_pool", pool=3))
    assert build_ours("tiny", pooled, processor, dtype=torch.float32, device=CPU).config.connector_config.pool == 3
    with pytest.raises(UsageError, match=r"model\.quantization"):
        build_ours("tiny", SiglipQwenConfig(quantization="nf4"), processor, dtype=torch.float32, device=CPU)
