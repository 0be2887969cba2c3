"""What the validation split taught, on disk: the numbers by which a system's answers are chosen and trusted.

The evaluation writes one file a system; whoever asks the same system about new pictures reads it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from answering.config import RerankConfig
from answering.rerank.choose_answer import RerankPlan
from answering.rerank.image_text_scores import BackgroundImages
from atomic_io import write_json
from errors import TesseraError
from renamed_keys import with_new_keys


@dataclass(frozen=True, slots=True)
class FittedReranker:
    """A plan, and what it was made for: the model, its decoding, the scorers by name with what identifies each, and the
    configured settings (`settings_of`) that it replaces.

    backgrounds: mean features [width] of each scorer's bank.
    """

    plan: RerankPlan
    model: dict[str, Any]
    decoding: dict[str, Any]
    scorers: dict[str, str]
    settings: dict[str, Any]
    background_means: dict[str, list[float]]

    def background_images(self, name: str) -> BackgroundImages | None:
        """The bank of a scorer as one mean picture; None where it had none."""
        mean = self.background_means.get(name)
        return None if mean is None else BackgroundImages(np.array([mean], dtype=np.float32))


def save_fitted(path: Path, fitted: FittedReranker) -> None:
    """Write a plan as JSON."""
    write_json(path, asdict(fitted))


def load_fitted(path: Path) -> FittedReranker:
    """Read a plan back. Raises TesseraError when it is not one."""
    try:
        return TypeAdapter(FittedReranker).validate_json(json.dumps(_with_new_keys(json.loads(path.read_text(encoding="utf-8")))))
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise TesseraError(f"{path}: not a plan of the rerank ({' '.join(str(error).split())[:200]}); delete it") from error


def _with_new_keys(fitted: dict[str, Any]) -> dict[str, Any]:
    """A file of schema version 1 under today's keys."""
    names = {"backgrounds": "background_means"}
    sections = {"plan": "rerank", "settings": "rerank", "decoding": "decoding", "model": "eval"}
    renamed = {names.get(key, key): with_new_keys(sections.get(key, ""), value) for key, value in fitted.items()}
    plan = renamed["plan"]
    return {**renamed, "plan": {("confidence" if key == "credibility" else key): value for key, value in plan.items()}}


def rerank_settings(rerank: RerankConfig) -> dict[str, Any]:
    """What is configured of choosing: with other weights on the command line, a plan made for these does not count."""
    return {
        "weights": asdict(rerank.weights),
        "clip_score_form": rerank.clip_score_form,
        "skipped_question_types": list(rerank.skipped_question_types),
        "self_evaluation": rerank.self_evaluation,
    }


def find_fitted(
    folder: Path, model: dict[str, Any], decoding: dict[str, Any], scorers: dict[str, str], settings: dict[str, Any]
) -> FittedReranker | None:
    """The plan in a folder that was made for this model, asked, scored and configured in this way; None where there is none.

    Raises TesseraError for a file that is no plan.
    """
    for path in sorted(folder.glob("*.json")):
        fitted = load_fitted(path)
        if (fitted.model, fitted.decoding, fitted.scorers, fitted.settings) == (model, decoding, scorers, settings):
            return fitted
    return None
