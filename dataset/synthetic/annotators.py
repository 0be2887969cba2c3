"""How ten people answer a question: mostly alike, with synonyms, digits and words, and now and then an odd one out."""

import random

from dataset.synthetic.question_phrasing import Question

ANNOTATORS = 10
_SYNONYM_RATE, _WRONG_RATE = 0.12, 0.04
_MIN_AGREEING = 6


def ten_answers(question: Question, rng: random.Random) -> list[str]:
    """Ten answers; at least six give the usual one, so it is always the majority."""
    usual = question.answer.usual
    answers = [_one_answer(question, rng) for _ in range(ANNOTATORS)]
    for index, answer in enumerate(answers):
        if answers.count(usual) >= _MIN_AGREEING:
            break
        if answer != usual:
            answers[index] = usual
    return answers


def _one_answer(question: Question, rng: random.Random) -> str:
    chance = rng.random()
    if chance < _WRONG_RATE and question.wrong:
        return rng.choice(question.wrong)
    if chance > 1 - _SYNONYM_RATE and question.answer.synonyms:
        return rng.choice(question.answer.synonyms)
    return question.answer.usual
