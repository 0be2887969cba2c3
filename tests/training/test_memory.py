import pytest
import torch

from errors import TesseraError
from training.memory import naming_memory_settings


def test_running_out_of_host_memory_names_the_settings_to_change() -> None:
    named = r"training: out of memory on this machine .*train\.batch_size.*model\.quantization=nf4"
    with pytest.raises(TesseraError, match=named) as caught, naming_memory_settings("training"):
        torch.empty(2**60)
    assert "\n" not in str(caught.value)


def test_other_failures_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="another"), naming_memory_settings("training"):
        raise RuntimeError("another")
