import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from errors import TesseraError
from training.config import TrainConfig
from training.out_of_memory import explain_out_of_memory


def test_an_out_of_memory_error_on_the_host_names_the_settings_to_change() -> None:
    expected = r"training: out of memory on this machine .*train\.per_device_train_batch_size.*model\.quantization=nf4"
    with pytest.raises(TesseraError, match=expected) as caught, explain_out_of_memory("training"):
        torch.empty(2**60)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    ],
)
def test_an_out_of_memory_error_on_a_device_names_them_in_one_line(error: RuntimeError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=24 * 2**30))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 23 * 2**30)
    with pytest.raises(TesseraError) as caught, explain_out_of_memory("training"):
        raise error
    message = str(caught.value)
    assert message.startswith("training: out of memory on cuda:1 (peak 23.0 of 24.0 GiB); ")
    assert "\n" not in message
    for key in re.findall(r"train\.(\w+)", message):
        assert hasattr(TrainConfig(), key), "every setting in the message exists"


def test_other_errors_pass_through_unchanged() -> None:
    with pytest.raises(RuntimeError, match="another"), explain_out_of_memory("training"):
        raise RuntimeError("another")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is the C library of Linux")
def test_freed_memory_is_reused_without_new_page_faults() -> None:
    """In a subprocess, since mallopt cannot be undone."""
    code = """
import resource, sys, torch
from training.out_of_memory import keep_freed_host_memory
if not keep_freed_host_memory():
    sys.exit()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**21) for _ in range(20)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first, *later = [faults() for _ in range(4)]
assert 10 * later[-1] < first, (first, later)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent.parent, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
