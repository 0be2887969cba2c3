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
GPU_BYTES_VARIABLE, CONTEXT_BYTES_VARIABLE, SIMULATED_VARIABLE = "IMITATED_CARD_BYTES", "IMITATED_CONTEXT_BYTES", "IMITATED_CARD"
CONTEXT_BYTES = 2**29
"""What a CUDA context with its libraries takes of a card: an assumption."""
LIBRARIES = ("libc10_cuda.so", "libtorch_cuda.so", "libtorch_cuda_linalg.so", "libtorch_python.so", "libcaffe2_nvrtc.so")
"""Those of torch that call CUDA."""
CUDA_SYMBOL = re.compile(r"__cuda|cuda[A-Z]|cu[A-Z](?!ile)|cublas|cudnn|curand|cusparse|cusolver|nccl")


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
        library_paths = {
            "LD_LIBRARY_PATH": _prepend_path("LD_LIBRARY_PATH", folder),
            "LD_PRELOAD": _prepend_path("LD_PRELOAD", str(library)),
        }
        library_paths["TRITON_LIBCUDA_PATH"] = folder
        # Workers that compile would each load all of CUDA.
        variables = {**memory_variables(gib), **library_paths, SIMULATED_VARIABLE: "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.memory.simulated_gpu.run_script", *arguments]
        status = subprocess.run(command, env={**os.environ, **variables}, check=False).returncode
    if status < 0:
        raise TesseraError(f"--card: the process was ended by {signal.Signals(-status).name}")
    return status


def _prepend_path(variable: str, path: str) -> str:
    """A path in front of those that a variable of the environment holds already."""
    return ":".join(filter(None, [path, os.environ.get(variable)]))


def memory_variables(gib: float) -> dict[str, str]:
    """The variables that tell the library how large the card is."""
    return {GPU_BYTES_VARIABLE: str(int(gib * 2**30)), CONTEXT_BYTES_VARIABLE: str(CONTEXT_BYTES)}


def build(folder: Path) -> Path:
    """The card as a shared library in `folder`, for the torch that is installed."""
    torch_folder = Path(torch.__file__).parent
    headers = [path.parent for path in sorted(torch_folder.parent.glob("nvidia/*/include/driver_types.h"))]
    if not headers:
        raise TesseraError(f"--card: {torch_folder.parent}/nvidia holds no driver_types.h, which CUDA builds of torch bring along")
    calling_libraries = [torch_folder / "lib" / name for name in LIBRARIES] + _bitsandbytes_libraries()
    return link(folder, headers[-1], symbols("--undefined-only", [path for path in calling_libraries if path.exists()]) | _triton_symbols())


def link(folder: Path, headers: Path, called_symbols: set[str]) -> Path:
    """The card as a shared library in `folder`. headers: where driver_types.h lies; called: functions that there must be: those that
    card.c does not define say "success"."""
    compiled, library, stubs = folder / "card.o", folder / "libimitated.so", folder / "rest.c"
    options = ["-O1", "-w", "-fPIC", "-I", str(SOURCE.parent), "-I", str(headers)]
    _run_tool("cc", *options, "-c", str(SOURCE), "-o", str(compiled))
    missing = called_symbols - symbols("--defined-only", [compiled])
    stubs.write_text("\n".join(f"int {symbol}(void) {{ return 0; }}" for symbol in sorted(missing)), encoding="utf-8")
    _run_tool("cc", *options, "-shared", str(compiled), str(stubs), "-o", str(library), "-ldl", "-lpthread")
    return library


def _bitsandbytes_libraries() -> list[Path]:
    found = importlib.util.find_spec("bitsandbytes")
    return [] if found is None or found.origin is None else sorted(Path(found.origin).parent.glob("libbitsandbytes_cuda*.so"))


def _triton_symbols() -> set[str]:
    """Functions of the driver that Triton calls; it compiles its own launcher when it is first used."""
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        return set()
    sources = Path(found.origin).parent.glob("backends/nvidia/driver.c")
    return {name for source in sources for name in re.findall(r"\bcu[A-Z]\w+", source.read_text(encoding="utf-8"))}


def symbols(nm_option: str, libraries: Iterable[Path]) -> set[str]:
    """Names of CUDA's functions in libraries, without versions. which: an option of nm."""
    lines = (
        line for path in libraries for line in _run_tool("nm", "-D" if path.suffix == ".so" else "-g", nm_option, str(path)).splitlines()
    )
    names = (line.split()[-1].partition("@")[0] for line in lines)
    return {name for name in names if CUDA_SYMBOL.match(name)}


def _run_tool(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise TesseraError(f"--card: {command[0]} is not installed; a C compiler with its tools is needed") from error
    except subprocess.CalledProcessError as error:
        error_lines = error.stderr.strip().splitlines() or [f"status {error.returncode}"]
        raise TesseraError(f"--card: {command[0]} failed: {error_lines[-1]}") from error


def is_simulated() -> bool:
    """Whether this process has a card of ours."""
    return SIMULATED_VARIABLE in os.environ
