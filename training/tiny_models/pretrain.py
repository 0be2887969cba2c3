"""Pre-train the small parts, one after the other, and write them as a hub would give them."""

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
from training.tiny_models.contrastive_pretraining import clip_task, siglip_task
from training.tiny_models.data.tokenizer_corpus import SEED, tokenizer_corpus
from training.tiny_models.language_pretraining import qwen3_task, qwen3_vl_task
from training.tiny_models.model_cards import ModelCard, parse_previous_runs
from training.tiny_models.pretraining_loop import Recipe, Task, fit

RECIPES = {
    "siglip": Recipe(steps=2000, batch_size=256, learning_rate=1e-3),
    "clip": Recipe(steps=1000, batch_size=256, learning_rate=1e-3),
    "qwen3": Recipe(steps=6000, batch_size=32, learning_rate=1e-3),
    "qwen3_vl": Recipe(steps=600, batch_size=128, learning_rate=7e-4),
}


EASY_STEPS_DIVISOR = 5
"""Qwen3 begins with rather empty scenes for one step in so many."""

_SEEDS = 1_000


def write_untrained(folder: Path, parts: Iterable[str], seed: int) -> list[str]:
    """Write those of `parts` that are missing, with random weights; their names."""
    missing = [part for part in TINY_MODELS if part in parts and not (folder / part / "config.json").exists()]
    tokenizer = build_tokenizer(tokenizer_corpus()) if missing else None
    for part in missing:
        assert tokenizer is not None
        _write(folder, part, build_tiny_model(part, tokenizer, seed), tokenizer, ModelCard(part, steps=0, seed=seed))
    return missing


@dataclass(frozen=True)
class PretrainingSettings:
    """How parts are trained. `further`: each starts from its own weights in the folder, on scenes that it has not seen.

    steps, batch_size and learning_rate override the recipes'; compiled: the layers are compiled first.
    """

    seed: int
    device: torch.device
    workers: int
    compiled: bool = False
    further: bool = False
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None

    def recipe(self, part: str) -> Recipe:
        """The recipe of a part with what is overridden."""
        own = RECIPES[part]
        return dataclasses.replace(
            own,
            steps=self.steps or own.steps,
            batch_size=self.batch_size or own.batch_size,
            learning_rate=self.learning_rate or own.learning_rate,
        )


def pretrain(folder: Path, parts: Iterable[str], settings: PretrainingSettings) -> list[ModelCard]:
    """Train `parts` in their order and write each when it is done.

    A run that was interrupted continues; CLIP starts from a SigLIP in `folder`, Qwen3-VL from a Qwen3 and a SigLIP there.
    Raises UsageError where a part is to be trained further that was never trained.
    """
    tokenizer = build_tokenizer(tokenizer_corpus())
    return [_pretrain_model(folder, part, settings, tokenizer) for part in TINY_MODELS if part in parts]


def _pretrain_model(folder: Path, part: str, settings: PretrainingSettings, tokenizer: Qwen2Tokenizer) -> ModelCard:
    recipe, seed, device = settings.recipe(part), settings.seed, settings.device
    model = build_tiny_model(part, tokenizer, seed)
    runs, before = _previous_runs(folder / part) if settings.further else (0, "")
    started_from = (before,) if runs else _warm_start(folder, part, model)
    if runs:
        model.load_state_dict(type(model).from_pretrained(folder / part, dtype=torch.float32).state_dict())
    scene_seed = SEED + len(TINY_MODELS) * (seed + _SEEDS * runs) + TINY_MODELS.index(part)
    task = _task(part, model.to(device), tokenizer, scene_seed, recipe, settings.further)
    state_file = folder / f".{part}.{device.type}.{seed}.{runs}.pt"
    with mixed_precision.mixed_precision(model, settings.compiled):
        fit(task, recipe, state_file, part, workers=settings.workers)
    _round_to_bf16(model)
    card = ModelCard(
        part,
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
    _write(folder, part, model.cpu(), tokenizer, card)
    state_file.unlink(missing_ok=True)
    return card


def _task(part: str, model: PreTrainedModel, tokenizer: Qwen2Tokenizer, scene_seed: int, recipe: Recipe, further: bool) -> Task:
    batch_size = recipe.batch_size
    match part:
        case "siglip":
            return siglip_task(model, tokenizer, image_processor(part), scene_seed, batch_size)
        case "clip":
            return clip_task(model, tokenizer, image_processor(part), scene_seed, batch_size)
        case "qwen3":
            return qwen3_task(
                model, tokenizer, scene_seed, batch_size, num_easy_batches=0 if further else recipe.steps // EASY_STEPS_DIVISOR
            )
        case _:
            return qwen3_vl_task(model, tokenizer, image_processor(part), scene_seed, batch_size, IMAGE_SIZE)


def _warm_start(folder: Path, part: str, model: PreTrainedModel) -> tuple[str, ...]:
    """Start from the parts in `folder` where all that are wanted stand there; their names."""
    sources = {"clip": ("siglip",), "qwen3_vl": ("qwen3", "siglip")}.get(part, ())
    if not sources or not all((folder / source / "config.json").exists() for source in sources):
        return ()
    siglip = SiglipModel.from_pretrained(folder / "siglip", dtype=torch.float32)
    if part == "clip":
        warm_start.clip_from_siglip(model, siglip)
    else:
        warm_start.qwen3_vl_from_parts(model, Qwen3ForCausalLM.from_pretrained(folder / "qwen3", dtype=torch.float32), siglip)
    return sources


def _previous_runs(part: Path) -> tuple[int, str]:
    """How often the part in a folder was trained and how, by its card. Raises UsageError where it never was."""
    card = part / "README.md"
    runs, before = parse_previous_runs(card.read_text(encoding="utf-8") if card.is_file() else "")
    if not runs:
        raise UsageError(f"--further: {part} holds no trained part to start from")
    return runs, before


def _round_to_bf16(model: PreTrainedModel) -> None:
    """Give the weights the precision in which they are written, so that the metrics are those of the written part."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())


def _write(folder: Path, part: str, model: PreTrainedModel, tokenizer: Qwen2Tokenizer, card: ModelCard) -> None:
    with atomic_write_folder(folder / part) as new:
        save_tiny_model(new, part, model, tokenizer)
        (new / "README.md").write_text(card.text(), encoding="utf-8")


def _device_name(device: torch.device) -> str:
    threads = torch.get_num_threads()
    cpu = f"CPU ({platform.machine()}, {threads} thread{'' if threads == 1 else 's'})"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return f"{name}, {'bf16 autocast' if mixed_precision.has_bf16_matmul(device) else 'fp32'}, torch {torch.__version__.partition('+')[0]}"
