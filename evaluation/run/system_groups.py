"""Groups of systems: several seeds of one configuration, or the checkpoints of one training run."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from answering.config import CheckpointSystem, System
from errors import UsageError
from evaluation.config import EvalConfig, Thresholds
from evaluation.schema.summary_file import SeedStatistics
from evaluation.scoring.answer_scores import Scores

_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)$")


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


def mean_scores(members: Sequence[Mapping[str, Scores]]) -> dict[str, Scores]:
    """Scores [questions] averaged over the members, by choice and metric, for the choices that all members have."""
    common_choices = [choice for choice in members[0] if all(choice in member for member in members)]
    return {
        choice: {metric: np.mean([member[choice][metric] for member in members], axis=0) for metric in members[0][choice]}
        for choice in common_choices
    }


def seed_statistics(members: Sequence[Mapping[str, Scores]]) -> dict[str, dict[str, SeedStatistics]]:
    """Mean, sample standard deviation, minimum and maximum over the members' mean scores, by choice and metric."""
    result: dict[str, dict[str, SeedStatistics]] = {}
    for choice in mean_scores(members):
        result[choice] = {}
        for metric in members[0][choice]:
            values = np.array([member[choice][metric].mean() for member in members])
            statistics = (values.mean(), values.std(ddof=1), values.min(), values.max())
            result[choice][metric] = SeedStatistics(*map(float, statistics))
    return result
