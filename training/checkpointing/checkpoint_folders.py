"""Names of the checkpoint folders of a run: checkpoints/<name>/checkpoint-<step>, with a subfolder for the trainer's state."""

import re
from pathlib import Path

from model.checkpoint_manifest import TRAINER_FOLDER as TRAINER_FOLDER


def checkpoint_step(folder: Path) -> int:
    """Optimizer step in the name of a checkpoint folder, -1 for any other folder."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match[1]) if match else -1


def checkpoint_folders(folder: Path) -> list[Path]:
    """Checkpoint folders of a run, sorted by step."""
    return sorted((path for path in folder.glob("checkpoint-*") if checkpoint_step(path) >= 0), key=checkpoint_step)
