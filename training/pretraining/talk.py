"""What is asked and answered about a scene in pre-training: mostly short questions, some descriptions and reasoning."""

import random

from dataset.processor import Encoded, Processor
from dataset.sample import Language, Message
from dataset.scenes.facts import CATEGORY_WEIGHTS, Category
from dataset.scenes.phrasing import ask_several
from dataset.scenes.reasoning import Turn, conversation
from dataset.scenes.records import DETAIL_QUESTIONS
from dataset.scenes.scene import Scene
from dataset.scenes.texts import caption, description, short_caption
from errors import TesseraError
from training.pretraining.corpus import CAPTION_QUESTIONS, SHORT_ANSWER_PROMPTS

_SHARE_OF_QUESTIONS, _SHARE_OF_REASONING = 0.82, 0.08

PRACTICE: dict[Category, int] = {"counting": 3, "attribute": 22, "spatial": 36, "reading": 10, "yes/no": 12, "identification": 17}
"""How often what is asked in pre-training. What takes looking up is learnt slowly and asked more often than the demo asks it:
6,100 steps by the demo's own weights left the reading of written digits at 13 %; 250 more by weights like these made it 76 %."""


def talk(
    scene: Scene,
    language: Language,
    rng: random.Random,
    questions: int,
    only_questions: bool = False,
    suffixed: bool = False,
    described: float = 0.0,
) -> list[Turn]:
    """A conversation about a scene, mostly up to `questions` short ones; suffixed: each with the short-answer prompt behind it.

    only_questions: nothing but short questions, asked as often as the demo asks them; else by PRACTICE.
    described: share of conversations that begin with a description. It names everything, so it teaches more a token than
    short answers do: to look things up, and what they are called in the other language.
    """
    weights = CATEGORY_WEIGHTS if only_questions else PRACTICE
    if rng.random() < described and not only_questions:
        told = rng.choice((caption, description))(scene, language, rng)
        later = ask_several(scene, language, rng, questions // 2, weights)
        return [(rng.choice(DETAIL_QUESTIONS[language]), told), *((question.text, question.answer.usual) for question in later)]
    chance = rng.random()
    if only_questions or chance < _SHARE_OF_QUESTIONS:
        suffix = f"\n{SHORT_ANSWER_PROMPTS[language]}" if suffixed else ""
        return [(question.text + suffix, question.answer.usual) for question in ask_several(scene, language, rng, questions, weights)]
    if chance < _SHARE_OF_QUESTIONS + _SHARE_OF_REASONING:
        return conversation(scene, language, rng)
    if rng.random() < 0.5:
        return [(rng.choice(DETAIL_QUESTIONS[language]), description(scene, language, rng))]
    text = rng.choice((caption, short_caption))(scene, language, rng)
    return [(rng.choice(CAPTION_QUESTIONS[language]), text.removesuffix("。"))]


def encode(processor: Processor, turns: list[Turn], images: int) -> Encoded:
    """Prompt and answers as training and answering build them; every answer is supervised."""
    *earlier, (question, target) = turns
    messages = [message for asked, said in earlier for message in (Message("user", asked), Message("assistant", said))]
    encoded = processor.encode([*messages, Message("user", question)], target, images)
    if encoded is None:
        raise TesseraError(f"a scene's conversation does not fit into {processor.max_tokens} tokens: {question!r}")
    return encoded
