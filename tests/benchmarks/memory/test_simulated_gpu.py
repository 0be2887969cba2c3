"""The imitated card: it counts memory, refuses what does not fit, and gives back what the host wrote to it."""

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
"""What card.c takes from NVIDIA's header, which CPU builds of torch do not bring along."""

CALLED = {"cudaMalloc", "cudaLaunchKernelExC", "cublasGemmEx"}
OUT_OF_MEMORY = 2


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    (folder / "driver_types.h").write_text("#include <stddef.h>\n" + HEADER)
    return link(folder, folder, CALLED)


@pytest.fixture
def card(library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """A card of 4 GiB. It is loaded once a process and lives on, so a test leaves it empty."""
    for name, value in memory_variables(4).items():
        monkeypatch.setenv(name, value)
    found = ctypes.CDLL(str(library))
    found.cudaFree.argtypes = [ctypes.c_void_p]
    found.cudaMemcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    yield found
    assert left(found) == 4 * 2**30 - CONTEXT_BYTES


def left(card: ctypes.CDLL) -> int:
    """Bytes that are free."""
    free, whole = ctypes.c_size_t(), ctypes.c_size_t()
    assert card.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(whole)) == 0 and whole.value == 4 * 2**30
    return free.value


def taken(card: ctypes.CDLL, size: int) -> tuple[int, int | None]:
    """Status and address of `size` bytes."""
    address = ctypes.c_void_p()
    return card.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(size)), address.value


def test_memory_is_counted_refused_and_given_back(card: ctypes.CDLL) -> None:
    status, address = taken(card, 3 * 2**30)
    assert status == 0 and left(card) == 2**30 - CONTEXT_BYTES
    assert taken(card, 2**30) == (OUT_OF_MEMORY, None)
    assert [card.cudaGetLastError(), card.cudaGetLastError()] == [OUT_OF_MEMORY, 0]
    card.cudaFree(address)
    status, address = taken(card, 2**30)
    assert status == 0
    card.cudaFree(address)


def test_what_the_host_wrote_is_read_back(card: ctypes.CDLL) -> None:
    _, address = taken(card, 100)
    there, back = ctypes.create_string_buffer(b"tokens"), ctypes.create_string_buffer(6)
    card.cudaMemcpy(address, there, 6, 1)
    card.cudaMemcpy(back, address, 6, 2)
    card.cudaFree(address)
    assert back.raw == b"tokens"


def test_functions_that_are_called_and_not_written_succeed(library: Path, card: ctypes.CDLL) -> None:
    assert symbols("--defined-only", [library]) >= CALLED
    assert card.cublasGemmEx() == card.cudaLaunchKernelExC() == 0


def test_a_card_needs_a_cuda_build_and_no_card(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UsageError, match=r"--card: a CUDA build of torch on Linux is needed, found torch"):
        check()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match="there is a real CUDA device here"):
        check()
    for size in ("0", "nan", "inf"):
        with pytest.raises(SystemExit) as ended:
            cli.run(benchmark.main, benchmark.arguments(), ["memory", "--card", size])
        assert ended.value.code == 2
        assert f"--card {size}: a number of GiB above 0 is needed" in capsys.readouterr().err


def test_the_command_comes_back_with_its_own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[tuple[list[str], float]] = []

    def run(command: list[str], gib: float) -> int:
        called.append((command, gib))
        return 3

    monkeypatch.setattr(build_library, "check", lambda: None)
    monkeypatch.setattr(build_library, "run", run)
    parsed = benchmark.arguments().parse_args(
        ["memory", "--size", "8b", "--card", "24", "--out", str(tmp_path), "train.packing_length=1024"]
    )
    with pytest.raises(SystemExit) as ended:
        benchmark.main(parsed)
    assert ended.value.code == 3
    ((command, gib),) = called
    again = benchmark.arguments().parse_args(command[1:])
    assert isinstance(again, argparse.Namespace) and gib == 24
    assert (again.size, again.card, again.out, again.settings) == ("8b", 24, tmp_path, ["train.packing_length=1024"])


def test_a_script_ends_as_it_would_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(build_library, "build", lambda folder: folder / "none.so")
    script = tmp_path / "script.py"
    for text, status in (("import sys; print(sys.argv[1:])", 0), ("raise SystemExit(3)", 3), ("raise SystemExit('no')", 1), ("1 / 0", 1)):
        script.write_text(text)
        assert build_library.run([str(script), "a"], 1) == status
    said = capfd.readouterr()
    assert "['a']" in said.out and "ZeroDivisionError" in said.err


def test_a_missing_compiler_and_a_signal_are_one_clear_line(monkeypatch: pytest.MonkeyPatch, library: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(build_library, "build", lambda folder: folder / "none.so")
    script = tmp_path / "script.py"
    monkeypatch.setenv("LD_LIBRARY_PATH", "/kept")
    script.write_text("import os; assert os.environ['LD_LIBRARY_PATH'].endswith(':/kept')")
    assert build_library.run([str(script)], 1) == 0
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(TesseraError, match="--card: the process was ended by SIGKILL"):
        build_library.run([str(script)], 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TesseraError, match="--card: cc is not installed"):
        link(tmp_path, library.parent, CALLED)
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!{sys.executable}\nraise SystemExit(4)")
    compiler.chmod(0o755)
    with pytest.raises(TesseraError, match="--card: cc failed: status 4"):
        link(tmp_path, library.parent, CALLED)


@pytest.mark.skipif(torch.version.cuda is None or torch.cuda.is_available(), reason="a CUDA build of torch without a card is needed")
def test_steps_run_on_a_card_that_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "tools/benchmark.py", "memory", "--size", "tiny", "--card", "4", "--out", str(tmp_path)]
    settings = ["model.quantization=nf4", "train.optim=paged_adamw8bit", "train.packing_length=1024", "train.torch_compile=true"]
    subprocess.run([*command, *settings], check=True, env={**os.environ, "PYTHONPATH": "."})
    table = json.loads((tmp_path / "memory_tiny_card_4.json").read_text())
    assert 0 < table["bytes"]["peak, in tensors"] < table["bytes"]["in all"] < 4 * 2**30
