"""What docs/systems.md shows is what the program reads."""

import json
import re
import typing
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from answering.config import SystemBase
from evaluation.config import EvalConfig

TEXT = (Path(__file__).parents[2] / "docs" / "systems.md").read_text(encoding="utf-8")


def kinds(section: type[SystemBase]) -> set[str]:
    return {kind for one in section.__subclasses__() for kind in typing.get_args(typing.get_type_hints(one)["kind"])}


def test_the_example_is_a_configuration_and_shows_every_kind() -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    shown = TypeAdapter(EvalConfig).validate_json(json.dumps(yaml.safe_load(example)["eval"]))
    assert {system.kind for system in shown.systems} == kinds(SystemBase)


def test_every_key_that_is_named_exists() -> None:
    known = {name for one in SystemBase.__subclasses__() for name in one.__dataclass_fields__}
    settings = {"question_prompt", "conversation_prompt", "caption_prompt", "adapter", "max_side", "sampling", "extra_body", "concurrency"}
    settings |= {"requests_per_minute", "timeout", "retries", "retry_wait", "cache", "clean_answers", "api_key_variable", "base_url"}
    assert settings <= known
    assert all(f"`{name}" in TEXT for name in settings)
