"""The model that a stage trains: its weights, its trainable parameters, fused and compiled layers."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from model.family import LoadOptions
from model.kernels.autocast import frozen_dtype
from model.kernels.compile import compile_layers
from model.param_groups import trainable_param_groups, unwrapped
from model.siglip_qwen import initial_weights
from model.siglip_qwen.config import siglip_qwen_settings
from model.siglip_qwen.initial_weights import InitialWeights
from training.compile_policy import CompileDecision, decide_compile
from training.distributed.launch import loads_on_rank_0_alone, uses_fsdp, uses_zero3, weights_are_sharded
from training.distributed.sharding import prepare_for_weights
from training.run_setup import RunSetup, Stage


def load_stage_model(run_setup: RunSetup, stage: Stage, checkpoint: Path | None) -> Any:
    """The model with the stage's parameter groups trainable.

    checkpoint: Holds the weights; None takes those of train.init_from, or the base models and a new connector.
    """
    config, family = run_setup.config, run_setup.family
    # The previous stage switched transformers to sharded loading (ZeRO-3); the base model is loaded unsharded.
    unset_hf_deepspeed_config()
    rank_0_alone = loads_on_rank_0_alone(config.model.quantization)
    options = LoadOptions(
        dtype=frozen_dtype(run_setup.device, run_setup.precision),
        # Sharding starts from weights on the host: the full model may not fit on one device.
        device=torch.device("cpu") if weights_are_sharded() else run_setup.device,
        load_weights=run_setup.partial_state.is_main_process or not rank_0_alone,
        shardable=uses_fsdp(),
    )
    if checkpoint is not None:
        model = family.load(checkpoint, options, trainable=True)
    elif run_setup.initial_weights is not None:
        model = _initial_model(run_setup, run_setup.initial_weights, options)
    else:
        model = family.build(config.model, run_setup.processor, options)
    run_groups = tuple(dict.fromkeys(group for each in config.train.stages for group in each.train))
    model = family.configure_trainable(model, config.model, stage.config.train, run_groups)
    family.limit_logits(model, config.train.logits_memory_gib)
    if rank_0_alone:
        prepare_for_weights(model, run_setup.partial_state.process_index, sends_all=uses_zero3())
    if not weights_are_sharded():
        # Fused modules read weights directly and bypass the hooks that gather sharded ones.
        family.fuse(model)
    compile_decision = _compile_decision(run_setup, stage)
    run_setup.print_once(f"compile: {compile_decision}")
    if compile_decision.enabled:
        compile_layers(unwrapped(model).model)
    return model


def _compile_decision(run_setup: RunSetup, stage: Stage) -> CompileDecision:
    if "compiled" not in run_setup.config.model.abilities:
        return CompileDecision(False, f"layers of the family {run_setup.config.model.family} are not compiled")
    micro_batches = stage.steps * run_setup.batching.step.micro_batches
    return decide_compile(run_setup.config.train, run_setup.device, micro_batches, weights_are_sharded())


def _initial_model(run_setup: RunSetup, initial: InitialWeights, options: LoadOptions) -> Any:
    """The model with the weights of train.init_from. options: how weights are loaded."""
    config = run_setup.config
    model_settings = siglip_qwen_settings(config.model, "train.init_from")
    trains_language = any("language" in stage.train for stage in config.train.stages)
    run_setup.print_once(f"starting from {initial.folder}: {initial.describe(model_settings, trains_language)}")
    model = initial_weights.start(initial, model_settings, options, trains_language=trains_language)
    # That of the folder may be another; its embedding is never read.
    unwrapped(model).config.image_token_id = run_setup.processor.image_token_id
    return model


def describe_trained(model: nn.Module) -> str:
    """Number of trained parameters of each group, such as "connector 61.4 K, lora 1.2 M parameters"."""
    counts = {group: sum(p.numel() for p in parameters.values()) for group, parameters in trainable_param_groups(model).items()}
    return ", ".join(f"{group} {_short(count)}" for group, count in counts.items()) + " parameters"


def _short(count: int) -> str:
    return next((f"{count / size:.1f} {letter}" for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")) if count >= size), str(count))
