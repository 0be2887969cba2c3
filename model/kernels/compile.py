"""torch.compile for the layers of a model one by one, in place: state dict keys stay, and equal layers share one compiled graph.

Expected of it on a GPU: a step in two thirds of the time. Not measured there.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def compile_unsupported_reason(device: torch.device) -> str | None:
    """Why torch.compile cannot be used on a device; None if it can."""
    # Imported here because the modules are slow to import and most runs do not need them.
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "torch.compile needs Triton on CUDA, which is missing or does not work"
    if device.type != "cpu":
        return f"torch.compile is not used on {device.type}"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "torch.compile needs a C++ compiler on a CPU, and none was found"
    return None


def compile_layers(model: nn.Module) -> None:
    """Compile each layer of the vision encoder and of the language model; compilation happens at their first call.

    Compiled layers of the vision encoder get batches of a fixed number of images (visual.vision_encoder.COMPILED_BATCH_SIZE).
    """
    for layers in model.modules():
        if isinstance(layers, nn.ModuleList):
            for layer in layers:
                layer.compile()


@contextmanager
def eager_mode(model: nn.Module) -> Iterator[None]:
    """Run compiled layers in eager mode: for rare calls with other shapes, such as validation and generation."""
    if not any(module._compiled_call_impl is not None for module in model.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
