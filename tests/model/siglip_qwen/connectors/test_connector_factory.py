"""Which connector the settings name, how many tokens an image has, and that each can be trained, saved and loaded in a whole model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError

from errors import UsageError
from model.checkpoint_manifest import write_manifest
from model.param_groups import set_trainable
from model.siglip_qwen import checkpoint
from model.siglip_qwen.adapters import base_model, configure_trainable
from model.siglip_qwen.assembly import tokens_per_image
from model.siglip_qwen.config import ConnectorConfig, ConnectorKind, SiglipQwenConfig
from model.siglip_qwen.connectors.connector_factory import build_connector, num_image_tokens
from model.siglip_qwen.family import FAMILY
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.vision_language_config import VisionLanguageConfig

Make = Callable[..., VisionLanguageModel]
Settings = Callable[..., SiglipQwenConfig]

KINDS: dict[ConnectorKind, dict[str, Any]] = {
    "mlp": {},
    "linear": {},
    "mlp_pool": {"pool": 2},
    "avg_pool": {"pool": 2},
    "resampler": {"num_queries": 7, "num_attention_heads": 4},
    "qformer": {"num_queries": 7, "num_attention_heads": 4},
}


def test_every_kind_is_tested() -> None:
    assert set(KINDS) == set(get_args(ConnectorKind))


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_merged_patches_are_no_tokens(kind: ConnectorKind) -> None:
    config = ConnectorConfig(kind=kind, keep_ratio=0.4)
    assert num_image_tokens(config, 6, False) == 15
    assert build_connector(config, 16, 12)(torch.randn(2, 36, 16)).shape == (2, 15, 12)


@pytest.mark.parametrize("kind", ["mlp_pool", "avg_pool", "resampler", "qformer"])
def test_patches_are_merged_where_each_is_a_token(kind: ConnectorKind) -> None:
    with pytest.raises(ValidationError, match=r"keep_ratio 0\.5 needs kind mlp or linear"):
        ConnectorConfig(kind=kind, keep_ratio=0.5, pool=KINDS[kind].get("pool", 1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_tokens_is_known_before_the_connector_is_built(kind: ConnectorKind) -> None:
    config = ConnectorConfig(kind=kind, **KINDS[kind])
    assert build_connector(config, 16, 12)(torch.randn(2, 36, 16)).shape == (2, num_image_tokens(config, 6, False), 12)


@pytest.mark.parametrize(
    ("side", "pool", "drop", "tokens"), [(27, 1, False, 729), (27, 3, False, 81), (27, 1, True, 728), (6, 2, False, 9)]
)
def test_the_number_of_image_tokens(side: int, pool: int, drop: bool, tokens: int) -> None:
    assert num_image_tokens(ConnectorConfig(kind="mlp" if pool == 1 else "mlp_pool", pool=pool), side, drop) == tokens


def test_a_grid_that_pool_does_not_divide_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"model.connector.pool: 27 x 27 patches cannot be divided .* 2 x 2"):
        num_image_tokens(ConnectorConfig(kind="avg_pool", pool=2), 27, False)


def test_pooling_with_a_dropped_first_patch_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"model.connector.pool: must be 1"):
        num_image_tokens(ConnectorConfig(kind="mlp_pool", pool=3), 27, True)


def test_heads_that_do_not_divide_the_width_are_an_error() -> None:
    with pytest.raises(UsageError, match=r"model.connector.num_attention_heads: 5 does not divide .* 16"):
        build_connector(ConnectorConfig(kind="resampler", num_attention_heads=5), 16, 12)


@pytest.mark.parametrize(("kind", "pool"), [("mlp", 2), ("linear", 2), ("resampler", 3), ("mlp_pool", 1), ("avg_pool", 1)])
def test_pool_belongs_to_the_kinds_that_pool(kind: Any, pool: int) -> None:
    with pytest.raises(ValidationError, match="pool"):
        ConnectorConfig(kind=kind, pool=pool)


@pytest.mark.parametrize("pool", [1, 3])
def test_configs_from_before_there_were_kinds_name_the_same_connector(pool: int) -> None:
    config = VisionLanguageConfig(pool=pool, settings={"connector": {"pool": pool, "init": "normal"}})
    assert config.connector_config == ConnectorConfig(kind="mlp" if pool == 1 else "mlp_pool", pool=pool)
    assert config.settings is not None
    assert ConnectorConfig(**config.settings["connector"]) == ConnectorConfig(
        kind="mlp" if pool == 1 else "mlp_pool", pool=pool, init="normal"
    )


def image_then_text(config: SiglipQwenConfig, image_token: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Two samples of an image and two tokens, of which only the image tells which, and the labels of these tokens."""
    tokens = tokens_per_image(config)
    ids = torch.tensor([[300, *[image_token] * tokens, first, second] for first, second in ((301, 302), (303, 304))])
    labels = ids.clone()
    labels[:, : tokens + 1] = -100
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))}, labels


@pytest.mark.parametrize("kind", KINDS)
def test_each_overfits_a_batch(kind: ConnectorKind, make: Make, settings: Settings) -> None:
    changes = {"connector": ConnectorConfig(kind=kind, **KINDS[kind])}
    model = make(**changes)
    inputs, labels = image_then_text(settings(**changes), model.config.image_token_id)
    set_trainable(model, ["connector", "language"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(30):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Without the images the first of the two tokens would cost log(2) nats.
    assert loss < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_saved_loaded_and_merged(kind: ConnectorKind, make: Make, settings: Settings, tmp_path: Path) -> None:
    changes = {"connector": ConnectorConfig(kind=kind, **KINDS[kind])}
    config = settings(**changes)
    torch.manual_seed(1)
    model = configure_trainable(make(**changes), config, ["connector", "lora"])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    inputs, _ = image_then_text(config, base_model(model).config.image_token_id)
    assert FAMILY.step_flops(model).per_image > 0
    checkpoint.save(model, tmp_path)
    write_manifest(tmp_path)
    for loaded in (checkpoint.load(tmp_path), checkpoint.merge(tmp_path)):
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4)
