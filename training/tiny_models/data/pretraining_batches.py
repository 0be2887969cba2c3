"""Batches for pre-training. A batch depends on (seed, split, batch index) alone, so a run resumes with the same batches.

Texts are encoded with the models' tokenizer and chat template, as in training and inference. Images are uint8 pixels, which already have
the models' input size; `pixel_values` and `qwen_patches` compute the outputs of the models' image processors on any device.

Shapes: B batch, T tokens, C grid cells (GRID * GRID), H height, W width, P patches per image. An image is [3, SIZE, SIZE].
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from training.tiny_models.data.dialogues import encode, opened, sample_dialogue
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
    """Scenes of one seed; subclasses make batches of tensors from them.

    Args:
        seed: seed of the scenes.
        size: scenes per batch.
        num_easy_batches: the first training batches take of every three scenes the one with the fewest objects, since a lookup among
            few objects is learned sooner.
    """

    seed: int
    size: int
    num_easy_batches: int = field(default=0, kw_only=True)

    def scenes(self, batch_index: int, split: SceneSplit) -> list[Scene]:
        """The scenes of a batch; no scene is in two batches."""
        indices = range(batch_index * self.size, (batch_index + 1) * self.size)
        if batch_index >= self.num_easy_batches or split != "train":
            return [generate_scene(self.seed, split, index) for index in indices]
        triples = ([generate_scene(self.seed, split, 3 * (_EASY_SCENES_OFFSET + index) + i) for i in range(3)] for index in indices)
        return [min(triple, key=lambda scene: len(scene.things)) for triple in triples]


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
        seed, size, num_easy_batches: as in SceneBatches.
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
class ConversationBatches(SceneBatches):
    """Batches of conversations about scenes.

    Keys, each [B, T]: input_ids, attention_mask, labels (IGNORE_INDEX outside answers), and the attention targets if there are any.

    Args:
        seed, size, num_easy_batches: as in SceneBatches.
        processor: encodes the conversations.
        only_questions: omit descriptions and reasoning.
    """

    processor: SampleProcessor
    only_questions: bool = False

    def encoded(self, scene: Scene) -> tuple[EncodedSample, AttentionTargets]:
        """The conversation about a scene, and its attention targets."""
        raise NotImplementedError

    def collated(self, scenes: Sequence[Scene]) -> Batch:
        """The conversations about the scenes, right-padded."""
        samples, targets = zip(*map(self.encoded, scenes), strict=True)
        return {
            "input_ids": pad_rows([sample.input_ids for sample in samples], self.processor.tokenizer.pad_token_id),
            "attention_mask": pad_rows([[1] * len(sample) for sample in samples], 0),
            "labels": pad_rows([sample.labels for sample in samples], IGNORE_INDEX),
            **{name: pad_rows([rows[name] for rows in targets], NO_OBJECT) for name in targets[0]},
        }

    def __call__(self, batch_index: int, split: SceneSplit = "train") -> Batch:
        return self.collated(self.scenes(batch_index, split))


@dataclass(frozen=True)
class TextConversationBatches(ConversationBatches):
    """Batches of conversations about scenes given as text, for Qwen3."""

    def encoded(self, scene: Scene) -> tuple[EncodedSample, AttentionTargets]:
        rng = scene.rng("written")
        language = rng.choice(LANGUAGES)
        text = as_text(scene, language, rng)
        dialogue = sample_dialogue(
            scene, rng.choice(LANGUAGES), rng, QUESTIONS_IN_TEXT, self.only_questions, description_probability=DESCRIPTION_PROBABILITY
        )
        exchanges = opened(dialogue, text)
        encoded = encode(self.processor, exchanges, num_images=0)
        targets = attention_targets(encoded, exchanges, scene.things)
        targets["mentioned"] = self._mentioned(encoded, exchanges[0].question, mention_spans(text, scene, language))
        return encoded, targets

    def _mentioned(self, encoded: EncodedSample, question: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        """The object that each token mentions; `spans` are the characters of each object in the first question."""
        tokens = self.processor.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
        ids, length = tokens["input_ids"], len(tokens["input_ids"])
        first = next(position for position in range(len(encoded)) if encoded.input_ids[position : position + length] == ids)
        mentioned = [NO_OBJECT] * len(encoded)
        for position, (start, end) in enumerate(tokens["offset_mapping"], first):
            for object_index, (span_start, span_end) in enumerate(spans):
                if start < span_end and end > span_start:
                    mentioned[position] = object_index
        return mentioned


@dataclass(frozen=True)
class ImageConversationBatches(ConversationBatches):
    """Batches of conversations about images [B, 3, SIZE, SIZE] uint8, for Qwen3-VL, mostly English; `only_questions` are in both
    languages equally often."""

    processor: Processor

    def __call__(self, batch_index: int, split: SceneSplit = "train") -> Batch:
        scenes = self.scenes(batch_index, split)
        return {"images": render_images(scenes), **self.collated(scenes)}

    def encoded(self, scene: Scene) -> tuple[EncodedSample, AttentionTargets]:
        rng = scene.rng("drawn")
        is_chinese = rng.random() < (1 / 2 if self.only_questions else _CHINESE_PROBABILITY)
        language: Language = "zh" if is_chinese else "en"
        dialogue = sample_dialogue(
            scene, language, rng, QUESTIONS_IN_IMAGES, self.only_questions, with_answer_prompt=rng.random() < _ANSWER_PROMPT_PROBABILITY
        )
        encoded = encode(self.processor, opened(dialogue, IMAGE_PLACEHOLDER), num_images=1)
        return add_vision_tokens(encoded, self.processor), {}


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


def pixel_values(images: torch.Tensor, image_processor: Any) -> torch.Tensor:
    """Images [B, 3, H, W] uint8, scaled to 0..1 and normalised with the processor's mean and standard deviation; float32."""
    mean, std = (
        torch.tensor(values, device=images.device).view(3, 1, 1) for values in (image_processor.image_mean, image_processor.image_std)
    )
    return (images.float() / 255 - mean) / std


def qwen_patches(images: torch.Tensor, image_processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Flattened patches of images [B, 3, H, W] in the order of Qwen2-VL's image processor.

    The patches that are merged into one image token are consecutive; an image is repeated over all frames of the temporal patch.

    Returns: patches [B * P, 3 * frames * patch size ** 2]; their grids [B, 3] (frames, rows, columns) in patches.
    """
    size, merge, frames = image_processor.patch_size, image_processor.merge_size, image_processor.temporal_patch_size
    values = pixel_values(images, image_processor)
    batch, channels, height, width = values.shape
    rows, columns = height // size, width // size
    blocks = values.view(batch, channels, rows // merge, merge, size, columns // merge, merge, size)
    # batch, block row, block column, row in block, column in block, channel, y, x
    patches = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)
    flat = patches.unsqueeze(6).expand(*patches.shape[:6], frames, size, size).reshape(batch * rows * columns, -1)
    return flat, torch.tensor([[1, rows, columns]] * batch, device=images.device)


def pad_rows(rows: Sequence[list[int]], pad_value: int, width: int | None = None) -> torch.Tensor:
    """Right-pad rows to one tensor [rows, width]; by default `width` is the longest row's length."""
    width = width or max(map(len, rows))
    return torch.tensor([row + [pad_value] * (width - len(row)) for row in rows])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
