"""The checkpoints of a run: checkpoints/<name>/checkpoint-<step>, each either whole or not there.

A checkpoint is written into a hidden folder beside its place by all processes and renamed by the main one. The model's own
files stand at its top, what training needs to go on stands in trainer/.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState

from atomic_io import share
from model.siglip_qwen.checkpoint import mark_whole
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


class Checkpoints:
    """Writes the checkpoints of a run; every process calls its methods, at the same time.

    keep: how many stay of each stage.
    """

    def __init__(self, folder: Path, keep: int, processes: PartialState):
        self.folder, self._keep, self._processes = folder, keep, processes

    def write(
        self,
        state: RunState,
        save_model: Callable[[Path], None],
        save_trainer: Callable[[Path], None] | None,
        spare: int | None = None,
    ) -> Path:
        """Write the checkpoint of `state.step` and remove older ones of its stage.

        save_model: writes the model's own files into a folder; called in the main process. save_trainer: writes this
        process's share of the trainer's state; None at the end of a stage, from where nothing of it goes on.
        spare: a step whose checkpoint stays in any case.
        """
        partial = self._begin(state)
        if self._processes.is_main_process:
            save_model(partial)
        if save_trainer is not None:
            save_trainer(partial / TRAINER_FOLDER)
        return self._finish(partial, state, spare)

    def write_copy(self, state: RunState, step: int) -> Path:
        """Write the checkpoint of `state.step`, the end of its stage, with the model of an earlier step."""
        source = self.folder / f"checkpoint-{step}"
        return self.write(state, lambda folder: _copy(source, folder), save_trainer=None, spare=step)

    def _begin(self, state: RunState) -> Path:
        partial = self.folder / f".checkpoint-{state.step}.partial"
        if self._processes.is_main_process:
            for left_over in self.folder.glob(".checkpoint-*.partial"):
                shutil.rmtree(left_over)
            (partial / TRAINER_FOLDER).mkdir(parents=True)
        self._processes.wait_for_everyone()
        return partial

    def _finish(self, partial: Path, state: RunState, spare: int | None) -> Path:
        self._processes.wait_for_everyone()
        place = self.folder / f"checkpoint-{state.step}"
        if self._processes.is_main_process:
            state.write(partial / TRAINER_FOLDER)
            share(partial)
            mark_whole(partial)
            if place.exists():
                shutil.rmtree(place)
            partial.replace(place)
            self._remove_older(state.first_step, spare)
        self._processes.wait_for_everyone()
        return place

    def _remove_older(self, first_step: int, spare: int | None) -> None:
        of_stage = [path for path in checkpoint_folders(self.folder) if step_of(path) > first_step]
        for path in of_stage[: -self._keep]:
            if step_of(path) != spare:
                # Renamed first: removed half-way, it must not look like a checkpoint.
                doomed = path.replace(path.with_name(f".{path.name}.removed"))
                shutil.rmtree(doomed)


def _copy(source: Path, folder: Path) -> None:
    """Copy a checkpoint's model, without the trainer's state."""
    for path in source.iterdir():
        if path.is_dir() and path.name != TRAINER_FOLDER:
            shutil.copytree(path, folder / path.name)
        elif path.is_file():
            shutil.copy2(path, folder / path.name)
