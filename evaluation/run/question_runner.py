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
from answering.model_fingerprint import decoding_record, identity, scorer_identity
from answering.protocol import Answerer, ImageInput, ReplaysCudaGraphs
from answering.request_images import load_image
from answering.rerank.candidate_scores import SELF_EVALUATION, Signal
from answering.rerank.image_text_scores import BackgroundImages, ImageTextModel, ImageTextScorer, QuestionCandidates
from answering.rerank.self_evaluation import SelfEvaluator
from answering.rerank.statements import StatementForm
from atomic_io import write_json
from dataset.loading.image_io import ImageError
from dataset.sample import Language
from evaluation.prediction_files import Journal, Prediction
from evaluation.questions import Question, digest
from process_group import ProcessGroup
from progress import Progress
from renamed_keys import with_old_keys

_BATCHES_PER_CHUNK = 4


@dataclass(frozen=True, slots=True)
class Chunk:
    """Questions that are asked in one call, with one decoding, and written together."""

    questions: tuple[Question, ...]
    decoding: DecodingConfig


SELF_EVALUATION_IDENTITY = "asked yes or no"
"""Stands for the self-score in predictions files; another question would make other scores."""


class CosineScorer(ImageTextModel, Protocol):
    """A scorer that also gives cosines, -1..1, for CLIPScore."""

    def cosine_batch(self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """The same as cosines."""
        ...


@dataclass(frozen=True, slots=True)
class NamedScorer:
    """A scorer, its folder or hub name, and how it is used: name of its choice, languages, wording, bank of unrelated pictures."""

    name: str
    scorer: CosineScorer
    choice: str = "clip"
    languages: tuple[Language, ...] = ("en", "zh")
    statement_form: StatementForm = "sentence"
    background_images: BackgroundImages | None = None

    @property
    def identity(self) -> str:
        """What stands for it in predictions files: with a fingerprint of its folder, where it is one, and of its bank."""
        assigned = scorer_identity(self.name, self.statement_form)
        return assigned if self.background_images is None else f"{assigned}, bank {digest(self.background_images.keys)}"

    @property
    def image_text_scorer(self) -> ImageTextScorer:
        """It, ready to score candidates."""
        return ImageTextScorer(self.choice, self.scorer, self.languages, self.statement_form, self.background_images)


@dataclass(frozen=True, slots=True)
class RunnerOutput:
    """What a system answered, in the order of the questions, and how fast; without_graphs: why it went on without CUDA graphs."""

    predictions: list[Prediction]
    questions_per_second: float | None
    cuda_graphs_error: str | None = None


def chunks(questions: Sequence[Question], decoding: DecodingConfig, description_tokens: int) -> list[Chunk]:
    """Questions in their order; captions and descriptions, which may be longer, apart from short answers."""
    size = decoding.batch_size * _BATCHES_PER_CHUNK
    caption_decoding = dataclasses.replace(decoding, max_new_tokens=max(description_tokens, decoding.max_new_tokens))
    question_groups = (([q for q in questions if q.short], decoding), ([q for q in questions if not q.short], caption_decoding))
    return [
        Chunk(tuple(group[i : i + size]), chunk_decoding) for group, chunk_decoding in question_groups for i in range(0, len(group), size)
    ]


def answer_questions(
    answerer: Answerer,
    scorers: Sequence[NamedScorer],
    self_evaluation: bool,
    all_chunks: Sequence[Chunk],
    path: Path,
    title: str,
    score: Callable[[Prediction], float | None],
    process_group: ProcessGroup,
) -> RunnerOutput:
    """Have every chunk of `plan` answered, and its candidates scored; each is appended to `path` at once. judging: an answerer
    that can also says how right it finds each of its candidates.

    A chunk whose lines all stand in the file, for the same model, decoding and questions, is not asked again; one with an
    error in it is. `score` is only for the running accuracy that is shown: what it returns goes nowhere else. share: the chunks
    that fall to this process; all processes get the answers to all of them.
    """
    model = identity(answerer.description)
    journal, stopwatch = Journal(path, process_group), Stopwatch(path.with_suffix(".timing.json"), model, process_group)
    cached = [_cached_chunk(chunk, model, journal) for chunk in all_chunks]
    judge = answerer if self_evaluation and isinstance(answerer, SelfEvaluator) else None
    expected_scorers = {scorer.choice: scorer.identity for scorer in scorers} | (
        {} if judge is None else {SELF_EVALUATION: SELF_EVALUATION_IDENTITY}
    )
    unfinished = bool(scorers) and not all(group and _has_scores(group, expected_scorers) for group in cached)
    done: dict[int, list[Prediction]] = {}
    scores: list[float] = []
    assigned = [chunk_index for chunk_index in range(len(all_chunks)) if process_group.owns(chunk_index)]
    label = title if process_group.world_size == 1 else f"{title}, process {process_group.rank + 1} of {process_group.world_size}"
    with Progress(label, sum(len(all_chunks[chunk_index].questions) for chunk_index in assigned), "questions") as progress:
        for chunk_index in assigned:
            chunk, before = all_chunks[chunk_index], cached[chunk_index]
            answered = before or _answer_chunk(answerer, chunk, model, stopwatch)
            scored = _score_chunk(answered, chunk, scorers, judge, expected_scorers, unfinished)
            if scored != before:
                journal.append(scored)
            done[chunk_index] = scored
            scores += [value for value in map(score, scored) if value is not None]
            progress.update(len(scored), f"accuracy {statistics.fmean(scores):.3f}" if scores else "")
    gathered = {chunk_index: scored for part in process_group.gather(done) for chunk_index, scored in part.items()}
    all_predictions = [prediction for chunk_index in range(len(all_chunks)) for prediction in gathered[chunk_index]]
    stopwatch.gather()
    if process_group.is_main_process:
        journal.merge_rank_files(all_predictions)
    return RunnerOutput(all_predictions, stopwatch.total.rate, stopwatch.total.cuda_graphs_error)


def _key(model: dict[str, Any], decoding: dict[str, Any], question: Question) -> str:
    """Two samples may ask the same about one picture, and have other references: each has an answer of its own."""
    return digest(model, decoding, question.sample_id, question.fingerprint)


def _cached(model: dict[str, Any], decoding: dict[str, Any], question: Question, journal: Journal) -> Prediction | None:
    """The question's prediction in the journal, also one whose key was made of the keys of schema version 1."""
    key = _key(model, decoding, question)
    old_key = _key(with_old_keys("eval", model), with_old_keys("decoding", decoding), question)
    prediction = journal.cached.get(key) or journal.cached.get(old_key)
    return None if prediction is None else dataclasses.replace(prediction, key=key)


def _cached_chunk(chunk: Chunk, model: dict[str, Any], journal: Journal) -> list[Prediction]:
    """The chunk's predictions when all of them are in the journal without an error, else none.

    A chunk is asked as a whole: questions that are batched otherwise may differ in the last bits of a score.
    """
    decoding = decoding_record(chunk.decoding)
    found = [_cached(model, decoding, question, journal) for question in chunk.questions]
    cached = [prediction for prediction in found if prediction is not None and prediction.error is None]
    if len(cached) < len(found):
        return []
    return [dataclasses.replace(p, fused=None, learned=None, confidence=None, choices=None) for p in cached]


def _answer_chunk(answerer: Answerer, chunk: Chunk, model: dict[str, Any], stopwatch: "Stopwatch") -> list[Prediction]:
    started = time.monotonic()
    answers = answerer.answer([question.request for question in chunk.questions], chunk.decoding)
    decoding = decoding_record(chunk.decoding)
    stopwatch.add(len(answers), time.monotonic() - started, answerer.cuda_graphs_error if isinstance(answerer, ReplaysCudaGraphs) else None)
    return [
        Prediction(
            sample_id=question.sample_id,
            question=question.text,
            key=_key(model, decoding, question),
            candidates=answer.candidates,
            error=answer.error if answer.error is not None or answer.candidates else "the system gave no candidate",
            prompt=answer.prompt,
            decoding=decoding,
            model=model,
        )
        for question, answer in zip(chunk.questions, answers, strict=True)
    ]


def _has_scores(predictions: Sequence[Prediction], expected_scorers: dict[str, str]) -> bool:
    return all(prediction.scorers == expected_scorers for prediction in predictions)


def _score_chunk(
    answered: list[Prediction],
    chunk: Chunk,
    scorers: Sequence[NamedScorer],
    judge: SelfEvaluator | None,
    expected_scorers: dict[str, str],
    unfinished: bool,
) -> list[Prediction]:
    """A chunk with the signal of each scorer; without a picture there is nothing to score.

    While the run is `unfinished`, pictures of candidates that have their scores are looked at again: a scorer keeps what it
    saw, so it sees later pictures in the same company, and gives the same last bits, as in a run that was not killed.
    """
    already_scored = _has_scores(answered, expected_scorers)
    if already_scored and not unfinished:
        return answered
    asked = [_question_candidates(p, question, already_scored) for p, question in zip(answered, chunk.questions, strict=True)]
    try:
        by_scorer = {scorer.choice: scorer.image_text_scorer.signals(asked) for scorer in scorers}
    except ImageError:
        # A picture that could be read when its question was asked has gone since. What was scored before stays as it is.
        readable, asked = _without_unreadable(answered, asked)
        by_scorer = {scorer.choice: scorer.image_text_scorer.signals(asked) for scorer in scorers}
        answered = answered if already_scored else readable
    if already_scored:
        return answered
    if judge is not None:
        by_scorer[SELF_EVALUATION] = _self_evaluate(answered, chunk, judge)
    return [
        dataclasses.replace(
            p, scorers=expected_scorers, signals={name: item for name, row in by_scorer.items() if (item := row[i]) is not None}
        )
        for i, p in enumerate(answered)
    ]


def _question_candidates(prediction: Prediction, question: Question, already_scored: bool) -> QuestionCandidates:
    """Short answers are stated with their question; a caption says by itself what is to be seen."""
    request = question.request
    texts = () if already_scored else tuple(candidate.text for candidate in prediction.candidates)
    asked = question.text if question.short else ""
    return QuestionCandidates(asked, request.language, request.images if prediction.candidates else (), texts, question.images)


def _without_unreadable(answered: list[Prediction], asked: list[QuestionCandidates]) -> tuple[list[Prediction], list[QuestionCandidates]]:
    """The same with a failed question where a picture cannot be read any more; it is asked again by the next run."""
    outputs, remaining = [], []
    for prediction, item in zip(answered, asked, strict=True):
        try:
            for image in item.images:
                load_image(image)
        except ImageError as error:
            prediction = dataclasses.replace(prediction, candidates=(), error=str(error))
            item = dataclasses.replace(item, images=(), texts=())
        outputs.append(prediction)
        remaining.append(item)
    return outputs, remaining


def _self_evaluate(answered: Sequence[Prediction], chunk: Chunk, judge: SelfEvaluator) -> list[Signal | None]:
    """What the answerer thinks of its short answers."""
    rows = [i for i, p in enumerate(answered) if p.candidates and chunk.questions[i].short]
    texts = [[candidate.text for candidate in answered[i].candidates] for i in rows]
    outputs = judge.judge([chunk.questions[i].request for i in rows], texts, chunk.decoding.batch_size)
    found: list[Signal | None] = [None] * len(answered)
    for i, values in zip(rows, outputs, strict=True):
        found[i] = None if values is None else Signal(tuple(values))
    return found


@dataclass(frozen=True, slots=True)
class Timing:
    """Questions, the seconds that they took, and why steps were not replayed as CUDA graphs."""

    questions: int = 0
    seconds: float = 0.0
    cuda_graphs_error: str | None = None

    def __add__(self, other: "Timing") -> "Timing":
        return Timing(self.questions + other.questions, self.seconds + other.seconds, other.cuda_graphs_error or self.cuda_graphs_error)

    @property
    def rate(self) -> float | None:
        """Questions a second; None when nothing was measured."""
        return self.questions / self.seconds if self.seconds > 0 else None


class Stopwatch:
    """Time that a model took for its questions, and why it took longer than it might, kept beside the predictions over interruptions.

    Of several processes that answer side by side, the time of the slowest counts; what they had measured when they were killed is
    lost, questions and seconds alike.
    """

    def __init__(self, path: Path, model: dict[str, Any], process_group: ProcessGroup):
        self.path, self.model, self.process_group = path, digest(model), process_group
        self.before, self.new = Timing(), Timing()
        saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if saved.get("model") in (digest(model), digest(with_old_keys("eval", model))):
            self.before = Timing(saved["questions"], saved["seconds"], saved.get("without_cuda_graphs"))

    @property
    def total(self) -> Timing:
        """What was measured before and now."""
        return self.before + self.new

    def add(self, questions: int, seconds: float, cuda_graphs_error: str | None) -> None:
        """Count questions that were answered just now. without_graphs: why steps were not replayed as CUDA graphs."""
        self.new += Timing(questions, seconds, cuda_graphs_error)
        if self.process_group.world_size == 1:
            self._save()

    def gather(self) -> None:
        """Put together what all processes measured; each of them must call this."""
        each = self.process_group.gather(self.new)
        self.new = sum(each, Timing())
        self.new = dataclasses.replace(self.new, seconds=max(item.seconds for item in each))
        if self.process_group.is_main_process and self.new.questions:
            self._save()

    def _save(self) -> None:
        total = self.total
        reason = {} if total.cuda_graphs_error is None else {"without_cuda_graphs": total.cuda_graphs_error}
        write_json(self.path, {"model": self.model, "questions": total.questions, "seconds": total.seconds, **reason})
