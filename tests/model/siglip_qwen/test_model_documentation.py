"""docs/model.md names every kind of connector, its configurations are valid, and the Chinese page has the same."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

import config as configuration
from model.siglip_qwen.config import ConnectorConfig, ConnectorKind, SiglipQwenConfig
from model.siglip_qwen.connectors.connector_factory import num_image_tokens
from tests.pipeline import ROOT
from training.preflight import check_settings

PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("docs/model.md", "docs/zh/model.md")}


def blocks(page: str) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", PAGES[page], flags=re.M | re.S)


def test_both_pages_have_the_same_code() -> None:
    assert blocks("docs/model.md") == blocks("docs/zh/model.md")


@pytest.mark.parametrize("block", blocks("docs/model.md"))
def test_every_configuration_is_valid(block: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"name": "c", **yaml.safe_load(block)}), encoding="utf-8")
    loaded = configuration.load(tmp_path / "c.yaml")
    assert isinstance(loaded.model, SiglipQwenConfig)
    check_settings(loaded)


@pytest.mark.parametrize("page", PAGES)
def test_every_kind_of_connector_is_named_with_its_tokens(page: str) -> None:
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\| ([^|]+) \|", PAGES[page], flags=re.M))
    kinds = {kind: rows[kind] for kind in get_args(ConnectorKind)}
    for kind, tokens in kinds.items():
        pool = 3 if kind in ("mlp_pool", "avg_pool") else 1
        connector = ConnectorConfig(kind=kind, pool=pool)
        assert "num_queries" in tokens if connector.has_queries else str(num_image_tokens(connector, 27, False)) in tokens
