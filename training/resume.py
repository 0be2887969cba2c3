"""What a checkpoint says about the run that wrote it, and whether this run may go on from there.

In: a configuration and checkpoint folders. Out: `RunState`, the file beside the trainer's own state.
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
        *("logging_steps", "eval_steps", "eval_samples", "save_steps", "save_total_limit", "early_stopping_patience"),
        *("dataloader_num_workers", "num_logged_predictions", "gradient_checkpointing", "torch_compile", "logits_memory_gib"),
    )
)
"""Settings that may change between a checkpoint and the run that continues it: they do not touch a training step, or no
more than its memory, its time and the order of its sums."""


@dataclass(frozen=True)
class RunState:
    """Where a run stood when it wrote a checkpoint."""

    stage: int
    """Which of train.stages."""
    first_step: int
    """Optimizer steps of the stages before it."""
    step: int
    """Optimizer steps done, all stages counted."""
    finished: bool
    """The stage has come to its end; the next one starts here."""
    settings: dict[str, Any]
    """What `settings` gave."""
    history: list[Row]
    """Rows of the History."""

    def write(self, folder: Path) -> None:
        write_json(folder / RUN_STATE_FILE, dataclasses.asdict(self))


def read_run_state(folder: Path) -> RunState:
    """Raises UsageError when `folder` is not a checkpoint that training wrote."""
    path = folder / RUN_STATE_FILE
    try:
        return RunState(**_with_new_keys(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"--resume {folder}: {RUN_STATE_FILE} cannot be read, this is not a checkpoint of a training ({error})") from error


def _with_new_keys(state: dict[str, Any]) -> dict[str, Any]:
    """The state under today's keys, which are the parts of a setting's path and of a learning rate's name."""
    renamed: dict[str, Any] = {}
    for path, value in state["settings"].items():
        section, *keys = path.split(".")
        renamed[".".join([section, *(new_key(section, key) or key for key in keys)])] = with_new_keys(section, value)
    rates = {f"learning_rate/{old}": f"learning_rate/{new}" for old, new in RENAMED_GROUPS.items()}
    history = [{rates.get(key, key): value for key, value in row.items()} for row in state["history"]]
    return {**state, "settings": renamed, "history": history}


def settings(config: Experiment, samples: Path, num_processes: int, packed: bool, precision: str) -> dict[str, Any]:
    """Everything that decides what a training step does, by key: a run is continued under the same settings only.

    samples: the samples.parquet that is trained on; processes, packed, precision: what the run has settled on.
    """
    found = {f"model.{key}": value for key, value in _flat(dataclasses.asdict(config.model)).items()}
    found |= {f"train.{key}": value for key, value in _flat(dataclasses.asdict(config.train)).items()}
    found |= {"data.augmentation": dataclasses.asdict(config.data.augmentation) if config.data.augmentation else None}
    found |= {"train.num_processes": num_processes, "train.batching": "packed" if packed else "padded", "train.precision": precision}
    with samples.open("rb") as file:
        found["data (samples.parquet)"] = hashlib.file_digest(file, "sha256").hexdigest()
    # As JSON gives it back, so that a setting read from a checkpoint compares equal.
    plain: dict[str, Any] = json.loads(json.dumps({key: value for key, value in found.items() if key not in CHANGEABLE_KEYS}))
    return plain


def _flat(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def check_same_settings(folder: Path, state: RunState, current_settings: dict[str, Any]) -> None:
    """Raise UsageError naming the settings that differ. Stages behind the checkpoint's own may be changed and added."""
    reached = state.stage + 1
    before, after = ({**known, "train.stages": known["train.stages"][:reached]} for known in (state.settings, current_settings))
    differing = [
        f"{key} was {_short(before.get(key))}, is {_short(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if differing:
        raise UsageError(f"--resume {folder}: made with other settings: {'; '.join(differing)}; take those, or another name for a new run")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + "..."
