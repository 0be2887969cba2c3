"""Encoded training samples without files: prompts have the layout of the Processor, images are noise.

`reference_samples` has the length distribution of the reference data, `demo_samples` the questions and answers of the demo.
"""

import random

import numpy as np
from PIL import Image

from dataset.loading.collators import Example
from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample
from dataset.sample import IMAGE_PLACEHOLDER, Language, Message
from dataset.synthetic.annotation_records import DETAIL_QUESTIONS
from dataset.synthetic.question_phrasing import sample_questions
from dataset.synthetic.scene import generate_scene
from dataset.synthetic.scene_descriptions import description
from model.siglip_qwen.processor import Processor

LENGTH_DISTRIBUTION = ((0.4, (26, 46), (10, 30)), (0.4, (40, 70), (102, 242)), (0.2, (35, 55), (90, 200)))
"""Captions, complex reasoning, detailed descriptions: share, range of prompt tokens without the image, range of answer tokens. With 729
image tokens the mean sample has 879 tokens, 105 of them supervised, as in the reference data."""

NUM_IMAGES = 16
"""Number of noise images; the samples cycle through them."""

LANGUAGES: tuple[Language, ...] = ("en", "zh")
DESCRIPTION_INTERVAL = 12
"""Every twelfth sample is a description, about the share in the demo's data."""


def reference_samples(processor: Processor, count: int) -> list[Example]:
    """Samples of random tokens with the length distribution of the reference data."""
    rng = random.Random(0)
    layout = processor.prompt([Message("user", IMAGE_PLACEHOLDER)], 1)
    last = len(layout) - layout[::-1].index(processor.image_token_id)
    num_fixed_tokens = len(layout) - processor.tokens_per_image
    encoded = []
    for _ in range(count):
        (_, prompt_range, answer_range) = rng.choices(LENGTH_DISTRIBUTION, [share for share, *_ in LENGTH_DISTRIBUTION])[0]
        question = _random_tokens(rng, processor, max(1, rng.randint(*prompt_range) - num_fixed_tokens))
        answer = [*_random_tokens(rng, processor, rng.randint(*answer_range) - 1), processor.end_of_turn_id]
        prompt = [*layout[:last], *question, *layout[last:]]
        encoded.append(EncodedSample(prompt + answer, [IGNORE_INDEX] * len(prompt) + answer, 1))
    return _with_images(encoded, processor)


def demo_samples(processor: Processor, count: int) -> list[Example]:
    """Samples about synthetic scenes: short answers in two languages, and descriptions."""
    return _with_images([_scene_sample(processor, scene_index) for scene_index in range(count)], processor)


def _scene_sample(processor: Processor, scene_index: int) -> EncodedSample:
    scene, language = generate_scene(0, "train", scene_index), LANGUAGES[scene_index % 2]
    rng = scene.rng("benchmark")
    if scene_index % DESCRIPTION_INTERVAL == DESCRIPTION_INTERVAL - 1:
        question, answer = rng.choice(DETAIL_QUESTIONS[language]), description(scene, language, rng)
    else:
        sampled_question = sample_questions(scene, language, rng, 1)[0]
        question, answer = sampled_question.text, sampled_question.answer.usual
    encoded = processor.encode([Message("user", f"{IMAGE_PLACEHOLDER}\n{question}")], answer, 1)
    if encoded is None:
        raise ValueError(f"a sample about scene {scene_index} does not fit into {processor.max_length} tokens")
    return encoded


def _random_tokens(rng: random.Random, processor: Processor, count: int) -> list[int]:
    """Random token ids without the image token."""
    token_ids = (rng.randrange(len(processor.tokenizer) - 1) for _ in range(count))
    return [token + (token >= processor.image_token_id) for token in token_ids]


def _with_images(encoded: list[EncodedSample], processor: Processor) -> list[Example]:
    noise = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, *processor.pixel_reader.size, 3), dtype=np.uint8)
    images = processor.pixel_reader.read([Image.fromarray(image) for image in noise])
    return [Example(str(i), sample, {"pixel_values": images[i % NUM_IMAGES][None]}) for i, sample in enumerate(encoded)]
