"""LoRA adapters are merged as PEFT merges them; what is more than plain LoRA is left to PEFT."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from model.lora_merging import read_plain_lora


class Layers(nn.Module):
    """Two linear layers of different shapes and one that LoRA leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(6, 10), nn.Linear(10, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 6] -> [N, 3]."""
        output: torch.Tensor = self.head(self.down(self.up(x)))
        return output


def adapted(folder: Path, **settings: Any) -> tuple[Layers, peft.PeftModel]:
    """A base model and the same one with random adapters; their config is written into `folder`."""
    torch.manual_seed(1)
    base, copy = Layers(), Layers()
    copy.load_state_dict(base.state_dict())
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=r".*(up|down)", **settings)
    model = peft.get_peft_model(copy, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    model.peft_config["default"].save_pretrained(folder)
    return base, model


def test_merged_weights_are_those_of_peft(tmp_path: Path) -> None:
    base, model = adapted(tmp_path)
    tensors = {key.removeprefix("base_model.model."): value for key, value in peft.get_peft_model_state_dict(model).items()}
    lora = read_plain_lora(tmp_path / "adapter_config.json")
    assert lora is not None
    assert lora.expected_shapes(base) == {key: value.shape for key, value in tensors.items()}
    unchanged = base.up.weight.clone()
    lora.merge(base, tensors)
    assert not torch.equal(base.up.weight, unchanged)
    merged = model.merge_and_unload().state_dict()
    for name, value in base.state_dict().items():
        torch.testing.assert_close(value, merged[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, {"use_rslora": True}, {"lora_bias": True}, {"rank_pattern": {"up": 2}}, {"alpha_pattern": {"up": 2}}],
    ids=lambda settings: next(iter(settings)),
)
def test_more_than_plain_lora_is_left_to_peft(tmp_path: Path, settings: dict[str, Any]) -> None:
    adapted(tmp_path, **settings)
    assert read_plain_lora(tmp_path / "adapter_config.json") is None


def test_a_list_of_layers_is_left_to_peft(tmp_path: Path) -> None:
    adapted(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": ["up"]}))
    assert read_plain_lora(path) is None


def test_what_asks_a_checkpoint_imports_neither_peft_nor_bitsandbytes() -> None:
    code = "import sys, answering.answerer_factory, model.siglip_qwen.family; print(sorted({'peft', 'bitsandbytes'} & sys.modules.keys()))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"
