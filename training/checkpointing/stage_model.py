"""The model that a stage trains: its weights, its trainable parameters, fused and compiled layers."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from model.kernels.autocast import frozen_dtype
from model.kernels.compile import compile_layers
from model.lora import base_model, configure_trainable
from model.siglip_qwen import checkpoint as model_checkpoint
from model.siglip_qwen import initial_weights
from model.siglip_qwen.assembly import build
from model.siglip_qwen.fused_modules import fuse_modules
from model.siglip_qwen.initial_weights import InitialWeights
from model.siglip_qwen.modeling import VisionLanguageModel
from training.compile_policy import decide_compile
from training.distributed.launch import loads_on_rank_0_alone, uses_fsdp, uses_zero3, weights_are_sharded
from training.distributed.sharded_loading import prepare_for_weights
from training.run_setup import RunSetup
from training.stages import Stage


def load_stage_model(run_setup: RunSetup, stage: Stage, checkpoint: Path | None) -> VisionLanguageModel | PeftModel:
    """The model with the stage's parameter groups trainable.

    checkpoint: Holds the weights; None takes those of train.init_from, or the base models and a new connector.
    """
    config = run_setup.config
    # The previous stage switched transformers to sharded loading (ZeRO-3); the base model is loaded unsharded.
    unset_hf_deepspeed_config()
    # Sharding starts from weights on the host: the full model may not fit on one device.
    device = torch.device("cpu") if weights_are_sharded() else run_setup.device
    dtype = frozen_dtype(run_setup.device, run_setup.precision)
    rank_0_alone = loads_on_rank_0_alone(config.model.quantization)
    options: dict[str, Any] = {"dtype": dtype, "device": device, "shardable": uses_fsdp()}
    options["load_weights"] = run_setup.partial_state.is_main_process or not rank_0_alone
    if checkpoint is not None:
        model = model_checkpoint.load(checkpoint, trainable=True, **options)
    elif run_setup.initial_weights is not None:
        model = _initial_model(run_setup, run_setup.initial_weights, options)
    else:
        model = build(config.model, image_token_id=run_setup.processor.image_token_id, **options)
    model = configure_trainable(model, config.model, stage.config.train)
    base_model(model).logits_memory_gib = config.train.logits_memory_gib
    if rank_0_alone:
        prepare_for_weights(model, run_setup.partial_state.process_index, sends_all=uses_zero3())
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


def _initial_model(run_setup: RunSetup, initial: InitialWeights, options: dict[str, Any]) -> VisionLanguageModel | PeftModel:
    """The model with the weights of train.init_from. options: how weights are loaded."""
    config = run_setup.config
    trains_language = any("language" in stage.train for stage in config.train.stages)
    run_setup.print_once(f"starting from {initial.folder}: {initial.describe(config.model, trains_language)}")
    model = initial_weights.start(initial, config.model, trains_language=trains_language, **options)
    # That of the folder may be another; its embedding is never read.
    base_model(model).config.image_token_id = run_setup.processor.image_token_id
    return model
