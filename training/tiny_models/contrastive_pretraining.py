"""SigLIP and CLIP: pictures and texts that belong together get like features.

SigLIP: a sigmoid for every pair of the batch (Zhai et al. 2023, arXiv:2303.15343). CLIP: a softmax over the batch (Radford
et al. 2021, arXiv:2103.00020), one over the statements about a question, which is what reranking asks of it, and short phrases
against all pictures that they fit and all that they do not, which is what search and labels ask.
"""

import dataclasses

import torch
from torch.nn import functional
from transformers import CLIPModel, Qwen2Tokenizer, SiglipModel

from training.tiny_models.data.clip_captions import CHOICES, QUESTIONS, ClipBatches
from training.tiny_models.data.pretraining_batches import Batch, CaptionBatches
from training.tiny_models.data.scene_pixels import pixel_values
from training.tiny_models.patch_classification import VISION_FEATURE_LAYER, PatchClassifier, held_out_only
from training.tiny_models.pretraining_loop import Task

RECALL_POOL_SIZE = 512
_CHUNKS = 4


def siglip_task(model: SiglipModel, tokenizer: Qwen2Tokenizer, image_processor: object, seed: int, batch_size: int) -> Task:
    """Pictures and captions."""
    data = CaptionBatches(seed, batch_size, tokenizer, model.config.text_config.max_position_embeddings)
    patch_classifier = PatchClassifier(model.config.vision_config.hidden_size).to(model.device)

    def loss(model: SiglipModel, batch: Batch) -> torch.Tensor:
        patches, images, texts = features(model, batch)
        return sigmoid_loss(model, images, texts) + patch_classifier.loss(patches, batch["names"])

    def features(model: SiglipModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Patches [n, patches, width] as the VLM reads them, and the unit features [n, width] of pictures and texts."""
        trunk = model.vision_model
        states = [trunk.embeddings(pixel_values(batch["images"], image_processor))]
        for layer in trunk.encoder.layers:
            states.append(layer(states[-1], None))
        images = trunk.head(trunk.post_layernorm(states[-1]))
        return (
            states[VISION_FEATURE_LAYER],
            _l2_normalized(images),
            _l2_normalized(model.text_model(input_ids=batch["input_ids"]).pooler_output),
        )

    @torch.inference_mode()
    def measure(model: SiglipModel) -> dict[str, float]:
        batch = _to_device(model.device, dataclasses.replace(data, size=RECALL_POOL_SIZE)(0, "validation"))
        patches, images, texts = features(model, batch)
        unseen = _to_device(model.device, dataclasses.replace(data, size=RECALL_POOL_SIZE)(0, "unseen"))
        new = patch_classifier.accuracy(features(model, unseen)[0], held_out_only(unseen["names"]))
        outputs = patch_classifier.accuracy(patches, batch["names"])
        return {**_recall(images, texts), **outputs, **{f"{name}, unseen combinations": share for name, share in new.items()}}

    return Task(model, data, loss, measure, patch_classifier)


def sigmoid_loss(model: SiglipModel, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Every picture with every text [n, width] of the batch: a sum over the texts of a picture, a mean over pictures."""
    logits = texts @ images.T * model.logit_scale.exp() + model.logit_bias
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -functional.logsigmoid(signs * logits).sum(-1).mean()


def clip_task(model: CLIPModel, tokenizer: Qwen2Tokenizer, image_processor: object, seed: int, batch_size: int) -> Task:
    """Pictures with captions, with right and wrong statements, and with phrases that hold for some of them."""
    config = model.config.text_config
    data = ClipBatches(seed, batch_size, tokenizer, config.max_position_embeddings, config.eos_token_id)

    def texts(model: CLIPModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Unit features [rows, width] of texts; short ones are read apart from long ones, whose padding would be most of the work."""
        order = mask.sum(1).argsort()
        found = []
        for rows in order.chunk(_CHUNKS):
            longest = int(mask[rows[-1]].sum())
            read = model.text_model(input_ids=ids[rows, :longest], attention_mask=mask[rows, :longest])
            found.append(model.text_projection(read.pooler_output))
        return _l2_normalized(torch.cat(found)[order.argsort()])

    def images(model: CLIPModel, batch: Batch) -> torch.Tensor:
        return _l2_normalized(model.visual_projection(model.vision_model(pixel_values(batch["images"], image_processor)).pooler_output))

    def choices(model: CLIPModel, batch: Batch, image_embeds: torch.Tensor) -> torch.Tensor:
        """Logits [n * QUESTIONS, CHOICES] of the statements about each picture."""
        statements = texts(model, batch["statement_ids"], batch["statement_mask"]).view(len(image_embeds), QUESTIONS * CHOICES, -1)
        logits: torch.Tensor = (statements @ image_embeds.unsqueeze(-1)).view(-1, CHOICES) * model.logit_scale.exp()
        return logits

    def phrases(model: CLIPModel, batch: Batch, image_embeds: torch.Tensor) -> torch.Tensor:
        """Logits [PHRASES, n] of the phrases and all pictures."""
        logits: torch.Tensor = texts(model, batch["phrase_ids"], batch["phrase_mask"]) @ image_embeds.T * model.logit_scale.exp()
        return logits

    def loss(model: CLIPModel, batch: Batch) -> torch.Tensor:
        image_embeds = images(model, batch)
        logits = texts(model, batch["input_ids"], batch["attention_mask"]) @ image_embeds.T * model.logit_scale.exp()
        targets = torch.arange(len(logits), device=logits.device)
        contrastive_loss = (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2
        statement_logits = choices(model, batch, image_embeds)
        right = functional.cross_entropy(
            statement_logits, torch.zeros(len(statement_logits), dtype=torch.long, device=statement_logits.device)
        )
        outputs, holds = phrases(model, batch, image_embeds), batch["holds"]
        return contrastive_loss + right + (ranking_loss(outputs, holds) + ranking_loss(outputs.T, holds.T)) / 2

    @torch.inference_mode()
    def measure(model: CLIPModel) -> dict[str, float]:
        batch = _to_device(model.device, dataclasses.replace(data, size=RECALL_POOL_SIZE)(0, "validation"))
        image_embeds = images(model, batch)
        recall = _recall(image_embeds, texts(model, batch["input_ids"], batch["attention_mask"]))
        logits = choices(model, batch, image_embeds)
        # Strictly better than every wrong statement.
        right = float((logits[:, 0] > logits[:, 1:].amax(1)).float().mean())
        found = r_precision(phrases(model, batch, image_embeds), batch["holds"])
        return {**recall, f"right statement first of {CHOICES}": right, f"R-precision of phrases among {RECALL_POOL_SIZE}": found}

    return Task(model, data, loss, measure)


def ranking_loss(logits: torch.Tensor, holds: torch.Tensor) -> torch.Tensor:
    """Each that holds against all of its row that do not: -log softmax, its mean over those that hold. Both [rows, n].

    Others that hold are left out: of two pictures with a red circle, neither is the wrong one.
    """
    others = logits.masked_fill(holds, -torch.inf).logsumexp(-1, keepdim=True)
    return functional.softplus(others - logits)[holds].mean()


def r_precision(scores: torch.Tensor, holds: torch.Tensor) -> float:
    """Of as many as hold, the share of those found first that do: its mean over rows, each of which something holds for. Both [rows, n]."""
    ranked = holds.gather(1, scores.argsort(1, descending=True))
    wanted = holds.sum(1, keepdim=True)
    first = torch.arange(holds.shape[1], device=holds.device) < wanted
    return float(((ranked & first).sum(1, keepdim=True) / wanted).mean())


def _recall(images: torch.Tensor, texts: torch.Tensor) -> dict[str, float]:
    """Share of pictures whose own text is the nearest of all."""
    nearest = (images @ texts.T).argmax(1)
    return {f"recall@1 of {len(images)}": float((nearest == torch.arange(len(images), device=images.device)).float().mean())}


def _l2_normalized(features: torch.Tensor) -> torch.Tensor:
    return functional.normalize(features.float(), dim=-1)


def _to_device(device: torch.device, batch: Batch) -> Batch:
    return {name: value.to(device) for name, value in batch.items()}
