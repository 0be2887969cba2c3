"""Contrastive pre-training of SigLIP and CLIP.

SigLIP: sigmoid loss over all image-caption pairs of the batch (Zhai et al. 2023, arXiv:2303.15343) and a patch classification loss.
CLIP: softmax loss over the batch (Radford et al. 2021, arXiv:2103.00020); a softmax over the statements about each question, the task
of reranking; a ranking loss over short phrases and all images of the batch, the task of image search and of zero-shot labels.

Shapes: B batch, P patches per image, D hidden size, F feature size, T tokens.
"""

import dataclasses

import torch
from torch.nn import functional
from transformers import CLIPModel, Qwen2Tokenizer, SiglipModel

from training.tiny_models.architectures import image_processor
from training.tiny_models.data.clip_captions import CHOICES, QUESTIONS, ClipBatches
from training.tiny_models.data.pretraining_batches import Batch, CaptionBatches, SceneBatches, pixel_values, to_device
from training.tiny_models.patch_classification import VISION_FEATURE_LAYER, PatchClassifier, held_out_only
from training.tiny_models.pretraining_loop import Task

RECALL_POOL_SIZE = 512
"""Number of scenes on which the metrics are measured."""

_CHUNKS = 4
"""Number of groups of similar length in which texts are encoded."""


def siglip_task(model: SiglipModel, tokenizer: Qwen2Tokenizer, scenes: SceneBatches) -> Task:
    """The pre-training task of SigLIP."""
    processor = image_processor("siglip")
    data = CaptionBatches(scenes.seed, scenes.size, tokenizer, model.config.text_config.max_position_embeddings)
    patch_classifier = PatchClassifier(model.config.vision_config.hidden_size).to(model.device)

    def loss(model: SiglipModel, batch: Batch) -> torch.Tensor:
        patches, images, texts = features(model, batch)
        logits = texts @ images.T * model.logit_scale.exp() + model.logit_bias
        signs = 2 * torch.eye(len(logits), device=logits.device) - 1
        # Over all pairs: summed over the texts of an image, averaged over images.
        sigmoid_loss = -functional.logsigmoid(signs * logits).sum(-1).mean()
        return sigmoid_loss + patch_classifier.loss(patches, batch["names"])

    def features(model: SiglipModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Patch features [B, P, D] of the layer that the VLM reads, and the L2-normalised features [B, F] of images and texts."""
        vision_tower = model.vision_model
        states = [vision_tower.embeddings(pixel_values(batch["images"], processor))]
        for layer in vision_tower.encoder.layers:
            states.append(layer(states[-1], None))
        images = vision_tower.head(vision_tower.post_layernorm(states[-1]))
        texts = model.text_model(input_ids=batch["input_ids"]).pooler_output
        return states[VISION_FEATURE_LAYER], _l2_normalized(images), _l2_normalized(texts)

    @torch.inference_mode()
    def measure(model: SiglipModel) -> dict[str, float]:
        measured = dataclasses.replace(data, size=RECALL_POOL_SIZE)
        batch, unseen_batch = (to_device(measured(0, split), model.device) for split in ("validation", "unseen"))
        patches, images, texts = features(model, batch)
        accuracy = patch_classifier.accuracy(patches, batch["names"])
        unseen_accuracy = patch_classifier.accuracy(features(model, unseen_batch)[0], held_out_only(unseen_batch["names"]))
        unseen = {f"{name}, unseen combinations": fraction for name, fraction in unseen_accuracy.items()}
        return {**_recall(images, texts), **accuracy, **unseen}

    return Task(model, data, loss, measure, patch_classifier)


def text_features(model: CLIPModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """L2-normalised features [rows, F] of texts [rows, T], encoded in groups of similar length to avoid padding."""
    order = mask.sum(1).argsort()
    features = []
    for rows in order.chunk(_CHUNKS):
        longest = int(mask[rows[-1]].sum())
        output = model.text_model(input_ids=ids[rows, :longest], attention_mask=mask[rows, :longest])
        features.append(model.text_projection(output.pooler_output))
    return _l2_normalized(torch.cat(features)[order.argsort()])


def statement_logits(model: CLIPModel, batch: Batch, image_embeds: torch.Tensor) -> torch.Tensor:
    """Logits [B * QUESTIONS, CHOICES] of the statements about each image."""
    statements = text_features(model, batch["statement_ids"], batch["statement_mask"])
    by_image = statements.view(len(image_embeds), QUESTIONS * CHOICES, -1)
    logits: torch.Tensor = (by_image @ image_embeds.unsqueeze(-1)).view(-1, CHOICES) * model.logit_scale.exp()
    return logits


def phrase_logits(model: CLIPModel, batch: Batch, image_embeds: torch.Tensor) -> torch.Tensor:
    """Logits [PHRASES, B] of every phrase with every image."""
    phrases = text_features(model, batch["phrase_ids"], batch["phrase_mask"])
    logits: torch.Tensor = phrases @ image_embeds.T * model.logit_scale.exp()
    return logits


def clip_task(model: CLIPModel, tokenizer: Qwen2Tokenizer, scenes: SceneBatches) -> Task:
    """The pre-training task of CLIP."""
    processor, config = image_processor("clip"), model.config.text_config
    data = ClipBatches(scenes.seed, scenes.size, tokenizer, config.max_position_embeddings, config.eos_token_id)

    def images(model: CLIPModel, batch: Batch) -> torch.Tensor:
        return _l2_normalized(model.visual_projection(model.vision_model(pixel_values(batch["images"], processor)).pooler_output))

    def loss(model: CLIPModel, batch: Batch) -> torch.Tensor:
        image_embeds = images(model, batch)
        logits = text_features(model, batch["input_ids"], batch["attention_mask"]) @ image_embeds.T * model.logit_scale.exp()
        targets = torch.arange(len(logits), device=logits.device)
        contrastive_loss = (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2
        choices = statement_logits(model, batch, image_embeds)
        statement_loss = functional.cross_entropy(choices, torch.zeros(len(choices), dtype=torch.long, device=choices.device))
        phrases, holds = phrase_logits(model, batch, image_embeds), batch["holds"]
        phrase_loss = (ranking_loss(phrases, holds) + ranking_loss(phrases.T, holds.T)) / 2
        return contrastive_loss + statement_loss + phrase_loss

    @torch.inference_mode()
    def measure(model: CLIPModel) -> dict[str, float]:
        batch = to_device(dataclasses.replace(data, size=RECALL_POOL_SIZE)(0, "validation"), model.device)
        image_embeds = images(model, batch)
        recall = _recall(image_embeds, text_features(model, batch["input_ids"], batch["attention_mask"]))
        logits = statement_logits(model, batch, image_embeds)
        # The right statement has to score strictly higher than every wrong one.
        accuracy = float((logits[:, 0] > logits[:, 1:].amax(1)).float().mean())
        precision = r_precision(phrase_logits(model, batch, image_embeds), batch["holds"])
        return {**recall, f"right statement first of {CHOICES}": accuracy, f"R-precision of phrases among {RECALL_POOL_SIZE}": precision}

    return Task(model, data, loss, measure)


def ranking_loss(logits: torch.Tensor, holds: torch.Tensor) -> torch.Tensor:
    """Softmax cross-entropy of each positive (where `holds`) against all negatives of its row, averaged over positives, in nats.

    Both [rows, columns]. Other positives of the row are excluded from the softmax: of two images with a red circle, neither is wrong.
    """
    negatives = logits.masked_fill(holds, -torch.inf).logsumexp(-1, keepdim=True)
    return functional.softplus(negatives - logits)[holds].mean()


def r_precision(scores: torch.Tensor, holds: torch.Tensor) -> float:
    """R-precision: the precision among the R highest scores of a row with R positives (`holds`), averaged over rows, each with R > 0.

    Both [rows, columns].
    """
    ranked_holds = holds.gather(1, scores.argsort(1, descending=True))
    num_positives = holds.sum(1, keepdim=True)
    is_top = torch.arange(holds.shape[1], device=holds.device) < num_positives
    return float(((ranked_holds & is_top).sum(1, keepdim=True) / num_positives).mean())


def _recall(images: torch.Tensor, texts: torch.Tensor) -> dict[str, float]:
    """Fraction of images whose own text has the highest cosine similarity of all. Both [B, F]."""
    nearest = (images @ texts.T).argmax(1)
    return {f"recall@1 of {len(images)}": float((nearest == torch.arange(len(images), device=images.device)).float().mean())}


def _l2_normalized(features: torch.Tensor) -> torch.Tensor:
    return functional.normalize(features.float(), dim=-1)
