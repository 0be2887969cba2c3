"""Atomic writing of the checkpoints of a run: checkpoints/<name>/checkpoint-<step>.

All ranks write into a hidden temporary folder, which rank 0 renames. The model's files are at the top of the folder, the state
that resuming needs is in trainer/.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState

from atomic_io import copy_read_permissions, naming_full_disk
from model.checkpoint_manifest import write_manifest
from training.checkpointing.resume import TRAINER_FOLDER, RunState, checkpoint_folders, checkpoint_step


class CheckpointWriter:
    """Writes the checkpoints of a run. Every rank must call its methods, since they contain barriers.

    folder: checkpoint folder of the run; save_total_limit: number of latest checkpoints kept of each stage.
    """

    def __init__(self, folder: Path, save_total_limit: int, partial_state: PartialState):
        self.folder, self._save_total_limit, self._partial_state = folder, save_total_limit, partial_state

    def write(
        self,
        state: RunState,
        save_model: Callable[[Path], None],
        save_trainer: Callable[[Path], None] | None,
        protected_step: int | None = None,
    ) -> None:
        """Write the checkpoint of `state.step` and delete older ones of its stage.

        Args:
            state: Written with the checkpoint.
            save_model: Writes the model's files into a folder; called on rank 0 only.
            save_trainer: Writes this rank's part of the trainer state into a folder; None at the end of a stage that another
                one follows, which starts with a new optimizer.
            protected_step: Step whose checkpoint is never deleted, such as the best one so far.
        """
        target, partial = self.folder / f"checkpoint-{state.step}", self.folder / f".checkpoint-{state.step}.partial"
        is_main_process = self._partial_state.is_main_process
        with naming_full_disk(target):
            if is_main_process:
                for stale in self.folder.glob(".checkpoint-*.partial"):
                    shutil.rmtree(stale)
                (partial / TRAINER_FOLDER).mkdir(parents=True)
            self._partial_state.wait_for_everyone()
            if is_main_process:
                save_model(partial)
            if save_trainer is not None:
                save_trainer(partial / TRAINER_FOLDER)
            self._partial_state.wait_for_everyone()
            if is_main_process:
                state.write(partial / TRAINER_FOLDER)
                copy_read_permissions(partial)
                write_manifest(partial)
                if target.exists():
                    shutil.rmtree(target)
                partial.replace(target)
                self._remove_older(state.first_step, protected_step)
            self._partial_state.wait_for_everyone()

    def write_from_step(self, state: RunState, step: int) -> None:
        """Write the checkpoint of `state.step`, the last of its stage, with the model files of an earlier step."""

        def copy_model(folder: Path) -> None:
            without_trainer = shutil.ignore_patterns(TRAINER_FOLDER)
            shutil.copytree(self.folder / f"checkpoint-{step}", folder, ignore=without_trainer, dirs_exist_ok=True)

        self.write(state, copy_model, save_trainer=None, protected_step=step)

    def _remove_older(self, first_step: int, protected_step: int | None) -> None:
        stage_checkpoints = [path for path in checkpoint_folders(self.folder) if checkpoint_step(path) > first_step]
        for path in stage_checkpoints[: -self._save_total_limit]:
            if checkpoint_step(path) != protected_step:
                # Renamed first: after an interrupted deletion the rest must not look like a checkpoint.
                removed = path.replace(path.with_name(f".{path.name}.removed"))
                shutil.rmtree(removed)
