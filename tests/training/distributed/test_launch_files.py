"""What the launcher makes of each launch file of configs/accelerate."""

from pathlib import Path

import pytest
import yaml
from torch.distributed.fsdp import OffloadPolicy

from benchmarks.launch_file import fsdp_plugin, launch_arguments, launch_environment
from errors import UsageError
from model.qwen_vl.config import QwenVlConfig
from model.siglip_qwen.config import SiglipQwenConfig
from training.distributed.launch import check_shardable, loads_on_rank_0_alone, weights_are_sharded

FILES = sorted(Path("configs/accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_launcher_takes_every_key_of_a_launch_file(path: Path) -> None:
    arguments = launch_arguments(path)
    settings = yaml.safe_load(path.read_text())
    assert arguments.mixed_precision == "no", "train.precision sets the precision"
    for section in ("fsdp_config", "deepspeed_config"):
        for key, value in settings.get(section, {}).items():
            assert getattr(arguments, key) == value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_training_knows_from_the_launch_file_whether_weights_are_sharded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in launch_environment(path).items():
        monkeypatch.setenv(key, value)
    assert weights_are_sharded() == ("fsdp" in path.stem or "zero3" in path.stem)


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2_qlora"])
def test_fsdp2_reshards_after_each_layer_and_keeps_optimizer_states_sharded(name: str) -> None:
    plugin = fsdp_plugin(Path(f"configs/accelerate/{name}.yaml"))
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    assert not plugin.activation_checkpointing, "train.gradient_checkpointing sets it"
    assert plugin.cpu_ram_efficient_loading == (name == "fsdp2"), "rank 0 alone loads weights that are not quantised"
    assert type(plugin.cpu_offload) is OffloadPolicy


def test_quantised_weights_are_refused_where_they_cannot_be_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in launch_environment(Path("configs/accelerate/fsdp2_qlora.yaml")).items():
        monkeypatch.setenv(key, value)
    check_shardable(SiglipQwenConfig(quantization="nf4"))
    assert not loads_on_rank_0_alone("nf4")
    with pytest.raises(UsageError, match=r"model\.quantization: int8 weights cannot be sharded"):
        check_shardable(SiglipQwenConfig(quantization="int8"))
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UsageError, match=r"sharded by FSDP2 only; launch with fsdp2_qlora\.yaml"):
        check_shardable(SiglipQwenConfig(quantization="nf4"))
    for key, value in launch_environment(Path("configs/accelerate/deepspeed_zero3.yaml")).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UsageError, match=r"nf4 weights cannot be sharded by ZeRO-3"):
        check_shardable(SiglipQwenConfig(quantization="nf4"))


@pytest.mark.parametrize(("name", "library"), [("fsdp2", "FSDP"), ("deepspeed_zero2", "DeepSpeed"), ("deepspeed_zero3", "DeepSpeed")])
def test_a_family_that_is_not_sharded_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, library: str) -> None:
    """ZeRO-2 too, whose checkpoints are gathered."""
    for key, value in launch_environment(Path(f"configs/accelerate/{name}.yaml")).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UsageError, match=rf"model\.family: models of this family are not trained with {library}"):
        check_shardable(QwenVlConfig(family="qwen_vl", path="a/b"))
