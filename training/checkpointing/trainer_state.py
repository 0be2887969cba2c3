"""Checks the trainer state of a checkpoint (optimizer, schedule, loss scaler, random generators) before a model is loaded for it.

Trainer reads these files late, after the weights, and a damaged one ends in whatever torch raises. Sharded optimizers (FSDP,
DeepSpeed) have folders of their own in place of optimizer.pt; their readers check them, and the manifest does.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import Trainer, TrainerState
from transformers.trainer_pt_utils import safe_globals

from errors import TesseraError, UsageError
from training.checkpointing.starting_point import TRAINER_STATE_FILE
from training.out_of_memory import OUT_OF_MEMORY_SIGNS

STATE_FILES = {
    "optimizer.pt": {"state", "param_groups"},
    "scheduler.pt": {"last_epoch", "base_lrs"},
    "scaler.pt": {"scale"},
    "rng_state*.pth": {"python", "numpy", "cpu"},
}
"""Files of the trainer state, and keys that each must have."""


def check_trainer_state(folder: Path, finished: bool = False) -> None:
    """Raise UsageError naming the first file of a trainer folder that is missing or damaged. Reads no tensor's data.

    finished: the checkpoint is the end of a stage, which needs no optimizer state, and has one only if the stage may become longer.
    """
    if finished and not (folder / TRAINER_STATE_FILE).is_file():
        return
    with _naming(folder / TRAINER_STATE_FILE):
        state = TrainerState.load_from_json(str(folder / TRAINER_STATE_FILE))
        if not isinstance(state.global_step, int) or not isinstance(state.stateful_callbacks, dict | None):
            raise TypeError("global_step and stateful_callbacks are not a number and a mapping")
    for pattern, keys in STATE_FILES.items():
        for path in sorted(folder.glob(pattern)):
            with _naming(path), safe_globals():
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                if not isinstance(loaded, dict):
                    raise TypeError(f"expected a mapping, found {type(loaded).__name__}")
                if missing := keys - loaded.keys():
                    raise ValueError(f"{min(missing)} is missing")


class NamedStateTrainer(Trainer):
    """A Trainer that names the folder of a state that it cannot load, in a UsageError of one line."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _naming(Path(checkpoint or "")):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with _naming(Path(checkpoint or "")):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _naming(Path(checkpoint or "")):
            super()._load_rng_state(checkpoint)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (TesseraError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # torch, pickle and zipfile raise many classes for a damaged file
        if any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS):
            raise
        reason = json.dumps(" ".join(str(error).split())[:200], ensure_ascii=False)
        raise UsageError(
            f"--resume: {path} cannot be used, it is damaged or of another run ({type(error).__name__}: {reason}); "
            "resume from an earlier checkpoint, after moving this one away"
        ) from error
