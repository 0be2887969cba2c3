"""Batches for pre-training. A batch depends on (seed, split, batch index) alone, so a run resumes with the same batches.

Texts are encoded with the models' tokenizer and chat template, as in training and inference. Images are uint8 pixels here;
scene_pixels computes the outputs of the models' image processors.

Shapes: B batch, T tokens, C grid cells (GRID * GRID). An image is [3, SIZE, SIZE].
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Tokenizer

from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample
from dataset.sample import IMAGE_PLACEHOLDER, Language
from dataset.synthetic.scene import COLORS, SHAPES, Scene, SceneSplit, generate_scene, split_of
from dataset.synthetic.scene_descriptions import as_text, caption, mention_spans
from dataset.synthetic.scene_renderer import render
from model.processors.sample_processor import SampleProcessor
from model.siglip_qwen.processor import Processor
from training.tiny_models.attention_supervision import NO_OBJECT, AttentionTargets, attention_targets
from training.tiny_models.data.dialogues import encode, sample_dialogue
from training.tiny_models.data.tokenizer_corpus import LANGUAGES
from training.tiny_models.patch_classification import patch_labels

Batch = dict[str, torch.Tensor]

QUESTIONS_IN_TEXT, QUESTIONS_IN_IMAGES = 6, 3
"""Maximum number of short questions per conversation. Text conversations consist mostly of the scene text, so more of them cost little."""

DESCRIPTION_PROBABILITY = 0.5
"""Probability that a conversation about a scene text begins with a description."""

_ANSWER_PROMPT_PROBABILITY = 0.7
_CHINESE_PROBABILITY = 1 / 16
"""Share of the images that Qwen3-VL is pre-trained on with Chinese texts. Models of the field, too, were shown far more English than what a
user may ask; tuning on merged data, half of it Chinese, has something to add."""
_EASY_SCENES_OFFSET = 1_000_000_000
"""Index of the first easy scene, far above those of the other batches."""


@dataclass(frozen=True)
class SceneBatches:
    """Scenes of one seed, `size` per batch; subclasses make batches of tensors from them."""

    seed: int
    size: int

    def scenes(self, batch_index: int, split: SceneSplit) -> list[Scene]:
        """The scenes of a batch; no scene is in two batches."""
        return [generate_scene(self.seed, split, batch_index * self.size + index) for index in range(self.size)]


def minimal_pair(scene: Scene) -> Scene:
    """The scene with one object changed: digit or color of a sign if there is one, else color or shape. The split stays the same."""
    rng = scene.rng("twin")
    while True:
        object_index = rng.choice([i for i, thing in enumerate(scene.things) if thing.digit is not None] or range(len(scene.things)))
        thing = scene.things[object_index]
        change: dict[str, Any] = rng.choice(({"digit": rng.randrange(10)}, {"color": rng.choice(COLORS)}))
        if thing.digit is None:
            change = rng.choice(({"shape": rng.choice([shape for shape in SHAPES if shape != "sign"])}, {"color": rng.choice(COLORS)}))
        changed = dataclasses.replace(thing, **change)
        other = dataclasses.replace(scene, things=(*scene.things[:object_index], changed, *scene.things[object_index + 1 :]))
        if changed != thing and not changed.held_out and split_of(other.layout) == scene.split:
            return other


@dataclass(frozen=True)
class CaptionBatches(SceneBatches):
    """Batches of images with a caption each, for SigLIP.

    Keys: images [B, 3, SIZE, SIZE] uint8; input_ids [B, text_length]; names [B, C, 3], the patch labels.
    In training, every second scene differs from the one before it in one object only (`minimal_pair`), so that a digit, a shape or
    a color has to tell them apart.

    Args:
        seed: seed of the scenes.
        size: scenes per batch.
        tokenizer: the tokenizer.
        text_length: length to which captions are padded and truncated, in tokens.
    """

    tokenizer: Qwen2Tokenizer
    text_length: int

    def scenes(self, batch_index: int, split: SceneSplit) -> list[Scene]:
        scenes = super().scenes(batch_index, split)
        if split == "train":
            scenes[1::2] = [minimal_pair(scene) for scene in scenes[: len(scenes) // 2 * 2 : 2]]
        return scenes

    def __call__(self, batch_index: int, split: SceneSplit = "train") -> Batch:
        scenes = self.scenes(batch_index, split)
        texts = [caption(scene, rng.choice(LANGUAGES), rng) for scene in scenes for rng in [scene.rng("caption")]]
        rows = self.tokenizer(texts, truncation=True, max_length=self.text_length)["input_ids"]
        ids = pad_rows(rows, self.tokenizer.pad_token_id, self.text_length)
        return {"images": render_images(scenes), "input_ids": ids, "names": patch_labels(scenes)}


@dataclass(frozen=True)
class TextConversationBatches(SceneBatches):
    """Batches of conversations about scenes given as text, for Qwen3.

    Keys, each [B, T]: input_ids, attention_mask, labels (IGNORE_INDEX outside answers) and the attention targets.

    Args:
        seed: seed of the scenes.
        size: conversations per batch.
        processor: encodes the conversations.
        only_questions: omit descriptions and reasoning.
        num_easy_batches: the first batches take of every three scenes the one with the fewest objects, since a lookup among few
            objects is learned sooner.
    """

    processor: Processor
    only_questions: bool = False
    num_easy_batches: int = 0

    def scenes(self, batch_index: int, split: SceneSplit) -> list[Scene]:
        if batch_index >= self.num_easy_batches or split != "train":
            return super().scenes(batch_index, split)
        indices = range(_EASY_SCENES_OFFSET + batch_index * self.size, _EASY_SCENES_OFFSET + (batch_index + 1) * self.size)
        return [
            min((generate_scene(self.seed, split, 3 * index + i) for i in range(3)), key=lambda scene: len(scene.things))
            for index in indices
        ]

    def __call__(self, batch_index: int, split: SceneSplit = "train") -> Batch:
        samples, targets = zip(*(self._encoded(scene) for scene in self.scenes(batch_index, split)), strict=True)
        batch = collate_conversations(samples, self.processor)
        for name in targets[0]:
            batch[name] = pad_rows([rows[name] for rows in targets], NO_OBJECT)
        return batch

    def _encoded(self, scene: Scene) -> tuple[EncodedSample, AttentionTargets]:
        rng = scene.rng("written")
        language = rng.choice(LANGUAGES)
        text = as_text(scene, language, rng)
        first, *later = sample_dialogue(
            scene, rng.choice(LANGUAGES), rng, QUESTIONS_IN_TEXT, self.only_questions, description_probability=DESCRIPTION_PROBABILITY
        )
        exchanges = [first._replace(question=f"{text}\n{first.question}"), *later]
        encoded = encode(self.processor, exchanges, num_images=0)
        return encoded, attention_targets(self.processor, encoded, exchanges, scene.things, mention_spans(text, scene, language))


@dataclass(frozen=True)
class ImageConversationBatches(SceneBatches):
    """Batches of conversations about images, for Qwen3-VL, mostly English.

    Keys: images [B, 3, SIZE, SIZE] uint8; input_ids, attention_mask and labels as in TextConversationBatches.

    Args:
        seed: seed of the scenes.
        size: conversations per batch.
        processor: encodes the conversations.
        only_questions: omit descriptions and reasoning, and ask in both languages equally often.
    """

    processor: Processor
    only_questions: bool = False

    def __call__(self, batch_index: int, split: SceneSplit = "train") -> Batch:
        scenes = self.scenes(batch_index, split)
        samples = [self._encoded(scene) for scene in scenes]
        return {"images": render_images(scenes), **collate_conversations(samples, self.processor)}

    def _encoded(self, scene: Scene) -> EncodedSample:
        rng = scene.rng("drawn")
        is_chinese = rng.random() < (1 / 2 if self.only_questions else _CHINESE_PROBABILITY)
        language: Language = "zh" if is_chinese else "en"
        first, *later = sample_dialogue(
            scene, language, rng, QUESTIONS_IN_IMAGES, self.only_questions, with_answer_prompt=rng.random() < _ANSWER_PROMPT_PROBABILITY
        )
        exchanges = [first._replace(question=f"{IMAGE_PLACEHOLDER}\n{first.question}"), *later]
        return add_vision_tokens(encode(self.processor, exchanges, num_images=1), self.processor)


def add_vision_tokens(encoded: EncodedSample, processor: Processor) -> EncodedSample:
    """Insert <|vision_start|> and <|vision_end|> around the image tokens of the single image, as Qwen3-VL's chat template does."""
    start, end = processor.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    first = encoded.input_ids.index(processor.image_token_id)
    last = first + processor.tokens_per_image

    def wrapped(row: list[int], before_token: int, after_token: int) -> list[int]:
        return [*row[:first], before_token, *row[first:last], after_token, *row[last:]]

    return EncodedSample(wrapped(encoded.input_ids, start, end), wrapped(encoded.labels, IGNORE_INDEX, IGNORE_INDEX), encoded.num_images)


def render_images(scenes: Sequence[Scene]) -> torch.Tensor:
    """The rendered images of the scenes, uint8 [B, 3, SIZE, SIZE]."""
    return torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes])).permute(0, 3, 1, 2).contiguous()


def collate_conversations(samples: Sequence[EncodedSample], processor: SampleProcessor) -> Batch:
    """Right-padded input_ids, attention_mask and labels, each [B, T]."""
    return {
        "input_ids": pad_rows([sample.input_ids for sample in samples], processor.tokenizer.pad_token_id),
        "attention_mask": pad_rows([[1] * len(sample) for sample in samples], 0),
        "labels": pad_rows([sample.labels for sample in samples], IGNORE_INDEX),
    }


def pad_rows(rows: Sequence[list[int]], pad_value: int, width: int | None = None) -> torch.Tensor:
    """Right-pad rows to one tensor [rows, width]; by default `width` is the longest row's length."""
    width = width or max(map(len, rows))
    return torch.tensor([row + [pad_value] * (width - len(row)) for row in rows])
