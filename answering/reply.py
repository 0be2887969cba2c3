"""Ask a system questions, score the candidates of its answers, and choose one of them.

In: requests, an answerer and, if candidates are reranked, a reranker. Out: replies that can be printed, saved and rendered.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from answering.model_fingerprint import digest
from answering.protocol import Answer, Answerer, Decoding, ImageInput, Request
from answering.rerank.candidate_scores import SELF_EVALUATION, Signal, fill_missing
from answering.rerank.choose_answer import ChosenAnswer, RerankPlan, choose_answer
from answering.rerank.image_text_scores import ImageTextScorer, QuestionCandidates
from answering.rerank.self_evaluation import SelfEvaluator
from dataset.sample import IMAGE_PLACEHOLDER, Message, Task, detect_language, join_parts
from renamed_keys import with_old_keys

CUT = "cut at the largest number of tokens (decoding.max_new_tokens): the answer may be incomplete"
"""What to say of an answer whose `is_cut` is set."""


@dataclass(frozen=True, slots=True)
class Reranker:
    """Scorers of candidates, and the fitted or configured values by which one is chosen.

    judge: whether an answerer that can evaluate its own candidates is asked to. abstain_below: an answer with lower confidence becomes
    "not sure"; the plan must have a confidence model.
    """

    scorers: tuple[ImageTextScorer, ...]
    plan: RerankPlan
    judge: bool = False
    abstain_below: float | None = None

    @property
    def identity(self) -> str:
        """A hash of everything that can change which candidate is chosen."""
        return self._digest(dataclasses.asdict(self.plan))

    @property
    def earlier_identity(self) -> str:
        """The identity under schema version 1."""
        plan = dataclasses.asdict(self.plan)
        if plan["confidence"] is not None:
            del plan["confidence"]["calibration_range"]
        return self._digest(with_old_keys("rerank", plan, confidence="credibility"))

    def _digest(self, plan: dict[str, Any]) -> str:
        scorers = [(scorer.name, scorer.statement_form) for scorer in self.scorers]
        return digest(scorers, plan, self.judge, self.abstain_below)

    def without_confidence(self) -> "Reranker":
        """The same without a confidence: it is fitted for one decoding, and means nothing for another."""
        return dataclasses.replace(self, plan=dataclasses.replace(self.plan, confidence=None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(ChosenAnswer):
    """The reply to one question.

    question: its text, without image placeholders. answer: all candidates, or an error. signals: scores of the candidates by scorer, if
    they were reranked.
    """

    question: str
    answer: Answer
    signals: dict[str, Signal] = field(default_factory=dict)

    @property
    def is_cut(self) -> bool:
        """Whether the chosen answer ended at the largest number of tokens."""
        ended = zip(self.answer.candidates, self.answer.finish_reasons, strict=False)
        return next((reason == "length" for candidate, reason in ended if candidate.text.strip() == self.chosen), False)

    def candidates(self) -> list[dict[str, Any]]:
        """The fields and scores of each candidate."""
        signals = {name: signal.scores for name, signal in self.signals.items()} | ({"fused": self.fused} if self.fused else {})
        return [
            dataclasses.asdict(candidate) | {name: values[i] for name, values in signals.items()}
            for i, candidate in enumerate(self.answer.candidates)
        ]

    def record(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "question": self.question,
            "answer": None if self.answer.error else self.chosen,
            **self.confidence_record(),
            "candidates": self.candidates(),
            "choices": self.choices,
            "error": self.answer.error,
            "prompt": self.answer.prompt,
        }

    def confidence_record(self) -> dict[str, Any]:
        """The entries `confidence`, if there is one, and `unlike`, if anything is."""
        if self.confidence is None:
            return {}
        return {"confidence": self.confidence} | ({"unlike": list(self.unlike)} if self.unlike else {})

    def unlike_note(self) -> str:
        """What is unlike the questions that the confidence was learnt from, in parentheses after a space; empty if nothing is."""
        return f" ({' and '.join(self.unlike)} unlike those that the confidence was learnt from)" if self.unlike else ""

    def lines(self) -> list[str]:
        """Lines to print: that the answer was cut, if it was; the confidence if known; then a table of candidates with mean log-probability
        per token (nats), the score of each scorer, the fused score, and the text."""
        names = list(self.signals)
        columns = ["CLIP" if name == "clip" else name for name in names] + (["fused"] if self.fused else [])
        rows = [["mean log p", *columns, "candidate"]]
        for i, candidate in enumerate(self.answer.candidates):
            likelihood = "-" if candidate.mean_log_prob is None else f"{candidate.mean_log_prob:.3f}"
            scores = [f"{self.signals[name].scores[i]:.2f}" for name in names] + ([f"{self.fused[i]:.3f}"] if self.fused else [])
            rows.append([likelihood, *scores, candidate.text or "(empty)"])
        confidence_lines = []
        if self.confidence is not None:
            displayed = self.choices.get("reranked", self.choices["first"])
            confidence_lines = [f'how likely "{displayed}" is right: {self.confidence:.0%}{self.unlike_note()}']
        cut_lines = [CUT] if self.is_cut else []
        return cut_lines + confidence_lines + ["  ".join([*(cell.rjust(10) for cell in row[:-1]), row[-1]]) for row in rows]


def question_request(request_id: str, question: str, images: Sequence[ImageInput], task: Task = "vqa") -> Request:
    """A request with the images before the question, as in the training data. The language is detected from the characters."""
    content = join_parts([*(IMAGE_PLACEHOLDER for _ in images), without_placeholders(question)])
    return Request(request_id, tuple(images), (Message("user", content),), task, detect_language(question))


def without_placeholders(text: str) -> str:
    """A text that somebody typed: an <image> in it would be a placeholder without an image."""
    return text.replace(IMAGE_PLACEHOLDER, " ")


def reply(answerer: Answerer, reranker: Reranker | None, requests: Sequence[Request], decoding: Decoding) -> list[Reply]:
    """Answer all requests in batches. Candidates of short-answer questions with images are reranked if there is a reranker."""
    return judge(requests, answerer.answer(requests, decoding), reranker, decoding.batch_size, answerer)


def judge(
    requests: Sequence[Request],
    answered: Sequence[Answer],
    reranker: Reranker | None,
    batch_size: int = 16,
    answerer: Answerer | None = None,
) -> list[Reply]:
    """Choose among the candidates of given answers. All candidates are scored together.

    Args:
        requests: the questions.
        answered: one answer per request.
        reranker: scores and chooses; None takes the first candidate.
        batch_size: candidates per batch of self-evaluation.
        answerer: evaluates its own candidates, if the reranker wants it and the answerer supports it.
    """
    signals: list[dict[str, Signal]] = [{} for _ in requests]
    if reranker is not None:
        pairs = enumerate(zip(requests, answered, strict=True))
        scored = [i for i, (request, answer) in pairs if answer.candidates and request.images and request.short]
        scored_questions = [_question_candidates(requests[i], answered[i]) for i in scored]
        has_priors = {scorer.name: scorer.background_images is not None for scorer in reranker.scorers}
        for scorer in reranker.scorers:
            for i, signal in zip(scored, scorer.signals(scored_questions), strict=True):
                if signal is not None:
                    signals[i][scorer.name] = signal
        if reranker.judge and isinstance(answerer, SelfEvaluator):
            has_priors[SELF_EVALUATION] = False
            probabilities = answerer.judge([requests[i] for i in scored], [question.texts for question in scored_questions], batch_size)
            for i, values in zip(scored, probabilities, strict=True):
                if values is not None:
                    signals[i][SELF_EVALUATION] = Signal(tuple(values))
        signals = [
            fill_missing(own, has_priors, len(answer.candidates)) if own else {} for own, answer in zip(signals, answered, strict=True)
        ]
    return [_reply(*row, reranker) for row in zip(requests, answered, signals, strict=True)]


def _reply(request: Request, answer: Answer, signals: dict[str, Signal], reranker: Reranker | None) -> Reply:
    plan, abstain_below = (RerankPlan(), None) if reranker is None else (reranker.plan, reranker.abstain_below)
    c = choose_answer(request, answer.candidates, signals, plan, abstain_below)
    chosen = (c.chosen, c.choices, c.fused, c.learned, c.confidence, c.unlike)
    return Reply(*chosen, question=request.question, answer=answer, signals=signals)


def _question_candidates(request: Request, answer: Answer) -> QuestionCandidates:
    texts = tuple(candidate.text for candidate in answer.candidates)
    return QuestionCandidates(request.question, request.language, request.images, texts)
