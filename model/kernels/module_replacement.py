"""Puts other modules in the place of modules of a model."""

from collections.abc import Callable
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def replace_modules(model: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> int:
    """Put what `replacement` returns for a submodule of `model` in its place; None leaves it. Returns the number of those replaced."""
    others = {name: replacement(module) for name, module in model.named_modules() if name}
    chosen = {name: other for name, other in others.items() if other is not None}
    for name, other in chosen.items():
        model.set_submodule(name, other)
    return len(chosen)


def with_forward_of(module: nn.Module, subclass: type[M]) -> M:
    """A module that computes with the forward pass of a subclass of its class, with the same parameters, submodules and hooks.

    subclass: adds no parameters or other attributes.
    """
    if not issubclass(subclass, type(module)):
        raise TypeError(f"{subclass.__name__} is not a subclass of {type(module).__name__}")
    other = subclass.__new__(subclass)
    vars(other).update(vars(module))
    return other
