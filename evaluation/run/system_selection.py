"""Selection of the evaluated systems: configured ones, other checkpoints instead, or a subset by name; groups of seeds, learning curves."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from answering.config import CheckpointSystem, System, find_system
from errors import UsageError
from evaluation.config import EvalConfig, Thresholds

_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)$")


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


def check_groups(settings: EvalConfig) -> None:
    """Raise UsageError for invalid groups: unknown systems, fewer than two, or a system in two groups; and for a learning curve of
    systems other than checkpoint-<step> folders."""
    names = [system.name for system in settings.systems]
    group_of: dict[str, str] = {}
    for group, members in (settings.groups or {}).items():
        key = f"eval.groups.{group}"
        if group in names:
            raise UsageError(f"{key}: a system has the same name")
        if len(set(members)) < 2:
            raise UsageError(f"{key}: expected at least two systems, found {len(set(members))}")
        for member in members:
            if member not in names:
                raise UsageError(f"{key}: there is no system {member}; the systems are {', '.join(names)}")
            if group_of.setdefault(member, group) != group:
                raise UsageError(f"{key}: {member} is also in {group_of[member]}")
    if settings.curve:
        if settings.groups:
            raise UsageError("eval.groups: not supported together with eval.curve")
        checkpoint_steps(settings.systems)


def checkpoint_steps(systems: Sequence[System]) -> dict[str, int]:
    """System name -> training step, from the folder name checkpoint-<step>. Raises UsageError for any other system."""
    steps = {}
    for system in systems:
        match = _CHECKPOINT_NAME.search(system.path.rstrip("/")) if isinstance(system, CheckpointSystem) else None
        if match is None:
            raise UsageError(f"eval.curve: {system.name} is not a checkpoint-<step> folder; a learning curve needs checkpoints of one run")
        steps[system.name] = int(match.group(1))
    return steps


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoint-<step> folders of a run, by increasing step. Raises UsageError if there are fewer than two."""
    folders = {
        int(match.group(1)): path for path in run.glob("checkpoint-*") if path.is_dir() and (match := _CHECKPOINT_NAME.search(path.name))
    }
    if len(folders) < 2:
        raise UsageError(f"--curve {run}: expected at least two checkpoint-<step> folders, found {len(folders)}")
    return [folders[step] for step in sorted(folders)]


def learning_curve_settings(settings: EvalConfig) -> EvalConfig:
    """Settings of a learning curve: only the checkpoints, without control runs, thresholds and groups."""
    checkpoints = tuple(system for system in settings.systems if isinstance(system, CheckpointSystem))
    return dataclasses.replace(settings, systems=checkpoints, controls=(), thresholds=Thresholds(), groups=None, curve=True)
