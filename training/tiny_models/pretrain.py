"""Pre-train the tiny models one after the other and save each like a model folder on the Hub."""

import dataclasses
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen2Tokenizer

from atomic_io import atomic_write_folder
from training.tiny_models import mixed_precision, warm_start
from training.tiny_models.architectures import TINY_MODELS, build_tiny_model, build_tokenizer, save_tiny_model
from training.tiny_models.blip2_pretraining import blip2_task
from training.tiny_models.contrastive_pretraining import clip_task, siglip_task
from training.tiny_models.data.pretraining_batches import SceneBatches
from training.tiny_models.data.tokenizer_corpus import SEED, tokenizer_corpus
from training.tiny_models.language_pretraining import qwen3_task, qwen3_vl_task
from training.tiny_models.model_cards import ModelCard, previous_runs
from training.tiny_models.pretraining_loop import Recipe, Task, fit
from training.tiny_models.resnet_gpt2_pretraining import gpt2_task, resnet_task
from visual.hub_name import pretrained

TaskFactory = Callable[[Any, Qwen2Tokenizer, SceneBatches], Task]
"""Makes the pre-training task of a model on its device, with its tokenizer, about these scenes."""

TASKS_AND_RECIPES: dict[str, tuple[TaskFactory, Recipe]] = {
    "siglip": (siglip_task, Recipe(steps=2000, batch_size=256, learning_rate=1e-3)),
    "clip": (clip_task, Recipe(steps=1000, batch_size=256, learning_rate=1e-3)),
    "qwen3": (qwen3_task, Recipe(steps=6000, batch_size=32, learning_rate=1e-3)),
    "qwen3_vl": (qwen3_vl_task, Recipe(steps=220, batch_size=128, learning_rate=7e-4)),
    "resnet": (resnet_task, Recipe(steps=400, batch_size=96, learning_rate=2e-3)),
    "gpt2": (gpt2_task, Recipe(steps=400, batch_size=32, learning_rate=1e-3)),
    "blip2": (blip2_task, Recipe(steps=900, batch_size=48, learning_rate=1e-3)),
}

EASY_STEPS_DIVISOR = 5
"""Qwen3's first steps // EASY_STEPS_DIVISOR batches use scenes with few objects."""

_SEEDS = 1_000
"""Added to the seed for every earlier run of a model, so that each run has scenes of its own."""


def write_untrained(folder: Path, model_names: Iterable[str], seed: int) -> list[str]:
    """Write those of the models that are missing in `folder`, with random weights; returns their names."""
    missing = [name for name in TINY_MODELS if name in model_names and not (folder / name / "config.json").exists()]
    if missing:
        tokenizer, recipe = build_tokenizer(tokenizer_corpus()), Recipe(steps=0, batch_size=0, learning_rate=0.0)
        for name in missing:
            _write(folder, name, build_tiny_model(name, tokenizer, seed), tokenizer, ModelCard(name, recipe, seed))
    return missing


@dataclass(frozen=True)
class PretrainingSettings:
    """Settings of a pre-training run.

    Args:
        seed: seed of initial weights and scenes.
        device: device of the training.
        workers: data loading processes.
        compiled: compile the models' layers.
        further: continue from each model's own weights in the folder, on new scenes.
        steps: overrides the recipe's steps.
        batch_size: overrides the recipe's batch size.
        learning_rate: overrides the recipe's peak learning rate.
    """

    seed: int
    device: torch.device
    workers: int
    compiled: bool = False
    further: bool = False
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None

    def override(self, recipe: Recipe) -> Recipe:
        """The recipe of a model with the overrides applied."""
        given: dict[str, Any] = {"steps": self.steps, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
        return dataclasses.replace(recipe, **{name: value for name, value in given.items() if value is not None})


def pretrain(folder: Path, model_names: Iterable[str], settings: PretrainingSettings) -> list[ModelCard]:
    """Train the models in the order of TINY_MODELS and write each into `folder` when it is done.

    An interrupted run resumes. CLIP starts from the SigLIP in `folder`, Qwen3-VL from the Qwen3 and the SigLIP there, if they exist.

    Returns: the model cards.
    Raises: UsageError when `settings.further` is set and a model in `folder` was never trained.
    """
    tokenizer = build_tokenizer(tokenizer_corpus())
    return [_pretrain_model(folder, name, settings, tokenizer) for name in TINY_MODELS if name in model_names]


def _pretrain_model(folder: Path, model_name: str, settings: PretrainingSettings, tokenizer: Qwen2Tokenizer) -> ModelCard:
    make_task, recipe = TASKS_AND_RECIPES[model_name]
    recipe, seed, device = settings.override(recipe), settings.seed, settings.device
    model = build_tiny_model(model_name, tokenizer, seed)
    runs, earlier_runs = previous_runs(folder / model_name) if settings.further else (0, "")
    started_from = (earlier_runs,) if runs else warm_start.start(folder, model_name, model)
    if runs:
        model.load_state_dict(type(model).from_pretrained(**pretrained(folder / model_name), dtype=torch.float32).state_dict())
    scene_seed = SEED + len(TINY_MODELS) * (seed + _SEEDS * runs) + TINY_MODELS.index(model_name)
    num_easy_batches = recipe.steps // EASY_STEPS_DIVISOR if model_name == "qwen3" and not settings.further else 0
    scenes = SceneBatches(scene_seed, recipe.batch_size, num_easy_batches=num_easy_batches)
    task = make_task(model.to(device), tokenizer, scenes)
    state_file = folder / f".{model_name}.{device.type}.{seed}.{runs}.pt"
    with mixed_precision.mixed_precision(model, settings.compiled):
        fit(task, recipe, state_file, model_name, workers=settings.workers)
    _round_to_bf16(model)
    metrics = tuple(task.measure(model).items())
    card = ModelCard(model_name, recipe, seed, scene_seed, _device_name(device), started_from, metrics, run=runs + 1)
    _write(folder, model_name, model.cpu(), tokenizer, card)
    state_file.unlink(missing_ok=True)
    return card


def _round_to_bf16(model: PreTrainedModel) -> None:
    """Round the weights to the precision in which they are saved, so that the metrics are those of the saved model."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())


def _write(folder: Path, model_name: str, model: PreTrainedModel, tokenizer: Qwen2Tokenizer, card: ModelCard) -> None:
    with atomic_write_folder(folder / model_name) as new:
        save_tiny_model(new, model_name, model, tokenizer)
        (new / "README.md").write_text(card.text(), encoding="utf-8")


def _device_name(device: torch.device) -> str:
    threads = torch.get_num_threads()
    cpu = f"CPU ({platform.machine()}, {threads} thread{'' if threads == 1 else 's'})"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return f"{name}, {'bf16 autocast' if mixed_precision.has_bf16_matmul(device) else 'fp32'}, torch {torch.__version__.partition('+')[0]}"
