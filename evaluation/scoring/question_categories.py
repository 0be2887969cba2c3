"""Categories of questions, assigned by the rules in question_categories.yaml."""

import re
from functools import cache
from importlib import resources

import yaml

from dataset.sample import Language

OTHER = "other"
"""Category of a question that no rule matches."""
MAX_CHARS = 2_000
"""Only the end of a longer text is looked at: some rules take time that grows with the square of the length."""


def category(question: str, language: Language) -> str:
    """Category of a question: counting, attribute, spatial, reading, yes/no, identification, or other."""
    text = " ".join(question.split())[-MAX_CHARS:]
    return next((name for name, rule in _rules()[language] if rule.search(text)), OTHER)


def category_names() -> list[str]:
    """All categories, in display order."""
    return ["yes/no", "counting", "attribute", "spatial", "reading", "identification", OTHER]


@cache
def _rules() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    data = yaml.safe_load(resources.files("evaluation.scoring").joinpath("question_categories.yaml").read_text(encoding="utf-8"))
    return {
        language: [(name, _compiled(data[language][name], data["fragments"])) for name in data["order"] if name in data[language]]
        for language in ("en", "zh")
    }


def _compiled(rules: list[str], fragments: dict[str, str]) -> re.Pattern[str]:
    """One pattern that matches where any of the rules does. A fragment may contain those before it."""
    pattern = "|".join(f"(?:{rule})" for rule in rules)
    for name, fragment in reversed(fragments.items()):
        pattern = pattern.replace(f"<{name}>", fragment)
    return re.compile(pattern, re.IGNORECASE)
