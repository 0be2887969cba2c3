"""docs/data.md and docs/zh/data.md agree with the configuration and the drop reasons."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from dataset.record_validation import DropReason
from dataset.source_config import Source
from dataset.sources import READERS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("data.md", "zh/data.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_yaml_line_is_a_valid_source_and_every_format_is_shown(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    lines = re.findall(r"^    - (\{format: .*\})$", text, flags=re.MULTILINE)
    sources = [TypeAdapter(Source).validate_json(json.dumps(yaml.safe_load(line))) for line in lines]
    assert {source.format for source in sources} == set(READERS)


@pytest.mark.parametrize("page", PAGES)
def test_every_drop_reason_is_explained(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    explained = re.findall(r"^\| `([^`]+)` \| [^|]+ \|$", text, flags=re.MULTILINE)
    assert {reason.value for reason in DropReason} <= set(explained)
