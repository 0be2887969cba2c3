"""Predictions files (predictions/*.jsonl): one JSON line per question.

Lines are appended while a system answers. At the end the file is rewritten as a whole, in the order of the questions.
"""

import glob
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from answering.protocol import Candidate
from answering.rerank.candidate_scores import Signal
from atomic_io import naming_full_disk, write_text
from errors import TesseraError
from process_group import ProcessGroup
from renamed_keys import with_new_keys

_PRIOR_SUFFIX = "_prior"
"""Appended to a scorer's name: the candidate's mean score on background images (its prior)."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A system's answer to one question: candidates, their scores, and the chosen answers. No field comes from a reference answer.

    Args:
        sample_id: id of the sample that the question comes from
        question: the question's text
        key: digest of model, decoding and question; a stored answer is reused only under an equal key
        candidates: the candidates, best first; empty where the question failed
        error: why the question failed; None where it did not
        prompt: the prompt as the model got it
        visual_tokens: positions of the images in the language model's input; None where the system does not say
        decoding: decoding settings that affect the answer
        model: identity of the model
        scorers: scorer name -> its identity, also for scorers that could not score this question
        signals: scorer name -> scores of the candidates
        fused: fused score of each candidate, 0..1; set by `add_choices`, as are the following fields
        learned: score of each candidate under the learned fusion
        confidence: probability that the displayed answer is right
        unlike: what about the question is unlike those that the confidence was learnt from
        choices: name of a way of choosing -> the chosen text
    """

    sample_id: str
    question: str
    key: str
    candidates: tuple[Candidate, ...]
    error: str | None
    prompt: str
    decoding: dict[str, Any]
    model: dict[str, Any]
    visual_tokens: int | None = None
    scorers: dict[str, str] = field(default_factory=dict)
    signals: dict[str, Signal] = field(default_factory=dict)
    fused: tuple[float, ...] | None = None
    learned: tuple[float, ...] | None = None
    confidence: float | None = None
    unlike: tuple[str, ...] = ()
    choices: dict[str, str] | None = None

    @property
    def clip(self) -> tuple[float, ...] | None:
        """Scores of the scorer named clip; None where there are none."""
        return self.signals["clip"].scores if "clip" in self.signals else None

    def line(self) -> str:
        """The prediction as one line of JSON."""
        scores = {name: signal.scores for name, signal in self.signals.items()}
        scores |= {name + _PRIOR_SUFFIX: signal.prior for name, signal in self.signals.items() if signal.prior is not None}
        scores |= {name: values for name, values in (("fused", self.fused), ("learned", self.learned)) if values is not None}
        candidates = [
            asdict(candidate) | {name: values[i] for name, values in scores.items()} for i, candidate in enumerate(self.candidates)
        ]
        fields: dict[str, Any] = {
            "sample_id": self.sample_id,
            "question": self.question,
            "candidates": candidates,
            "choices": self.choices or {},
            "error": self.error,
            "prompt": self.prompt,
            "decoding": self.decoding,
            "model": self.model,
            "key": self.key,
        }
        optional = {"visual_tokens": self.visual_tokens, "confidence": self.confidence, "unlike": list(self.unlike) or None}
        fields |= {name: value for name, value in optional.items() if value is not None}
        return json.dumps(fields | ({"scorers": self.scorers} if self.scorers else {}), ensure_ascii=False, allow_nan=False)

    @classmethod
    def parse(cls, line: str) -> Self:
        """Parse a line of JSON. Raises ValueError if it is not a prediction (an incomplete line, for example)."""
        try:
            row = json.loads(line)
            candidates = [
                Candidate(c["text"], c["log_prob"], c["mean_log_prob"], c.get("raw", c["text"]), c.get("count", 1))
                for c in row["candidates"]
            ]
            scorers = dict(row.get("scorers") or {})
            columns = {name: _scores_of_candidates(row["candidates"], name) for name in (*scorers, "fused", "learned")}
            priors = {name: _scores_of_candidates(row["candidates"], name + _PRIOR_SUFFIX) for name in scorers}
            return cls(
                sample_id=row["sample_id"],
                question=row["question"],
                key=row.get("key", ""),
                candidates=tuple(candidates),
                error=row["error"],
                prompt=row["prompt"],
                decoding=with_new_keys("decoding", row["decoding"]),
                model=with_new_keys("eval", row["model"]),
                visual_tokens=row.get("visual_tokens"),
                scorers=scorers,
                signals={name: Signal(scores, priors[name]) for name in scorers if (scores := columns[name]) is not None},
                fused=columns["fused"],
                learned=columns["learned"],
                confidence=row.get("confidence", row.get("credibility")),
                unlike=tuple(row.get("unlike", ())),
                choices=row["choices"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a prediction: {error!r} in {line[:80]}") from error


def _scores_of_candidates(candidates: Sequence[dict[str, Any]], name: str) -> tuple[float, ...] | None:
    """A named number of each candidate; None unless all candidates have it."""
    return tuple(c[name] for c in candidates) if candidates and all(name in c for c in candidates) else None


def read_predictions(path: Path) -> list[Prediction]:
    """Read all predictions of a file. Raises TesseraError with the number of the first invalid line."""
    try:
        lines = _lines(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TesseraError(f"{path}: cannot be read: {error}") from error
    predictions = []
    for number, line in enumerate(lines, start=1):
        try:
            predictions.append(Prediction.parse(line))
        except ValueError as error:
            raise TesseraError(f"{path}, line {number}: expected a prediction, one JSON object per line ({error})") from error
    return predictions


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Replace the file atomically."""
    write_text(path, "".join(prediction.line() + "\n" for prediction in predictions))


class Journal:
    """Reads cached predictions from a predictions file and appends new ones while a system answers.

    Rank 0 appends to the file itself, every other rank to its own file next to it (`<name>.part<rank>`). Incomplete lines, left
    by a killed process, are dropped. `append` returns once the lines are on disk (fsync).
    """

    def __init__(self, path: Path, process_group: ProcessGroup | None = None):
        process_group = process_group or ProcessGroup()
        self.path, self.write_path = path, path if process_group.is_main_process else _rank_file(path, process_group.rank)
        self.cached: dict[str, Prediction] = {}
        for journal_file in dict.fromkeys((path, *_rank_files(path), self.write_path)):
            valid_lines = _valid_lines(journal_file)
            for line in valid_lines:
                prediction = Prediction.parse(line)
                self.cached[prediction.key] = prediction
            if journal_file == self.write_path:
                write_text(journal_file, "".join(line + "\n" for line in valid_lines))

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Append one line per prediction."""
        with naming_full_disk(self.write_path), self.write_path.open("a", encoding="utf-8", newline="\n") as journal_file:
            journal_file.writelines(prediction.line() + "\n" for prediction in predictions)
            journal_file.flush()
            os.fsync(journal_file.fileno())

    def merge_rank_files(self, predictions: Sequence[Prediction]) -> None:
        """Write all predictions to the main file and delete the files of other ranks. Call it once no rank appends any more."""
        if rank_files := _rank_files(self.path):
            write_predictions(self.path, predictions)
            for rank_file in rank_files:
                rank_file.unlink()


def _rank_file(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.part{rank}")


def _rank_files(path: Path) -> list[Path]:
    """Files of other ranks, including those of an earlier run with a larger world size."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.part*"))


def _lines(text: str) -> list[str]:
    """Lines separated by a line feed. str.splitlines would also split at U+2028, which JSON does not escape."""
    return [line for line in text.split("\n") if line]


def _valid_lines(path: Path) -> list[str]:
    """Lines that parse as predictions. Others stem from a process killed while it wrote; their questions are answered again."""
    if not path.exists():
        return []
    valid_lines = []
    for line in _lines(path.read_text(encoding="utf-8", errors="replace")):
        try:
            Prediction.parse(line)
        except ValueError:
            continue
        valid_lines.append(line)
    return valid_lines
