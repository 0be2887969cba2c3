"""The arrows between folders run one way."""

import ast
from pathlib import Path

import pytest

ANYWHERE = {"atomic_io", "config_schema", "errors", "process_group", "progress"}
IMAGE_IO = "dataset.loading.image_io"
MAY_IMPORT = {
    "dataset": {"dataset"},
    "visual": {"visual"},
    "model": {"model", "visual", "dataset.sample", "dataset.loading"},
    "answering": {"answering", "model", "visual", "dataset.sample", "dataset.loading.encoded_sample", IMAGE_IO},
    "training": {"training", "model", "visual", "dataset", "answering"},
    "evaluation": {"evaluation", "answering", "dataset"},
    "serving": {"serving", "answering", "visual", "dataset.sample", IMAGE_IO},
    "benchmarks": {"benchmarks", "answering", "dataset", "evaluation", "model", "serving", "training", "visual"},
}
HEAVY = {"torch", "transformers", "peft", "pyarrow", "datasets", "matplotlib", "numpy", "PIL"}
FILES = [path for folder in MAY_IMPORT for path in sorted(Path(folder).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_import_runs_against_the_table(path: Path) -> None:
    own = set(MAY_IMPORT) | {"config", "cli", "tools", "train"}
    allowed = MAY_IMPORT[path.parts[0]] | ANYWHERE
    wrong = {
        name
        for name in imported(path)
        if name.split(".")[0] in own and not any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)
    }
    # A section's dataclasses are light and may be read by the section above it.
    assert {name for name in wrong if not name.endswith(".config")} == set()


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "config.py"], ids=str)
def test_a_sections_dataclasses_load_no_heavy_library(path: Path) -> None:
    assert {name.split(".")[0] for name in imported(path)} & HEAVY == set()
