"""What is installed is what was tested: pinned versions with hashes, and upper bounds where private parts of a library are used."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.pipeline import ROOT
from tests.test_layout import SOURCES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKED_EXTRAS = ("endpoint", "search", "serve", "demo", "dev")
SUBCLASSED = {"torch", "transformers", "accelerate", "uvicorn", "gradio", "huggingface-hub"}
"""Libraries whose private methods, attributes or modules are used, in ways that an import does not show."""


def requirements(*extras: str) -> list[Requirement]:
    """The direct requirements, and those of extras, without the project's own extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [requirement for requirement in map(Requirement, lines) if not requirement.name.startswith("tessera")]


def locked() -> dict[str, tuple[str, list[str]]]:
    """Version and hashes by name."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    parsed = [(Requirement(line.partition("--hash")[0]), re.findall(r"--hash=sha256:([0-9a-f]{64})", line)) for line in lines]
    return {canonicalize_name(requirement.name): (str(requirement.specifier).removeprefix("=="), hashes) for requirement, hashes in parsed}


def test_every_direct_requirement_but_torch_is_locked_in_a_version_that_it_allows() -> None:
    versions = locked()
    for requirement in requirements(*LOCKED_EXTRAS):
        if requirement.name != "torch":
            assert versions[canonicalize_name(requirement.name)][0] in requirement.specifier, requirement


def test_every_locked_package_has_hashes_of_its_files() -> None:
    assert {name: version for name, (version, hashes) in locked().items() if not hashes or not re.fullmatch(r"[\w.]+", version)} == {}
    # Wheels for Linux, macOS and Windows, and the source.
    assert len(locked()["numpy"][1]) > 20


def test_torch_and_what_comes_with_it_are_installed_in_a_step_of_their_own() -> None:
    with_torch = [name for name in locked() if name in ("torch", "triton") or name.startswith(("nvidia-", "cuda-"))]
    assert with_torch == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\t@$(PIP) $(TORCH)\n\t@$(PIP) --require-hashes -r requirements.lock\n" in makefile
    version = re.findall(r"^TORCH_VERSION := (torch==\S+)$", makefile, flags=re.M)
    assert len(version) == 1
    (bound,) = [requirement.specifier for requirement in requirements() if requirement.name == "torch"]
    assert version[0].removeprefix("torch==") in bound
    for readme in ("README.md", "README.zh.md"):
        text = (ROOT / readme).read_text(encoding="utf-8")
        steps = [text.index(f"-m pip install {step}") for step in (version[0], "--require-hashes -r requirements.lock", "--no-deps")]
        assert steps == sorted(steps)


def private_imports(path: Path) -> Iterator[str]:
    """Libraries of which a file imports a private module or name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            if any(part.startswith("_") and not part.startswith("__") for part in parts[1:]):
                yield canonicalize_name(parts[0])


def test_libraries_whose_private_parts_are_used_have_upper_bounds() -> None:
    used = {name for path in SOURCES for name in private_imports(path)}
    assert {"torch", "accelerate", "huggingface-hub"} <= used <= SUBCLASSED
    bounded = {
        canonicalize_name(requirement.name)
        for requirement in requirements(*LOCKED_EXTRAS)
        if any(bound.operator in ("<", "<=", "==", "~=") for bound in requirement.specifier)
    }
    assert bounded >= SUBCLASSED
