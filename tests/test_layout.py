"""Imports between folders run one way, files are named once, folders and files stay small."""

import ast
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ANYWHERE = {"atomic_io", "config_schema", "cpu_cores", "errors", "file_lock", "hub_access", "process_group", "progress"}
SAMPLES = {"dataset.sample", "dataset.bounding_box"}
IMAGE_FILES = {"dataset.remote_files", "dataset.loading.image_io", "dataset.loading.image_formats", "dataset.loading.packed_images"}
MAY_IMPORT = {
    "dataset": {"dataset"},
    "visual": {"visual"},
    "model": {"model", "visual", *SAMPLES, "dataset.loading"},
    "answering": {"answering", "model", "visual", *SAMPLES, "dataset.loading.encoded_sample", *IMAGE_FILES},
    "training": {"training", "model", "visual", "dataset", "answering"},
    "evaluation": {"evaluation", "answering", "dataset"},
    "serving": {"serving", "answering", "visual", *SAMPLES, *IMAGE_FILES},
    "benchmarks": {"benchmarks", "config", "answering", "dataset", "evaluation", "model", "serving", "training", "visual"},
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


SOURCES = [
    Path(name)
    for name in subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout.split()
    if not name.startswith("tests/")
]
NAMED_AGAIN = {"__init__.py", "config.py"}
"""Names that every folder may have. A command in tools/ may be named as the module that it calls, and the files that the protocol
of model families fixes stand in each family's folder."""
FAMILY_FILES = {"config.py", "modeling.py", "processor.py", "collator.py", "checkpoint.py", "family.py"}


def test_no_two_files_have_one_name() -> None:
    names = [
        path.name
        for path in SOURCES
        if path.parts[0] != "tools" and not (path.parts[0] == "model" and len(path.parts) == 3 and path.name in FAMILY_FILES)
    ]
    assert {name: count for name, count in Counter(names).items() if count > 1 and name not in NAMED_AGAIN} == {}


def test_no_folder_holds_more_than_thirteen_modules() -> None:
    # Of commands there are as many as there are.
    counts = Counter(path.parent for path in SOURCES if path.name != "__init__.py" and path.parts[0] != "tools")
    assert {str(folder): count for folder, count in counts.items() if count > 13} == {}


def test_no_file_is_longer_than_350_lines() -> None:
    tests = [Path(name) for name in subprocess.run(["git", "ls-files", "tests"], capture_output=True, text=True, check=True).stdout.split()]
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in [*SOURCES, *tests] if path.suffix == ".py"}
    assert {path: lines for path, lines in lengths.items() if lines > 350} == {}


def test_kernels_know_no_model_family() -> None:
    for path in Path("model/kernels").glob("*.py"):
        assert {name for name in imported(path) if name.startswith("model.") and not name.startswith("model.kernels")} == set(), path


PRESCRIBED = {"VisionLanguageModel.forward", "packed_attention_forward"}
"""Functions whose signature a library prescribes: a forward pass of transformers, and one of its attention functions."""


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions and methods of a file, by their qualified names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    owners = {own: node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for own in node.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{owners[node]}.{node.name}" if node in owners else node.name, node


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_function_is_longer_than_a_screen_or_has_more_than_seven_parameters(path: Path) -> None:
    for name, function in functions(path):
        assert function.end_lineno is not None
        assert function.end_lineno - function.lineno < 60, f"{name} is too long"
        parameters = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        assert len([p for p in parameters if p not in ("self", "cls")]) <= 7 or name in PRESCRIBED, f"{name} has too many parameters"
