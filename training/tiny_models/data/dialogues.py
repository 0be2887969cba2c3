"""Sample conversations about scenes for pre-training: mostly short questions, some descriptions and reasoning."""

import random
from typing import NamedTuple

from dataset.loading.encoded_sample import EncodedSample
from dataset.sample import Language, Message, Task
from dataset.synthetic.annotation_records import DETAIL_QUESTIONS
from dataset.synthetic.question_phrasing import Question, sample_questions
from dataset.synthetic.reasoning_conversations import conversation
from dataset.synthetic.scene import Scene, Thing
from dataset.synthetic.scene_descriptions import caption, description, short_caption
from errors import TesseraError
from model.processors.sample_processor import SampleProcessor
from training.tiny_models.data.tokenizer_corpus import CAPTION_QUESTIONS, SHORT_ANSWER_PROMPTS


class Exchange(NamedTuple):
    """A question, its answer, and the objects that the answer depends on; empty for counting and for comparisons of counts."""

    question: str
    answer: str
    evidence: tuple[Thing, ...] = ()


MAX_LENGTH = 384
"""Maximum length of a conversation in tokens."""

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
"""Sampling weights of question kinds in pre-training, relative to their frequency in the demo's dataset; 1 for all others.

Questions that need a lookup in the scene text are learned slowly: after 6,100 steps with the demo's frequencies, accuracy at
reading digits was 13 %; 250 more steps with four times as many such questions raised it to 76 %.
"""
_CANDIDATES_PER_QUESTION = 3
"""Number of candidates sampled per question before the kinds are weighted."""


def sample_dialogue(
    scene: Scene,
    language: Language,
    rng: random.Random,
    questions: int,
    only_questions: bool = False,
    with_answer_prompt: bool = False,
    description_probability: float = 0.0,
) -> list[Exchange]:
    """Sample a conversation about a scene: mostly short questions, else reasoning, a description or a caption.

    Args:
        scene: the scene.
        language: language of the conversation.
        rng: source of randomness.
        questions: maximum number of short questions.
        only_questions: sample short questions only, as frequently as in the demo's dataset; else QUESTION_KIND_WEIGHTS apply.
        with_answer_prompt: append the short-answer prompt to every short question.
        description_probability: probability of a conversation that begins with a description. It names every object, so it teaches
            more per token than short answers: to look objects up, and their names in the other language.
    """
    question_sampler = sample_questions if only_questions else _sample_weighted_questions
    if rng.random() < description_probability and not only_questions:
        opening = rng.choice((caption, description))(scene, language, rng)
        later = question_sampler(scene, language, rng, questions // 2)
        return [Exchange(rng.choice(DETAIL_QUESTIONS[language]), opening), *(_exchange(question) for question in later)]
    uniform = rng.random()
    if only_questions or uniform < _QUESTIONS_PROBABILITY:
        suffix = f"\n{SHORT_ANSWER_PROMPTS[language]}" if with_answer_prompt else ""
        return [_exchange(question, suffix) for question in question_sampler(scene, language, rng, questions)]
    if uniform < _QUESTIONS_PROBABILITY + _REASONING_PROBABILITY:
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
    """At most `count` questions about different facts, sampled with QUESTION_KIND_WEIGHTS."""
    candidates = sample_questions(scene, language, rng, _CANDIDATES_PER_QUESTION * count)
    # The candidates with the largest keys are a weighted sample without replacement (Efraimidis and Spirakis 2006).
    return sorted(candidates, key=lambda asked: rng.random() ** (1 / QUESTION_KIND_WEIGHTS.get(asked.fact.kind, 1)), reverse=True)[:count]


def opened(exchanges: list[Exchange], opening: str) -> list[Exchange]:
    """The conversation with a line before its first question: the scene as text, or the placeholder of its image."""
    first, *later = exchanges
    return [first._replace(question=f"{opening}\n{first.question}"), *later]


def encode(processor: SampleProcessor, exchanges: list[Exchange], num_images: int, task: Task = "conversation") -> EncodedSample:
    """Encode a conversation as in training and inference; the tokens of every answer are supervised.

    Raises TesseraError when it is longer than the processor's maximum length.
    """
    *earlier, (question, target, _) = exchanges
    messages = [message for prompt, answer, _ in earlier for message in (Message("user", prompt), Message("assistant", answer))]
    encoded = processor.encode([*messages, Message("user", question)], target, num_images, task=task)
    if encoded is None:
        raise TesseraError(f"the conversation about a scene is longer than {processor.max_length} tokens: {question!r}")
    return encoded
