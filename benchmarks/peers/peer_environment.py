"""An environment for a program that ours is compared with: the libraries of this one, and what the program needs beyond them.

Both sides then run on the same torch and transformers, and nothing is installed into the environment of the user.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from atomic_io import atomic_write_folder
from errors import TesseraError

FOLDER = Path("results/benchmark/peers")


def peer_python(requirement: str) -> Path:
    """The Python of an environment with a requirement such as `trl==1.16.0`; made when it is not there yet.

    Raises TesseraError when it cannot be installed.
    """
    folder = FOLDER / requirement.replace("==", "-")
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"{requirement}: is installed into {folder}, beside the libraries of this environment", flush=True)
        with atomic_write_folder(folder) as new:
            _install(requirement, new)
    return python.absolute()


def _install(requirement: str, folder: Path) -> None:
    venv.create(folder, with_pip=False, symlinks=True)
    inner = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    outer = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (inner / "outer_environment.pth").write_text("\n".join(outer) + "\n", encoding="utf-8")
    # This environment's pip, run by the other Python, sees the libraries of both and adds what is missing to its own.
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no pip").splitlines()[-1]
        raise TesseraError(f"{requirement}: cannot be installed by {Path(sys.executable).name} -m pip ({reason})")
