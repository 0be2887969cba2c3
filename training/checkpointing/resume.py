"""The checkpoint folders of a run (checkpoints/<name>/checkpoint-<step>), and the check that a resumed run has the same settings.

In: a configuration and checkpoint folders. Out: `RunState`, a JSON file next to Trainer's own state.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from atomic_io import write_json
from dataset.config import DataConfig
from errors import UsageError
from model.checkpoint_manifest import TRAINER_FOLDER as TRAINER_FOLDER
from model.config import DEFAULT_FAMILY
from renamed_keys import RENAMED_GROUPS, new_key, with_new_keys
from training.config import Experiment, LearningRates
from training.monitoring.metrics_history import Row

RUN_STATE_FILE = "run_state.json"

CHANGEABLE_KEYS = frozenset(
    f"train.{key}"
    for key in (
        "max_unreadable_images",
        *("logging_steps", "eval_steps", "eval_samples", "save_steps", "save_total_limit", "early_stopping_patience"),
        *("dataloader_num_workers", "num_logged_predictions", "gradient_checkpointing", "torch_compile", "logits_memory_gib"),
        "report_to",
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
    """All settings that determine a training step, by dotted key; a run can only be resumed with the same ones."""
    history: list[Row]
    """Rows of the History."""
    trackers: dict[str, str] = field(default_factory=dict)
    """Name of each tracker that the run reports to, with the id by which a resumed run goes on there."""

    def write(self, folder: Path) -> None:
        write_json(folder / RUN_STATE_FILE, dataclasses.asdict(self))


def checkpoint_step(folder: Path) -> int:
    """Optimizer step in the name of a checkpoint folder, -1 for any other folder."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match[1]) if match else -1


def checkpoint_folders(folder: Path) -> list[Path]:
    """Checkpoint folders of a run, sorted by step."""
    return sorted((path for path in folder.glob("checkpoint-*") if checkpoint_step(path) >= 0), key=checkpoint_step)


def read_run_state(folder: Path) -> RunState:
    """Read the run state from a checkpoint's trainer folder. Raises UsageError when it cannot be read."""
    path = folder / RUN_STATE_FILE
    try:
        state = _with_new_keys(json.loads(path.read_text(encoding="utf-8")))
        # Strict: a damaged file may be valid JSON with values of other types.
        return TypeAdapter(RunState).validate_json(json.dumps(state), strict=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = error if problem is None else f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()}"
        raise UsageError(f"--resume {folder}: {RUN_STATE_FILE} cannot be read, so this is no training checkpoint ({reason})") from error


ADDED_SETTINGS = {
    "data.balance": "none",
    "data.mix": None,
    "train.lr_scheduler_type": "cosine",
    "train.vision_layer_decay": 1.0,
    "train.loraplus_lr_ratio": 1.0,
    "model.family": DEFAULT_FAMILY,
}
ADDED_LORA_SETTINGS = {"target_modules": "all-linear", "layers_to_transform": None, "use_rslora": False, "init_lora_weights": "default"}
ADDED_CONNECTOR_SETTINGS = {
    "connector.kind": "mlp",
    "connector.keep_ratio": 1.0,
    "connector.num_queries": 64,
    "connector.num_layers": 2,
    "connector.num_attention_heads": 8,
    "tiles": None,
    "vision_layers": "all",
    "vision_lora": None,
}
"""Settings that earlier versions did not have, and what they did: of every run, of LoRA, and of a model with a connector."""


def _with_new_keys(state: dict[str, Any]) -> dict[str, Any]:
    """The state with old keys replaced by current ones, in the settings' paths and in the names of learning rates."""
    renamed: dict[str, Any] = {}
    for path, value in state["settings"].items():
        section, *keys = path.split(".")
        renamed[".".join([section, *(new_key(section, key) or key for key in keys)])] = with_new_keys(section, value)
    renamed = {**ADDED_SETTINGS, **renamed}
    if "model.lora.r" in renamed:
        renamed = {f"model.lora.{key}": value for key, value in ADDED_LORA_SETTINGS.items()} | renamed
    if "model.connector.pool" in renamed:
        kind = {"model.connector.kind": "mlp_pool"} if renamed["model.connector.pool"] > 1 else {}
        renamed = {f"model.{key}": value for key, value in ADDED_CONNECTOR_SETTINGS.items()} | kind | renamed
    _add_vision_rate(renamed)
    rates = {f"learning_rate/{old}": f"learning_rate/{new}" for old, new in RENAMED_GROUPS.items()}
    history = [{rates.get(key, key): value for key, value in row.items()} for row in state["history"]]
    return {**state, "settings": renamed, "history": history}


def _add_vision_rate(settings: dict[str, Any]) -> None:
    """Add the default rate of the group `vision`, at which nothing was trained, to the settings of a run from before that group existed."""
    rate = LearningRates().vision
    if "train.learning_rate.connector" in settings:
        settings.setdefault("train.learning_rate.vision", rate)
    for stage in settings.get("train.stages", ()):
        if isinstance(stage.get("learning_rate"), dict):
            stage["learning_rate"].setdefault("vision", rate)


STEP_KEYS = ("train.num_processes", "train.gradient_accumulation_steps", "train.per_device_train_batch_size")
"""Settings whose product is the number of samples of an optimizer step. They may change together, as long as the product stays
(see training.checkpointing.world_size_change)."""

DATA_KEY = "data (samples.parquet)"
INITIAL_WEIGHTS_KEY = "train.init_from (content)"
RESOLVED_KEYS = frozenset({"train.num_processes", "train.batching", "train.precision", DATA_KEY, INITIAL_WEIGHTS_KEY})
"""Settings that the configuration alone does not tell: they depend on the launcher, the device and the data."""

LENGTH_KEYS = frozenset({"epochs", "max_steps"})
"""Keys of the stage that a checkpoint belongs to which may differ: the stage may become longer (see `starting_point`)."""


def config_settings(config: Experiment) -> dict[str, Any]:
    """The settings that the configuration alone tells: those that can be compared before anything is loaded."""
    resolved = _flat({"model": dataclasses.asdict(config.model), "train": dataclasses.asdict(config.train)})
    resolved["data.augmentation"] = dataclasses.asdict(config.data.augmentation) if config.data.augmentation else None
    resolved["data.balance"] = config.data.balance
    resolved["data.mix"] = config.data.mix_settings()
    known = {key: value for key, value in resolved.items() if key not in CHANGEABLE_KEYS | RESOLVED_KEYS}
    # Through JSON, so that it compares equal to the settings read from a checkpoint.
    plain: dict[str, Any] = json.loads(json.dumps(known, default=str))
    return plain


def machine_settings(num_processes: int, packed: bool, precision: str) -> dict[str, Any]:
    """The settings that depend on the launcher and the device, after each `auto` is resolved. num_processes: world size."""
    return {"train.num_processes": num_processes, "train.batching": "packed" if packed else "padded", "train.precision": precision}


def data_settings(samples: Path) -> dict[str, Any]:
    """The identity of the samples: the SHA-256 of samples.parquet. Reads the whole file."""
    with samples.open("rb") as file:
        return {DATA_KEY: hashlib.file_digest(file, "sha256").hexdigest()}


def streamed_data_settings(data: DataConfig) -> dict[str, Any]:
    """The identity of streamed samples: what decides which ones are read, in which order, and the sizes of the files with the records."""
    kept = ("sources", "split", "seed", "max_pixels", "vqa_target", "shuffle_buffer_size")
    settings = {key: value for key, value in TypeAdapter(DataConfig).dump_python(data, mode="json").items() if key in kept}
    # Imported here: `train.py --help` loads this module, and needs no Arrow.
    from dataset.build.fingerprint import file_states

    files = [state[:2] for state in file_states([str(path) for source in data.sources for path in source.annotation_files], is_file=True)]
    described = json.dumps([settings, files], sort_keys=True).encode("utf-8", "surrogateescape")
    return {DATA_KEY: hashlib.sha256(described).hexdigest()}


def _flat(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def check_same_settings(folder: Path, state: RunState, current_settings: dict[str, Any]) -> None:
    """Raise UsageError naming each setting that differs by its dotted key, with its value before and now.

    Stages after the checkpoint's own may be changed or added, and its own may get another length. STEP_KEYS are not compared here.

    folder: the checkpoint, for the message; current_settings: all, or those known so far: missing ones of RESOLVED_KEYS are not compared.
    """
    ignored = RESOLVED_KEYS - current_settings.keys() | set(STEP_KEYS)
    before, after = ({key: value for key, value in known.items() if key not in ignored} for known in (state.settings, current_settings))
    differing = _differences("train.stages", before.pop("train.stages")[: state.stage + 1], after.pop("train.stages")[: state.stage + 1])
    length_keys = {f"train.stages.{state.stage}.{name}" for name in LENGTH_KEYS}
    differing = {key: values for key, values in differing.items() if key not in length_keys}
    for key in sorted(before.keys() | after.keys()):
        differing |= _differences(key, before.get(key), after.get(key))
    if differing:
        named = "; ".join(f"{key} was {_short(was)}, is {_short(now)}" for key, (was, now) in differing.items())
        raise UsageError(f"--resume {folder}: trained with other settings: {named}; use those, or a new name for a new run")


def _differences(key: str, before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    """The values before and now below a key, by dotted key. Mappings and lists of mappings are compared member by member."""
    if before == after:
        return {}
    if isinstance(before, dict) and isinstance(after, dict):
        members = {name: (before.get(name), after.get(name)) for name in sorted(before.keys() | after.keys())}
    elif _is_list_of_mappings(before) and _is_list_of_mappings(after):
        members = {str(i): pair for i, pair in enumerate(itertools.zip_longest(before, after))}
    else:
        return {key: (before, after)}
    return {name: values for part, pair in members.items() for name, values in _differences(f"{key}.{part}", *pair).items()}


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + "..."
