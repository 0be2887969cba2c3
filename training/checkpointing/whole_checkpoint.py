"""The checkpoint to resume from: the last one whose files are those of its manifest, the same on every rank."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from errors import UsageError
from model.checkpoint_manifest import has_sizes_only, manifest_mismatch
from training.checkpointing.resume import checkpoint_folders


def resume_checkpoint(folder: Path, resume: str | None, partial_state: PartialState, report: Callable[[str], None]) -> Path | None:
    """The checkpoint to resume from; None starts from scratch. Every rank must call this.

    Args:
        folder: Checkpoint folder of the run.
        resume: Argument of --resume: None, "auto" or a checkpoint folder; `preflight` has checked that none would be overwritten.
        partial_state: Rank and world size.
        report: Prints a line, on rank 0 only.

    Raises UsageError when the folder that was given is incomplete or damaged.
    """
    if resume is None:
        return None
    folders = checkpoint_folders(folder) if resume == "auto" else [Path(resume)]
    whole, messages = find_whole_checkpoint(folders, partial_state)
    if whole is None and resume != "auto":
        raise UsageError(f"--resume {resume}: not a complete checkpoint: {messages[0].partition(': ')[2]}")
    for message in messages:
        report(message)
    if whole is None:
        report(f"no complete checkpoint in {folder}: starting from scratch")
    return whole


def find_whole_checkpoint(folders: Sequence[Path], partial_state: PartialState) -> tuple[Path | None, list[str]]:
    """The last of `folders` (by step) that matches its manifest; None if none does. Every rank must call this: rank 0 checks for all.

    Also returns a line to print for each later one that was skipped, and for a manifest that holds sizes only.
    """
    found: list[Any] = [None, []]
    if partial_state.is_main_process:
        for folder in reversed(folders):
            reason = manifest_mismatch(folder)
            if reason is None:
                if has_sizes_only(folder):
                    found[1].append(f"{folder}: its manifest, of an earlier version, holds sizes only: contents were not checked")
                found[0] = folder
                break
            found[1].append(f"skipping {folder}: {reason}")
    broadcast_object_list(found)
    return found[0], found[1]
