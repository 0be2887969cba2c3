"""Build the package `tessera`: everything that stands at the root of the checkout goes below that one name.

In a checkout, which is how the project is meant to be used, modules are called `config`, `errors`, `model.lora`. In a built
package they are `tessera.config`, `tessera.errors`, `tessera.model.lora`, so that nobody's environment gets a top-level module
named `config`. The build rewrites the project's own imports accordingly; nothing else in the files changes.
"""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

PACKAGE = "tessera"


def with_package(source: str, modules: set[str]) -> str:
    """Python source whose imports of `modules`, and their names in strings that name a module, go through the package."""
    own = "|".join(sorted(modules))
    source = re.sub(rf"^(\s*)from ({own})(\.| )", rf"\1from {PACKAGE}.\2\3", source, flags=re.M)
    source = re.sub(rf"^(\s*)import ({own})\b(?!\.)", rf"\1from {PACKAGE} import \2", source, flags=re.M)
    return re.sub(rf'(files\(|"-m", )"({own})\.', rf'\1"{PACKAGE}.\2.', source)


class BuildInPackage(build_py):
    """Builds as usual, then moves everything below `tessera/`; an editable installation stays as the checkout is."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        library = Path(self.build_lib)
        target = library / PACKAGE
        # Of an earlier build in the same checkout.
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        modules = {path.stem for path in library.iterdir() if path.name != PACKAGE}
        for path in [path for path in library.iterdir() if path.name != PACKAGE]:
            path.replace(target / path.name)
        (target / "__init__.py").touch()
        for path in target.rglob("*.py"):
            path.write_text(with_package(path.read_text(encoding="utf-8"), modules), encoding="utf-8")


class NameOnePackage(egg_info):
    """Says which name the package puts at the top of an environment."""

    def run(self) -> None:
        super().run()
        if not getattr(self.distribution.get_command_obj("build_py"), "editable_mode", False):
            Path(self.egg_info, "top_level.txt").write_text(f"{PACKAGE}\n", encoding="utf-8")


setup(cmdclass={"build_py": BuildInPackage, "egg_info": NameOnePackage})
