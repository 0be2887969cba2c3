"""Worker of test_sharded_loss: losses and gradients of a model sharded by FSDP2 or ZeRO-3, next to those of one process with all batches.

Arguments: folder of untrained models, launch file, output file, quantisation. Rank 0 writes the results as JSON.
"""

import copy
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.utils import DeepSpeedPlugin
from bitsandbytes.nn import Linear4bit
from torch.distributed.tensor import DTensor

from benchmarks.launch_file import fsdp_plugin, launch_environment, shard
from model.family import LoadOptions
from model.family_config import ParamGroup
from model.kernels.chunked_cross_entropy import BYTES_PER_LOGIT
from model.lora import enable_gradient_checkpointing
from model.quantization import Quantization
from model.siglip_qwen.adapters import configure_trainable
from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig
from model.siglip_qwen.family import FAMILY
from model.siglip_qwen.processor import Processor
from training.distributed.sharding import prepare_for_weights

TOKENS, POSITIONS_PER_CHUNK = 64, 8
SUPERVISED = [(6, 30), (0, 30), (30, 0), (1, 8)]
"""Supervised tokens of the two ranks in each case."""


def batch(processor: Processor, supervised: int, seed: int, with_image: bool) -> dict[str, torch.Tensor]:
    """One row of random text, optionally after an image, of which the last tokens are supervised."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 250, (1, TOKENS), generator=generator)
    ids[ids == processor.image_token_id] = 2
    tokens = {"input_ids": ids}
    if with_image:
        ids[0, : processor.tokens_per_image] = processor.image_token_id
        tokens["pixel_values"] = torch.rand(1, 3, 96, 96, generator=generator)
    labels = ids.clone()
    labels[:, : TOKENS - supervised] = -100
    return {**tokens, "labels": labels}


class Fsdp2:
    """A model sharded with the settings of a launch file; every rank calls each method at the same time."""

    def __init__(self, model: torch.nn.Module, launch_file: Path):
        self.module = shard(model, fsdp_plugin(launch_file))
        quantised = [module.weight for module in self.module.modules() if isinstance(module, Linear4bit)]
        assert all(isinstance(weight, DTensor) for weight in quantised)

    def loss(self, **inputs: Any) -> torch.Tensor:
        loss: torch.Tensor = self.module(**inputs).loss
        return loss

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def gradients(self) -> dict[str, torch.Tensor]:
        """Full gradients of all trained parameters, by name."""
        return {name: p.grad.full_tensor().clone() for name, p in self.module.named_parameters() if isinstance(p.grad, DTensor)}

    def zero_grad(self) -> None:
        self.module.zero_grad()


def zero3_engine(model: torch.nn.Module, launch_file: Path) -> Any:
    """DeepSpeed's engine for a model, with the settings of a launch file and batches of one, on CPU ranks. Every rank must call this.

    All trained parameters are sharded, also small ones, and steps change nothing (SGD, learning rate 0).
    """
    import deepspeed

    variables = {key: value for key, value in launch_environment(launch_file).items() if "DEEPSPEED" in key}
    with patch.dict(os.environ, variables):
        config = DeepSpeedPlugin().deepspeed_config
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "zero_allow_untested_optimizer": True}
    for key in ("gradient_clipping", "train_batch_size"):
        config.pop(key, None)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(trained, lr=0.0), config=config)
    return engine


class Zero3(Fsdp2):
    """The same with DeepSpeed."""

    def __init__(self, model: torch.nn.Module, launch_file: Path):
        self.engine = zero3_engine(model, launch_file)
        self.module = model

    def loss(self, **inputs: Any) -> torch.Tensor:
        loss: torch.Tensor = self.engine(**inputs).loss
        return loss

    def backward(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss)

    def gradients(self) -> dict[str, torch.Tensor]:
        from deepspeed.utils import safe_get_full_grad

        trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        return {name: gradient.clone() for name, p in trained.items() if (gradient := safe_get_full_grad(p)) is not None}

    def zero_grad(self) -> None:
        self.engine.step()  # with a learning rate of 0


def compare(single: torch.nn.Module, sharded: Fsdp2, processor: Processor) -> list[dict[str, Any]]:
    """Largest differences of loss and gradients between the sharded model and one process, in each case of SUPERVISED."""
    rank, results = torch.distributed.get_rank(), []
    for case, counts in enumerate(SUPERVISED):
        batches = [batch(processor, count, 10 * case + i, with_image=i != case % 2) for i, count in enumerate(counts)]
        expected = sum(single(**inputs, num_items_in_batch=sum(counts)).loss for inputs in batches)
        expected.backward()
        loss = sharded.loss(**batches[rank], num_items_in_batch=sum(counts))
        # Gradients are averaged over ranks, so the Trainer multiplies each rank's loss by their number.
        sharded.backward(2 * loss)
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        expected_gradients = {name: p.grad.clone() for name, p in single.named_parameters() if p.grad is not None}
        actual = sharded.gradients()
        assert expected_gradients.keys() == actual.keys()
        gradient_gap = max(float((actual[name] - value).abs().max()) for name, value in expected_gradients.items())
        largest = max(float(value.abs().max()) for value in actual.values())
        results.append({"supervised": counts, "loss_gap": abs(float(total - expected)), "gradient_gap": gradient_gap, "gradient": largest})
        single.zero_grad()
        sharded.zero_grad()
    return results


def trained_model(
    config: SiglipQwenConfig, image_token_id: int, groups: Collection[ParamGroup], recompute: bool, sent: bool = False
) -> torch.nn.Module:
    """The model in training mode, with a limit to the logits' memory of POSITIONS_PER_CHUNK positions.

    sent: Rank 0 alone has the weights; the others get them when the model is sharded.
    """
    torch.manual_seed(0)
    load_weights = not (sent and torch.distributed.get_rank())
    base = build(config, image_token_id=image_token_id, options=LoadOptions(torch.float32, load_weights=load_weights, shardable=True))
    base.logits_memory_gib = POSITIONS_PER_CHUNK * BYTES_PER_LOGIT * base.config.text_config.vocab_size / 2**30
    model = configure_trainable(base, config, groups)
    if sent:
        prepare_for_weights(model, torch.distributed.get_rank(), sends_all=True)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide wrong gradients of lora_A
            torch.nn.init.normal_(parameter, std=0.02)
    if recompute:
        enable_gradient_checkpointing(model)
    return model.train()


def main(parts: str, launch_file: str, output: str, quantization: Quantization) -> None:
    torch.set_num_threads(1)
    start_process_group("zero3" in launch_file)
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0)
    config = SiglipQwenConfig(vision=f"{parts}/siglip", language=f"{parts}/qwen3", lora=lora, quantization=quantization)
    processor, results = FAMILY.processor(config), []
    stages: list[tuple[ParamGroup, ...]] = [("connector", "lora")]
    if quantization == "none":
        stages += [("connector", "language"), ("vision", "connector", "lora")]
    for groups, recompute in itertools.product(stages, (False, True)):
        settings = config if "lora" in groups else dataclasses.replace(config, lora=None)
        single = trained_model(settings, processor.image_token_id, groups, recompute)
        if "zero3" in launch_file:
            sharded: Fsdp2 = Zero3(trained_model(settings, processor.image_token_id, groups, recompute, sent=True), Path(launch_file))
        else:
            sharded = Fsdp2(copy.deepcopy(single), Path(launch_file))
        results += [{"groups": groups, "recompute": recompute, **case} for case in compare(single, sharded, processor)]
    if torch.distributed.get_rank() == 0:
        Path(output).write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


def start_process_group(with_deepspeed: bool) -> None:
    """Connect the ranks over gloo, through DeepSpeed where it trains."""
    timeout = timedelta(seconds=60)
    if with_deepspeed:
        import deepspeed

        deepspeed.init_distributed("gloo", timeout=timeout)
    else:
        torch.distributed.init_process_group("gloo", timeout=timeout)


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
