"""Encoded samples to train on, without files: their prompts are laid out by the Processor, their pictures are noise.

`reference_samples` has the lengths of the reference data, `demo_samples` what is asked and answered in the embedded demo.
"""

import random

import numpy as np
from PIL import Image

from dataset.loading.collators import Example
from dataset.loading.encoded_sample import IGNORED, Encoded
from dataset.sample import IMAGE_MARK, Language, Message
from dataset.synthetic.annotation_records import DETAIL_QUESTIONS
from dataset.synthetic.question_phrasing import ask_several
from dataset.synthetic.scene import compose
from dataset.synthetic.scene_descriptions import description
from model.siglip_qwen.processor import Processor

KINDS = ((0.4, (26, 46), (10, 30)), (0.4, (40, 70), (102, 242)), (0.2, (35, 55), (90, 200)))
"""Captions, complex reasoning, detailed descriptions: their share, tokens of the prompt beside the picture, tokens of the
answer. With a picture of 729 tokens the mean sample has 879, of which 105 are supervised, as in the reference data."""

PICTURES = 16
"""Different pictures of noise; the samples take them in turn."""

LANGUAGES: tuple[Language, ...] = ("en", "zh")
DESCRIBED_EVERY = 12
"""The demo has about one description for eleven short answers."""


def reference_samples(processor: Processor, count: int, seed: int = 0) -> list[Example]:
    """Samples of the lengths of the reference data, with random text."""
    rng = random.Random(seed)
    layout = processor.prompt([Message("user", IMAGE_MARK)], 1)
    last = len(layout) - layout[::-1].index(processor.placeholder_id)
    around = len(layout) - processor.tokens_per_image
    encoded = []
    for _ in range(count):
        (_, asked, answered) = rng.choices(KINDS, [share for share, *_ in KINDS])[0]
        question = _words(rng, processor, max(1, rng.randint(*asked) - around))
        answer = [*_words(rng, processor, rng.randint(*answered) - 1), processor.end_id]
        prompt = [*layout[:last], *question, *layout[last:]]
        encoded.append(Encoded(prompt + answer, [IGNORED] * len(prompt) + answer, 1))
    return _with_pictures(encoded, processor, seed)


def demo_samples(processor: Processor, count: int, seed: int = 0) -> list[Example]:
    """Samples about drawn scenes: short answers in two languages, and descriptions."""
    return _with_pictures([_about_scene(processor, number, seed) for number in range(count)], processor, seed)


def _about_scene(processor: Processor, number: int, seed: int) -> Encoded:
    scene, language = compose(seed, "train", number), LANGUAGES[number % 2]
    rng = scene.rng("benchmark")
    if number % DESCRIBED_EVERY == DESCRIBED_EVERY - 1:
        question, answer = rng.choice(DETAIL_QUESTIONS[language]), description(scene, language, rng)
    else:
        asked = ask_several(scene, language, rng, 1)[0]
        question, answer = asked.text, asked.answer.usual
    encoded = processor.encode([Message("user", f"{IMAGE_MARK}\n{question}")], answer, 1)
    if encoded is None:
        raise ValueError(f"a sample about scene {number} does not fit into {processor.max_tokens} tokens")
    return encoded


def _words(rng: random.Random, processor: Processor, count: int) -> list[int]:
    """Random ids among which is no placeholder."""
    drawn = (rng.randrange(len(processor.tokenizer) - 1) for _ in range(count))
    return [token + (token >= processor.placeholder_id) for token in drawn]


def _with_pictures(encoded: list[Encoded], processor: Processor, seed: int) -> list[Example]:
    noise = np.random.default_rng(seed).integers(0, 256, (PICTURES, *processor.pictures.size, 3), dtype=np.uint8)
    pictures = processor.pictures.read([Image.fromarray(picture) for picture in noise])
    return [Example(str(i), one, pictures[i % PICTURES][None]) for i, one in enumerate(encoded)]
