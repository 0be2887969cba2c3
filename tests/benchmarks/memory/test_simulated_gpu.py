"""The simulated GPU counts memory, fails allocations that do not fit, and returns what the host wrote to it."""

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cli
from benchmarks.memory.simulated_gpu import build_library
from benchmarks.memory.simulated_gpu.build_library import CONTEXT_BYTES, SOURCE, check, link, memory_variables, symbols
from errors import TesseraError, UsageError
from tools import benchmark

ATTRIBUTES = sorted(set(re.findall(r"cudaDevAttr\w+", SOURCE.read_text(encoding="utf-8"))))
HEADER = f"""
enum cudaDeviceAttr {{ {", ".join(ATTRIBUTES)} }};
enum {{ cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice }};
struct cudaPointerAttributes {{ int type, device; void *devicePointer, *hostPointer; }};
struct cudaFuncAttributes {{ int maxThreadsPerBlock, numRegs, binaryVersion, ptxVersion; }};
struct cudaDeviceProp {{
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor, totalConstMem, textureAlignment;
    int major, multiProcessorCount, warpSize, regsPerBlock, regsPerMultiprocessor, maxThreadsPerBlock, maxThreadsPerMultiProcessor;
    int maxThreadsDim[3], maxGridSize[3], maxBlocksPerMultiProcessor, l2CacheSize, memoryBusWidth;
    int concurrentKernels, unifiedAddressing, managedMemory, concurrentManagedAccess, cooperativeLaunch;
}};
"""
"""What cuda_runtime.c uses of NVIDIA's header, which is missing in CPU builds of torch."""

CALLED = {"cudaMalloc", "cudaLaunchKernelExC", "cublasGemmEx"}
OUT_OF_MEMORY = 2


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated_gpu")
    (folder / "driver_types.h").write_text("#include <stddef.h>\n" + HEADER)
    return link(folder, folder, CALLED)


@pytest.fixture
def gpu(library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """A simulated GPU of 4 GiB. It is loaded once per process, so each test must free its memory."""
    for name, value in memory_variables(4).items():
        monkeypatch.setenv(name, value)
    loaded = ctypes.CDLL(str(library))
    loaded.cudaFree.argtypes = [ctypes.c_void_p]
    loaded.cudaMemcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    yield loaded
    assert free_bytes(loaded) == 4 * 2**30 - CONTEXT_BYTES


def free_bytes(gpu: ctypes.CDLL) -> int:
    """Free bytes of the device."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    assert gpu.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0 and total.value == 4 * 2**30
    return free.value


def allocate(gpu: ctypes.CDLL, size: int) -> tuple[int, int | None]:
    """Allocate `size` bytes; returns status and address."""
    address = ctypes.c_void_p()
    return gpu.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(size)), address.value


def test_memory_is_counted_and_an_allocation_that_does_not_fit_fails(gpu: ctypes.CDLL) -> None:
    status, address = allocate(gpu, 3 * 2**30)
    assert status == 0 and free_bytes(gpu) == 2**30 - CONTEXT_BYTES
    assert allocate(gpu, 2**30) == (OUT_OF_MEMORY, None)
    assert [gpu.cudaGetLastError(), gpu.cudaGetLastError()] == [OUT_OF_MEMORY, 0]
    gpu.cudaFree(address)
    status, address = allocate(gpu, 2**30)
    assert status == 0
    gpu.cudaFree(address)


def test_data_copied_from_the_host_is_read_back(gpu: ctypes.CDLL) -> None:
    _, address = allocate(gpu, 100)
    source, target = ctypes.create_string_buffer(b"tokens"), ctypes.create_string_buffer(6)
    gpu.cudaMemcpy(address, source, 6, 1)
    gpu.cudaMemcpy(target, address, 6, 2)
    gpu.cudaFree(address)
    assert target.raw == b"tokens"


def test_stubs_of_functions_that_are_not_implemented_succeed(library: Path, gpu: ctypes.CDLL) -> None:
    assert symbols("--defined-only", [library]) >= CALLED
    assert gpu.cublasGemmEx() == gpu.cudaLaunchKernelExC() == 0


def test_a_simulated_gpu_needs_a_cuda_build_and_no_real_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UsageError, match=r"--simulated-gpu: a CUDA build of torch on Linux is needed, found torch"):
        check()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match="there is a real CUDA device here"):
        check()
    for size in ("0", "nan", "inf"):
        with pytest.raises(SystemExit) as ended:
            cli.run(benchmark.main, benchmark.arguments(), ["memory", "--simulated-gpu", size])
        assert ended.value.code == 2
        assert f"--simulated-gpu {size}: expected a number of GiB above 0" in capsys.readouterr().err


def test_the_command_is_run_again_with_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[tuple[list[str], float]] = []

    def run(command: list[str], gib: float) -> int:
        called.append((command, gib))
        return 3

    monkeypatch.setattr(build_library, "check", lambda: None)
    monkeypatch.setattr(build_library, "run", run)
    parsed = benchmark.arguments().parse_args(
        ["memory", "--size", "8b", "--simulated-gpu", "24", "--out", str(tmp_path), "train.packing_length=1024"]
    )
    with pytest.raises(SystemExit) as ended:
        benchmark.main(parsed)
    assert ended.value.code == 3
    ((command, gib),) = called
    parsed_again = benchmark.arguments().parse_args(command[1:])
    assert isinstance(parsed_again, argparse.Namespace) and gib == 24
    assert (parsed_again.size, parsed_again.simulated_gpu, parsed_again.out) == ("8b", 24, tmp_path)
    assert parsed_again.settings == ["train.packing_length=1024"]


def test_a_script_exits_as_it_does_without_a_simulated_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_library, "build", lambda folder: folder / "none.so")
    script = tmp_path / "script.py"
    for text, status in (("import sys; print(sys.argv[1:])", 0), ("raise SystemExit(3)", 3), ("raise SystemExit('no')", 1), ("1 / 0", 1)):
        script.write_text(text)
        assert build_library.run([str(script), "a"], 1) == status
    captured = capfd.readouterr()
    assert "['a']" in captured.out and "ZeroDivisionError" in captured.err


def test_a_missing_compiler_and_a_signal_are_one_line(monkeypatch: pytest.MonkeyPatch, library: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(build_library, "build", lambda folder: folder / "none.so")
    script = tmp_path / "script.py"
    monkeypatch.setenv("LD_LIBRARY_PATH", "/kept")
    script.write_text("import os; assert os.environ['LD_LIBRARY_PATH'].endswith(':/kept')")
    assert build_library.run([str(script)], 1) == 0
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(TesseraError, match="--simulated-gpu: the process was terminated by SIGKILL"):
        build_library.run([str(script)], 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TesseraError, match="--simulated-gpu: cc is not installed"):
        link(tmp_path, library.parent, CALLED)
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!{sys.executable}\nraise SystemExit(4)")
    compiler.chmod(0o755)
    with pytest.raises(TesseraError, match="--simulated-gpu: cc failed: status 4"):
        link(tmp_path, library.parent, CALLED)


@pytest.mark.skipif(torch.version.cuda is None or torch.cuda.is_available(), reason="needs a CUDA build of torch and no GPU")
def test_training_steps_run_on_a_simulated_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "tools/benchmark.py", "memory", "--size", "tiny", "--simulated-gpu", "4", "--out", str(tmp_path)]
    settings = ["model.quantization=nf4", "train.optim=paged_adamw8bit", "train.packing_length=1024", "train.torch_compile=true"]
    subprocess.run([*command, *settings], check=True, env={**os.environ, "PYTHONPATH": "."})
    table = json.loads((tmp_path / "memory_tiny_card_4.json").read_text())
    assert 0 < table["bytes"]["peak, in tensors"] < table["bytes"]["in all"] < 4 * 2**30
