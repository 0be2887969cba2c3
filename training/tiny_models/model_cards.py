"""Model cards of the small parts: what they learned from, how long, and how good they are."""

import re
from dataclasses import dataclass

DESCRIPTIONS = {
    "siglip": "SigLIP: picture and text encoder, sigmoid loss over pictures and captions; its patches learn to name what they show",
    "clip": "CLIP: picture and text encoder, softmax loss over pictures, captions, statements about a question, and phrases",
    "qwen3": "Qwen3: English and Chinese language model that answers from a written scene; two heads are shown where to look",
    "qwen3_vl": "Qwen3-VL: vision-language model that answers from a picture, the demo's baseline",
}


@dataclass(frozen=True)
class ModelCard:
    """What a model card says."""

    part: str
    steps: int
    batch_size: int = 0
    learning_rate: float = 0.0
    seed: int = 0
    scene_seed: int = 0
    device: str = ""
    warm_start: tuple[str, ...] = ()
    metrics: tuple[tuple[str, float], ...] = ()
    run: int = 1
    """How many runs it has had; each begins where the one before it ended."""

    def text(self) -> str:
        """The card as Markdown with the metadata that model hubs read."""
        head = f"---\nlicense: apache-2.0\nlanguage: [en, zh]\ntags: [drawn-scenes, tiny]\n---\n\n# {DESCRIPTIONS[self.part]}\n\n"
        description = (
            "A small part of the embedded demo. It knows drawn scenes of coloured shapes and nothing of the real world: "
            "good enough to show that the machinery works, useless for anything else.\n\n"
        )
        if not self.steps:
            return f"{head}{description}Untrained: the weights are random (seed {self.seed}). Train it with `{self._command()}`.\n"
        rows = {
            "data": f"drawn scenes of seed {self.scene_seed}; test layouts and held-out combinations of color and shape left out",
            "steps": f"{self.steps:,} of {self.batch_size} scenes ({self.steps * self.batch_size:,} in all)",
            "peak learning rate": f"{self.learning_rate:g}",
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
        return f"python tools/train_tiny_models.py --only {self.part}{further}"


def parse_previous_runs(card: str) -> tuple[int, str]:
    """How many runs a part has had, by the text of its card, and what they were; 0 for one that was never trained."""
    rows = dict(re.findall(r"^\| (run|steps|started from) \| (.*) \|$", card, flags=re.M))
    if "run" not in rows:
        return 0, ""
    run, before = int(rows["run"]), f", {rows['started from']}" if int(rows["run"]) > 1 else ""
    return run, f"run {run}: {rows['steps']}{before}"
