"""docs/ablation.md and its Chinese page show the same, valid, and name the columns of the report."""

import re
import shlex
from pathlib import Path

import yaml

import config as configuration
from benchmarks.ablation.ablation_data import CATEGORIES
from benchmarks.ablation.config import AblationConfig, all_variants, check_variants
from tests.pipeline import ROOT
from tools import ablate

PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("ablation.md", "zh/ablation.md")}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], flags=re.M | re.S)


def test_both_pages_show_the_same() -> None:
    for language in ("text", "yaml"):
        assert blocks("ablation.md", language) == blocks("zh/ablation.md", language) != []


def test_the_shown_ablation_can_be_run_and_the_shown_options_exist() -> None:
    (shown,) = blocks("ablation.md", "yaml")
    path = Path("docs/ablation.md")
    ablation = configuration.validate(AblationConfig, yaml.safe_load(shown), path)
    check_variants(path, all_variants(ablation))
    for line in blocks("ablation.md", "text")[0].splitlines():
        words = shlex.split(line, comments=True)
        assert words[:2] == ["python", "tools/ablate.py"]
        ablate.parser.parse_args(words[2:])


def test_every_column_of_the_report_is_explained() -> None:
    for page in PAGES.values():
        assert all(f"| {name} |" in page for name in CATEGORIES)
