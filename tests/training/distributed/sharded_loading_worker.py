"""Worker of test_sharded_loading: rank 0 loads the weights, then the model is sharded and its weights are gathered again.

Arguments: folder of untrained models, launch file, output folder.
"""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.launch_file import fsdp_plugin, shard
from model.checkpoint_manifest import write_manifest
from model.family import LoadOptions
from model.family_config import ParamGroup
from model.siglip_qwen import checkpoint
from model.siglip_qwen.adapters import base_model, configure_trainable
from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig
from training.distributed.sharding import gather_full_state_dict, prepare_for_weights


def main(parts: str, launch_file: str, output: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, folder = torch.distributed.get_rank(), Path(output)
    stages: dict[str, tuple[ParamGroup, ...]] = {"lora": ("connector", "lora"), "language": ("connector", "language")}
    for name, groups in stages.items():
        lora = LoraConfig(r=4, lora_alpha=8) if name == "lora" else None
        config = SiglipQwenConfig(vision=f"{parts}/siglip", language=f"{parts}/qwen3", lora=lora)
        torch.manual_seed(rank)  # other initial weights on each rank: those of rank 0 must win
        model = configure_trainable(
            build(config, image_token_id=2, options=LoadOptions(torch.float32, load_weights=not rank)), config, groups
        )
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        # PEFT keeps a frozen copy of the connector, which is not loaded from a file.
        assert sum(p.is_meta for p in frozen) >= len(frozen) - 4 if rank else not any(p.is_meta for p in frozen)
        if not rank:
            save_file({key: value.detach().clone() for key, value in model.named_parameters()}, folder / f"{name}_loaded.safetensors")
        prepare_for_weights(model, rank, sends_all=False)
        sharded = shard(model, fsdp_plugin(Path(launch_file)))
        loss = sharded(input_ids=torch.tensor([[5, 6, 7, 8]]), labels=torch.tensor([[-100, 6, 7, 8]])).loss
        loss.backward()
        gathered = {key: value.full_tensor().detach().clone() for key, value in dict[str, Any](sharded.named_parameters()).items()}
        kept = gather_full_state_dict(sharded, keep=not rank)
        assert bool(kept) == (not rank)
        if not rank:
            save_file(gathered, folder / f"{name}_sharded.safetensors")
            checkpoint.save(sharded, folder / name, kept)
            write_manifest(folder / name)
            assert base_model(sharded).config.language_weights == (name == "language")
        (folder / f"{name}_loss_{rank}.txt").write_text(str(float(loss)))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
