"""Have one system answer all questions, chunk by chunk; an interrupted run resumes with the first incomplete chunk."""

import dataclasses
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from answering.config import DecodingConfig, for_descriptions
from answering.model_fingerprint import comparable, decoding_record, identity, scorer_identity
from answering.protocol import Answerer, ImageInput, ReplaysCudaGraphs
from answering.request_images import load_image
from answering.rerank.candidate_scores import SELF_EVALUATION, Signal
from answering.rerank.image_text_scores import BackgroundImages, ImageTextModel, ImageTextScorer, QuestionCandidates
from answering.rerank.self_evaluation import SelfEvaluator
from answering.rerank.statements import StatementForm
from dataset.loading.image_io import ImageError
from dataset.sample import Language
from evaluation.prediction_files import Journal, Prediction
from evaluation.questions import Question, digest
from evaluation.run.stopwatch import Stopwatch
from process_group import ProcessGroup
from progress import Progress
from renamed_keys import with_old_keys

log = logging.getLogger(__name__)

_BATCHES_PER_CHUNK = 4
"""Batches per call of the answerer and per write to the predictions file."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Questions that are answered in one call, with the same decoding settings, and written together."""

    questions: tuple[Question, ...]
    decoding: DecodingConfig


SELF_EVALUATION_IDENTITY = "asked yes or no"
"""Identity of the self-evaluation in predictions files; it must change with the question that the answerer is asked."""


class CosineScorer(ImageTextModel, Protocol):
    """An image-text scorer that also returns cosines, -1..1, for CLIPScore."""

    def cosine_batch(self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Cosine of each image with each of its own texts."""
        ...


@dataclass(frozen=True, slots=True)
class NamedScorer:
    """An image-text scorer and how it is used.

    name: folder or hub name of the model. choice: name of its choice in the report. statement_form: text made of question and answer.
    background_images: for the prior; None: no prior-corrected scores.
    """

    name: str
    scorer: CosineScorer
    choice: str = "clip"
    languages: tuple[Language, ...] = ("en", "zh")
    statement_form: StatementForm = "sentence"
    background_images: BackgroundImages | None = None

    @property
    def identity(self) -> str:
        """Identity in predictions files, with fingerprints of the model folder and of the background images, where there are any."""
        base = scorer_identity(self.name, self.statement_form)
        return base if self.background_images is None else f"{base}, bank {digest(self.background_images.keys)}"

    @property
    def image_text_scorer(self) -> ImageTextScorer:
        """The scorer in the form that scores candidates."""
        return ImageTextScorer(self.choice, self.scorer, self.languages, self.statement_form, self.background_images)


@dataclass(slots=True)
class SystemRun:
    """A system's predictions for a list of questions, in their order, in the file `path`.

    questions_per_second: None if nothing was measured. cuda_graphs_error: why decoding ran without CUDA graphs; None if it did not have to.
    """

    path: Path
    questions: list[Question]
    predictions: list[Prediction]
    questions_per_second: float | None
    cuda_graphs_error: str | None = None


def chunks(questions: Sequence[Question], decoding: DecodingConfig, description_tokens: int) -> list[Chunk]:
    """Split the questions into chunks, in order; captions and descriptions get their own chunks, as they may be longer."""
    size = decoding.batch_size * _BATCHES_PER_CHUNK
    caption_decoding = for_descriptions(decoding, max(description_tokens, decoding.max_new_tokens))
    question_groups = (([q for q in questions if q.short], decoding), ([q for q in questions if not q.short], caption_decoding))
    return [
        Chunk(tuple(group[i : i + size]), chunk_decoding) for group, chunk_decoding in question_groups for i in range(0, len(group), size)
    ]


@dataclass(frozen=True, slots=True)
class QuestionRunner:
    """Has systems answer chunks of questions, which the ranks of the group share, and scores their candidates.

    self_evaluation: let an answerer score its own candidates, if it can.
    """

    scorers: Sequence[NamedScorer]
    self_evaluation: bool
    process_group: ProcessGroup

    def answer(
        self, answerer: Answerer, all_chunks: Sequence[Chunk], path: Path, title: str, score: Callable[[Prediction], float | None]
    ) -> SystemRun:
        """Answer every chunk and score its candidates; each chunk is appended to `path` when it is done.

        A chunk is cached, and not answered again, if the file has all of its predictions for the same model, decoding and questions, none
        with an error. Every rank gets the predictions of all ranks.

        Args:
            answerer: the system
            all_chunks: the questions
            path: the predictions file
            title: label of the progress line
            score: accuracy of a prediction, for the progress line only; None: not counted
        """
        group, model = self.process_group, identity(answerer.description)
        journal, stopwatch = Journal(path, group), Stopwatch(path.with_suffix(".timing.json"), model, group)
        cached = [_cached_chunk(chunk, model, journal) for chunk in all_chunks]
        _report_unused(path, journal, all_chunks, model)
        scorers = _ChunkScorers(self.scorers, answerer if self.self_evaluation and isinstance(answerer, SelfEvaluator) else None)
        unfinished = bool(self.scorers) and not all(chunk and scorers.have_scored(chunk) for chunk in cached)
        done: dict[int, list[Prediction]] = {}
        scores: list[float] = []
        assigned = [chunk_index for chunk_index in range(len(all_chunks)) if group.owns(chunk_index)]
        label = title if group.world_size == 1 else f"{title}, rank {group.rank} of {group.world_size}"
        with Progress(label, sum(len(all_chunks[chunk_index].questions) for chunk_index in assigned), "questions") as progress:
            for chunk_index in assigned:
                chunk, previous = all_chunks[chunk_index], cached[chunk_index]
                answered = previous or _answer_chunk(answerer, chunk, model, stopwatch)
                scored = scorers.score(answered, chunk, unfinished)
                if scored != previous:
                    journal.append(scored)
                done[chunk_index] = scored
                scores += [value for value in map(score, scored) if value is not None]
                progress.update(len(scored), f"accuracy {statistics.fmean(scores):.3f}" if scores else "")
        gathered = {chunk_index: scored for part in group.gather(done) for chunk_index, scored in part.items()}
        all_predictions = [prediction for chunk_index in range(len(all_chunks)) for prediction in gathered[chunk_index]]
        stopwatch.gather()
        if group.is_main_process:
            journal.merge_rank_files(all_predictions)
        questions = [question for chunk in all_chunks for question in chunk.questions]
        return SystemRun(path, questions, all_predictions, stopwatch.total.rate, stopwatch.total.cuda_graphs_error)


def _key(model: dict[str, Any], decoding: dict[str, Any], question: Question) -> str:
    """Cache key of an answer. It includes the sample id: equal questions about one image may have different references."""
    return digest(comparable(model), decoding, question.sample_id, question.fingerprint)


def _cached(model: dict[str, Any], decoding: dict[str, Any], question: Question, journal: Journal) -> Prediction | None:
    """The question's prediction in the journal, also under the cache key that schema version 1 computed."""
    key = _key(model, decoding, question)
    old_key = _key(with_old_keys("eval", model), with_old_keys("decoding", decoding), question)
    prediction = journal.cached.get(key) or journal.cached.get(old_key)
    return None if prediction is None else dataclasses.replace(prediction, key=key)


def _cached_chunk(chunk: Chunk, model: dict[str, Any], journal: Journal) -> list[Prediction]:
    """The chunk's cached predictions; empty unless all of them are in the journal without an error.

    A chunk is answered as a whole: another batch composition may change the last bits of a score.
    """
    decoding = decoding_record(chunk.decoding)
    looked_up = [_cached(model, decoding, question, journal) for question in chunk.questions]
    cached = [prediction for prediction in looked_up if prediction is not None and prediction.error is None]
    if len(cached) < len(looked_up):
        return []
    return [dataclasses.replace(p, fused=None, learned=None, confidence=None, unlike=(), choices=None) for p in cached]


def _report_unused(path: Path, journal: Journal, all_chunks: Sequence[Chunk], model: dict[str, Any]) -> None:
    """Log that a file has answers to these questions of which none can be used, and what differs."""
    asked = {question.sample_id: (question, decoding_record(chunk.decoding)) for chunk in all_chunks for question in chunk.questions}
    stored = [prediction for prediction in journal.cached.values() if prediction.sample_id in asked]
    if not stored or any(_cached(model, decoding, question, journal) for question, decoding in asked.values()):
        return
    now = {**comparable(model), **asked[stored[0].sample_id][1]}
    before = {**comparable(stored[0].model), **stored[0].decoding}
    keys = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
    what = ", ".join("content of the model's files" if key == "files" else key for key in keys) or "text or image"
    log.warning("%s: its answers are not used, they were given with another %s; the questions are asked again", path, what)


def _answer_chunk(answerer: Answerer, chunk: Chunk, model: dict[str, Any], stopwatch: Stopwatch) -> list[Prediction]:
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
            error=answer.error if answer.error is not None or answer.candidates else "the system returned no candidate",
            prompt=answer.prompt,
            visual_tokens=answer.visual_tokens,
            decoding=decoding,
            model=model,
        )
        for question, answer in zip(chunk.questions, answers, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _ChunkScorers:
    """What scores the candidates of a system. judge: the answerer, if it evaluates its own candidates."""

    scorers: Sequence[NamedScorer]
    judge: SelfEvaluator | None

    @property
    def identities(self) -> dict[str, str]:
        """Scorer name -> its identity, as predictions record it."""
        own = {} if self.judge is None else {SELF_EVALUATION: SELF_EVALUATION_IDENTITY}
        return {scorer.choice: scorer.identity for scorer in self.scorers} | own

    def have_scored(self, predictions: Sequence[Prediction]) -> bool:
        """Whether the predictions have the scores of exactly these scorers."""
        identities = self.identities
        return all(prediction.scorers == identities for prediction in predictions)

    def score(self, answered: list[Prediction], chunk: Chunk, unfinished: bool) -> list[Prediction]:
        """Add the scores to a chunk's predictions. Questions without an image are not scored.

        unfinished: whether some chunk still lacks scores. Then images of scored chunks are encoded again: scorers cache image features, so
        later images fall into the same batches, and get the same last bits, as in an uninterrupted run.
        """
        already_scored = self.have_scored(answered)
        if already_scored and not unfinished:
            return answered
        asked = [_question_candidates(p, question, already_scored) for p, question in zip(answered, chunk.questions, strict=True)]
        try:
            by_scorer = {scorer.choice: scorer.image_text_scorer.signals(asked) for scorer in self.scorers}
        except ImageError:
            # An image has become unreadable since its question was answered. Existing scores are kept.
            readable, asked = _without_unreadable(answered, asked)
            by_scorer = {scorer.choice: scorer.image_text_scorer.signals(asked) for scorer in self.scorers}
            answered = answered if already_scored else readable
        if already_scored:
            return answered
        if self.judge is not None:
            by_scorer[SELF_EVALUATION] = _self_evaluate(answered, chunk, self.judge)
        rows = [{name: signal for name, row in by_scorer.items() if (signal := row[i]) is not None} for i in range(len(answered))]
        identities = self.identities
        return [dataclasses.replace(p, scorers=identities, signals=signals) for p, signals in zip(answered, rows, strict=True)]


def _question_candidates(prediction: Prediction, question: Question, already_scored: bool) -> QuestionCandidates:
    """Input of the scorers: a short answer goes with its question, a caption stands alone. Boxes are no text that an image may fit."""
    request = question.request
    texts = () if already_scored else tuple(candidate.text for candidate in prediction.candidates)
    asked = question.text if question.short else ""
    images = request.images if prediction.candidates and not question.asks_for_box else ()
    return QuestionCandidates(asked, request.language, images, texts, question.images)


def _without_unreadable(answered: list[Prediction], asked: list[QuestionCandidates]) -> tuple[list[Prediction], list[QuestionCandidates]]:
    """Mark questions with an unreadable image as failed, and remove their images and texts; the next run answers them again."""
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
    """The answerer's own score of each candidate of the short questions; None where there is none."""
    rows = [i for i, p in enumerate(answered) if p.candidates and chunk.questions[i].short]
    texts = [[candidate.text for candidate in answered[i].candidates] for i in rows]
    outputs = judge.judge([chunk.questions[i].request for i in rows], texts, chunk.decoding.batch_size)
    signals: list[Signal | None] = [None] * len(answered)
    for i, values in zip(rows, outputs, strict=True):
        signals[i] = None if values is None else Signal(tuple(values))
    return signals
