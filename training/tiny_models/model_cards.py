"""Model cards of the tiny models: training data, hyperparameters, device and metrics."""

import re
from dataclasses import dataclass
from pathlib import Path

from errors import UsageError
from training.tiny_models.pretraining_loop import Recipe

DESCRIPTIONS = {
    "siglip": "SigLIP: image and text encoder, sigmoid loss over images and captions; patches also classify color, shape and digit",
    "clip": "CLIP: image and text encoder, softmax loss over images, captions, statements about a question, and phrases",
    "qwen3": "Qwen3: English and Chinese language model that answers questions about a scene as text; two attention heads are supervised",
    "qwen3_vl": "Qwen3-VL: vision-language model that answers questions about an image, the demo's baseline",
    "blip2": "BLIP-2: vision encoder, Q-Former and OPT that answer English questions about an image",
    "resnet": "ResNet: classifies the objects of an image, for the early system of ResNet and GPT-2",
    "gpt2": "GPT-2: English and Chinese language model, for the early system of ResNet and GPT-2",
}

ENGLISH_ALONE = ("blip2",)
"""As the published models; the others know Chinese, too."""


@dataclass(frozen=True)
class ModelCard:
    """The content of a model card.

    Args:
        model_name: one of TINY_MODELS.
        recipe: hyperparameters of the last run; no steps for an untrained model.
        seed: seed of the initial weights.
        scene_seed: seed of the training scenes.
        device: device, precision and torch version, as text.
        warm_start: models or runs from whose weights training started.
        metrics: name and value of each metric.
        run: number of training runs so far; each starts from the weights of the one before.
    """

    model_name: str
    recipe: Recipe
    seed: int
    scene_seed: int = 0
    device: str = ""
    warm_start: tuple[str, ...] = ()
    metrics: tuple[tuple[str, float], ...] = ()
    run: int = 1

    def text(self) -> str:
        """The card as Markdown with the metadata that model hubs read."""
        languages = "[en]" if self.model_name in ENGLISH_ALONE else "[en, zh]"
        head = f"---\nlicense: apache-2.0\nlanguage: {languages}\ntags: [drawn-scenes, tiny]\n---\n\n# {DESCRIPTIONS[self.model_name]}\n\n"
        description = (
            "A tiny model of the embedded demo. It was trained on rendered scenes of coloured shapes and knows nothing of the real world: "
            "good enough to show that the pipeline works, useless for anything else.\n\n"
        )
        recipe = self.recipe
        if not recipe.steps:
            return f"{head}{description}Untrained: the weights are random (seed {self.seed}). Train it with `{self._command()}`.\n"
        rows = {
            "data": f"rendered scenes of seed {self.scene_seed}; without test layouts and held-out combinations of color and shape",
            "steps": f"{recipe.steps:,} of {recipe.batch_size} scenes ({recipe.steps * recipe.batch_size:,} in all)",
            "peak learning rate": f"{recipe.learning_rate:g}",
            "run": str(self.run),
            "started from": ", ".join(self.warm_start) or "random weights",
            "seed": str(self.seed),
            "device": self.device,
        }
        table = "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())
        metrics = "".join(f"| {name} | {value:.3f} |\n" for name, value in self.metrics)
        measured = f"\nMeasured on scenes whose layouts were never trained on:\n\n| metric | value |\n|---|---|\n{metrics}"
        return f"{head}{description}{table}{measured}\nMade by `{self._command()}`.\n"

    def _command(self) -> str:
        further = " --further" if self.run > 1 else ""
        return f"python tools/train_tiny_models.py --only {self.model_name}{further}"


def previous_runs(model_folder: Path) -> tuple[int, str]:
    """Number of training runs of a model, and their description for the row `started from`, read from its card.

    Raises UsageError for an untrained model.
    """
    card = model_folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    rows = dict(re.findall(r"^\| (run|steps|started from) \| (.*) \|$", text, flags=re.M))
    if "run" not in rows:
        raise UsageError(f"--further: {model_folder} holds no trained model to start from")
    run, earlier = int(rows["run"]), f", {rows['started from']}" if int(rows["run"]) > 1 else ""
    return run, f"run {run}: {rows['steps']}{earlier}"
