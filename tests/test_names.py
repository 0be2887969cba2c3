"""Names are those of the field: words that only this project would use for a thing do not come back."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FIELD_WORDS = {
    "picture": "image",
    "pictures": "images",
    "newest": "latest",
    "credibility": "confidence",
    "abandoned": "cancelled",
    "drawn": "sampled, rendered or synthetic",
    "guarded": "skipped",
    "imitated": "simulated",
    "stretched": "min_max",
    "shelf": "cache",
    "spool": "buffer",
    "interview": "runner",
    "talker": "session",
    "evaluate_steps": "eval_steps",
    "keep_checkpoints": "save_total_limit",
}
"""Word or whole name -> what the field calls it."""
FILES = [Path(name) for name in subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout.split()]


def words(name: str) -> set[str]:
    """A name and the words in it, in lower case: `PaddedCollator`, `num_images`."""
    return {name, *(word.lower() for part in name.split("_") for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", part))}


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that a module defines: functions, classes, arguments, variables, attributes, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


@pytest.mark.parametrize("path", FILES, ids=str)
def test_names_use_the_words_of_the_field(path: Path) -> None:
    defined = [(part, 0) for part in path.with_suffix("").parts] + list(names(ast.parse(path.read_text(encoding="utf-8"))))
    wrong = [f"{path}:{line}: {name}: say {FIELD_WORDS[word]}" for name, line in defined for word in words(name) & FIELD_WORDS.keys()]
    assert wrong == []


def test_the_check_sees_a_word_in_any_kind_of_name() -> None:
    source = "class PictureBox:\n    def of(self, newest): self.spool_file = drawn_scene = newest\n"
    found = {word for name, _ in names(ast.parse(source)) for word in words(name) & FIELD_WORDS.keys()}
    assert found == {"picture", "newest", "spool", "drawn"}
