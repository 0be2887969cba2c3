"""Selection of the evaluated systems: those of the configuration, other checkpoints instead, or a subset by name."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from answering.config import CheckpointSystem, System, find_system
from errors import UsageError


def with_checkpoints(systems: Sequence[System], folders: Sequence[Path]) -> tuple[System, ...]:
    """Replace the configured checkpoints by these folders; each system is named after its folder.

    Quantisation and prompts are taken from the first configured checkpoint. Folders of equal name get the parent folder's name as
    a prefix. Raises UsageError if a folder does not exist.
    """
    if not folders:
        return tuple(systems)
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"--checkpoints {folder}: there is no such folder")
    template = next((s for s in systems if isinstance(s, CheckpointSystem)), CheckpointSystem(name="checkpoint", kind="checkpoint"))
    others = [system for system in systems if not isinstance(system, CheckpointSystem)]
    named = zip(_system_names([folder.resolve() for folder in folders]), folders, strict=True)
    return (*(dataclasses.replace(template, name=name, path=str(folder)) for name, folder in named), *others)


def select_systems(systems: Sequence[System], names: Sequence[str]) -> tuple[System, ...]:
    """The systems with these names, all if there are no names. Raises UsageError for an unknown name."""
    return tuple(find_system(systems, name, "--systems") for name in dict.fromkeys(names)) or tuple(systems)


def _system_names(folders: Sequence[Path]) -> list[str]:
    counts = Counter(folder.name for folder in folders)
    names = [folder.name if counts[folder.name] == 1 else f"{folder.parent.name}-{folder.name}" for folder in folders]
    return [re.sub(r"[^\w.-]", "_", name) for name in names]
