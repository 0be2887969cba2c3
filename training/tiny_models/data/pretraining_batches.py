"""Batches for pre-training. Batch `number` of a part follows from (seed, number) alone, so a run resumes where it stopped.

Texts go through the parts' own tokenizer and chat template, as training and answering build them. Pictures stay
pixels [n, 3, side, side] uint8 here; `pixels` turns them into what the parts' image processors give.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Tokenizer

from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample
from dataset.sample import IMAGE_PLACEHOLDER
from dataset.synthetic.scene import COLORS, SHAPES, Scene, SceneSplit, generate_scene, split_of
from dataset.synthetic.scene_descriptions import as_text, caption, mention_spans
from dataset.synthetic.scene_renderer import render
from model.siglip_qwen.processor import Processor
from training.tiny_models.attention_supervision import NO_OBJECT, AttentionTargets, attention_targets
from training.tiny_models.data.dialogues import encode, sample_dialogue
from training.tiny_models.data.tokenizer_corpus import LANGUAGES
from training.tiny_models.patch_classification import patch_labels

Batch = dict[str, torch.Tensor]

QUESTIONS_IN_TEXT, QUESTIONS_IN_IMAGES = 6, 3
"""Short questions a conversation. Most of a written scene's conversation is the scene, so more of them cost little."""

DESCRIPTION_PROBABILITY = 0.5
"""Share of conversations about written scenes that begin with a description."""

_ANSWER_PROMPT_PROBABILITY = 0.7
_EASY_SCENES_OFFSET = 1_000_000_000


@dataclass(frozen=True)
class SceneBatches:
    """Scenes of one seed, `size` a batch; subclasses say what is made of them."""

    seed: int
    size: int

    def scenes(self, batch_index: int, split: SceneSplit) -> list[Scene]:
        """The scenes of a batch; no two batches share one."""
        return [generate_scene(self.seed, split, batch_index * self.size + index) for index in range(self.size)]


def minimal_pair(scene: Scene) -> Scene:
    """The scene with one thing changed: another digit where there is a sign to read, else another color or shape."""
    rng = scene.rng("twin")
    while True:
        index = rng.choice([i for i, thing in enumerate(scene.things) if thing.digit is not None] or range(len(scene.things)))
        thing = scene.things[index]
        change: dict[str, Any] = rng.choice(({"digit": rng.randrange(10)}, {"color": rng.choice(COLORS)}))
        if thing.digit is None:
            change = rng.choice(({"shape": rng.choice([shape for shape in SHAPES if shape != "sign"])}, {"color": rng.choice(COLORS)}))
        changed = dataclasses.replace(thing, **change)
        other = dataclasses.replace(scene, things=(*scene.things[:index], changed, *scene.things[index + 1 :]))
        if changed != thing and not changed.held_out and split_of(other.layout) == scene.split:
            return other


@dataclass(frozen=True)
class CaptionBatches(SceneBatches):
    """Pictures with a caption each, as SigLIP reads them: pictures [n, 3, side, side], input_ids [n, t], and `names` of what stands where.

    Every second scene of training is the twin of the one before it, so that a digit or a shape alone must tell them apart.
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
    """Conversations about written scenes: input_ids, attention_mask, labels (IGNORED outside answers), and `pointers`, each [n, t].

    only_questions: leave out descriptions and reasoning. easy: the first so many batches take the emptiest of three scenes
    each, since looking something up is learnt sooner among few things.
    """

    processor: Processor
    only_questions: bool = False
    num_easy_batches: int = 0

    def scenes(self, batch_index: int, split: SceneSplit) -> list[Scene]:
        if batch_index >= self.num_easy_batches or split != "train":
            return super().scenes(batch_index, split)
        # Far behind those that later batches draw.
        places = range(_EASY_SCENES_OFFSET + batch_index * self.size, _EASY_SCENES_OFFSET + (batch_index + 1) * self.size)
        return [
            min((generate_scene(self.seed, split, 3 * index + i) for i in range(3)), key=lambda scene: len(scene.things))
            for index in places
        ]

    def __call__(self, batch_index: int, split: SceneSplit = "train") -> Batch:
        samples, found = zip(*(self._encoded(scene) for scene in self.scenes(batch_index, split)), strict=True)
        batch = collate_conversations(samples, self.processor)
        for name in found[0]:
            batch[name] = pad_rows([rows[name] for rows in found], NO_OBJECT)
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
    """Conversations about pictures as Qwen3-VL reads them: the keys of WrittenScenes and pictures [n, 3, side, side]."""

    processor: Processor
    only_questions: bool = False

    def __call__(self, batch_index: int, split: SceneSplit = "train") -> Batch:
        scenes = self.scenes(batch_index, split)
        samples = [self._encoded(scene) for scene in scenes]
        return {"images": render_images(scenes), **collate_conversations(samples, self.processor)}

    def _encoded(self, scene: Scene) -> EncodedSample:
        rng = scene.rng("drawn")
        language = rng.choice(LANGUAGES)
        first, *later = sample_dialogue(
            scene, language, rng, QUESTIONS_IN_IMAGES, self.only_questions, with_answer_prompt=rng.random() < _ANSWER_PROMPT_PROBABILITY
        )
        exchanges = [first._replace(question=f"{IMAGE_PLACEHOLDER}\n{first.question}"), *later]
        return add_vision_tokens(encode(self.processor, exchanges, num_images=1), self.processor)


def add_vision_tokens(encoded: EncodedSample, processor: Processor) -> EncodedSample:
    """Put the vision marks of Qwen3-VL's own template around the placeholders of the one picture."""
    start, end = processor.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    first = encoded.input_ids.index(processor.image_token_id)
    last = first + processor.tokens_per_image

    def wrapped(row: list[int], before_token: int, after_token: int) -> list[int]:
        return [*row[:first], before_token, *row[first:last], after_token, *row[last:]]

    return EncodedSample(wrapped(encoded.input_ids, start, end), wrapped(encoded.labels, IGNORE_INDEX, IGNORE_INDEX), encoded.num_images)


def render_images(scenes: Sequence[Scene]) -> torch.Tensor:
    """The drawn pictures, [n, 3, side, side] uint8."""
    return torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes])).permute(0, 3, 1, 2).contiguous()


def collate_conversations(samples: Sequence[EncodedSample], processor: Processor) -> Batch:
    """Right-padded input_ids, attention_mask and labels."""
    return {
        "input_ids": pad_rows([sample.input_ids for sample in samples], processor.tokenizer.pad_token_id),
        "attention_mask": pad_rows([[1] * len(sample) for sample in samples], 0),
        "labels": pad_rows([sample.labels for sample in samples], IGNORE_INDEX),
    }


def pad_rows(rows: Sequence[list[int]], pad_value: int, width: int | None = None) -> torch.Tensor:
    """Rows of different lengths as one tensor [n, t]; t is the longest row's length by default."""
    width = width or max(map(len, rows))
    return torch.tensor([row + [pad_value] * (width - len(row)) for row in rows])
