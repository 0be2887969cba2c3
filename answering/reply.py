"""One question asked of one system: the answer, its candidates with their scores, and what is chosen.

In: requests, an answerer and, where candidates are reranked, a reranker. Out: replies that can be printed, saved and drawn.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from answering.model_fingerprint import digest
from answering.protocol import Answer, Answerer, Decoding, ImageInput, Request
from answering.question_types import skippable_question_type
from answering.rerank.candidate_scores import SELF_EVALUATION, Signal, fill_missing
from answering.rerank.choose_answer import RerankPlan, chosen_text, displayed_choice, rerank, select_candidates
from answering.rerank.confidence import NOT_SURE
from answering.rerank.image_text_scores import ImageTextScorer, QuestionCandidates
from answering.rerank.self_evaluation import SelfEvaluator
from dataset.sample import IMAGE_PLACEHOLDER, Language, Message, Task

_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class Reranker:
    """Who scores candidates, and the numbers by which one is chosen.

    judge: whether an answerer that can is asked about its own candidates. abstain_below: an answer of lower credibility becomes
    "not sure"; it needs a plan that has one.
    """

    scorers: tuple[ImageTextScorer, ...]
    plan: RerankPlan
    judge: bool = False
    abstain_below: float | None = None

    @property
    def identity(self) -> str:
        """Changes with anything that changes what is chosen of the same candidates."""
        return digest(self.scorer_names(), dataclasses.asdict(self.plan), self.judge, self.abstain_below)

    def scorer_names(self) -> list[tuple[str, str]]:
        """Each scorer by name and wording."""
        return [(scorer.name, scorer.statement_form) for scorer in self.scorers]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a question. `signals` and `fused`: scores for each candidate, where candidates were reranked.

    `credibility`: how likely the chosen answer is right, where the plan can tell; `chosen`: what is answered, which is "not sure"
    where that is too little.
    """

    question: str
    answer: Answer
    choices: dict[str, str]
    chosen: str
    signals: dict[str, Signal] = field(default_factory=dict)
    fused: tuple[float, ...] | None = None
    confidence: float | None = None

    def candidates(self) -> list[dict[str, Any]]:
        """Fields of each candidate and its scores."""
        signals = {name: signal.scores for name, signal in self.signals.items()} | ({"fused": self.fused} if self.fused else {})
        return [
            dataclasses.asdict(candidate) | {name: values[i] for name, values in signals.items()}
            for i, candidate in enumerate(self.answer.candidates)
        ]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "question": self.question,
            "answer": None if self.answer.error else self.chosen,
            **({} if self.confidence is None else {"confidence": self.confidence}),
            "candidates": self.candidates(),
            "choices": self.choices,
            "error": self.answer.error,
            "prompt": self.answer.prompt,
        }

    def lines(self) -> list[str]:
        """How far the answer can be trusted, where that is known; then the candidates as a small table: mean log-probability over
        their tokens (nats), each scorer's and the fused score, text."""
        names = list(self.signals)
        headers = [
            "mean log p",
            *(name.upper() if name == "clip" else name for name in names),
            *(["fused"] if self.fused else []),
            "candidate",
        ]
        rows = []
        for i, candidate in enumerate(self.answer.candidates):
            likelihood = "-" if candidate.mean_log_prob is None else f"{candidate.mean_log_prob:.3f}"
            scores = [f"{self.signals[name].scores[i]:.2f}" for name in names] + ([f"{self.fused[i]:.3f}"] if self.fused else [])
            rows.append([likelihood, *scores, candidate.text or "(empty)"])
        confidence_lines = (
            []
            if self.confidence is None
            else [f'how likely "{self.choices.get("reranked", self.choices["first"])}" is right: {self.confidence:.0%}']
        )
        return confidence_lines + ["  ".join([*(cell.rjust(10) for cell in row[:-1]), row[-1]]) for row in [headers, *rows]]


def question_request(request_id: str, question: str, images: Sequence[ImageInput], task: Task = "vqa") -> Request:
    """A question about pictures, which stand in front of it as in the training data; its language is read off its letters."""
    language: Language = "zh" if _CHINESE.search(question) else "en"
    marks = "".join(f"{IMAGE_PLACEHOLDER}\n" for _ in images)
    # A mark typed by hand would stand for a picture that is not there.
    return Request(request_id, tuple(images), (Message("user", marks + question.replace(IMAGE_PLACEHOLDER, " ")),), task, language)


def reply(answerer: Answerer, reranker: Reranker | None, requests: Sequence[Request], decoding: Decoding) -> list[Reply]:
    """Ask all requests together; candidates of short answers are reranked where there is a reranker and a picture."""
    return judge(requests, answerer.answer(requests, decoding), reranker, decoding.batch_size, answerer)


def judge(
    requests: Sequence[Request],
    answered: Sequence[Answer],
    reranker: Reranker | None,
    batch_size: int = 16,
    answerer: Answerer | None = None,
) -> list[Reply]:
    """What is chosen of answers that are there: all their candidates are scored together.

    answerer: asked how right it finds them, batch_size at once, where the reranker wants that and it can.
    """
    signals: list[dict[str, Signal]] = [{} for _ in requests]
    scored = [i for i, pair in enumerate(zip(requests, answered, strict=True)) if reranker is not None and _is_scorable(*pair)]
    if reranker is not None:
        scored_questions = [_question_candidates(requests[i], answered[i]) for i in scored]
        for scorer in reranker.scorers:
            for i, signal in zip(scored, scorer.signals(scored_questions), strict=True):
                if signal is not None:
                    signals[i][scorer.name] = signal
        if reranker.judge and isinstance(answerer, SelfEvaluator):
            output = answerer.judge([requests[i] for i in scored], [one.texts for one in scored_questions], batch_size)
            for i, values in zip(scored, output, strict=True):
                if values is not None:
                    signals[i][SELF_EVALUATION] = Signal(tuple(values))
        has_priors = {scorer.name: scorer.background_images is not None for scorer in reranker.scorers}
        has_priors |= {SELF_EVALUATION: False} if reranker.judge and isinstance(answerer, SelfEvaluator) else {}
        signals = [
            fill_missing(own, has_priors, len(answer.candidates)) if own else {} for own, answer in zip(signals, answered, strict=True)
        ]
    return [_reply(*each, reranker) for each in zip(requests, answered, signals, strict=True)]


def _reply(request: Request, answer: Answer, signals: dict[str, Signal], reranker: Reranker | None) -> Reply:
    question, candidates = _question(request), answer.candidates
    if reranker is None or not signals:
        choices = {name: chosen_text(candidates, index) for name, index in select_candidates(candidates, None, RerankPlan()).items()}
        return Reply(question, answer, choices, choices["first"])
    plan = reranker.plan
    indices = select_candidates(candidates, signals, plan, skippable_question_type(question, request.language))
    choices = {name: chosen_text(candidates, index) for name, index in indices.items()}
    confidence = None if plan.confidence is None else plan.confidence(candidates, indices[displayed_choice(indices)], signals)
    abstains = confidence is not None and reranker.abstain_below is not None and confidence < reranker.abstain_below
    output = NOT_SURE[request.language] if abstains else choices["reranked"]
    return Reply(
        question, answer, choices, output, signals, rerank(candidates, signals, plan.weights, plan.clip_score_form).fused, confidence
    )


def _is_scorable(request: Request, answer: Answer) -> bool:
    return bool(answer.candidates and request.images) and request.task == "vqa"


def _question(request: Request) -> str:
    return request.messages[-1].content.replace(IMAGE_PLACEHOLDER, "").strip()


def _question_candidates(request: Request, answer: Answer) -> QuestionCandidates:
    texts = tuple(candidate.text for candidate in answer.candidates)
    return QuestionCandidates(_question(request), request.language, request.images, texts)
