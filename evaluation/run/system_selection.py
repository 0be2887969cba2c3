"""Which systems take part: those of the configuration, other checkpoints in their place, a choice of names."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from answering.config import CheckpointSystem, System
from errors import UsageError


def with_checkpoints(systems: Sequence[System], folders: Sequence[Path]) -> tuple[System, ...]:
    """The systems with these checkpoints in the place of their checkpoints, named after their folders.

    Quantisation and prompts are those of the first checkpoint that they replace. Folders of one name are told apart by
    the folder above. Raises UsageError when a folder does not exist.
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
    """The systems with these names. Raises UsageError for a name that none has."""
    known = {system.name: system for system in systems}
    for name in names:
        if name not in known:
            raise UsageError(f"--systems {name}: there is no such system; there are {', '.join(known) or 'none'}")
    return tuple(known[name] for name in dict.fromkeys(names)) if names else tuple(systems)


def _system_names(folders: Sequence[Path]) -> list[str]:
    counts = Counter(folder.name for folder in folders)
    names = [folder.name if counts[folder.name] == 1 else f"{folder.parent.name}-{folder.name}" for folder in folders]
    return [re.sub(r"[^\w.-]", "_", name) for name in names]
