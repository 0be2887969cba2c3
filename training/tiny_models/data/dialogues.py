"""What is asked and answered about a scene in pre-training: mostly short questions, some descriptions and reasoning."""

import random
from typing import NamedTuple

from dataset.loading.encoded_sample import EncodedSample
from dataset.sample import Language, Message
from dataset.synthetic.annotation_records import DETAIL_QUESTIONS
from dataset.synthetic.question_phrasing import Question, sample_questions
from dataset.synthetic.reasoning_conversations import conversation
from dataset.synthetic.scene import Scene, Thing
from dataset.synthetic.scene_descriptions import caption, description, short_caption
from errors import TesseraError
from model.siglip_qwen.processor import Processor
from training.tiny_models.data.tokenizer_corpus import CAPTION_QUESTIONS, SHORT_ANSWER_PROMPTS


class Exchange(NamedTuple):
    """A question, its answer, and the things that have to be looked up for it, at most two; none where it takes more."""

    question: str
    answer: str
    evidence: tuple[Thing, ...] = ()


_QUESTIONS_PROBABILITY, _REASONING_PROBABILITY = 0.82, 0.08

QUESTION_KIND_WEIGHTS = {
    "place_of": 6,
    "color_of": 4,
    "relation": 4,
    "shape_of": 2,
    "which_is": 2,
    "which_further": 2,
    "what_beside": 2,
    "read": 3,
    "shows": 3,
}
"""How often kinds of questions are asked in pre-training, as multiples of the demo's own share; 1 for all others.

What takes looking up is learnt slowly and needs practice: 6,100 steps by the demo's own shares left the reading of written
digits at 13 %; 250 more with four times as many such questions made it 76 %.
"""
_CANDIDATES_PER_QUESTION = 3
"""Questions among which practice chooses, for each that it takes."""


def sample_dialogue(
    scene: Scene,
    language: Language,
    rng: random.Random,
    questions: int,
    only_questions: bool = False,
    with_answer_prompt: bool = False,
    description_probability: float = 0.0,
) -> list[Exchange]:
    """A conversation about a scene, mostly up to `questions` short ones; suffixed: each with the short-answer prompt behind it.

    only_questions: nothing but short questions, asked as often as the demo asks them; else by PRACTICE.
    described: share of conversations that begin with a description. It names everything, so it teaches more a token than
    short answers do: to look things up, and what they are called in the other language.
    """
    asked = sample_questions if only_questions else _sample_weighted_questions
    if rng.random() < description_probability and not only_questions:
        opening = rng.choice((caption, description))(scene, language, rng)
        later = asked(scene, language, rng, questions // 2)
        return [Exchange(rng.choice(DETAIL_QUESTIONS[language]), opening), *(_exchange(question) for question in later)]
    chance = rng.random()
    if only_questions or chance < _QUESTIONS_PROBABILITY:
        suffix = f"\n{SHORT_ANSWER_PROMPTS[language]}" if with_answer_prompt else ""
        return [_exchange(question, suffix) for question in asked(scene, language, rng, questions)]
    if chance < _QUESTIONS_PROBABILITY + _REASONING_PROBABILITY:
        return [Exchange(*turn) for turn in conversation(scene, language, rng)]
    if rng.random() < 0.5:
        return [Exchange(rng.choice(DETAIL_QUESTIONS[language]), description(scene, language, rng))]
    text = rng.choice((caption, short_caption))(scene, language, rng)
    return [Exchange(rng.choice(CAPTION_QUESTIONS[language]), text.removesuffix("。"))]


def _exchange(question: Question, suffix: str = "") -> Exchange:
    fact = question.fact
    evidence = () if fact.category == "counting" or fact.kind == "more" else fact.about
    return Exchange(question.text + suffix, question.answer.usual, evidence)


def _sample_weighted_questions(scene: Scene, language: Language, rng: random.Random, count: int) -> list[Question]:
    """At most `count` questions about different facts, their kinds weighted by PRACTICE."""
    candidates = sample_questions(scene, language, rng, _CANDIDATES_PER_QUESTION * count)
    # The largest of such keys are a weighted sample without replacement (Efraimidis and Spirakis 2006).
    keys = [rng.random() ** (1 / QUESTION_KIND_WEIGHTS.get(question.fact.kind, 1)) for question in candidates]
    chosen = sorted(range(len(candidates)), key=keys.__getitem__, reverse=True)[:count]
    return [candidates[index] for index in chosen]


def encode(processor: Processor, exchanges: list[Exchange], num_images: int) -> EncodedSample:
    """Prompt and answers as training and answering build them; every answer is supervised."""
    *earlier, (question, target, _) = exchanges
    messages = [message for asked, answer, _ in earlier for message in (Message("user", asked), Message("assistant", answer))]
    encoded = processor.encode([*messages, Message("user", question)], target, num_images)
    if encoded is None:
        raise TesseraError(f"a scene's conversation does not fit into {processor.max_length} tokens: {question!r}")
    return encoded
