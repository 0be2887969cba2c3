"""BLIP-2 with OPT or Flan-T5 as a family.

Shapes: B samples, T tokens of the longest prompt, L tokens of the longest answer, S supervised positions, V vocabulary size.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from dataset.loading.collators import Example
from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample
from dataset.sample import Prompts
from model.blip2.config import Blip2Config
from model.blip2.modeling import BLIP2, prepared
from model.blip2.processor import PUBLISHED_PROMPTS, Blip2Processor
from model.family import Collate, LoadOptions
from model.lora import with_adapter
from model.param_groups import unwrapped
from model.processors.question_processor import question_prompts
from model.quantization import Quantization
from model.step_flops import PartNames, StepFlops, count_step_flops
from model.stock.stock_family import WholeModelFamily
from model.stock.stock_model import StockModel

PART_NAMES = PartNames(("vision_model.",), ("qformer.", "language_projection"))


class Blip2Family(WholeModelFamily):
    """Implements model.family.Family. A Q-Former that the run trains is saved beside the adapters: its queries are no module."""

    name: ClassVar[str] = "blip2"
    config_class: ClassVar[type[Blip2Config]] = Blip2Config
    processor_class: ClassVar[type[Blip2Processor]] = Blip2Processor
    stock: ClassVar[StockModel] = BLIP2
    lora_names: ClassVar[Mapping[str, str]] = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}
    """What T5 calls the layers of OPT."""

    def processor(self, config: Blip2Config, prompts: Prompts | None = None) -> Blip2Processor:
        sentences = question_prompts(vars(config))
        return Blip2Processor.from_pretrained("model.path", config.path, sentences, max_length=config.max_length, prompts=prompts)

    def published_processor(self, key: str, path: str) -> Blip2Processor:
        return Blip2Processor.from_pretrained(key, path, PUBLISHED_PROMPTS)

    def load_base(self, config: Blip2Config, processor: Blip2Processor, options: LoadOptions) -> Any:
        return prepared(super().load_base(config, processor, options), processor.image_token_id)

    def load_whole(self, folder: Path, quantization: Quantization, options: LoadOptions) -> Any:
        return prepared(super().load_whole(folder, quantization, options), self.load_processor(folder).image_token_id)

    def load_pretrained(self, where: str, settings: Mapping[str, Any], options: LoadOptions) -> tuple[Any, Blip2Processor]:
        """Zero-shot, quantised or with a LoRA adapter."""
        key, path = f"{where}path", settings["path"]
        processor = Blip2Processor.from_pretrained(key, path, question_prompts(settings))
        model = prepared(BLIP2.load(key, path, settings["quantization"], options), processor.image_token_id)
        if settings["adapter"] is not None:
            model = with_adapter(model, settings["adapter"], f"{where}adapter")
        return model.eval(), processor

    def shape(self, config: Blip2Config, processor: Blip2Processor) -> Any:
        return prepared(super().shape(config, processor), processor.image_token_id)

    def collator(self, processor: Blip2Processor, collate: Collate) -> Collate:
        if processor.decoder_start_id is None:
            return collate
        return EncoderDecoderCollator(collate, int(processor.tokenizer.pad_token_id), processor.decoder_start_id)

    def logits(self, model: Any, inputs: dict[str, Any], supervised: torch.Tensor) -> torch.Tensor:
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        if "decoder_input_ids" in inputs:
            all_logits: torch.Tensor = model(**kept, decoder_input_ids=inputs["decoder_input_ids"]).logits
            return all_logits[supervised]
        logits: torch.Tensor = model(**kept, logits_to_keep=supervised).logits
        return logits

    def step_flops(self, model: Any, features_cached: bool) -> StepFlops:
        """Per image; the layers of the Q-Former are counted at its queries."""
        del features_cached
        config = unwrapped(model).config
        vision = config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        return count_step_flops(model, patches, vision.num_hidden_layers, config.num_query_tokens, PART_NAMES)


@dataclass(frozen=True)
class EncoderDecoderCollator:
    """Divides samples into prompts, which the encoder reads, and answers, which the decoder is trained on.

    Adds decoder_input_ids [B, L]; `labels` become [B, L], the first one unsupervised, so that each position predicts the next label.

    Args:
        collate: pads the prompts.
        pad_id: token id of padding.
        start_id: first token of the decoder.
    """

    collate: Collate
    pad_id: int
    start_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        prompts = [dataclasses.replace(example, encoded=_prompt(example.encoded)) for example in examples]
        answers = [[label for label in example.encoded.labels if label != IGNORE_INDEX] for example in examples]
        shape = (len(examples), 1 + max(1, *map(len, answers)))
        labels, decoder_input_ids = torch.full(shape, IGNORE_INDEX), torch.full(shape, self.pad_id)
        decoder_input_ids[:, 0] = self.start_id
        for row, answer in enumerate(answers):
            labels[row, 1 : 1 + len(answer)] = decoder_input_ids[row, 1 : 1 + len(answer)] = torch.tensor(answer, dtype=torch.long)
        return {**self.collate(prompts), "labels": labels, "decoder_input_ids": decoder_input_ids}


def _prompt(encoded: EncodedSample) -> EncodedSample:
    """The unsupervised tokens of a sample."""
    ids = [token for token, label in zip(encoded.input_ids, encoded.labels, strict=True) if label == IGNORE_INDEX]
    return EncodedSample(ids, [IGNORE_INDEX] * len(ids), encoded.num_images)


FAMILY = Blip2Family()
