"""What docs/data.md shows is what the program reads and writes."""

import json
import re
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from dataset.config import Source
from dataset.record_validation import DropReason

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_yaml_line_is_a_source_and_every_format_is_shown() -> None:
    lines = re.findall(r"^    - (\{format: .*\})$", TEXT, flags=re.MULTILINE)
    sources = [TypeAdapter(Source).validate_json(json.dumps(yaml.safe_load(line))) for line in lines]
    assert {source.format for source in sources} == {"ai_challenger", "llava", "coco_captions", "vqav2", "vqa_metadata", "messages"}


def test_every_reason_is_explained() -> None:
    explained = re.findall(r"^\| `([^`]+)` \| [^|]+ \|$", TEXT, flags=re.MULTILINE)
    assert {reason.value for reason in DropReason} <= set(explained)
