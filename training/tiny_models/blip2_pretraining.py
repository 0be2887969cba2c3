"""Supervised pre-training of BLIP-2 on rendered images: cross-entropy on the answers, with the prompts of the family `blip2`.

The vision encoder starts as SigLIP's and is trained, too: the tiny SigLIP's patch features do not tell where in the image they are (a
linear classifier finds their grid cell in 16 of 100 cases, of 11 by chance), which a Q-Former must know. Each query attends to the patches
of one grid cell and classifies its object, and two attention heads of OPT learn to look up the cells that an answer depends on (see
attention_supervision).

Shapes: B batch, T tokens, P patches and the class token, Q queries, D hidden size, H attention heads, N head size.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import Blip2ForConditionalGeneration, PreTrainedModel, Qwen2Tokenizer

from dataset.loading.encoded_sample import EncodedSample
from dataset.sample import IMAGE_PLACEHOLDER, Language
from dataset.synthetic.scene import GRID, Scene, SceneSplit
from model.blip2.processor import PUBLISHED_PROMPTS
from model.processors.question_processor import QuestionProcessor
from training.tiny_models.architectures import image_processor
from training.tiny_models.attention_supervision import AttentionTargets, attention_targets, lookup_loss
from training.tiny_models.data.dialogues import MAX_LENGTH, encode, opened, sample_dialogue
from training.tiny_models.data.pretraining_batches import Batch, ConversationBatches, SceneBatches, pixel_values, render_images
from training.tiny_models.language_pretraining import ATTENTION_LOSS_WEIGHT, conversation_task
from training.tiny_models.patch_classification import PatchClassifier, cells_to_patches, patch_labels
from training.tiny_models.pretraining_loop import Task

SUPERVISED_LAYER = 2
"""Index of OPT's decoder layer whose first two heads are supervised."""
TEXT_LANGUAGE: Language = "zh"
"""Conversations in this language are read without their image: the published models, too, were shown images with English texts alone, and
what their language model knows of others is text. Questions about images in Chinese are what tuning on merged data adds."""
_TEXT_PROBABILITY = 1 / 6
"""Share of the conversations in TEXT_LANGUAGE."""
QUESTIONS = 3
"""Most questions of a conversation."""
_PROMPT_PROBABILITY = 0.3
"""Probability that the questions of a conversation have the prompt of the demo's data."""


@dataclass(frozen=True)
class Blip2Batches(ConversationBatches):
    """Batches of conversations about images, whose placeholders come first.

    Further keys: images [B, 3, SIZE, SIZE] uint8; names [B, Q, 3], the classes of each grid cell.
    """

    processor: QuestionProcessor

    def __call__(self, batch_index: int, split: SceneSplit = "train") -> Batch:
        scenes = self.scenes(batch_index, split)
        batch = {"images": render_images(scenes), "names": patch_labels(scenes), **self.collated(scenes)}
        without_image = torch.tensor([self._language(scene) == TEXT_LANGUAGE for scene in scenes])
        batch["attention_mask"][without_image, : self.processor.num_image_tokens] = 0
        return batch

    def _language(self, scene: Scene) -> Language:
        return TEXT_LANGUAGE if not self.only_questions and scene.rng("language").random() < _TEXT_PROBABILITY else "en"

    def encoded(self, scene: Scene) -> tuple[EncodedSample, AttentionTargets]:
        """The object of each grid cell is mentioned at the query of that cell."""
        rng, language = scene.rng("blip2"), self._language(scene)
        with_prompt = rng.random() < _PROMPT_PROBABILITY
        exchanges = sample_dialogue(scene, language, rng, QUESTIONS, self.only_questions, with_answer_prompt=with_prompt)
        is_short = len(exchanges[-1].answer.split()) < 4
        encoded = encode(self.processor, opened(exchanges, IMAGE_PLACEHOLDER), 1, "vqa" if is_short else "conversation")
        targets = attention_targets(encoded, [] if language == TEXT_LANGUAGE else exchanges, scene.things)
        for index, thing in enumerate(scene.things):
            targets["mentioned"][thing.row * GRID + thing.column] = index
        return encoded, targets


def blip2_task(model: Blip2ForConditionalGeneration, tokenizer: Qwen2Tokenizer, scenes: SceneBatches) -> Task:
    """The pre-training task of BLIP-2."""
    images = image_processor("blip2")
    processor = QuestionProcessor(
        tokenizer, images, PUBLISHED_PROMPTS, end_of_turn_id=tokenizer.eos_token_id, num_image_tokens=GRID * GRID, max_length=MAX_LENGTH
    )
    classifier = PatchClassifier(model.config.qformer_config.hidden_size).to(model.device)

    def forward(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, queries, attention_loss = _forward(model, batch, images)
        return hidden, attention_loss + classifier.loss(queries, batch["names"])

    task = conversation_task(model, Blip2Batches(**vars(scenes), processor=processor), forward, auxiliary_head=classifier)
    return dataclasses.replace(task, measure=lambda model: {"accuracy": task.measure(model)["accuracy"]})


def _forward(model: Any, batch: Batch, image_processor: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Last hidden states [B, T, D] of the language model, outputs of the Q-Former [B, Q, D], and the loss of attention supervision."""
    seen: dict[str, torch.Tensor] = {}
    seen_by_queries: dict[str, torch.Tensor] = {}
    cross_attention = model.qformer.encoder.layer[0].crossattention.attention
    with _recording(cross_attention, seen_by_queries):
        outputs = model.get_image_features(pixel_values(batch["images"], image_processor))
    queries = outputs.qformer_outputs.last_hidden_state
    is_image = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    is_image[:, : queries.shape[1]] = True
    embeds = model.get_input_embeddings()(batch["input_ids"].masked_fill(is_image, 0))
    embeds = torch.cat([outputs.pooler_output.to(embeds.dtype), embeds[:, queries.shape[1] :]], dim=1)
    attention = model.language_model.model.decoder.layers[SUPERVISED_LAYER].self_attn
    with _recording(attention, seen):
        decoded = model.language_model.model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], use_cache=False)
    hidden = seen["hidden_states"]
    shape = (*hidden.shape[:2], attention.num_heads, attention.head_dim)
    lookup = lookup_loss(attention.q_proj(hidden).view(shape), attention.k_proj(hidden).view(shape), attention.scaling, batch)
    return decoded.last_hidden_state, queries, ATTENTION_LOSS_WEIGHT * lookup + _cell_loss(cross_attention, seen_by_queries)


def _cell_loss(attention: Any, seen: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean of -log(attention mass on the patches of a query's own grid cell) in nats, over queries and heads of a cross-attention."""
    image = seen["encoder_hidden_states"]
    heads = (attention.num_attention_heads, attention.attention_head_size)
    queries_bhqn = attention.query(seen["hidden_states"]).unflatten(-1, heads).transpose(1, 2)
    keys_bhpn = attention.key(image).unflatten(-1, heads).transpose(1, 2)
    log_probs = (queries_bhqn @ keys_bhpn.mT * attention.scaling).float().log_softmax(-1)
    cells = torch.arange(GRID * GRID, device=image.device)
    cell_of_patch = cells_to_patches(cells[None, :, None], image.shape[1] - 1)[0, :, 0]
    own = functional.pad(cells[:, None] == cell_of_patch, (1, 0))  # the class token, which is first, belongs to no cell
    loss: torch.Tensor = -log_probs.masked_fill(~own, -torch.inf).logsumexp(-1).mean()
    return loss


def _recording(module: torch.nn.Module, seen: dict[str, torch.Tensor]) -> RemovableHandle:
    """A context in which the arguments of the module's forward pass are written to `seen`; a positional one is its hidden states."""

    def record(_: torch.nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.update(dict(zip(("hidden_states",), positional, strict=False)), **named)

    return module.register_forward_pre_hook(record, with_kwargs=True)
