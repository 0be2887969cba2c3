"""The corpus of the tiny models' tokenizer: all kinds of texts about a fixed set of scenes."""

import re
from collections.abc import Iterator

from answering.config import SystemBase
from dataset.sample import Language
from dataset.source_config import AiChallengerSource, CocoCaptionsSource
from dataset.synthetic.annotation_records import DETAIL_QUESTIONS
from dataset.synthetic.question_phrasing import sample_questions
from dataset.synthetic.reasoning_conversations import conversation
from dataset.synthetic.scene import Scene, generate_scene
from dataset.synthetic.scene_descriptions import as_text, caption, description, short_caption
from dataset.synthetic.vocabulary import ZH, known_words

SEED = 1_000_003
"""Seed of the scenes for pre-training; the demo's dataset uses other seeds."""

LANGUAGES: tuple[Language, Language] = ("en", "zh")

SHORT_ANSWER_PROMPTS = {"en": str(SystemBase.short_answer_prompt), "zh": str(SystemBase.short_answer_prompt_zh)}
"""Prompt after a question to the baselines, by default of the configuration."""

CAPTION_QUESTIONS = {"en": CocoCaptionsSource.questions, "zh": AiChallengerSource.questions}
"""Questions that ask for a caption, by default of the configuration."""

_SCENES = 400
_CHAT_WORDS = ("user", "assistant", "\n\n")
"""Texts around every turn of the chat template; one token each, as in Qwen's own vocabulary."""
_FUNCTION_WORDS = ("的", "个", "和", "与", "在", "有", "是", "比", "吗", "呢", "写着", "物体", "东西", "图形", "数字", "颜色", "形状")


def tokenizer_corpus() -> Iterator[str]:
    """Texts about a fixed set of scenes; the same on every machine.

    Chinese text is split at known words, so that no token spans two of them: 红色的圆形 is three tokens, and a held-out combination
    consists of tokens that occur in training.
    """
    words = sorted({*known_words(ZH), *_FUNCTION_WORDS}, key=lambda word: (-len(word), word))
    word_pattern = re.compile(f"({'|'.join(words)})")
    for text in _texts():
        yield from word_pattern.split(text)


def _texts() -> Iterator[str]:
    yield from _CHAT_WORDS * _SCENES
    for language in LANGUAGES:
        yield SHORT_ANSWER_PROMPTS[language]
        yield from (*CAPTION_QUESTIONS[language], *DETAIL_QUESTIONS[language])
        # Negative indices: training batches use indices from 0.
        for index in range(-_SCENES, 0):
            yield from _texts_about(generate_scene(SEED, "train", index), language)


def _texts_about(scene: Scene, language: Language) -> Iterator[str]:
    rng = scene.rng(f"tokenizer {language}")
    for render_text in (caption, short_caption, description, as_text):
        yield render_text(scene, language, rng)
    for question in sample_questions(scene, language, rng, 6):
        yield question.text
        yield from question.answer.all
    for turn in conversation(scene, language, rng):
        yield from turn
