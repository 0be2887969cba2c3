"""Systems that belong together: several seeds of one configuration, or the checkpoints of one run."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from answering.config import CheckpointSystem, System
from errors import UsageError
from evaluation.config import EvalConfig, Thresholds
from evaluation.scoring.answer_scores import Scores

_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)$")


def check_groups(settings: EvalConfig) -> None:
    """Raises UsageError for groups of systems that are not there, of one system, or that share one; and for a curve of anything
    but checkpoints of known steps."""
    names = [system.name for system in settings.systems]
    group_of: dict[str, str] = {}
    for group, members in (settings.groups or {}).items():
        key = f"eval.groups.{group}"
        if group in names:
            raise UsageError(f"{key}: a system has this name too")
        if len(set(members)) < 2:
            raise UsageError(f"{key}: expected at least two systems, found {len(set(members))}")
        for member in members:
            if member not in names:
                raise UsageError(f"{key}: there is no system {member}; there are {', '.join(names)}")
            if group_of.setdefault(member, group) != group:
                raise UsageError(f"{key}: {member} stands in {group_of[member]} too")
    if settings.curve:
        if settings.groups:
            raise UsageError("eval.groups: a learning curve has none")
        checkpoint_steps(settings.systems)


def checkpoint_steps(systems: Sequence[System]) -> dict[str, int]:
    """The training step of each checkpoint, by its folder's name. Raises UsageError for a system that has none."""
    found = {}
    for system in systems:
        match = _CHECKPOINT_NAME.search(system.path.rstrip("/")) if isinstance(system, CheckpointSystem) else None
        if match is None:
            raise UsageError(f"eval.curve: {system.name} is no checkpoint-<step> folder; a curve is drawn over the checkpoints of one run")
        found[system.name] = int(match.group(1))
    return found


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoint-<step> folders of a run, in the order of their steps. Raises UsageError when there are fewer than two."""
    found = {
        int(match.group(1)): path for path in run.glob("checkpoint-*") if path.is_dir() and (match := _CHECKPOINT_NAME.search(path.name))
    }
    if len(found) < 2:
        raise UsageError(f"--curve {run}: expected at least two checkpoint-<step> folders, found {len(found)}")
    return [found[step] for step in sorted(found)]


def learning_curve_settings(settings: EvalConfig) -> EvalConfig:
    """The settings of a learning curve: checkpoints alone, without controls, bars, and groups, which are about one of them."""
    checkpoints = tuple(system for system in settings.systems if isinstance(system, CheckpointSystem))
    return dataclasses.replace(settings, systems=checkpoints, controls=(), thresholds=Thresholds(), groups=None, curve=True)


def mean_scores(members: Sequence[Mapping[str, Scores]]) -> dict[str, Scores]:
    """Each question's mean score over the members, by choice and metric: what one member of the group scores on average."""
    common_choices = [choice for choice in members[0] if all(choice in member for member in members)]
    return {
        choice: {metric: np.mean([member[choice][metric] for member in members], axis=0) for metric in members[0][choice]}
        for choice in common_choices
    }


def seed_statistics(members: Sequence[Mapping[str, Scores]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By choice and metric: mean, sample standard deviation, lowest and highest of the members' own means."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for choice in mean_scores(members):
        result[choice] = {}
        for metric in members[0][choice]:
            values = np.array([member[choice][metric].mean() for member in members])
            result[choice][metric] = {
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)),
                "lowest": float(values.min()),
                "highest": float(values.max()),
            }
    return result
