"""A CUDA card that is not there: its memory is counted, and nothing is computed.

In: how much memory it has, and a script. Out: the script, run with the runtime and the driver of card.c in front of the real ones,
under a CUDA build of torch, on Linux, with a C compiler. Everything happens as with a card, compiling included: torch's own
allocator finds out what fits. Numbers that a step computes are meaningless, and so is its time.
"""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from errors import TesseraError, UsageError

SOURCE = Path(__file__).with_name("cuda_runtime.c")
CARD, CONTEXT, BUILD = "IMITATED_CARD_BYTES", "IMITATED_CONTEXT_BYTES", "IMITATED_CARD"
CONTEXT_BYTES = 2**29
"""What a CUDA context with its libraries takes of a card: an assumption."""
LIBRARIES = ("libc10_cuda.so", "libtorch_cuda.so", "libtorch_cuda_linalg.so", "libtorch_python.so", "libcaffe2_nvrtc.so")
"""Those of torch that call CUDA."""
OF_CUDA = re.compile(r"__cuda|cuda[A-Z]|cu[A-Z](?!ile)|cublas|cudnn|curand|cusparse|cusolver|nccl")


def check() -> None:
    """Raise UsageError where a card cannot be imitated."""
    if torch.version.cuda is None or not sys.platform.startswith("linux"):
        raise UsageError(f"--card: a CUDA build of torch on Linux is needed, found torch {torch.__version__} on {sys.platform}")
    if torch.cuda.is_available():
        raise UsageError("--card: there is a real CUDA device here; leave the option out")


def run(arguments: Sequence[str], gib: float) -> int:
    """Run a script with a card of so many GiB; its exit status. arguments: its path and what it is given. Raises TesseraError where the
    card cannot be built, or the process is ended by a signal."""
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        # Triton asks for the driver by its file's name.
        library.with_name("libcuda.so.1").symlink_to(library.name)
        places = {"LD_LIBRARY_PATH": _before("LD_LIBRARY_PATH", folder), "LD_PRELOAD": _before("LD_PRELOAD", str(library))}
        places["TRITON_LIBCUDA_PATH"] = folder
        # Workers that compile would each load all of CUDA.
        variables = {**sizes(gib), **places, BUILD: "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.memory.simulated_gpu.run_script", *arguments]
        status = subprocess.run(command, env={**os.environ, **variables}, check=False).returncode
    if status < 0:
        raise TesseraError(f"--card: the process was ended by {signal.Signals(-status).name}")
    return status


def _before(variable: str, path: str) -> str:
    """A path in front of those that a variable of the environment holds already."""
    return ":".join(filter(None, [path, os.environ.get(variable)]))


def sizes(gib: float) -> dict[str, str]:
    """The variables that tell the library how large the card is."""
    return {CARD: str(int(gib * 2**30)), CONTEXT: str(CONTEXT_BYTES)}


def build(folder: Path) -> Path:
    """The card as a shared library in `folder`, for the torch that is installed."""
    torch_folder = Path(torch.__file__).parent
    headers = [path.parent for path in sorted(torch_folder.parent.glob("nvidia/*/include/driver_types.h"))]
    if not headers:
        raise TesseraError(f"--card: {torch_folder.parent}/nvidia holds no driver_types.h, which CUDA builds of torch bring along")
    callers = [torch_folder / "lib" / name for name in LIBRARIES] + _of_bitsandbytes()
    return link(folder, headers[-1], symbols("--undefined-only", [path for path in callers if path.exists()]) | _of_triton())


def link(folder: Path, headers: Path, called: set[str]) -> Path:
    """The card as a shared library in `folder`. headers: where driver_types.h lies; called: functions that there must be: those that
    card.c does not define say "success"."""
    compiled, library, rest = folder / "card.o", folder / "libimitated.so", folder / "rest.c"
    options = ["-O1", "-w", "-fPIC", "-I", str(SOURCE.parent), "-I", str(headers)]
    _call("cc", *options, "-c", str(SOURCE), "-o", str(compiled))
    missing = called - symbols("--defined-only", [compiled])
    rest.write_text("\n".join(f"int {symbol}(void) {{ return 0; }}" for symbol in sorted(missing)), encoding="utf-8")
    _call("cc", *options, "-shared", str(compiled), str(rest), "-o", str(library), "-ldl", "-lpthread")
    return library


def _of_bitsandbytes() -> list[Path]:
    found = importlib.util.find_spec("bitsandbytes")
    return [] if found is None or found.origin is None else sorted(Path(found.origin).parent.glob("libbitsandbytes_cuda*.so"))


def _of_triton() -> set[str]:
    """Functions of the driver that Triton calls; it compiles its own launcher when it is first used."""
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        return set()
    sources = Path(found.origin).parent.glob("backends/nvidia/driver.c")
    return {name for source in sources for name in re.findall(r"\bcu[A-Z]\w+", source.read_text(encoding="utf-8"))}


def symbols(which: str, libraries: Iterable[Path]) -> set[str]:
    """Names of CUDA's functions in libraries, without versions. which: an option of nm."""
    lines = (line for path in libraries for line in _call("nm", "-D" if path.suffix == ".so" else "-g", which, str(path)).splitlines())
    names = (line.split()[-1].partition("@")[0] for line in lines)
    return {name for name in names if OF_CUDA.match(name)}


def _call(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise TesseraError(f"--card: {command[0]} is not installed; a C compiler with its tools is needed") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [f"status {error.returncode}"]
        raise TesseraError(f"--card: {command[0]} failed: {said[-1]}") from error


def is_imitated() -> bool:
    """Whether this process has a card of ours."""
    return BUILD in os.environ
