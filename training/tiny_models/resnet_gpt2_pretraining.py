"""Pre-training of ResNet, on what a scene contains, and of GPT-2, on questions, answers and captions without images.

Shapes: B batch, T tokens, C grid cells, F channels of ResNet, K kinds of objects (color and shape).
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import BlipImageProcessorPil, GPT2LMHeadModel, Qwen2Tokenizer, ResNetModel

from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample
from dataset.sample import IMAGE_PLACEHOLDER
from dataset.synthetic.scene import COLORS, SHAPES, Scene, SceneSplit
from model.processors.question_processor import QuestionProcessor, question_prompts
from model.resnet_gpt2.config import ResnetGpt2Config
from training.tiny_models.architectures import image_processor
from training.tiny_models.attention_supervision import AttentionTargets
from training.tiny_models.data.dialogues import MAX_LENGTH, encode, opened, sample_dialogue
from training.tiny_models.data.pretraining_batches import Batch, ConversationBatches, SceneBatches, pixel_values, render_images, to_device
from training.tiny_models.data.tokenizer_corpus import LANGUAGES
from training.tiny_models.language_pretraining import split_by_length
from training.tiny_models.patch_classification import PatchClassifier, patch_labels
from training.tiny_models.pretraining_loop import Task

QUESTIONS = 4
"""Most questions of a conversation of GPT-2."""
MEASURED_SIZE = 256


@dataclass(frozen=True)
class ClassifiedImages(SceneBatches):
    """Batches of images [B, 3, SIZE, SIZE] uint8 with the classes of each grid cell, names [B, C, 3]."""

    def __call__(self, batch_index: int, split: SceneSplit = "train") -> Batch:
        scenes = self.scenes(batch_index, split)
        return {"images": render_images(scenes), "names": patch_labels(scenes)}


class SceneClassifier(nn.Module):
    """Heads on ResNet's last feature map: color, shape and digit of each cell, and on its mean which kinds of objects there are."""

    def __init__(self, channels: int):
        super().__init__()
        self.cells = PatchClassifier(channels)
        self.kinds = nn.Linear(channels, len(COLORS) * len(SHAPES))

    def loss(self, maps: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
        """Sum of the losses of both heads in nats. maps: [B, F, rows, columns]; names: classes [B, C, 3]."""
        presence = functional.binary_cross_entropy_with_logits(self.kinds(maps.mean((2, 3))).float(), present_kinds(names))
        return self.cells.loss(maps.flatten(2).transpose(1, 2), names) + len(COLORS) * presence


def present_kinds(names: torch.Tensor) -> torch.Tensor:
    """Whether each kind of object is in an image, float [B, K], from classes [B, C, 3]."""
    present = torch.zeros(len(names), len(COLORS) + 1, len(SHAPES) + 1, device=names.device)
    rows = torch.arange(len(names), device=names.device)[:, None].expand(names.shape[:2])
    present[rows, names[..., 0], names[..., 1]] = 1.0
    return present[:, :-1, :-1].flatten(1)


def resnet_task(model: ResNetModel, tokenizer: Qwen2Tokenizer, scenes: SceneBatches) -> Task:
    """The pre-training task of ResNet, which has no use for the tokenizer."""
    del tokenizer
    data, processor = ClassifiedImages(**vars(scenes)), image_processor("resnet")
    classifier = SceneClassifier(model.config.hidden_sizes[-1]).to(model.device)

    def maps(model: ResNetModel, batch: Batch) -> torch.Tensor:
        features: torch.Tensor = model(pixel_values(batch["images"], processor)).last_hidden_state
        return features

    def loss(model: ResNetModel, batch: Batch) -> torch.Tensor:
        return classifier.loss(maps(model, batch), batch["names"])

    @torch.inference_mode()
    def measure(model: ResNetModel) -> dict[str, float]:
        batch = to_device(dataclasses.replace(data, size=MEASURED_SIZE)(0, "validation"), model.device)
        features = maps(model, batch)
        kinds = present_kinds(batch["names"]).bool()
        found = classifier.kinds(features.mean((2, 3))) > 0
        overlap = float((found & kinds).sum() / (found | kinds).sum())
        return {**classifier.cells.accuracy(features.flatten(2).transpose(1, 2), batch["names"]), "kinds of objects (IoU)": overlap}

    return Task(model, data, loss, measure, classifier)


@dataclass(frozen=True)
class DialogueBatches(ConversationBatches):
    """Batches of conversations without their images; all tokens are supervised."""

    def encoded(self, scene: Scene) -> tuple[EncodedSample, AttentionTargets]:
        rng = scene.rng("gpt2")
        exchanges = sample_dialogue(scene, rng.choice(LANGUAGES), rng, QUESTIONS)
        encoded = encode(self.processor, opened(exchanges, IMAGE_PLACEHOLDER), num_images=1)
        return EncodedSample(encoded.input_ids, encoded.input_ids, 0), {}


def gpt2_task(model: GPT2LMHeadModel, tokenizer: Qwen2Tokenizer, scenes: SceneBatches) -> Task:
    """The pre-training task of GPT-2: next tokens."""
    settings = ResnetGpt2Config(family="resnet_gpt2")
    prompts = question_prompts(vars(settings))
    processor = QuestionProcessor(
        tokenizer, BlipImageProcessorPil(), prompts, end_of_turn_id=tokenizer.eos_token_id, num_image_tokens=0, max_length=MAX_LENGTH
    )
    data = DialogueBatches(**vars(scenes), processor=processor)

    def loss(model: GPT2LMHeadModel, batch: Batch) -> torch.Tensor:
        total, count = torch.zeros((), device=model.device), 0
        for group in split_by_length(batch):
            logits = model(input_ids=group["input_ids"], attention_mask=group["attention_mask"], use_cache=False).logits[:, :-1]
            labels = group["labels"][:, 1:]
            total = total + functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
            count += int((labels != IGNORE_INDEX).sum())
        return total / count

    @torch.inference_mode()
    def measure(model: GPT2LMHeadModel) -> dict[str, float]:
        batch = dataclasses.replace(data, size=MEASURED_SIZE)(0, "validation")
        return {"perplexity": math.exp(float(loss(model, to_device(batch, model.device))))}

    return Task(model, data, loss, measure)
