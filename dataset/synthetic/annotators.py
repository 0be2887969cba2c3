"""Simulated annotators: ten answers per question, mostly the usual one, some synonyms (digits as words too) and a few wrong."""

import random

from dataset.synthetic.question_phrasing import Question

ANNOTATORS = 10
_SYNONYM_RATE, _WRONG_RATE = 0.12, 0.04
_MIN_AGREEING = 6


def ten_answers(question: Question, rng: random.Random) -> list[str]:
    """Ten answers; the usual answer is given at least six times, so it is always the majority."""
    usual = question.answer.usual
    answers = [_sample_answer(question, rng) for _ in range(ANNOTATORS)]
    for index, answer in enumerate(answers):
        if answers.count(usual) >= _MIN_AGREEING:
            break
        if answer != usual:
            answers[index] = usual
    return answers


def _sample_answer(question: Question, rng: random.Random) -> str:
    uniform = rng.random()
    if uniform < _WRONG_RATE and question.wrong:
        return rng.choice(question.wrong)
    if uniform > 1 - _SYNONYM_RATE and question.answer.synonyms:
        return rng.choice(question.answer.synonyms)
    return question.answer.usual
