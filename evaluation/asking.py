"""One system answers the questions, chunk by chunk, so that a killed run continues where it stopped."""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from answering.config import DecodingConfig
from answering.protocol import Answerer, Description, Picture
from answering.statements import statement
from atomic import write_json
from evaluation.predictions import Journal, Prediction
from evaluation.questions import Question, digest
from progress import Progress

_BATCHES_A_CHUNK = 4


@dataclass(frozen=True, slots=True)
class Chunk:
    """Questions that are asked in one call, with one decoding, and written together."""

    questions: tuple[Question, ...]
    decoding: DecodingConfig


class BatchScorer(Protocol):
    """A scorer of many pictures at once, each with texts of its own."""

    def score_batch(self, pictures: Sequence[Picture], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """One score for each text of each picture; higher fits better."""
        ...


@dataclass(frozen=True, slots=True)
class NamedScorer:
    """A scorer, and its folder or hub name."""

    name: str
    scorer: BatchScorer

    @property
    def identity(self) -> str:
        """What stands for it in predictions files: with a fingerprint of its folder, where it is one."""
        files = fingerprint(Path(self.name))
        return f"{self.name} ({files})" if files else self.name


@dataclass(frozen=True, slots=True)
class Asked:
    """What a system answered, in the order of the questions, and how fast."""

    predictions: list[Prediction]
    questions_per_second: float | None


def chunks(questions: Sequence[Question], decoding: DecodingConfig, description_tokens: int) -> list[Chunk]:
    """Questions in their order; captions and descriptions, which may be longer, apart from short answers."""
    size = decoding.batch_size * _BATCHES_A_CHUNK
    longer = dataclasses.replace(decoding, max_new_tokens=max(description_tokens, decoding.max_new_tokens))
    groups = (([q for q in questions if q.short], decoding), ([q for q in questions if not q.short], longer))
    return [Chunk(tuple(group[i : i + size]), how) for group, how in groups for i in range(0, len(group), size)]


def ask(
    answerer: Answerer,
    scorer: NamedScorer | None,
    plan: Sequence[Chunk],
    path: Path,
    title: str,
    score: Callable[[Prediction], float | None],
) -> Asked:
    """Have every chunk of `plan` answered; each is appended to `path` at once.

    A chunk whose lines all stand in the file, for the same model, decoding and questions, is not asked again; one with an
    error in it is. `score` is only for the running accuracy that is shown: what it returns goes nowhere else.
    """
    model = identity(answerer.description)
    journal, watch = Journal(path), Stopwatch(path.with_suffix(".timing.json"), digest(model))
    known = [_known(chunk, model, journal) for chunk in plan]
    unfinished = scorer is not None and not all(group and _has_scores(group, scorer) for group in known)
    done: list[Prediction] = []
    scores: list[float] = []
    with Progress(title, sum(len(chunk.questions) for chunk in plan), "questions") as progress:
        for chunk, before in zip(plan, known, strict=True):
            answered = before or _answered(answerer, chunk, model, watch)
            scored = _scored(answered, chunk.questions, scorer, unfinished) if scorer else _without_scores(answered)
            if scored != before:
                journal.append(scored)
            done += scored
            scores += [value for value in map(score, scored) if value is not None]
            progress.update(len(scored), f"accuracy {statistics.fmean(scores):.3f}" if scores else "")
    return Asked(done, watch.rate)


def identity(description: Description) -> dict[str, Any]:
    """What stands for a model in predictions files: kind, settings, and a fingerprint of its folder where it has one."""
    files = fingerprint(Path(str(description.settings.get("path", ""))))
    model = {"kind": description.kind, **description.settings, **({"files": files} if files else {})}
    plain: dict[str, Any] = json.loads(json.dumps(model, default=str))
    return plain


def fingerprint(folder: Path) -> str | None:
    """Stands for the names, sizes and times of change of a folder's files: training into it again makes another model.

    None for a hub name.
    """
    if not folder.name or not folder.is_dir():
        return None
    return digest([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir()) if path.is_file()])


def _key(model: dict[str, Any], decoding: DecodingConfig, question: Question) -> str:
    """Two samples may ask the same about one picture, and have other references: each has an answer of its own."""
    return digest(model, _recorded(decoding), question.sample_id, question.fingerprint)


def _recorded(decoding: DecodingConfig) -> dict[str, Any]:
    """The decoding as it stands in the file: all that makes an answer, so without the size of a batch."""
    return {name: value for name, value in dataclasses.asdict(decoding).items() if name != "batch_size"}


def _known(chunk: Chunk, model: dict[str, Any], journal: Journal) -> list[Prediction]:
    """The chunk's predictions when all of them are in the journal without an error, else none.

    A chunk is asked as a whole: questions that are batched otherwise may differ in the last bits of a score.
    """
    found = [journal.known.get(_key(model, chunk.decoding, question)) for question in chunk.questions]
    known = [prediction for prediction in found if prediction is not None and prediction.error is None]
    return [dataclasses.replace(p, fused=None, choices=None) for p in known] if len(known) == len(found) else []


def _answered(answerer: Answerer, chunk: Chunk, model: dict[str, Any], watch: "Stopwatch") -> list[Prediction]:
    started = time.monotonic()
    answers = answerer.answer([question.request for question in chunk.questions], chunk.decoding)
    watch.add(len(answers), time.monotonic() - started)
    return [
        Prediction(
            sample_id=question.sample_id,
            question=question.text,
            key=_key(model, chunk.decoding, question),
            candidates=answer.candidates,
            error=answer.error if answer.error is not None or answer.candidates else "the system gave no candidate",
            prompt=answer.prompt,
            decoding=_recorded(chunk.decoding),
            model=model,
        )
        for question, answer in zip(chunk.questions, answers, strict=True)
    ]


def _has_scores(predictions: Sequence[Prediction], scorer: NamedScorer) -> bool:
    return all(prediction.scorer == scorer.identity for prediction in predictions)


def _scored(answered: list[Prediction], questions: Sequence[Question], scorer: NamedScorer, unfinished: bool) -> list[Prediction]:
    """A chunk with the scorer's mean over the pictures for each candidate; without a picture there is nothing to score.

    While the run is `unfinished`, pictures of candidates that have their scores are looked at again: the scorer keeps
    what it saw, so it sees later pictures in the same company, and gives the same last bits, as in a run that was not killed.
    """
    old = _has_scores(answered, scorer)
    if old and not unfinished:
        return answered
    pairs = [(i, picture) for i, p in enumerate(answered) if p.candidates for picture in questions[i].request.pictures]
    texts = [[] if old else _statements(answered[i], questions[i]) for i, _ in pairs]
    by_question: list[list[list[float]]] = [[] for _ in answered]
    for (i, _), scores in zip(pairs, scorer.scorer.score_batch([picture for _, picture in pairs], texts), strict=True):
        by_question[i].append(scores)
    if old:
        return answered
    means = [tuple(statistics.fmean(scores) for scores in zip(*by_picture, strict=True)) or None for by_picture in by_question]
    return [dataclasses.replace(p, scorer=scorer.identity, clip=clip) for p, clip in zip(answered, means, strict=True)]


def _without_scores(answered: Sequence[Prediction]) -> list[Prediction]:
    return [dataclasses.replace(prediction, scorer=None, clip=None) for prediction in answered]


def _statements(prediction: Prediction, question: Question) -> list[str]:
    return [statement(question.text, candidate.text, question.request.language) for candidate in prediction.candidates]


class Stopwatch:
    """Time that a model took for its questions, kept beside the predictions over interruptions."""

    def __init__(self, path: Path, model: str):
        self.path, self.model = path, model
        self.questions, self.seconds = 0, 0.0
        saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if saved.get("model") == model:
            self.questions, self.seconds = saved["questions"], saved["seconds"]

    def add(self, questions: int, seconds: float) -> None:
        """Count questions that were answered just now."""
        self.questions += questions
        self.seconds += seconds
        write_json(self.path, {"model": self.model, "questions": self.questions, "seconds": self.seconds})

    @property
    def rate(self) -> float | None:
        """Questions a second; None when nothing was measured."""
        return self.questions / self.seconds if self.seconds > 0 else None
