"""The state of a run in a checkpoint, and the check that a resumed run has the same settings.

In: a configuration and checkpoint folders. Out: `RunState`, a JSON file next to Trainer's own state.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atomic_io import write_json
from errors import UsageError
from renamed_keys import RENAMED_GROUPS, new_key, with_new_keys
from training.config import Experiment
from training.monitoring.metrics_history import Row

RUN_STATE_FILE = "run_state.json"

CHANGEABLE_KEYS = frozenset(
    f"train.{key}"
    for key in (
        "max_unreadable_images",
        *("logging_steps", "eval_steps", "eval_samples", "save_steps", "save_total_limit", "early_stopping_patience"),
        *("dataloader_num_workers", "num_logged_predictions", "gradient_checkpointing", "torch_compile", "logits_memory_gib"),
    )
)
"""Settings that may differ between a checkpoint and the run that resumes from it. They do not change a training step, except for
its memory, its speed and the order of its sums."""


@dataclass(frozen=True)
class RunState:
    """Progress of a run at a checkpoint."""

    stage: int
    """Index in train.stages."""
    first_step: int
    """Optimizer steps of all earlier stages."""
    step: int
    """Optimizer steps done so far, over all stages."""
    finished: bool
    """Whether the stage has ended; the next one starts from here."""
    settings: dict[str, Any]
    """What `settings` returned."""
    history: list[Row]
    """Rows of the History."""

    def write(self, folder: Path) -> None:
        write_json(folder / RUN_STATE_FILE, dataclasses.asdict(self))


def read_run_state(folder: Path) -> RunState:
    """Read the run state from a checkpoint's trainer folder. Raises UsageError when it cannot be read."""
    path = folder / RUN_STATE_FILE
    try:
        return RunState(**_with_new_keys(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"--resume {folder}: {RUN_STATE_FILE} cannot be read, so this is no training checkpoint ({error})") from error


def _with_new_keys(state: dict[str, Any]) -> dict[str, Any]:
    """The state with old keys replaced by current ones, in the settings' paths and in the names of learning rates."""
    renamed: dict[str, Any] = {}
    for path, value in state["settings"].items():
        section, *keys = path.split(".")
        renamed[".".join([section, *(new_key(section, key) or key for key in keys)])] = with_new_keys(section, value)
    rates = {f"learning_rate/{old}": f"learning_rate/{new}" for old, new in RENAMED_GROUPS.items()}
    history = [{rates.get(key, key): value for key, value in row.items()} for row in state["history"]]
    return {**state, "settings": renamed, "history": history}


def settings(config: Experiment, samples: Path, num_processes: int, packed: bool, precision: str) -> dict[str, Any]:
    """All settings that determine a training step, by key; a run can only be resumed with the same ones.

    Args:
        samples: The samples.parquet to train on; its SHA-256 is part of the settings.
        num_processes: World size.
        packed: Whether batches are packed, after `auto` is resolved.
        precision: bf16, fp16 or fp32, after `auto` is resolved.
    """
    resolved = {f"model.{key}": value for key, value in _flat(dataclasses.asdict(config.model)).items()}
    resolved |= {f"train.{key}": value for key, value in _flat(dataclasses.asdict(config.train)).items()}
    resolved |= {"data.augmentation": dataclasses.asdict(config.data.augmentation) if config.data.augmentation else None}
    resolved |= {"train.num_processes": num_processes, "train.batching": "packed" if packed else "padded", "train.precision": precision}
    with samples.open("rb") as file:
        resolved["data (samples.parquet)"] = hashlib.file_digest(file, "sha256").hexdigest()
    # Through JSON, so that it compares equal to the settings read from a checkpoint.
    plain: dict[str, Any] = json.loads(json.dumps({key: value for key, value in resolved.items() if key not in CHANGEABLE_KEYS}))
    return plain


def _flat(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def check_same_settings(folder: Path, state: RunState, current_settings: dict[str, Any]) -> None:
    """Raise UsageError naming the settings that differ. Stages after the checkpoint's own may be changed or added."""
    reached = state.stage + 1
    before, after = ({**known, "train.stages": known["train.stages"][:reached]} for known in (state.settings, current_settings))
    differing = [
        f"{key} was {_short(before.get(key))}, is {_short(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if differing:
        raise UsageError(f"--resume {folder}: trained with other settings: {'; '.join(differing)}; use those, or a new name for a new run")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + "..."
