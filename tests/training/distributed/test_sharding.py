"""FSDP2 with a world size of one: gathered weights must be complete."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from model.siglip_qwen.adapters import configure_trainable
from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig
from model.siglip_qwen.processor import Processor
from training.distributed.sharding import configure_fsdp, gather_full_state_dict, reshard_model


@pytest.fixture
def world(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def tuned(parts: Path, processor: Processor) -> PeftModel:
    config = SiglipQwenConfig(vision=str(parts / "siglip"), language=str(parts / "qwen3"), lora=LoraConfig(r=2, lora_alpha=4))
    model = configure_trainable(build(config, image_token_id=processor.image_token_id), config, ("connector", "lora"))
    assert isinstance(model, PeftModel)
    return model


@pytest.mark.usefixtures("world")
def test_sharded_weights_are_gathered(tuned: PeftModel) -> None:
    expected = {name: value.clone() for name, value in gather_full_state_dict(tuned).items()}
    for layer in tuned.get_base_model().model.language_model.layers:
        fully_shard(layer)
    fully_shard(tuned)
    assert isinstance(next(tuned.parameters()), DTensor)
    gathered = gather_full_state_dict(tuned)
    assert gathered.keys() == expected.keys()
    assert all(type(value) is torch.Tensor and torch.equal(value, expected[name]) for name, value in gathered.items())


@pytest.mark.usefixtures("world")
def test_all_weights_are_sharded_again_after_an_evaluation(tuned: PeftModel) -> None:
    fully_shard(tuned)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        tuned(input_ids=ids, labels=ids)
    assert not isinstance(next(tuned.parameters()), DTensor)
    reshard_model(tuned)
    assert all(isinstance(parameter, DTensor) for parameter in tuned.parameters())


def test_fsdp_wraps_the_model_s_layers_and_reduces_gradients_in_fp32(tuned: PeftModel) -> None:
    plugin = SimpleNamespace(mixed_precision_policy=MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16))
    configure_fsdp(plugin, tuned)
    assert plugin.transformer_cls_names_to_wrap == ["Qwen3DecoderLayer", "SiglipEncoderLayer"]
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)
