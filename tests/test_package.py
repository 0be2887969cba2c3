"""A built package puts one name at the top of an environment, and its modules import each other below it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline import ROOT

IMPORT_ALL = """
import importlib, pkgutil, sys
import tessera
for module in pkgutil.walk_packages(tessera.__path__, "tessera."):
    # A script that takes over the process, not a module to import.
    if not module.name.endswith("run_script"):
        importlib.import_module(module.name)
from tessera.evaluation.scoring.question_categories import category
print(category("How many are there?", "en"), *sorted({"config", "errors", "model", "cli"} & sys.modules.keys()))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="building needs setuptools")
def test_everything_in_a_built_package_is_below_one_name(tmp_path: Path) -> None:
    build = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path), "build_py", "--build-lib", str(tmp_path / "lib")]
    for _ in range(2):  # as in a checkout that was built from before
        subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    assert [path.name for path in (tmp_path / "lib").iterdir()] == ["tessera"]
    assert (tmp_path / "tessera_vlm.egg-info" / "top_level.txt").read_text(encoding="utf-8") == "tessera\n"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    imported = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert imported.returncode == 0, imported.stderr[-2000:]
    assert imported.stdout.split() == ["counting"]
