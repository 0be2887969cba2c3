"""Checks of a training run that need neither torch nor a model nor the samples: they come before everything that takes time.

In: a configuration and the argument of --resume. Out: nothing, or one sentence about what is wrong.
"""

import importlib.util
from pathlib import Path

from errors import UsageError, command
from model.checkpoint_manifest import file_mismatch
from model.config import ModelConfig
from model.family_config import Ability, ParamGroup
from model.siglip_qwen.config import SiglipQwenConfig
from training.checkpointing.resume import (
    RUN_STATE_FILE,
    TRAINER_FOLDER,
    check_same_settings,
    checkpoint_folders,
    checkpoint_step,
    config_settings,
    read_run_state,
)
from training.checkpointing.starting_point import check_max_steps
from training.config import Experiment, TrainConfig

SAMPLES_FILE = "samples.parquet"


def check_before_loading(config: Experiment, resume: str | None) -> None:
    """Check the stages, the data folder and the checkpoint to resume from, as far as the configuration and small files tell.

    resume: None starts from scratch, "auto" resumes from the latest complete checkpoint, otherwise a checkpoint folder.
    Raises UsageError.
    """
    check_settings(config)
    samples = config.data_folder / SAMPLES_FILE
    if not config.data.streaming and not samples.is_file():
        raise UsageError(f"{samples} does not exist; run {command('tools/preprocess.py')} first")
    checkpoint = _checkpoint(config.checkpoint_folder, resume)
    if checkpoint is not None:
        state = read_run_state(checkpoint / TRAINER_FOLDER)
        check_same_settings(checkpoint, state, config_settings(config))
        check_max_steps(checkpoint, state, config.train.stages)
    elif config.train.init_from is not None and not config.train.init_from.is_dir():
        raise UsageError(f"train.init_from: {config.train.init_from} does not exist (expected a folder with a model, or a run's folder)")


def check_settings(config: Experiment) -> None:
    """Raise UsageError for settings that contradict each other, whatever the machine and the data."""
    train, model = config.train, config.model
    _check_stages(train, model)
    wanted: dict[Ability, tuple[bool, str]] = {
        "packed": (train.batching == "packed", "train.batching: packed rows"),
        "cached_features": (train.cache_vision_features, "train.cache_vision_features: cached features of the vision encoder"),
        "compiled": (train.torch_compile is True, "train.torch_compile: compiled layers"),
        "init_from": (train.init_from is not None, "train.init_from: other weights to start from"),
    }
    for ability, (asked, what) in wanted.items():
        if asked and ability not in model.abilities:
            raise UsageError(f"{what} cannot be had with model.family={model.family}")
    if train.cache_vision_features and config.data.augmentation is not None:
        raise UsageError(
            "train.cache_vision_features: features are cached for images without augmentation; "
            "set it to false, or data.augmentation to null"
        )
    if config.data.streaming:
        _check_streaming(train)
    for name in train.report_to:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"train.report_to: {name} is not installed; pip install {name} (or 'tessera-vlm[{name}]')")


def _check_streaming(train: TrainConfig) -> None:
    """Raise UsageError for settings that need the number of samples, or all of them."""
    for i, stage in enumerate(train.stages):
        if stage.max_steps is None:
            raise UsageError(
                f"train.stages.{i}.max_steps: must be given with data.streaming: true, which does not know how many samples there are"
            )
    if train.max_questions_per_conversation > 1:
        raise UsageError(
            f"train.max_questions_per_conversation: {train.max_questions_per_conversation} needs all questions about an image, which "
            "data.streaming: true does not know; set it to 1"
        )
    if train.cache_vision_features:
        raise UsageError("train.cache_vision_features: cannot be had with data.streaming: true; set it to false")


def _check_stages(train: TrainConfig, model: ModelConfig) -> None:
    """Raise UsageError naming the first stage that this model cannot be trained with. Loads nothing."""
    if not train.stages:
        raise UsageError("train.stages: empty; name at least one stage")
    trained = {group for stage in train.stages for group in stage.train}
    if {"lora", "language"} <= trained:
        raise UsageError("train.stages: one stage trains lora, another the whole language model; a run can do only one of these")
    if isinstance(model, SiglipQwenConfig):
        _check_vision_stages(train, model, trained)
    for i, stage in enumerate(train.stages):
        key = f"train.stages.{i}"
        if stage.name in [other.name for other in train.stages[:i]]:
            raise UsageError(f"{key}.name: an earlier stage is also called {stage.name}")
        known = ", ".join(model.groups)
        if not stage.train:
            raise UsageError(f"{key}.train: empty; name at least one of {known}")
        for group in stage.train:
            if group not in model.groups:
                raise UsageError(f"{key}.train: a {model.family} model has no group {group}; it has {known}")
        if "lora" in stage.train and model.lora is None:
            raise UsageError(f"{key}.train: lora needs model.lora, which is null")
        if "language" in stage.train and model.quantization != "none":
            raise UsageError(f"{key}.train: the weights of a quantised language model cannot be trained; set model.quantization=none")


def _check_vision_stages(train: TrainConfig, model: SiglipQwenConfig, trained: set[ParamGroup]) -> None:
    """Raise UsageError for settings that contradict a stage that trains the vision encoder, or the lack of one."""
    if model.tiles is not None and train.cache_vision_features:
        raise UsageError("train.cache_vision_features: cannot be had with model.tiles; set it to false")
    if "vision" in trained and train.cache_vision_features:
        raise UsageError("train.cache_vision_features: features of a vision encoder that a stage trains change; set it to false")
    if model.vision_lora is not None and "vision" not in trained:
        raise UsageError("model.vision_lora: no stage of train.stages trains vision")
    if model.vision_lora is not None and model.vision_layers != "all":
        raise UsageError("model.vision_layers: with model.vision_lora, say it by model.vision_lora.layers_to_transform")
    for key, lora in (("model.lora", model.lora), ("model.vision_lora", model.vision_lora)):
        if lora is not None and lora.init_lora_weights == "pissa" and model.quantization != "none":
            raise UsageError(f"{key}.init_lora_weights: pissa changes the weights below, which are quantised; set model.quantization=none")


def _checkpoint(folder: Path, resume: str | None) -> Path | None:
    """The checkpoint that --resume means, None without one. Whether its files are whole is checked later."""
    existing = checkpoint_folders(folder)
    if resume is None:
        if existing:
            raise UsageError(f"{existing[-1]} already exists: continue with --resume auto, move it away, or choose another name")
        return None
    if resume == "auto":
        # Where the file is missing or damaged, the run skips the folder, too.
        name = f"{TRAINER_FOLDER}/{RUN_STATE_FILE}"
        return next((path for path in reversed(existing) if file_mismatch(path, name) is None), None)
    checkpoint = Path(resume)
    if not checkpoint.is_dir():
        raise UsageError(f"--resume {checkpoint}: the folder does not exist; --resume auto takes the latest one in {folder}")
    later = [path for path in existing if checkpoint_step(path) > checkpoint_step(checkpoint)]
    if later:
        raise UsageError(f"--resume {checkpoint}: {later[-1]} is later; move it away first, or continue with --resume auto")
    return checkpoint
