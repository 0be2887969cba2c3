"""Pre-train the tiny models one after the other and save each like a model folder on the Hub."""

import dataclasses
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, Qwen2Tokenizer, Qwen3ForCausalLM, SiglipModel

from atomic_io import atomic_write_folder
from errors import UsageError
from training.tiny_models import mixed_precision, warm_start
from training.tiny_models.architectures import IMAGE_SIZE, TINY_MODELS, build_tiny_model, build_tokenizer, image_processor, save_tiny_model
from training.tiny_models.blip2_pretraining import blip2_task
from training.tiny_models.contrastive_pretraining import clip_task, siglip_task
from training.tiny_models.data.tokenizer_corpus import SEED, tokenizer_corpus
from training.tiny_models.language_pretraining import qwen3_task, qwen3_vl_task
from training.tiny_models.model_cards import ModelCard, parse_previous_runs
from training.tiny_models.pretraining_loop import Recipe, Task, fit
from training.tiny_models.resnet_gpt2_pretraining import gpt2_task, resnet_task
from visual.hub_name import pretrained

RECIPES = {
    "siglip": Recipe(steps=2000, batch_size=256, learning_rate=1e-3),
    "clip": Recipe(steps=1000, batch_size=256, learning_rate=1e-3),
    "qwen3": Recipe(steps=6000, batch_size=32, learning_rate=1e-3),
    "qwen3_vl": Recipe(steps=220, batch_size=128, learning_rate=7e-4),
    "resnet": Recipe(steps=400, batch_size=96, learning_rate=2e-3),
    "gpt2": Recipe(steps=400, batch_size=32, learning_rate=1e-3),
    "blip2": Recipe(steps=900, batch_size=48, learning_rate=1e-3),
}

EASY_STEPS_DIVISOR = 5
"""Qwen3's first steps // EASY_STEPS_DIVISOR batches use scenes with few objects."""

_SEEDS = 1_000
"""Added to the seed for every earlier run of a model, so that each run has scenes of its own."""


def write_untrained(folder: Path, model_names: Iterable[str], seed: int) -> list[str]:
    """Write those of the models that are missing in `folder`, with random weights; returns their names."""
    missing = [name for name in TINY_MODELS if name in model_names and not (folder / name / "config.json").exists()]
    tokenizer = build_tokenizer(tokenizer_corpus()) if missing else None
    for name in missing:
        assert tokenizer is not None
        _write(folder, name, build_tiny_model(name, tokenizer, seed), tokenizer, ModelCard(name, steps=0, seed=seed))
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

    def recipe(self, model_name: str) -> Recipe:
        """The recipe of a model with the overrides applied."""
        default = RECIPES[model_name]
        return dataclasses.replace(
            default,
            steps=self.steps or default.steps,
            batch_size=self.batch_size or default.batch_size,
            learning_rate=self.learning_rate or default.learning_rate,
        )


def pretrain(folder: Path, model_names: Iterable[str], settings: PretrainingSettings) -> list[ModelCard]:
    """Train the models in the order of TINY_MODELS and write each into `folder` when it is done.

    An interrupted run resumes. CLIP starts from the SigLIP in `folder`, Qwen3-VL from the Qwen3 and the SigLIP there, if they exist.

    Returns: the model cards.
    Raises: UsageError when `settings.further` is set and a model in `folder` was never trained.
    """
    tokenizer = build_tokenizer(tokenizer_corpus())
    return [_pretrain_model(folder, name, settings, tokenizer) for name in TINY_MODELS if name in model_names]


def _pretrain_model(folder: Path, model_name: str, settings: PretrainingSettings, tokenizer: Qwen2Tokenizer) -> ModelCard:
    recipe, seed, device = settings.recipe(model_name), settings.seed, settings.device
    model = build_tiny_model(model_name, tokenizer, seed)
    runs, earlier_runs = _previous_runs(folder / model_name) if settings.further else (0, "")
    started_from = (earlier_runs,) if runs else _warm_start(folder, model_name, model)
    if runs:
        model.load_state_dict(type(model).from_pretrained(**pretrained(folder / model_name), dtype=torch.float32).state_dict())
    scene_seed = SEED + len(TINY_MODELS) * (seed + _SEEDS * runs) + TINY_MODELS.index(model_name)
    task = _task(model_name, model.to(device), tokenizer, scene_seed, recipe, settings.further)
    state_file = folder / f".{model_name}.{device.type}.{seed}.{runs}.pt"
    with mixed_precision.mixed_precision(model, settings.compiled):
        fit(task, recipe, state_file, model_name, workers=settings.workers)
    _round_to_bf16(model)
    card = ModelCard(
        model_name,
        recipe.steps,
        recipe.batch_size,
        recipe.learning_rate,
        seed,
        scene_seed,
        _device_name(device),
        started_from,
        tuple(task.measure(model).items()),
        run=runs + 1,
    )
    _write(folder, model_name, model.cpu(), tokenizer, card)
    state_file.unlink(missing_ok=True)
    return card


def _task(model_name: str, model: PreTrainedModel, tokenizer: Qwen2Tokenizer, scene_seed: int, recipe: Recipe, further: bool) -> Task:
    batch_size = recipe.batch_size
    match model_name:
        case "siglip":
            return siglip_task(model, tokenizer, image_processor(model_name), scene_seed, batch_size)
        case "clip":
            return clip_task(model, tokenizer, image_processor(model_name), scene_seed, batch_size)
        case "qwen3":
            return qwen3_task(
                model, tokenizer, scene_seed, batch_size, num_easy_batches=0 if further else recipe.steps // EASY_STEPS_DIVISOR
            )
        case "resnet":
            return resnet_task(model, image_processor(model_name), scene_seed, batch_size)
        case "gpt2":
            return gpt2_task(model, tokenizer, scene_seed, batch_size)
        case "blip2":
            return blip2_task(model, tokenizer, image_processor(model_name), scene_seed, batch_size)
        case _:
            return qwen3_vl_task(model, tokenizer, image_processor(model_name), scene_seed, batch_size, IMAGE_SIZE)


def _warm_start(folder: Path, model_name: str, model: PreTrainedModel) -> tuple[str, ...]:
    """Initialise `model` from trained models in `folder`; returns their names, empty when one that is needed is missing."""
    sources = {"clip": ("siglip",), "qwen3_vl": ("qwen3", "siglip"), "blip2": ("siglip",)}.get(model_name, ())
    if not sources or not all((folder / source / "config.json").exists() for source in sources):
        return ()
    siglip = SiglipModel.from_pretrained(**pretrained(folder / "siglip"), dtype=torch.float32)
    if model_name == "clip":
        warm_start.clip_from_siglip(model, siglip)
    elif model_name == "blip2":
        warm_start.blip2_from_siglip(model, siglip)
    else:
        warm_start.qwen3_vl_from_models(
            model, Qwen3ForCausalLM.from_pretrained(**pretrained(folder / "qwen3"), dtype=torch.float32), siglip
        )
    return sources


def _previous_runs(model_folder: Path) -> tuple[int, str]:
    """Number and description of the training runs of a model, read from its card. Raises UsageError for an untrained model."""
    card = model_folder / "README.md"
    runs, earlier_runs = parse_previous_runs(card.read_text(encoding="utf-8") if card.is_file() else "")
    if not runs:
        raise UsageError(f"--further: {model_folder} holds no trained model to start from")
    return runs, earlier_runs


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
