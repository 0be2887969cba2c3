"""A run of TRL's SFTTrainer, as its documentation has it for vision-language models. Run by the Python of a peer environment.

Usage: python trl_training.py SETTINGS.json RESULT.json. The settings are those of `benchmarks.training.trl_comparison.peer_settings`; the
result has samples_per_second, trained_parameters, loss and version. Nothing of this project is imported.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, TrainerCallback
from transformers.processing_utils import ProcessorMixin


class StepTimes(TrainerCallback):
    """The time at which each step ended, in seconds."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def load_processor(path: str) -> Any:
    """The processor of a folder. That of Qwen-VL needs torchvision for videos; without it, it is made of its other parts."""
    if AutoConfig.from_pretrained(path).model_type != "qwen3_vl":
        return AutoProcessor.from_pretrained(path)
    from transformers import Qwen3VLProcessor

    class ImageProcessor(Qwen3VLProcessor):  # type: ignore[misc]
        """Without the part for videos."""

        def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None):
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)
            for name, token in (("image", "<|image_pad|>"), ("vision_start", "<|vision_start|>"), ("vision_end", "<|vision_end|>")):
                setattr(self, f"{name}_token", token)
                setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))

        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    return ImageProcessor(AutoImageProcessor.from_pretrained(path), AutoTokenizer.from_pretrained(path))


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Train, and measure the steps behind `first_step`."""
    import trl

    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    first = settings["first_step"]
    arguments = trl.SFTConfig(
        **settings["training"],
        gradient_checkpointing=False,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        max_length=None,
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
    )
    times = StepTimes()
    model = AutoModelForImageTextToText.from_pretrained(settings["model"], dtype=torch.bfloat16 if on_gpu else torch.float32)
    trainer = trl.SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=load_dataset("json", data_files=settings["data"], split="train", cache_dir=arguments.output_dir),
        processing_class=load_processor(settings["model"]),
        peft_config=LoraConfig(**settings["lora"]),
        callbacks=[times],
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    samples = (arguments.max_steps - first) * arguments.per_device_train_batch_size
    return {
        "samples_per_second": samples / (times.ends[-1] - times.ends[first - 1]),
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "loss": losses[-1],
        "version": f"trl {trl.__version__}",
    }


if __name__ == "__main__":
    result = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
