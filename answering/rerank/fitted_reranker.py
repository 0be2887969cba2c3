"""What the validation split taught, on disk: the numbers by which a system's answers are chosen and trusted.

The evaluation writes one file a system; whoever asks the same system about new pictures reads it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from answering.config import RerankConfig
from answering.rerank.choose_answer import Plan
from answering.rerank.image_text_scores import PictureBank
from atomic_io import write_json
from errors import TesseraError


@dataclass(frozen=True, slots=True)
class KnownPlan:
    """A plan, and what it was made for: the model, its decoding, the scorers by name with what identifies each, and the
    configured settings (`settings_of`) that it replaces.

    backgrounds: mean features [width] of each scorer's bank.
    """

    plan: Plan
    model: dict[str, Any]
    decoding: dict[str, Any]
    scorers: dict[str, str]
    settings: dict[str, Any]
    backgrounds: dict[str, list[float]]

    def bank(self, name: str) -> PictureBank | None:
        """The bank of a scorer as one mean picture; None where it had none."""
        mean = self.backgrounds.get(name)
        return None if mean is None else PictureBank(np.array([mean], dtype=np.float32))


def save(path: Path, known: KnownPlan) -> None:
    """Write a plan as JSON."""
    write_json(path, asdict(known))


def load(path: Path) -> KnownPlan:
    """Read a plan back. Raises TesseraError when it is not one."""
    try:
        return TypeAdapter(KnownPlan).validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise TesseraError(f"{path}: not a plan of the rerank ({' '.join(str(error).split())[:200]}); delete it") from error


def settings_of(rerank: RerankConfig) -> dict[str, Any]:
    """What is configured of choosing: with other weights on the command line, a plan made for these does not count."""
    return {"weights": asdict(rerank.weights), "form": rerank.form, "guard": list(rerank.guard), "self_score": rerank.self_score}


def find(
    folder: Path, model: dict[str, Any], decoding: dict[str, Any], scorers: dict[str, str], settings: dict[str, Any]
) -> KnownPlan | None:
    """The plan in a folder that was made for this model, asked, scored and configured in this way; None where there is none.

    Raises TesseraError for a file that is no plan.
    """
    for path in sorted(folder.glob("*.json")):
        known = load(path)
        if (known.model, known.decoding, known.scorers, known.settings) == (model, decoding, scorers, settings):
            return known
    return None
