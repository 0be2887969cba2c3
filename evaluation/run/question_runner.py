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
from answering.model_fingerprint import identity, recorded, scorer_identity
from answering.protocol import Answerer, Picture, Replaying
from answering.request_images import opened
from answering.rerank.candidate_scores import SELF, Signal
from answering.rerank.image_text_scores import BatchScorer, PictureBank, PictureScorer, Scorable
from answering.rerank.self_evaluation import Judge
from answering.rerank.statements import Wording
from atomic_io import write_json
from dataset.loading.image_io import PictureError
from dataset.sample import Language
from evaluation.prediction_files import Journal, Prediction
from evaluation.questions import Question, digest
from process_group import Share
from progress import Progress

_BATCHES_A_CHUNK = 4


@dataclass(frozen=True, slots=True)
class Chunk:
    """Questions that are asked in one call, with one decoding, and written together."""

    questions: tuple[Question, ...]
    decoding: DecodingConfig


SELF_ASKED = "asked yes or no"
"""Stands for the self-score in predictions files; another question would make other scores."""


class CosineScorer(BatchScorer, Protocol):
    """A scorer that also gives cosines, -1..1, for CLIPScore."""

    def cosine_batch(self, pictures: Sequence[Picture], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """The same as cosines."""
        ...


@dataclass(frozen=True, slots=True)
class NamedScorer:
    """A scorer, its folder or hub name, and how it is used: name of its choice, languages, wording, bank of unrelated pictures."""

    name: str
    scorer: CosineScorer
    choice: str = "clip"
    languages: tuple[Language, ...] = ("en", "zh")
    wording: Wording = "sentence"
    bank: PictureBank | None = None

    @property
    def identity(self) -> str:
        """What stands for it in predictions files: with a fingerprint of its folder, where it is one, and of its bank."""
        own = scorer_identity(self.name, self.wording)
        return own if self.bank is None else f"{own}, bank {digest(self.bank.keys)}"

    @property
    def fit(self) -> PictureScorer:
        """It, ready to score candidates."""
        return PictureScorer(self.choice, self.scorer, self.languages, self.wording, self.bank)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a system answered, in the order of the questions, and how fast; without_graphs: why it went on without CUDA graphs."""

    predictions: list[Prediction]
    questions_per_second: float | None
    without_graphs: str | None = None


def chunks(questions: Sequence[Question], decoding: DecodingConfig, description_tokens: int) -> list[Chunk]:
    """Questions in their order; captions and descriptions, which may be longer, apart from short answers."""
    size = decoding.batch_size * _BATCHES_A_CHUNK
    longer = dataclasses.replace(decoding, max_new_tokens=max(description_tokens, decoding.max_new_tokens))
    groups = (([q for q in questions if q.short], decoding), ([q for q in questions if not q.short], longer))
    return [Chunk(tuple(group[i : i + size]), how) for group, how in groups for i in range(0, len(group), size)]


def ask(
    answerer: Answerer,
    scorers: Sequence[NamedScorer],
    judging: bool,
    plan: Sequence[Chunk],
    path: Path,
    title: str,
    score: Callable[[Prediction], float | None],
    share: Share,
) -> Asked:
    """Have every chunk of `plan` answered, and its candidates scored; each is appended to `path` at once. judging: an answerer
    that can also says how right it finds each of its candidates.

    A chunk whose lines all stand in the file, for the same model, decoding and questions, is not asked again; one with an
    error in it is. `score` is only for the running accuracy that is shown: what it returns goes nowhere else. share: the chunks
    that fall to this process; all processes get the answers to all of them.
    """
    model = identity(answerer.description)
    journal, watch = Journal(path, share), Stopwatch(path.with_suffix(".timing.json"), digest(model), share)
    known = [_known(chunk, model, journal) for chunk in plan]
    judge = answerer if judging and isinstance(answerer, Judge) else None
    wanted = {scorer.choice: scorer.identity for scorer in scorers} | ({} if judge is None else {SELF: SELF_ASKED})
    unfinished = bool(scorers) and not all(group and _has_scores(group, wanted) for group in known)
    done: dict[int, list[Prediction]] = {}
    scores: list[float] = []
    own = [place for place in range(len(plan)) if share.takes(place)]
    shown = title if share.processes == 1 else f"{title}, process {share.place + 1} of {share.processes}"
    with Progress(shown, sum(len(plan[place].questions) for place in own), "questions") as progress:
        for place in own:
            chunk, before = plan[place], known[place]
            answered = before or _answered(answerer, chunk, model, watch)
            scored = _scored(answered, chunk, scorers, judge, wanted, unfinished)
            if scored != before:
                journal.append(scored)
            done[place] = scored
            scores += [value for value in map(score, scored) if value is not None]
            progress.update(len(scored), f"accuracy {statistics.fmean(scores):.3f}" if scores else "")
    together = {place: scored for part in share.gather(done) for place, scored in part.items()}
    everything = [prediction for place in range(len(plan)) for prediction in together[place]]
    watch.gather()
    if share.main:
        journal.complete(everything)
    return Asked(everything, watch.total.rate, watch.total.without_graphs)


def _key(model: dict[str, Any], decoding: DecodingConfig, question: Question) -> str:
    """Two samples may ask the same about one picture, and have other references: each has an answer of its own."""
    return digest(model, recorded(decoding), question.sample_id, question.fingerprint)


def _known(chunk: Chunk, model: dict[str, Any], journal: Journal) -> list[Prediction]:
    """The chunk's predictions when all of them are in the journal without an error, else none.

    A chunk is asked as a whole: questions that are batched otherwise may differ in the last bits of a score.
    """
    found = [journal.known.get(_key(model, chunk.decoding, question)) for question in chunk.questions]
    known = [prediction for prediction in found if prediction is not None and prediction.error is None]
    if len(known) < len(found):
        return []
    return [dataclasses.replace(p, fused=None, learned=None, credibility=None, choices=None) for p in known]


def _answered(answerer: Answerer, chunk: Chunk, model: dict[str, Any], watch: "Stopwatch") -> list[Prediction]:
    started = time.monotonic()
    answers = answerer.answer([question.request for question in chunk.questions], chunk.decoding)
    watch.add(len(answers), time.monotonic() - started, answerer.without_graphs if isinstance(answerer, Replaying) else None)
    return [
        Prediction(
            sample_id=question.sample_id,
            question=question.text,
            key=_key(model, chunk.decoding, question),
            candidates=answer.candidates,
            error=answer.error if answer.error is not None or answer.candidates else "the system gave no candidate",
            prompt=answer.prompt,
            decoding=recorded(chunk.decoding),
            model=model,
        )
        for question, answer in zip(chunk.questions, answers, strict=True)
    ]


def _has_scores(predictions: Sequence[Prediction], wanted: dict[str, str]) -> bool:
    return all(prediction.scorers == wanted for prediction in predictions)


def _scored(
    answered: list[Prediction],
    chunk: Chunk,
    scorers: Sequence[NamedScorer],
    judge: Judge | None,
    wanted: dict[str, str],
    unfinished: bool,
) -> list[Prediction]:
    """A chunk with the signal of each scorer; without a picture there is nothing to score.

    While the run is `unfinished`, pictures of candidates that have their scores are looked at again: a scorer keeps what it
    saw, so it sees later pictures in the same company, and gives the same last bits, as in a run that was not killed.
    """
    old = _has_scores(answered, wanted)
    if old and not unfinished:
        return answered
    asked = [_scorable(p, question, old) for p, question in zip(answered, chunk.questions, strict=True)]
    try:
        by_scorer = {scorer.choice: scorer.fit.signals(asked) for scorer in scorers}
    except PictureError:
        # A picture that could be read when its question was asked has gone since. What was scored before stays as it is.
        readable, asked = _without_lost(answered, asked)
        by_scorer = {scorer.choice: scorer.fit.signals(asked) for scorer in scorers}
        answered = answered if old else readable
    if old:
        return answered
    if judge is not None:
        by_scorer[SELF] = _judged(answered, chunk, judge)
    return [
        dataclasses.replace(p, scorers=wanted, signals={name: one for name, row in by_scorer.items() if (one := row[i]) is not None})
        for i, p in enumerate(answered)
    ]


def _scorable(prediction: Prediction, question: Question, old: bool) -> Scorable:
    """Short answers are stated with their question; a caption says by itself what is to be seen."""
    request = question.request
    texts = () if old else tuple(candidate.text for candidate in prediction.candidates)
    asked = question.text if question.short else ""
    return Scorable(asked, request.language, request.pictures if prediction.candidates else (), texts, question.pictures)


def _without_lost(answered: list[Prediction], asked: list[Scorable]) -> tuple[list[Prediction], list[Scorable]]:
    """The same with a failed question where a picture cannot be read any more; it is asked again by the next run."""
    said, left = [], []
    for prediction, one in zip(answered, asked, strict=True):
        try:
            for picture in one.pictures:
                opened(picture)
        except PictureError as error:
            prediction = dataclasses.replace(prediction, candidates=(), error=str(error))
            one = dataclasses.replace(one, pictures=(), texts=())
        said.append(prediction)
        left.append(one)
    return said, left


def _judged(answered: Sequence[Prediction], chunk: Chunk, judge: Judge) -> list[Signal | None]:
    """What the answerer thinks of its short answers."""
    rows = [i for i, p in enumerate(answered) if p.candidates and chunk.questions[i].short]
    texts = [[candidate.text for candidate in answered[i].candidates] for i in rows]
    said = judge.judge([chunk.questions[i].request for i in rows], texts, chunk.decoding.batch_size)
    found: list[Signal | None] = [None] * len(answered)
    for i, values in zip(rows, said, strict=True):
        found[i] = None if values is None else Signal(tuple(values))
    return found


@dataclass(frozen=True, slots=True)
class Measured:
    """Questions, the seconds that they took, and why steps were not replayed as CUDA graphs."""

    questions: int = 0
    seconds: float = 0.0
    without_graphs: str | None = None

    def __add__(self, other: "Measured") -> "Measured":
        return Measured(self.questions + other.questions, self.seconds + other.seconds, other.without_graphs or self.without_graphs)

    @property
    def rate(self) -> float | None:
        """Questions a second; None when nothing was measured."""
        return self.questions / self.seconds if self.seconds > 0 else None


class Stopwatch:
    """Time that a model took for its questions, and why it took longer than it might, kept beside the predictions over interruptions.

    Of several processes that answer side by side, the time of the slowest counts; what they had measured when they were killed is
    lost, questions and seconds alike.
    """

    def __init__(self, path: Path, model: str, share: Share):
        self.path, self.model, self.share = path, model, share
        self.before, self.new = Measured(), Measured()
        saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if saved.get("model") == model:
            self.before = Measured(saved["questions"], saved["seconds"], saved.get("without_cuda_graphs"))

    @property
    def total(self) -> Measured:
        """What was measured before and now."""
        return self.before + self.new

    def add(self, questions: int, seconds: float, without_graphs: str | None) -> None:
        """Count questions that were answered just now. without_graphs: why steps were not replayed as CUDA graphs."""
        self.new += Measured(questions, seconds, without_graphs)
        if self.share.processes == 1:
            self._keep()

    def gather(self) -> None:
        """Put together what all processes measured; each of them must call this."""
        each = self.share.gather(self.new)
        self.new = sum(each, Measured())
        self.new = dataclasses.replace(self.new, seconds=max(one.seconds for one in each))
        if self.share.main and self.new.questions:
            self._keep()

    def _keep(self) -> None:
        total = self.total
        reason = {} if total.without_graphs is None else {"without_cuda_graphs": total.without_graphs}
        write_json(self.path, {"model": self.model, "questions": total.questions, "seconds": total.seconds, **reason})
