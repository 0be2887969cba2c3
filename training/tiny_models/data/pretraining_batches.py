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

from dataset.loading.encoded_sample import IGNORED, Encoded
from dataset.sample import IMAGE_MARK
from dataset.synthetic.scene import COLORS, SHAPES, Part, Scene, compose, part_of
from dataset.synthetic.scene_descriptions import caption, mentions, written
from dataset.synthetic.scene_renderer import draw
from model.siglip_qwen.processor import Processor
from training.tiny_models.attention_supervision import NOTHING, Pointers, pointers
from training.tiny_models.data.dialogues import encode, talk
from training.tiny_models.data.tokenizer_corpus import LANGUAGES
from training.tiny_models.patch_classification import names

Batch = dict[str, torch.Tensor]

QUESTIONS_IN_TEXT, QUESTIONS_IN_PICTURES = 6, 3
"""Short questions a conversation. Most of a written scene's conversation is the scene, so more of them cost little."""

DESCRIBED = 0.5
"""Share of conversations about written scenes that begin with a description."""

_SUFFIXED = 0.7
_FIRST_EASY = 1_000_000_000


@dataclass(frozen=True)
class SceneBatches:
    """Scenes of one seed, `size` a batch; subclasses say what is made of them."""

    seed: int
    size: int

    def scenes(self, number: int, part: Part) -> list[Scene]:
        """The scenes of a batch; no two batches share one."""
        return [compose(self.seed, part, number * self.size + place) for place in range(self.size)]


def twin(scene: Scene) -> Scene:
    """The scene with one thing changed: another digit where there is a sign to read, else another color or shape."""
    rng = scene.rng("twin")
    while True:
        place = rng.choice([i for i, thing in enumerate(scene.things) if thing.digit is not None] or range(len(scene.things)))
        thing = scene.things[place]
        change: dict[str, Any] = rng.choice(({"digit": rng.randrange(10)}, {"color": rng.choice(COLORS)}))
        if thing.digit is None:
            change = rng.choice(({"shape": rng.choice([shape for shape in SHAPES if shape != "sign"])}, {"color": rng.choice(COLORS)}))
        changed = dataclasses.replace(thing, **change)
        other = dataclasses.replace(scene, things=(*scene.things[:place], changed, *scene.things[place + 1 :]))
        if changed != thing and not changed.held_out and part_of(other.layout) == scene.part:
            return other


@dataclass(frozen=True)
class CaptionedPictures(SceneBatches):
    """Pictures with a caption each, as SigLIP reads them: pictures [n, 3, side, side], input_ids [n, t], and `names` of what stands where.

    Every second scene of training is the twin of the one before it, so that a digit or a shape alone must tell them apart.
    """

    tokenizer: Qwen2Tokenizer
    text_length: int

    def scenes(self, number: int, part: Part) -> list[Scene]:
        scenes = super().scenes(number, part)
        if part == "train":
            scenes[1::2] = [twin(scene) for scene in scenes[: len(scenes) // 2 * 2 : 2]]
        return scenes

    def __call__(self, number: int, part: Part = "train") -> Batch:
        scenes = self.scenes(number, part)
        texts = [caption(scene, rng.choice(LANGUAGES), rng) for scene in scenes for rng in [scene.rng("caption")]]
        rows = self.tokenizer(texts, truncation=True, max_length=self.text_length)["input_ids"]
        ids = padded(rows, self.tokenizer.pad_token_id, self.text_length)
        return {"pictures": pictures(scenes), "input_ids": ids, "names": names(scenes)}


@dataclass(frozen=True)
class WrittenScenes(SceneBatches):
    """Conversations about written scenes: input_ids, attention_mask, labels (IGNORED outside answers), and `pointers`, each [n, t].

    only_questions: leave out descriptions and reasoning. easy: the first so many batches take the emptiest of three scenes
    each, since looking something up is learnt sooner among few things.
    """

    processor: Processor
    only_questions: bool = False
    easy: int = 0

    def scenes(self, number: int, part: Part) -> list[Scene]:
        if number >= self.easy or part != "train":
            return super().scenes(number, part)
        # Far behind those that later batches draw.
        places = range(_FIRST_EASY + number * self.size, _FIRST_EASY + (number + 1) * self.size)
        return [min((compose(self.seed, part, 3 * place + i) for i in range(3)), key=lambda scene: len(scene.things)) for place in places]

    def __call__(self, number: int, part: Part = "train") -> Batch:
        samples, found = zip(*(self._encoded(scene) for scene in self.scenes(number, part)), strict=True)
        batch = padded_conversations(samples, self.processor)
        for name in found[0]:
            batch[name] = padded([rows[name] for rows in found], NOTHING)
        return batch

    def _encoded(self, scene: Scene) -> tuple[Encoded, Pointers]:
        rng = scene.rng("written")
        language = rng.choice(LANGUAGES)
        text = written(scene, language, rng)
        first, *later = talk(scene, rng.choice(LANGUAGES), rng, QUESTIONS_IN_TEXT, self.only_questions, described=DESCRIBED)
        exchanges = [first._replace(question=f"{text}\n{first.question}"), *later]
        encoded = encode(self.processor, exchanges, images=0)
        return encoded, pointers(self.processor, encoded, exchanges, scene.things, mentions(text, scene, language))


@dataclass(frozen=True)
class DrawnScenes(SceneBatches):
    """Conversations about pictures as Qwen3-VL reads them: the keys of WrittenScenes and pictures [n, 3, side, side]."""

    processor: Processor
    only_questions: bool = False

    def __call__(self, number: int, part: Part = "train") -> Batch:
        scenes = self.scenes(number, part)
        samples = [self._encoded(scene) for scene in scenes]
        return {"pictures": pictures(scenes), **padded_conversations(samples, self.processor)}

    def _encoded(self, scene: Scene) -> Encoded:
        rng = scene.rng("drawn")
        language = rng.choice(LANGUAGES)
        first, *later = talk(scene, language, rng, QUESTIONS_IN_PICTURES, self.only_questions, suffixed=rng.random() < _SUFFIXED)
        exchanges = [first._replace(question=f"{IMAGE_MARK}\n{first.question}"), *later]
        return with_vision_marks(encode(self.processor, exchanges, images=1), self.processor)


def with_vision_marks(encoded: Encoded, processor: Processor) -> Encoded:
    """Put the vision marks of Qwen3-VL's own template around the placeholders of the one picture."""
    start, end = processor.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    first = encoded.input_ids.index(processor.placeholder_id)
    last = first + processor.tokens_per_image

    def marked(row: list[int], before: int, behind: int) -> list[int]:
        return [*row[:first], before, *row[first:last], behind, *row[last:]]

    return Encoded(marked(encoded.input_ids, start, end), marked(encoded.labels, IGNORED, IGNORED), encoded.images)


def pictures(scenes: Sequence[Scene]) -> torch.Tensor:
    """The drawn pictures, [n, 3, side, side] uint8."""
    return torch.from_numpy(np.stack([np.asarray(draw(scene)) for scene in scenes])).permute(0, 3, 1, 2).contiguous()


def padded_conversations(samples: Sequence[Encoded], processor: Processor) -> Batch:
    """Right-padded input_ids, attention_mask and labels."""
    return {
        "input_ids": padded([sample.input_ids for sample in samples], processor.tokenizer.pad_token_id),
        "attention_mask": padded([[1] * len(sample) for sample in samples], 0),
        "labels": padded([sample.labels for sample in samples], IGNORED),
    }


def padded(rows: Sequence[list[int]], filler: int, width: int | None = None) -> torch.Tensor:
    """Rows of different lengths as one tensor [n, t]; t is the longest row's length by default."""
    width = width or max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])
