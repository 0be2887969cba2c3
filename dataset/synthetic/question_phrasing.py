"""Turn facts into questions in English or Chinese, with the usual answer, its synonyms, and wrong answers of the same type."""

import random
from dataclasses import dataclass

from dataset.sample import Language
from dataset.synthetic import question_templates, vocabulary
from dataset.synthetic.scene import COLORS, GRID, SHAPES, WORDS, Scene
from dataset.synthetic.scene_facts import CATEGORY_WEIGHTS, Category, Fact, Noun, Value, sample_fact
from dataset.synthetic.vocabulary import DIGITS, EN, Word


@dataclass(frozen=True, slots=True)
class Question:
    """A question in one language. `answer` holds the usual answer and its synonyms; `wrong` holds wrong answers of the same type."""

    text: str
    fact: Fact
    language: Language
    answer: Word
    wrong: tuple[str, ...]


_YES_NO: dict[Language, dict[bool, Word]] = {
    "en": {True: Word("yes", ("yes it is", "yeah")), False: Word("no", ("nope", "not"))},
    "zh": {True: Word("是", ("是的", "对")), False: Word("否", ("不是", "没有"))},
}
_RETRIES = 8
_EXISTENCE_ZH = {True: Word("有", ("是", "有的")), False: Word("没有", ("否", "无"))}


def ask(scene: Scene, language: Language, rng: random.Random, category: Category | None = None) -> Question:
    """Sample a question about a scene.

    Args:
        scene: the scene.
        language: language of question and answer.
        rng: source of randomness.
        category: category of the question; None samples one by CATEGORY_WEIGHTS, of those that have a fact about this scene.
    """
    weights = dict(CATEGORY_WEIGHTS)
    while True:
        chosen = category or rng.choices(list(weights), list(weights.values()))[0]
        fact = sample_fact(scene, chosen, rng)
        if fact is not None:
            return phrase(fact, language, rng)
        if category is None and len(weights) > 1:
            del weights[chosen]


def sample_questions(scene: Scene, language: Language, rng: random.Random, count: int) -> list[Question]:
    """At most `count` questions about different facts."""
    by_fact: dict[Fact, Question] = {}
    for _ in range(count):
        question = ask(scene, language, rng)
        for _ in range(_RETRIES):
            if question.fact not in by_fact:
                by_fact[question.fact] = question
                break
            question = _sample_similar_question(scene, language, rng, question)
    return list(by_fact.values())


def _sample_similar_question(scene: Scene, language: Language, rng: random.Random, reference: Question) -> Question:
    """A question of the same category; for yes/no also of the same kind and answer, so that yes and no stay balanced."""
    while True:
        question = ask(scene, language, rng, reference.fact.category)
        if reference.fact.category != "yes/no" or (question.fact.kind, question.answer) == (reference.fact.kind, reference.answer):
            return question


def phrase(fact: Fact, language: Language, rng: random.Random) -> Question:
    """The fact as a question, with a template sampled from those of its kind."""
    template = rng.choice(question_templates.QUESTION_TEMPLATES[language][question_templates.SHARED_TEMPLATES.get(fact.kind, fact.kind)])
    return Question(
        text=template.format_map(_fields(fact, language, rng)),
        fact=fact,
        language=language,
        answer=_answer(fact, fact.answer, language),
        wrong=tuple(_answer(fact, other, language).usual for other in _wrong_answers(fact)),
    )


def _fields(fact: Fact, language: Language, rng: random.Random) -> dict[str, str]:
    """Values of the template fields; a field without a value for this fact is absent."""
    thing = rng.choice(question_templates.THINGS[language])
    fields = {"thing": thing, "things": f"{thing}s"}
    for key, noun in zip(("a", "b"), fact.nouns, strict=False):
        fields[key] = ("the " if language == EN else "") + vocabulary.noun_phrase(noun, language, thing)
        fields["kinds" if key == "a" else "kinds_b"] = vocabulary.kinds(noun, language, thing)
    if fact.nouns:
        fields["A"] = vocabulary.capitalize_first(fields["a"])
        fields["one"] = vocabulary.indefinite(fact.nouns[0], language, thing)
    if fact.cell is not None:
        fields["at"] = vocabulary.position_phrase(fact.cell, language)
    if fact.side is not None:
        fields["side"] = rng.choice(question_templates.SIDES[language][fact.side])
        fields["further"] = question_templates.FURTHER[language][fact.side]
    if fact.color is not None:
        fields["color"] = vocabulary.word(fact.color, language).usual
    if fact.digit is not None:
        fields["digit"] = str(fact.digit)
    return fields


def _answer(fact: Fact, value: Value, language: Language) -> Word:
    """The answer `value` in words, with synonyms."""
    match value:
        case bool():
            return _EXISTENCE_ZH[value] if language != EN and fact.kind == "exists" else _YES_NO[language][value]
        case int() if fact.category == "counting" and language != EN:
            return Word(str(value), (vocabulary.amount(value, language), f"{value}个", DIGITS[language][value]))
        case int():
            return Word(str(value), (DIGITS[language][value],))
        case Noun():
            return _thing_answer(value, language)
        case str() if fact.kind == "read_word":
            return Word(value)
        case _:
            return vocabulary.word(value, language)


def _thing_answer(noun: Noun, language: Language) -> Word:
    assert noun.color and noun.shape
    usual, shape = vocabulary.noun_phrase(noun, language), vocabulary.word(noun.shape, language)
    if language == EN:
        return Word(usual, (shape.usual, *(f"{noun.color} {other}" for other in shape.synonyms)))
    short = vocabulary.word(noun.color, language).synonyms[0]
    return Word(usual, (usual.replace("的", ""), f"{short}{shape.usual}", shape.usual))


def _wrong_answers(fact: Fact) -> list[Value]:
    """Wrong answers of the same type. Numbers and positions: only the neighbours of the right one."""
    match fact.answer:
        case bool():
            return [not fact.answer]
        case int():
            return [n for n in (fact.answer - 1, fact.answer + 1) if 0 <= n <= 9]
        case Noun():
            named = [noun for noun in fact.nouns if noun.color and noun.shape]
            same_shape = [Noun(color, fact.answer.shape) for color in COLORS]
            return [noun for noun in dict.fromkeys([*named, *same_shape]) if noun != fact.answer and (noun in named or not noun.held_out)]
        case str() if fact.kind == "read_word":
            return [other for other in WORDS if other != fact.answer]
        case str():
            return [other for other in (COLORS if fact.answer in COLORS else SHAPES) if other != fact.answer]
        case (row, column):
            cells = [(r, c) for r in range(GRID) for c in range(GRID)]
            return [cell for cell in cells if abs(cell[0] - row) + abs(cell[1] - column) == 1]
