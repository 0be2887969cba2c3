"""Layers compiled one by one, in place: names and weights stay as they are, and all alike layers share what is compiled once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def compile_unsupported_reason(device: torch.device) -> str | None:
    """What torch.compile needs on a device and does not find there; None when nothing is missing."""
    # Imported here: they are slow to load, and most runs need none of them.
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton does not work here, which torch.compile needs on CUDA"
    if device.type != "cpu":
        return f"torch.compile is not used on {device.type}"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler, which torch.compile needs on a CPU"
    return None


def compile_layers(model: nn.Module) -> None:
    """Compile each layer of the vision trunk and of the language model; it happens when they are first run.

    The trunk's layers then see a fixed number of pictures (see visual.siglip).
    """
    for layers in model.modules():
        if isinstance(layers, nn.ModuleList):
            for layer in layers:
                layer.compile()


@contextmanager
def eager_mode(model: nn.Module) -> Iterator[None]:
    """Run compiled layers as they are written: for what happens seldom and in other shapes, as validation and answers do."""
    if not any(module._compiled_call_impl is not None for module in model.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
