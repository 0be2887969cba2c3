"""A whole training: from a configuration to checkpoints, curves and a table of answers.

Every stage begins in the same way: the base model is built anew and takes the weights of the checkpoint before it. So a run
that was broken off goes on exactly as one that was not.
"""

import contextlib
import gc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from atomic_io import replacing
from errors import UsageError
from model.kernels.compile import compile_layers
from model.lora import attach, base_model
from model.siglip_qwen import checkpoint as model_checkpoint
from model.siglip_qwen.assembly import build, default_dtype
from model.siglip_qwen.fused_modules import fuse
from model.siglip_qwen.modeling import VisionLanguageModel
from training.checkpointing import TRAINER_FOLDER, Checkpoints, checkpoint_folders, step_of
from training.compile_policy import check_step, choose_compiling
from training.config import Experiment
from training.distributed import weights_are_sharded
from training.feature_cache.feature_extraction import with_features
from training.gradient_checkpointing import Trial, longest_batch, recompute
from training.monitoring.console import Status
from training.monitoring.loss_curves import draw_curves
from training.monitoring.metrics_history import History
from training.monitoring.prediction_panels import Panel, draw_table
from training.monitoring.sample_predictions import ask, chosen_samples
from training.monitoring.tensorboard_logger import Board
from training.monitoring.throughput import Meter, cost_of, peak_tflops
from training.out_of_memory import keep_freed_memory, naming_memory_settings
from training.resume import RunState, check_same_settings, read_run_state, settings
from training.run_setup import Prepared, length_of_stage, prepare, training_loader, validation_loader
from training.stage_trainer import Stage, StageTrainer, training_arguments
from training.stages import describe_trained


def train(config: Experiment, resume: str | None = None) -> Path:
    """Run all stages, or those that a checkpoint leaves to be done; returns the last checkpoint's folder.

    resume: None begins anew, "auto" takes the newest whole checkpoint of the run, else the folder of a checkpoint.
    Raises UsageError for settings that do not fit, TesseraError when the training fails.
    """
    prepared = prepare(config)
    check_step(config.train, prepared.device, weights_are_sharded())
    now = settings(
        config,
        prepared.store.folder / "samples.parquet",
        prepared.processes.num_processes,
        prepared.batching.packed,
        "bf16" if prepared.bf16 else "fp32",
    )
    checkpoint = _starting_point(prepared, resume)
    state = read_run_state(checkpoint / TRAINER_FOLDER) if checkpoint else None
    if checkpoint and state:
        check_same_settings(checkpoint, state, now)
        prepared.say(f"continuing from {checkpoint}")
    history = History(list(state.history) if state else [])
    lengths = [length_of_stage(prepared, index) for index in range(len(config.train.stages))]
    first, first_step = _next_stage(state)
    if config.train.cache_features and first < len(lengths):
        prepared = with_features(prepared)
    if prepared.device.type == "cpu" and sys.platform == "linux":
        keep_freed_memory()
    board = _board(prepared, state.step if state else 0)
    with contextlib.ExitStack() as at_the_end:
        if board is not None:
            # Also of a run that fails: its last rows are still in memory.
            at_the_end.callback(board.close)
        for index in range(first, len(lengths)):
            steps, per_epoch = lengths[index]
            stage = Stage(config.train.stages[index], index, first_step, steps, per_epoch)
            total = first_step + sum(steps for steps, _ in lengths[index:])
            going_on = state is not None and not state.finished and index == first
            checkpoint = _run_stage(prepared, stage, total, checkpoint, going_on, history, now, board)
            first_step = step_of(checkpoint)
    assert checkpoint is not None  # there is at least one stage, done before or now
    if board is not None:
        _show_results(prepared, checkpoint, history)
    return checkpoint


def _next_stage(state: RunState | None) -> tuple[int, int]:
    """Which stage comes next, and how many optimizer steps lie before it."""
    if state is None:
        return 0, 0
    return (state.stage + 1, state.step) if state.finished else (state.stage, state.first_step)


def _starting_point(prepared: Prepared, resume: str | None) -> Path | None:
    """The checkpoint to go on from. Raises UsageError where going on, or beginning anew, would spoil what is there."""
    folder = prepared.config.checkpoint_folder
    present = checkpoint_folders(folder)
    if resume is None:
        if present:
            raise UsageError(f"{present[-1]} is there already: continue with --resume auto, move it away, or choose another name")
        return None
    if resume == "auto":
        for checkpoint in reversed(present):
            reason = model_checkpoint.what_is_missing(checkpoint)
            if reason is None:
                return checkpoint
            prepared.say(f"skipping {checkpoint}: {reason}")
        prepared.say(f"no whole checkpoint in {folder}: beginning anew")
        return None
    checkpoint = Path(resume)
    reason = model_checkpoint.what_is_missing(checkpoint)
    if reason is not None:
        raise UsageError(f"--resume {checkpoint}: not a whole checkpoint: {reason}")
    later = [path for path in present if step_of(path) > step_of(checkpoint)]
    if later:
        raise UsageError(f"--resume {checkpoint}: {later[-1]} is later; move it away first, or continue with --resume auto")
    return checkpoint


def _run_stage(
    prepared: Prepared,
    stage: Stage,
    total: int,
    checkpoint: Path | None,
    going_on: bool,
    history: History,
    now: dict[str, Any],
    board: Board | None,
) -> Path:
    """Train one stage and return its last checkpoint. going_on: `checkpoint` was written in the midst of this stage."""
    config, processes = prepared.config, prepared.processes
    set_seed(config.train.seed)
    with naming_memory_settings("loading the model"):
        model = _model(prepared, stage, checkpoint)
    folder = config.checkpoint_folder
    prepared.say(f"stage {stage.config.name}: {stage.steps:,} steps, {describe_trained(model)}")
    validation = validation_loader(prepared)
    trainer = StageTrainer(
        model,
        training_arguments(config.train, stage, folder, bf16=prepared.bf16, device=prepared.device, validate=validation is not None),
        train=config.train,
        stage=stage,
        loader=training_loader(prepared, stage.index),
        validation=validation,
        history=history,
        meter=_meter(prepared, model),
        processor=prepared.processor,
        checkpoints=Checkpoints(folder, config.train.keep_checkpoints, processes),
        settings=now,
    )
    if board is not None:
        done = read_run_state(checkpoint / TRAINER_FOLDER).step if checkpoint else 0
        trainer.add_callback(Status(done, total))
        trainer.add_callback(board)
    # Trainer gives all processes the same seed; their dropout should differ.
    set_seed(config.train.seed + stage.index + 1000 * processes.process_index)
    with naming_memory_settings("training"):
        _settle_memory(prepared, trainer, model)
        trainer.train_from(checkpoint if going_on else None)
    last = folder / f"checkpoint-{trainer.step}"
    trainer.accelerator.free_memory()
    del trainer, model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return last


def _model(prepared: Prepared, stage: Stage, checkpoint: Path | None) -> VisionLanguageModel | PeftModel:
    """The base with the weights of a checkpoint, ready for what the stage trains."""
    config = prepared.config
    # The stage before has told transformers to load everything in shards of ZeRO-3; the base is to be loaded whole.
    unset_hf_deepspeed_config()
    # Shards are cut from weights on the host: whole, they may not fit on a device.
    device = torch.device("cpu") if weights_are_sharded() else prepared.device
    dtype = default_dtype(prepared.device) if prepared.bf16 else torch.float32
    if checkpoint is None:
        model = build(config.model, placeholder_id=prepared.processor.placeholder_id, dtype=dtype, device=device)
    else:
        model = model_checkpoint.load(checkpoint, trainable=True, dtype=dtype, device=device)
    model = attach(model, config.model, stage.config.train)
    base_model(model).logits_memory_gib = config.train.logits_memory_gib
    if not weights_are_sharded():
        # It reads some weights itself, past the hooks that gather them.
        fuse(model)
    compiling = choose_compiling(config.train, prepared.device, stage.steps * config.train.accumulation, weights_are_sharded())
    prepared.say(f"compile: {compiling}")
    if compiling.on:
        compile_layers(base_model(model).model)
    return model


def _settle_memory(prepared: Prepared, trainer: StageTrainer, model: VisionLanguageModel | PeftModel) -> None:
    """Choose the layers that recompute their activations, before the first step."""

    trial = Trial(lambda: longest_batch(trainer.get_train_dataloader(), prepared.batching.packed), trainer.try_step)
    processes = prepared.processes.num_processes
    chosen = recompute(model, prepared.config.train, trial, prepared.device, processes, weights_are_sharded())
    prepared.say(f"gradient checkpointing: {chosen}")


def _meter(prepared: Prepared, model: VisionLanguageModel | PeftModel) -> Meter:
    on_known_device = prepared.bf16 and prepared.device.type == "cuda"
    peak = peak_tflops(torch.cuda.get_device_name(prepared.device)) if on_known_device else None
    return Meter(cost_of(model, prepared.features is not None), prepared.device, peak)


def _board(prepared: Prepared, step: int) -> Board | None:
    """TensorBoard of the main process."""
    if not prepared.processes.is_main_process:
        return None
    folder = prepared.config.result_folder / "tensorboard"
    prepared.say(f"curves and panels: tensorboard --logdir {folder}")
    if weights_are_sharded():
        prepared.say("no picture panels in TensorBoard: with FSDP or ZeRO-3 no process holds a model that could answer")
    return Board(folder, step, None if weights_are_sharded() else _asking(prepared))


def _asking(prepared: Prepared) -> Callable[[nn.Module], list[Panel]] | None:
    if prepared.validation is None:
        return None
    samples = chosen_samples(prepared.validation, prepared.config.train.panels)
    return partial(ask, processor=prepared.processor, store=prepared.store, samples=samples, bf16=prepared.bf16)


def _show_results(prepared: Prepared, checkpoint: Path, history: History) -> None:
    """Curves, and what the last checkpoint answers, as PNG."""
    results = prepared.config.result_folder
    draw_curves(history, results / "loss_curves.png")
    prepared.say(f"loss curves: {results / 'loss_curves.png'}")
    asking = _asking(prepared)
    if asking is None or not prepared.config.train.panels:
        return
    if weights_are_sharded():
        prepared.say("no table of answers: the model may not fit on one device; python tools/answer.py asks the checkpoint")
        return
    panels = asking(model_checkpoint.load(checkpoint, device=prepared.device))
    with replacing(results / "answers.png") as beside:
        draw_table(panels).save(beside)
    prepared.say(f"pictures, references and answers: {results / 'answers.png'}")
