"""Run all training stages: from a configuration to checkpoints, loss curves and sample predictions.

Every stage starts in the same way: the base model is built and the weights of the latest checkpoint are loaded. So a resumed run
gives the same result as an uninterrupted one.
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

from atomic_io import atomic_write
from errors import UsageError
from model.kernels.autocast import frozen_dtype
from model.kernels.compile import compile_layers
from model.lora import base_model, configure_trainable
from model.siglip_qwen import checkpoint as model_checkpoint
from model.siglip_qwen.assembly import build
from model.siglip_qwen.fused_modules import fuse_modules
from model.siglip_qwen.modeling import VisionLanguageModel
from process_group import ProcessGroup
from training.checkpointing.checkpoint_writer import TRAINER_FOLDER, CheckpointWriter, checkpoint_folders, checkpoint_step
from training.checkpointing.resume import RunState, check_same_settings, read_run_state, settings
from training.checkpointing.world_size_change import STEP_KEYS
from training.compile_policy import check_step_settings, decide_compile
from training.config import Experiment
from training.distributed.launch import weights_are_sharded
from training.distributed.sharded_loading import loads_on_rank_0_alone, prepare_for_weights
from training.feature_cache.feature_extraction import with_cached_features
from training.gradient_checkpointing import Trial, configure_activation_checkpointing, longest_batch
from training.monitoring.console import ConsoleLogger
from training.monitoring.loss_curves import plot_loss_curves
from training.monitoring.metrics_history import History
from training.monitoring.prediction_panels import Panel, render_table
from training.monitoring.run_cost import print_run_cost
from training.monitoring.sample_predictions import generate_panels, select_samples
from training.monitoring.tensorboard_logger import TensorBoardLogger
from training.monitoring.throughput import ThroughputMeter, model_step_flops, peak_tflops
from training.out_of_memory import explain_out_of_memory, keep_freed_host_memory
from training.run_setup import RunSetup, setup_run, stage_length, training_loader, validation_loader, with_resumed_batching
from training.stage_trainer import Stage, StageTrainer, training_arguments
from training.stages import describe_trained
from training.unreadable_images import UnreadableImages, UnreadableLimit


def train(config: Experiment, resume: str | None = None) -> Path:
    """Run all stages, or those that are left after a checkpoint; returns the folder of the last checkpoint.

    resume: None starts from scratch, "auto" resumes from the latest complete checkpoint, otherwise a checkpoint folder.
    Raises UsageError for settings that contradict each other, the data or the machine, TesseraError when training fails.
    """
    run_setup = setup_run(config)
    check_step_settings(config.train, run_setup.device, weights_are_sharded())
    current_settings = settings(
        config,
        run_setup.store.folder / "samples.parquet",
        run_setup.partial_state.num_processes,
        run_setup.batching.packed,
        run_setup.precision,
    )
    checkpoint = _resume_checkpoint(run_setup, resume)
    state = read_run_state(checkpoint / TRAINER_FOLDER) if checkpoint else None
    if checkpoint and state:
        current_settings |= {key: state.settings[key] for key in STEP_KEYS}
        check_same_settings(checkpoint, state, current_settings)
        run_setup = with_resumed_batching(run_setup, state.settings)
        run_setup.print_once(f"resuming from {checkpoint}")
    history = History(list(state.history) if state else [])
    lengths = [stage_length(run_setup, index) for index in range(len(config.train.stages))]
    first, first_step = _next_stage(state)
    done = state.step - first_step if state and not state.finished else 0
    print_run_cost(run_setup, {index: lengths[index] - done * (index == first) for index in range(first, len(lengths))})
    if config.train.cache_vision_features and first < len(lengths):
        run_setup = with_cached_features(run_setup)
    if run_setup.device.type == "cpu" and sys.platform == "linux":
        keep_freed_host_memory()
    tensorboard_logger = _tensorboard_logger(run_setup, state.step if state else 0)
    with contextlib.ExitStack() as exit_stack:
        if tensorboard_logger is not None:
            # Also when the run fails: the last events are still in memory.
            exit_stack.callback(tensorboard_logger.close)
        for index in range(first, len(lengths)):
            stage = Stage(config.train.stages[index], index, first_step, lengths[index])
            total = first_step + sum(lengths[index:])
            resuming = state is not None and not state.finished and index == first
            checkpoint = _run_stage(run_setup, stage, total, checkpoint, resuming, history, current_settings, tensorboard_logger)
            first_step = checkpoint_step(checkpoint)
    assert checkpoint is not None  # there is at least one stage
    if tensorboard_logger is not None:
        _write_results(run_setup, checkpoint, history)
    return checkpoint


def _next_stage(state: RunState | None) -> tuple[int, int]:
    """Index of the next stage, and the optimizer steps before it."""
    if state is None:
        return 0, 0
    return (state.stage + 1, state.step) if state.finished else (state.stage, state.first_step)


def _resume_checkpoint(run_setup: RunSetup, resume: str | None) -> Path | None:
    """The checkpoint to resume from. Raises UsageError when the run would overwrite existing checkpoints."""
    folder = run_setup.config.checkpoint_folder
    existing = checkpoint_folders(folder)
    if resume is None:
        if existing:
            raise UsageError(f"{existing[-1]} already exists: continue with --resume auto, move it away, or choose another name")
        return None
    if resume == "auto":
        for checkpoint in reversed(existing):
            reason = model_checkpoint.manifest_mismatch(checkpoint)
            if reason is None:
                return checkpoint
            run_setup.print_once(f"skipping {checkpoint}: {reason}")
        run_setup.print_once(f"no complete checkpoint in {folder}: starting from scratch")
        return None
    checkpoint = Path(resume)
    reason = model_checkpoint.manifest_mismatch(checkpoint)
    if reason is not None:
        raise UsageError(f"--resume {checkpoint}: not a complete checkpoint: {reason}")
    later = [path for path in existing if checkpoint_step(path) > checkpoint_step(checkpoint)]
    if later:
        raise UsageError(f"--resume {checkpoint}: {later[-1]} is later; move it away first, or continue with --resume auto")
    return checkpoint


def _run_stage(
    run_setup: RunSetup,
    stage: Stage,
    total: int,
    checkpoint: Path | None,
    resuming: bool,
    history: History,
    current_settings: dict[str, Any],
    tensorboard_logger: TensorBoardLogger | None,
) -> Path:
    """Train one stage and return its last checkpoint.

    Args:
        total: Optimizer steps of all stages.
        checkpoint: Holds the weights to start from; None starts from the base model.
        resuming: Whether `checkpoint` was written during this stage and holds its optimizer state.
        history: Metrics of the run so far; the stage adds its own.
        current_settings: Settings that go into every checkpoint (see training.checkpointing.resume).
        tensorboard_logger: None on all ranks but rank 0.
    """
    config, partial_state = run_setup.config, run_setup.partial_state
    set_seed(config.train.seed)
    with explain_out_of_memory("loading the model"):
        model = _model(run_setup, stage, checkpoint)
    folder = config.checkpoint_folder
    run_setup.print_once(f"stage {stage.config.name}: {stage.steps:,} steps, {describe_trained(model)}")
    validation = validation_loader(run_setup)
    trainer = StageTrainer(
        model,
        training_arguments(
            config.train,
            stage,
            folder,
            micro_batches=run_setup.batching.step.micro_batches,
            precision=run_setup.precision,
            device=run_setup.device,
            validate=validation is not None,
        ),
        train=config.train,
        stage=stage,
        loader=training_loader(run_setup, stage.index),
        validation=validation,
        history=history,
        meter=_meter(run_setup, model),
        processor=run_setup.processor,
        checkpoints=CheckpointWriter(folder, config.train.save_total_limit, partial_state),
        unreadable=_unreadable_images(run_setup, history),
        settings=current_settings,
    )
    if tensorboard_logger is not None:
        done = read_run_state(checkpoint / TRAINER_FOLDER).step if checkpoint else 0
        trainer.add_callback(ConsoleLogger(done, total))
        trainer.add_callback(tensorboard_logger)
    # Trainer seeds all ranks alike; dropout masks should differ between ranks.
    set_seed(config.train.seed + stage.index + 1000 * partial_state.process_index)
    with explain_out_of_memory("training"):
        _configure_activation_checkpointing(run_setup, trainer, model)
        trainer.train_stage(checkpoint if resuming else None)
    last = folder / f"checkpoint-{trainer.step}"
    trainer.accelerator.free_memory()
    del trainer, model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return last


def _unreadable_images(run_setup: RunSetup, history: History) -> UnreadableImages:
    """The counter of unreadable images, with those that the history holds already."""
    limit = UnreadableLimit(run_setup.config.train.max_unreadable_images, len(run_setup.used_images()))
    group = ProcessGroup(run_setup.partial_state.process_index, run_setup.partial_state.num_processes)
    return UnreadableImages(history, limit, group, run_setup.print_once)


def _model(run_setup: RunSetup, stage: Stage, checkpoint: Path | None) -> VisionLanguageModel | PeftModel:
    """The base model with the weights of a checkpoint and the stage's parameter groups trainable."""
    config = run_setup.config
    # The previous stage switched transformers to sharded loading (ZeRO-3); the base model is loaded unsharded.
    unset_hf_deepspeed_config()
    # Sharding starts from weights on the host: the full model may not fit on one device.
    device = torch.device("cpu") if weights_are_sharded() else run_setup.device
    dtype = frozen_dtype(run_setup.device, run_setup.precision)
    load_weights = not loads_on_rank_0_alone() or run_setup.partial_state.is_main_process
    if checkpoint is None:
        image_token_id = run_setup.processor.image_token_id
        model = build(config.model, image_token_id=image_token_id, dtype=dtype, device=device, load_weights=load_weights)
    else:
        model = model_checkpoint.load(checkpoint, trainable=True, dtype=dtype, device=device, load_weights=load_weights)
    model = configure_trainable(model, config.model, stage.config.train)
    base_model(model).logits_memory_gib = config.train.logits_memory_gib
    if loads_on_rank_0_alone():
        prepare_for_weights(model, run_setup.partial_state.process_index)
    if not weights_are_sharded():
        # Fused modules read weights directly and bypass the hooks that gather sharded ones.
        fuse_modules(model)
    compile_decision = decide_compile(
        config.train, run_setup.device, stage.steps * run_setup.batching.step.micro_batches, weights_are_sharded()
    )
    run_setup.print_once(f"compile: {compile_decision}")
    if compile_decision.enabled:
        compile_layers(base_model(model).model)
    return model


def _configure_activation_checkpointing(run_setup: RunSetup, trainer: StageTrainer, model: VisionLanguageModel | PeftModel) -> None:
    """Choose the layers that recompute their activations, before the first optimizer step."""

    trial = Trial(lambda: longest_batch(trainer.get_train_dataloader(), run_setup.batching.packed), trainer.run_trial_step)
    num_processes = run_setup.partial_state.num_processes
    chosen = configure_activation_checkpointing(
        model, run_setup.config.train, trial, run_setup.device, num_processes, weights_are_sharded()
    )
    run_setup.print_once(f"gradient checkpointing: {chosen}")


def _meter(run_setup: RunSetup, model: VisionLanguageModel | PeftModel) -> ThroughputMeter:
    peak_is_known = run_setup.precision != "fp32" and run_setup.device.type == "cuda"
    peak = peak_tflops(torch.cuda.get_device_name(run_setup.device)) if peak_is_known else None
    return ThroughputMeter(model_step_flops(model, run_setup.features is not None), run_setup.device, peak)


def _tensorboard_logger(run_setup: RunSetup, step: int) -> TensorBoardLogger | None:
    """The TensorBoard logger of rank 0; None on the other ranks."""
    if not run_setup.partial_state.is_main_process:
        return None
    folder = run_setup.config.result_folder / "tensorboard"
    run_setup.print_once(f"curves and sample predictions: tensorboard --logdir {folder}")
    if weights_are_sharded():
        run_setup.print_once("no sample predictions in TensorBoard: with FSDP or ZeRO-3 no process holds the full model")
    return TensorBoardLogger(folder, step, None if weights_are_sharded() else _panel_generator(run_setup))


def _panel_generator(run_setup: RunSetup) -> Callable[[nn.Module], list[Panel]] | None:
    """A function from a model to its sample predictions; None without validation samples."""
    if run_setup.validation is None:
        return None
    samples = select_samples(run_setup.validation, run_setup.config.train.num_logged_predictions)
    return partial(generate_panels, processor=run_setup.processor, store=run_setup.store, samples=samples, precision=run_setup.precision)


def _write_results(run_setup: RunSetup, checkpoint: Path, history: History) -> None:
    """Write the loss curves and the last checkpoint's sample predictions as PNG."""
    results = run_setup.config.result_folder
    plot_loss_curves(history, results / "loss_curves.png")
    run_setup.print_once(f"loss curves: {results / 'loss_curves.png'}")
    panel_generator = _panel_generator(run_setup)
    if panel_generator is None or not run_setup.config.train.num_logged_predictions:
        return
    if weights_are_sharded():
        run_setup.print_once("no sample predictions: the model may not fit on one device; use python tools/answer.py")
        return
    panels = panel_generator(model_checkpoint.load(checkpoint, device=run_setup.device))
    with atomic_write(results / "answers.png") as temp_path:
        render_table(panels).save(temp_path)
    run_setup.print_once(f"sample predictions: {results / 'answers.png'}")
