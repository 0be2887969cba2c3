"""How ten people answer a question: mostly alike, with synonyms, digits and words, and now and then an odd one out."""

import random

from dataset.synthetic.question_phrasing import Question

ANNOTATORS = 10
_SYNONYM, _WRONG = 0.12, 0.04
_AGREE = 6


def ten_answers(question: Question, rng: random.Random) -> list[str]:
    """Ten answers; at least six give the usual one, so it is always the majority."""
    usual = question.answer.usual
    answers = [_one_answer(question, rng) for _ in range(ANNOTATORS)]
    for place, answer in enumerate(answers):
        if answers.count(usual) >= _AGREE:
            break
        if answer != usual:
            answers[place] = usual
    return answers


def _one_answer(question: Question, rng: random.Random) -> str:
    chance = rng.random()
    if chance < _WRONG and question.wrong:
        return rng.choice(question.wrong)
    if chance > 1 - _SYNONYM and question.answer.others:
        return rng.choice(question.answer.others)
    return question.answer.usual
