"""Supervised pre-training of BLIP-2 on rendered images: cross-entropy on the answers, with the prompts of the family `blip2`.

The vision encoder starts as SigLIP's and is trained, too: the tiny SigLIP's patch features do not tell where in the image they are (a
linear classifier finds their grid cell in 16 of 100 cases, of 11 by chance), which a Q-Former must know. Each query attends to the patches
of one grid cell and classifies its object, and two attention heads of OPT learn to look up the cells that an answer depends on (see
attention_supervision).

Shapes: B batch, T tokens, P patches and the class token, Q queries, D hidden size, H attention heads, N head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import Blip2ForConditionalGeneration, BlipImageProcessorPil, Qwen2Tokenizer

from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample
from dataset.sample import IMAGE_PLACEHOLDER, Language, Message
from dataset.synthetic.scene import GRID, Scene, SceneSplit
from model.blip2.processor import PUBLISHED_PROMPTS
from model.processors.question_processor import QuestionProcessor
from training.tiny_models.attention_supervision import LOOKUP_TARGETS, NO_OBJECT, answer_spans, lookup_loss
from training.tiny_models.data.dialogues import Exchange, sample_dialogue
from training.tiny_models.data.pretraining_batches import Batch, SceneBatches, collate_conversations, pad_rows, render_images
from training.tiny_models.data.scene_pixels import pixel_values
from training.tiny_models.language_pretraining import split_by_length
from training.tiny_models.patch_classification import PatchClassifier, cells_to_patches, patch_labels
from training.tiny_models.pretraining_loop import Task

MAX_LENGTH = 384
ATTENTION_LOSS_WEIGHT = 0.3
"""Weight of the attention loss; the answers' cross-entropy has weight 1."""
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
_MEASURED_BATCHES, _MEASURED_SIZE = 8, 64


@dataclass(frozen=True)
class Blip2Batches(SceneBatches):
    """Batches of questions about images.

    Keys: images [B, 3, SIZE, SIZE] uint8; input_ids, attention_mask and labels [B, T], the image's placeholders first; names
    [B, Q, 3], the classes of each grid cell; mentioned and LOOKUP_TARGETS [B, T], as in attention_supervision.
    """

    processor: QuestionProcessor
    only_questions: bool = False

    def __call__(self, batch_index: int, split: SceneSplit = "train") -> Batch:
        scenes = self.scenes(batch_index, split)
        languages: list[Language] = [self._language(scene) for scene in scenes]
        samples, targets = zip(*map(self._encoded, scenes, languages), strict=True)
        batch = {"images": render_images(scenes), "names": patch_labels(scenes), **collate_conversations(samples, self.processor)}
        for name in ("mentioned", *LOOKUP_TARGETS):
            batch[name] = pad_rows([rows[name] for rows in targets], NO_OBJECT)
        for row, language in enumerate(languages):
            if language == TEXT_LANGUAGE:
                batch["attention_mask"][row, : self.processor.num_image_tokens] = 0
        return batch

    def _language(self, scene: Scene) -> Language:
        return TEXT_LANGUAGE if not self.only_questions and scene.rng("language").random() < _TEXT_PROBABILITY else "en"

    def _encoded(self, scene: Scene, language: Language) -> tuple[EncodedSample, dict[str, list[int]]]:
        rng = scene.rng("blip2")
        with_prompt = rng.random() < _PROMPT_PROBABILITY
        exchanges = sample_dialogue(scene, language, rng, QUESTIONS, self.only_questions, with_answer_prompt=with_prompt)
        *earlier, (question, target, _) = exchanges
        messages = [message for prompt, answer, _ in earlier for message in (Message("user", prompt), Message("assistant", answer))]
        messages.append(Message("user", question))
        messages[0] = Message("user", f"{IMAGE_PLACEHOLDER}\n{messages[0].content}")
        encoded = self.processor.encode(messages, target, 1, task="vqa" if len(target.split()) < 4 else "conversation")
        assert encoded is not None  # a conversation about a scene is far shorter than MAX_LENGTH
        return encoded, self._targets(scene, encoded, [] if language == TEXT_LANGUAGE else exchanges)

    def _targets(self, scene: Scene, encoded: EncodedSample, exchanges: list[Exchange]) -> dict[str, list[int]]:
        """The object of each grid cell at the query of that cell, and the objects that each answer depends on."""
        targets = {name: [NO_OBJECT] * len(encoded) for name in ("mentioned", *LOOKUP_TARGETS)}
        for index, thing in enumerate(scene.things):
            targets["mentioned"][thing.row * GRID + thing.column] = index
        for (start, end), exchange in zip(answer_spans(encoded.labels), exchanges, strict=False):
            for name, thing in zip(LOOKUP_TARGETS, exchange.evidence, strict=False):
                targets[name][start - 1 : end - 2] = [scene.things.index(thing)] * (end - 1 - start)
        return targets


def blip2_task(
    model: Blip2ForConditionalGeneration, tokenizer: Qwen2Tokenizer, image_processor: BlipImageProcessorPil, seed: int, batch_size: int
) -> Task:
    """The pre-training task of BLIP-2.

    Args:
        model: the model, on the device on which it is trained.
        tokenizer: its tokenizer.
        image_processor: its image processor.
        seed: seed of the scenes.
        batch_size: scenes per batch.
    """
    processor = QuestionProcessor(
        tokenizer,
        image_processor,
        PUBLISHED_PROMPTS,
        end_of_turn_id=tokenizer.eos_token_id,
        num_image_tokens=GRID * GRID,
        max_length=MAX_LENGTH,
    )
    data = Blip2Batches(seed, batch_size, processor)
    classifier = PatchClassifier(model.config.qformer_config.hidden_size).to(model.device)

    def loss(model: Blip2ForConditionalGeneration, batch: Batch) -> torch.Tensor:
        total, count = torch.zeros((), device=model.device), 0
        for group in split_by_length(batch):
            hidden, queries, attention_loss = _forward(model, group, image_processor)
            labels = group["labels"][:, 1:]
            supervised = labels != IGNORE_INDEX
            logits = model.language_model.lm_head(hidden[:, :-1][supervised]).float()
            total = total + functional.cross_entropy(logits, labels[supervised], reduction="sum")
            total = total + len(logits) * (attention_loss + classifier.loss(queries, group["names"]))
            count += len(logits)
        return total / count

    @torch.inference_mode()
    def measure(model: Blip2ForConditionalGeneration) -> dict[str, float]:
        correct = answers = 0
        questions = Blip2Batches(seed, _MEASURED_SIZE, processor, only_questions=True)
        for index in range(_MEASURED_BATCHES):
            batch = {name: value.to(model.device) for name, value in questions(index, "validation").items()}
            logits = model.language_model.lm_head(_forward(model, batch, image_processor)[0][:, :-1])
            hits = (logits.argmax(-1) == batch["labels"][:, 1:]).tolist()
            for labels, row in zip(batch["labels"][:, 1:].tolist(), hits, strict=True):
                spans = answer_spans(labels)
                answers += len(spans)
                correct += sum(all(row[start:end]) for start, end in spans)
        return {"accuracy": correct / answers}

    return Task(model, data, loss, measure, classifier)


def _forward(model: Any, batch: Batch, image_processor: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Last hidden states [B, T, D] of the language model, outputs of the Q-Former [B, Q, D], and the loss of attention supervision."""
    with _recorded_inputs(model.qformer.encoder.layer[0].crossattention.attention) as seen_by_queries:
        outputs = model.get_image_features(pixel_values(batch["images"], image_processor))
    queries = outputs.qformer_outputs.last_hidden_state
    is_image = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    is_image[:, : queries.shape[1]] = True
    embeds = model.get_input_embeddings()(batch["input_ids"].masked_fill(is_image, 0))
    embeds = torch.cat([outputs.pooler_output.to(embeds.dtype), embeds[:, queries.shape[1] :]], dim=1)
    attention = model.language_model.model.decoder.layers[SUPERVISED_LAYER].self_attn
    with _recorded_inputs(attention) as seen:
        decoded = model.language_model.model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], use_cache=False)
    hidden = seen["hidden_states"]
    shape = (*hidden.shape[:2], attention.num_heads, attention.head_dim)
    lookup = lookup_loss(attention.q_proj(hidden).view(shape), attention.k_proj(hidden).view(shape), attention.scaling, batch)
    cells = _cell_loss(model.qformer.encoder.layer[0].crossattention.attention, seen_by_queries)
    return decoded.last_hidden_state, queries, ATTENTION_LOSS_WEIGHT * lookup + cells


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


@contextmanager
def _recorded_inputs(module: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """The keyword arguments of the forward pass of a module inside the block; a positional one is its hidden states."""
    seen: dict[str, torch.Tensor] = {}

    def record(_: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.update({**({"hidden_states": arguments[0]} if arguments else {}), **named})

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
