"""The corpus of the tiny models' tokenizer: all kinds of texts about a fixed set of scenes."""

import dataclasses
import random
import re
from collections.abc import Iterator
from typing import Any

from answering.config import SystemBase
from dataset.config import AiChallengerSource, CocoCaptionsSource
from dataset.sample import Language
from dataset.synthetic.annotation_records import DETAIL_QUESTIONS
from dataset.synthetic.question_phrasing import sample_questions
from dataset.synthetic.reasoning_conversations import conversation
from dataset.synthetic.scene import Scene, generate_scene
from dataset.synthetic.scene_descriptions import as_text, caption, description, short_caption
from dataset.synthetic.vocabulary import ZH, known_words

SEED = 1_000_003
"""Seed of the scenes for pre-training; the demo's dataset uses other seeds."""

LANGUAGES: tuple[Language, Language] = ("en", "zh")


def _default(section: Any, key: str) -> Any:
    """Default value of a configuration key."""
    return next(field.default for field in dataclasses.fields(section) if field.name == key)


SHORT_ANSWER_PROMPTS: dict[Language, str] = {
    "en": _default(SystemBase, "short_answer_prompt"),
    "zh": _default(SystemBase, "short_answer_prompt_zh"),
}
"""Prompt after a question to the baselines, by default of the configuration."""

CAPTION_QUESTIONS: dict[Language, tuple[str, ...]] = {
    "en": _default(CocoCaptionsSource, "questions"),
    "zh": _default(AiChallengerSource, "questions"),
}
"""Questions that ask for a caption, by default of the configuration."""

_SCENES = 400
# Negative indices: training batches use indices from 0.
_FIRST_SCENE = -_SCENES
_CHAT_WORDS = ("user", "assistant", "\n\n")
"""Texts around every turn of the chat template; one token each, as in Qwen's own vocabulary."""
_FUNCTION_WORDS = ("的", "个", "和", "与", "在", "有", "是", "比", "吗", "呢", "写着", "物体", "东西", "图形", "数字", "颜色", "形状")


def tokenizer_corpus() -> Iterator[str]:
    """Texts about a fixed set of scenes; the same on every machine.

    Chinese text is split at known words, so that no token spans two of them: 红色的圆形 is three tokens, and a held-out combination
    consists of tokens that occur in training.
    """
    word_pattern = re.compile("|".join(sorted({*known_words(ZH), *_FUNCTION_WORDS}, key=lambda word: (-len(word), word))))
    for text in _texts():
        start = 0
        for match in word_pattern.finditer(text):
            yield text[start : match.start()]
            yield match.group()
            start = match.end()
        yield text[start:]


def _texts() -> Iterator[str]:
    yield from _CHAT_WORDS * _SCENES
    for language in LANGUAGES:
        yield SHORT_ANSWER_PROMPTS[language]
        yield from (*CAPTION_QUESTIONS[language], *DETAIL_QUESTIONS[language])
        for number in range(_SCENES):
            yield from _texts_about(generate_scene(SEED, "train", _FIRST_SCENE + number), language)


def _texts_about(scene: Scene, language: Language) -> Iterator[str]:
    rng: random.Random = scene.rng(f"tokenizer {language}")
    for render_text in (caption, short_caption, description, as_text):
        yield render_text(scene, language, rng)
    for question in sample_questions(scene, language, rng, 6):
        yield question.text
        yield from question.answer.all
    for turn in conversation(scene, language, rng):
        yield from turn
