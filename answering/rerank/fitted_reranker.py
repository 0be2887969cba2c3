"""Save and load the values fitted on the validation split, by which a system's answers are chosen and their confidence is computed.

The evaluation writes one file per system; inference with the same system reads it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from answering.config import RerankConfig
from answering.model_fingerprint import comparable
from answering.rerank.choose_answer import RerankPlan
from answering.rerank.image_text_scores import BackgroundImages
from atomic_io import write_json
from errors import TesseraError
from renamed_keys import with_new_keys


@dataclass(frozen=True, slots=True)
class FitConditions:
    """What a plan is fitted for; it is valid for exactly that.

    model: its identity. scorers: the identity of each by name. settings: the configured ones (`rerank_settings`) that the plan replaces.
    """

    model: dict[str, Any]
    decoding: dict[str, Any]
    scorers: dict[str, str]
    settings: dict[str, Any]

    def differences(self, other: "FitConditions") -> dict[str, list[str]]:
        """What is not the same: the part -> the names of the differing entries."""
        pairs: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
            "model": (comparable(self.model), comparable(other.model)),
            "decoding": (self.decoding, other.decoding),
            "set of scorers": (self.scorers, other.scorers),
            "rerank setting": (self.settings, other.settings),
        }
        differing = {
            part: sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
            for part, (mine, theirs) in pairs.items()
        }
        return {part: ["content of its files" if key == "files" else key for key in keys] for part, keys in differing.items() if keys}


@dataclass(frozen=True, slots=True)
class FittedReranker(FitConditions):
    """A plan and what it was fitted for. background_means: mean features [D] of the background images, by scorer."""

    plan: RerankPlan
    background_means: dict[str, list[float]]

    def background_images(self, name: str) -> BackgroundImages | None:
        """The background images of a scorer as one mean image; None if it has none."""
        mean = self.background_means.get(name)
        return None if mean is None else BackgroundImages(np.array([mean], dtype=np.float32))


def save_fitted(path: Path, fitted: FittedReranker) -> None:
    """Write a fitted reranker as JSON."""
    write_json(path, asdict(fitted))


def load_fitted(path: Path) -> FittedReranker:
    """Read a fitted reranker. Raises TesseraError if the file is not one."""
    try:
        return TypeAdapter(FittedReranker).validate_json(json.dumps(_with_new_keys(json.loads(path.read_text(encoding="utf-8")))))
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise TesseraError(f"{path}: not a fitted reranker ({' '.join(str(error).split())[:200]}); delete it") from error


def _with_new_keys(fitted: dict[str, Any]) -> dict[str, Any]:
    """A file of schema version 1 under today's keys."""
    names = {"backgrounds": "background_means"}
    sections = {"plan": "rerank", "settings": "rerank", "decoding": "decoding", "model": "eval"}
    renamed = {names.get(key, key): with_new_keys(sections.get(key, ""), value) for key, value in fitted.items()}
    plan = renamed["plan"]
    return {**renamed, "plan": {("confidence" if key == "credibility" else key): value for key, value in plan.items()}}


def rerank_settings(rerank: RerankConfig) -> dict[str, Any]:
    """The configured settings of choosing; a fitted reranker is valid only for those that it was fitted with."""
    return {
        "weights": asdict(rerank.weights),
        "clip_score_form": rerank.clip_score_form,
        "skipped_question_types": list(rerank.skipped_question_types),
        "self_evaluation": rerank.self_evaluation,
    }


def find_fitted(folder: Path, wanted: FitConditions) -> tuple[FittedReranker | None, str | None]:
    """The fitted reranker in a folder (one JSON file per system) for exactly these conditions; without one, how the nearest differs.

    Nearest is one of the same model, then the one with the fewest differences. Neither if the folder holds none. Raises TesseraError if
    a file is not a fitted reranker.
    """
    others = []
    for path in sorted(folder.glob("*.json")):
        fitted = load_fitted(path)
        differences = fitted.differences(wanted)
        if not differences:
            return fitted, None
        others.append((path, differences))
    if not others:
        return None, None
    path, differences = min(others, key=lambda item: ("model" in item[1], sum(map(len, item[1].values()))))
    parts = [f"{part} ({', '.join(keys)})" for part, keys in differences.items()]
    return None, f"{path} was fitted for another " + " and another ".join(parts)
