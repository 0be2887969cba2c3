"""Simulated GPU: a CUDA device whose memory is counted and that computes nothing.

A script runs with the CUDA runtime and driver of cuda_runtime.c preloaded, under a CUDA build of torch, on Linux, with a C compiler.
Everything else is as on a GPU, torch.compile and torch's caching allocator included, so that the run shows what fits into memory.
Computed values and times are meaningless.
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
SIMULATED_VARIABLE = "SIMULATED_GPU"
CONTEXT_BYTES = 2**29
"""Assumed size of a CUDA context with its libraries."""
LIBRARIES = ("libc10_cuda.so", "libtorch_cuda.so", "libtorch_cuda_linalg.so", "libtorch_python.so", "libcaffe2_nvrtc.so")
"""Libraries of torch that call CUDA."""
CUDA_SYMBOL = re.compile(r"__cuda|cuda[A-Z]|cu[A-Z](?!ile)|cublas|cudnn|curand|cusparse|cusolver|nccl")


def check() -> None:
    """Raise UsageError if no GPU can be simulated here."""
    if torch.version.cuda is None or not sys.platform.startswith("linux"):
        raise UsageError(f"--simulated-gpu: a CUDA build of torch on Linux is needed, found torch {torch.__version__} on {sys.platform}")
    if torch.cuda.is_available():
        raise UsageError("--simulated-gpu: there is a real CUDA device here; leave the option out")


def run(arguments: Sequence[str], gib: float) -> int:
    """Run a script, given as its path and its arguments, on a simulated GPU of this memory; returns its exit status.

    Raises TesseraError if the library cannot be built or a signal terminated the process.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        # Triton loads the driver by its file name.
        library.with_name("libcuda.so.1").symlink_to(library.name)
        variables = {
            **memory_variables(gib),
            **{name: _prepend_path(name, path) for name, path in (("LD_LIBRARY_PATH", folder), ("LD_PRELOAD", str(library)))},
            "TRITON_LIBCUDA_PATH": folder,
            # Each compile worker would load all CUDA libraries.
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            SIMULATED_VARIABLE: "1",
        }
        command = [sys.executable, "-m", "benchmarks.memory.simulated_gpu.run_script", *arguments]
        status = subprocess.run(command, env={**os.environ, **variables}, check=False).returncode
    if status < 0:
        raise TesseraError(f"--simulated-gpu: the process was terminated by {signal.Signals(-status).name}")
    return status


def _prepend_path(variable: str, path: str) -> str:
    """Value of an environment variable with `path` prepended."""
    return ":".join(filter(None, [path, os.environ.get(variable)]))


def memory_variables(gib: float) -> dict[str, str]:
    """Environment variables with the memory size, which cuda_runtime.c reads."""
    return {"SIMULATED_GPU_BYTES": str(int(gib * 2**30)), "SIMULATED_CONTEXT_BYTES": str(CONTEXT_BYTES)}


def build(folder: Path) -> Path:
    """Build the shared library in `folder` for the installed torch; returns its path."""
    torch_folder = Path(torch.__file__).parent
    headers = [path.parent for path in sorted(torch_folder.parent.glob("nvidia/*/include/driver_types.h"))]
    if not headers:
        raise TesseraError(
            f"--simulated-gpu: {torch_folder.parent}/nvidia has no driver_types.h, which is installed with CUDA builds of torch"
        )
    calling_libraries = [torch_folder / "lib" / name for name in LIBRARIES] + _bitsandbytes_libraries()
    return link(folder, headers[-1], symbols("--undefined-only", [path for path in calling_libraries if path.exists()]) | _triton_symbols())


def link(folder: Path, headers: Path, called_symbols: set[str]) -> Path:
    """Compile and link the shared library in `folder`, with the driver_types.h in `headers`.

    Functions of `called_symbols` that cuda_runtime.c lacks become stubs that return success.
    """
    compiled, library, stubs = folder / "cuda_runtime.o", folder / "libsimulated_gpu.so", folder / "stubs.c"
    options = ["-O1", "-w", "-fPIC", "-I", str(SOURCE.parent), "-I", str(headers)]
    _run_tool("cc", *options, "-c", str(SOURCE), "-o", str(compiled))
    missing = called_symbols - symbols("--defined-only", [compiled])
    stubs.write_text("\n".join(f"int {symbol}(void) {{ return 0; }}" for symbol in sorted(missing)), encoding="utf-8")
    _run_tool("cc", *options, "-shared", str(compiled), str(stubs), "-o", str(library), "-ldl", "-lpthread")
    return library


def _bitsandbytes_libraries() -> list[Path]:
    spec = importlib.util.find_spec("bitsandbytes")
    return [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("libbitsandbytes_cuda*.so"))


def _triton_symbols() -> set[str]:
    """Driver functions that Triton calls. It compiles its launcher at the first use, so the source is searched for them."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return set()
    sources = Path(spec.origin).parent.glob("backends/nvidia/driver.c")
    return {name for source in sources for name in re.findall(r"\bcu[A-Z]\w+", source.read_text(encoding="utf-8"))}


def symbols(nm_option: str, libraries: Iterable[Path]) -> set[str]:
    """Names of CUDA functions in libraries, without versions. `nm_option` selects defined or undefined symbols."""
    lines = (
        line for path in libraries for line in _run_tool("nm", "-D" if path.suffix == ".so" else "-g", nm_option, str(path)).splitlines()
    )
    names = (line.split()[-1].partition("@")[0] for line in lines)
    return {name for name in names if CUDA_SYMBOL.match(name)}


def _run_tool(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise TesseraError(f"--simulated-gpu: {command[0]} is not installed; a C compiler with its tools is needed") from error
    except subprocess.CalledProcessError as error:
        error_lines = error.stderr.strip().splitlines() or [f"status {error.returncode}"]
        raise TesseraError(f"--simulated-gpu: {command[0]} failed: {error_lines[-1]}") from error


def is_simulated() -> bool:
    """Whether this process runs on a simulated GPU."""
    return SIMULATED_VARIABLE in os.environ
