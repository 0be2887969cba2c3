"""Predictions files: one JSON line a question, appended while a system answers, whole and in order at the end."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from answering.protocol import Candidate
from atomic import write_text
from errors import TesseraError


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a system answered to a question, and what was made of it. It holds nothing that came from a reference.

    `clip`: a score of each candidate, None without a scorer (named by `scorer`). `fused` and `choices` come with the
    ranking. `key` stands for model, decoding and question: an answer is used again only under the same key.
    """

    sample_id: str
    question: str
    key: str
    candidates: tuple[Candidate, ...]
    error: str | None
    prompt: str
    decoding: dict[str, Any]
    model: dict[str, Any]
    scorer: str | None = None
    clip: tuple[float, ...] | None = None
    fused: tuple[float, ...] | None = None
    choices: dict[str, str] | None = None

    def line(self) -> str:
        """One line of JSON."""
        signals = {name: values for name, values in (("clip", self.clip), ("fused", self.fused)) if values is not None}
        candidates = [
            asdict(candidate) | {name: values[i] for name, values in signals.items()} for i, candidate in enumerate(self.candidates)
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
        return json.dumps(fields | ({"scorer": self.scorer} if self.scorer is not None else {}), ensure_ascii=False, allow_nan=False)

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read a line back. Raises ValueError when it is not one (half a line, say)."""
        try:
            row = json.loads(line)
            candidates = [
                Candidate(c["text"], c["log_prob"], c["mean_log_prob"], c.get("raw", c["text"]), c.get("count", 1))
                for c in row["candidates"]
            ]
            signals = {name: tuple(c[name] for c in row["candidates"] if name in c) or None for name in ("clip", "fused")}
            return cls(
                sample_id=row["sample_id"],
                question=row["question"],
                key=row.get("key", ""),
                candidates=tuple(candidates),
                error=row["error"],
                prompt=row["prompt"],
                decoding=row["decoding"],
                model=row["model"],
                scorer=row.get("scorer"),
                clip=signals["clip"],
                fused=signals["fused"],
                choices=row["choices"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a prediction: {error!r} in {line[:80]}") from error


def read(path: Path) -> list[Prediction]:
    """All predictions of a finished file. Raises TesseraError naming the line that is not one."""
    try:
        lines = _lines(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TesseraError(f"{path}: cannot be read: {error}") from error
    predictions = []
    for number, line in enumerate(lines, start=1):
        try:
            predictions.append(Prediction.parse(line))
        except ValueError as error:
            raise TesseraError(f"{path}, line {number}: expected a prediction, one JSON object a line ({error})") from error
    return predictions


def write(path: Path, predictions: Sequence[Prediction]) -> None:
    """Replace the file as a whole."""
    write_text(path, "".join(prediction.line() + "\n" for prediction in predictions))


class Journal:
    """The predictions file while its system answers: what stands there already, and where more is appended.

    A line cut off by a kill is dropped. Appended lines are on the disk when `append` returns.
    """

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, Prediction] = {}
        whole = _whole_lines(path)
        for line in whole:
            prediction = Prediction.parse(line)
            self.known[prediction.key] = prediction
        write_text(path, "".join(line + "\n" for line in whole))

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Add lines at the end."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(prediction.line() + "\n" for prediction in predictions)
            file.flush()
            os.fsync(file.fileno())


def _lines(text: str) -> list[str]:
    """Not str.splitlines: an answer may hold a line separator such as U+2028, which JSON leaves as it is."""
    return [line for line in text.split("\n") if line]


def _whole_lines(path: Path) -> list[str]:
    """Lines that are predictions; others can only come from a kill in the middle of writing, and are answered again."""
    if not path.exists():
        return []
    whole = []
    for line in _lines(path.read_text(encoding="utf-8", errors="replace")):
        try:
            Prediction.parse(line)
        except ValueError:
            continue
        whole.append(line)
    return whole
