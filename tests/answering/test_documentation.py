"""The examples and keys in docs/systems.md and its Chinese page are valid; both languages show the same settings and commands."""

import json
import re
import typing
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from answering.config import DecodingConfig, SystemBase
from evaluation.config import EvalConfig

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {name: (DOCS / name).read_text(encoding="utf-8") for name in ("systems.md", "zh/systems.md")}


def kinds(section: type[SystemBase]) -> set[str]:
    return {kind for system in section.__subclasses__() for kind in typing.get_args(typing.get_type_hints(system)["kind"])}


@pytest.mark.parametrize("page", PAGES)
def test_the_example_is_a_valid_configuration_with_every_kind_of_system(page: str) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    shown = TypeAdapter(EvalConfig).validate_json(json.dumps(yaml.safe_load(example)["eval"]))
    assert {system.kind for system in shown.systems} == kinds(SystemBase)


@pytest.mark.parametrize("page", PAGES)
def test_the_page_names_keys_that_exist(page: str) -> None:
    known = {name for system in SystemBase.__subclasses__() for name in system.__dataclass_fields__}
    settings = {
        "question_prompt",
        "conversation_prompt",
        "caption_prompt",
        "adapter",
        "max_image_side",
        "sampling",
        "extra_body",
        "concurrency",
    }
    settings |= {"requests_per_minute", "timeout", "retries", "retry_wait", "cache", "clean_answers", "api_key_env", "base_url"}
    assert settings <= known
    assert all(f"`{name}" in PAGES[page] for name in settings)


@pytest.mark.parametrize("page", PAGES)
def test_the_page_names_every_decoding_setting_that_changes_an_answer(page: str) -> None:
    settings = set(DecodingConfig.__dataclass_fields__) - {"batch_size", "cuda_graphs"}
    assert {name for name in settings if f"`{name}`" not in PAGES[page] and f"`{name}: " not in PAGES[page]} == set()


@pytest.mark.parametrize("name", ["systems", "reranking", "evaluation"])
def test_both_languages_show_the_same_settings_and_commands(name: str) -> None:
    def shown(page: str) -> list[str]:
        text = (DOCS / page).read_text(encoding="utf-8")
        blocks = re.findall(r"^```\w+\n(.*?)^```$|^((?: {4}[^\n]+\n)+)", text, flags=re.MULTILINE | re.DOTALL)
        return [re.sub(r"\s+#.*", "", line) for block in blocks for line in "".join(block).splitlines()]

    def named(page: str) -> set[str]:
        """Keys, options and files in backticks."""
        return set(re.findall(r"`([^`\s]+)`", (DOCS / page).read_text(encoding="utf-8")))

    assert shown(f"{name}.md") == shown(f"zh/{name}.md") != []
    assert named(f"{name}.md") == named(f"zh/{name}.md")
