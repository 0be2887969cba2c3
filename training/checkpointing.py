"""The checkpoints of a run: checkpoints/<name>/checkpoint-<step>, each either whole or not there.

A checkpoint is written into a hidden folder beside its place by all processes and renamed by the main one. The model's own
files stand at its top, what training needs to go on stands in trainer/.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState

from atomic_io import copy_read_permissions
from model.siglip_qwen.checkpoint import write_manifest
from training.resume import RunState

TRAINER_FOLDER = "trainer"
"""Optimizer, schedule, random states, and how far the run has come; not needed for answering."""


def step_of(folder: Path) -> int:
    """Optimizer step in the name of a checkpoint folder, -1 for another folder."""
    found = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(found[1]) if found else -1


def checkpoint_folders(folder: Path) -> list[Path]:
    """Checkpoints of a run in the order of their steps."""
    return sorted((path for path in folder.glob("checkpoint-*") if step_of(path) >= 0), key=step_of)


class CheckpointWriter:
    """Writes the checkpoints of a run; every process calls its methods, at the same time.

    keep: how many stay of each stage.
    """

    def __init__(self, folder: Path, save_total_limit: int, partial_state: PartialState):
        self.folder, self._save_total_limit, self._partial_state = folder, save_total_limit, partial_state

    def write(
        self,
        state: RunState,
        save_model: Callable[[Path], None],
        save_trainer: Callable[[Path], None] | None,
        protected_step: int | None = None,
    ) -> Path:
        """Write the checkpoint of `state.step` and remove older ones of its stage.

        save_model: writes the model's own files into a folder; called in the main process. save_trainer: writes this
        process's share of the trainer's state; None at the end of a stage, from where nothing of it goes on.
        spare: a step whose checkpoint stays in any case.
        """
        partial = self._begin(state)
        if self._partial_state.is_main_process:
            save_model(partial)
        if save_trainer is not None:
            save_trainer(partial / TRAINER_FOLDER)
        return self._finish(partial, state, protected_step)

    def write_from_step(self, state: RunState, step: int) -> Path:
        """Write the checkpoint of `state.step`, the end of its stage, with the model of an earlier step."""
        source = self.folder / f"checkpoint-{step}"
        return self.write(state, lambda folder: _copy(source, folder), save_trainer=None, protected_step=step)

    def _begin(self, state: RunState) -> Path:
        partial = self.folder / f".checkpoint-{state.step}.partial"
        if self._partial_state.is_main_process:
            for stale in self.folder.glob(".checkpoint-*.partial"):
                shutil.rmtree(stale)
            (partial / TRAINER_FOLDER).mkdir(parents=True)
        self._partial_state.wait_for_everyone()
        return partial

    def _finish(self, partial: Path, state: RunState, protected_step: int | None) -> Path:
        self._partial_state.wait_for_everyone()
        target = self.folder / f"checkpoint-{state.step}"
        if self._partial_state.is_main_process:
            state.write(partial / TRAINER_FOLDER)
            copy_read_permissions(partial)
            write_manifest(partial)
            if target.exists():
                shutil.rmtree(target)
            partial.replace(target)
            self._remove_older(state.first_step, protected_step)
        self._partial_state.wait_for_everyone()
        return target

    def _remove_older(self, first_step: int, protected_step: int | None) -> None:
        stage_checkpoints = [path for path in checkpoint_folders(self.folder) if step_of(path) > first_step]
        for path in stage_checkpoints[: -self._save_total_limit]:
            if step_of(path) != protected_step:
                # Renamed first: removed half-way, it must not look like a checkpoint.
                removed = path.replace(path.with_name(f".{path.name}.removed"))
                shutil.rmtree(removed)


def _copy(source: Path, folder: Path) -> None:
    """Copy a checkpoint's model, without the trainer's state."""
    for path in source.iterdir():
        if path.is_dir() and path.name != TRAINER_FOLDER:
            shutil.copytree(path, folder / path.name)
        elif path.is_file():
            shutil.copy2(path, folder / path.name)
