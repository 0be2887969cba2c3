"""BLIP-2 as a family: transformers' own class with OPT or Flan-T5, LoRA by PEFT.

Shapes: B samples, T tokens of the longest prompt, L tokens of the longest answer, S supervised positions, V vocabulary size.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import peft
import torch

from dataset.loading.collators import Example
from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample
from dataset.sample import Prompts
from model.blip2.config import CAPTION_PROMPT, CONVERSATION_PROMPT, QUESTION_PROMPT, Blip2Config
from model.blip2.modeling import MODEL_TYPE, build, build_without_weights
from model.blip2.processor import Blip2Processor
from model.family import Collate, LoadOptions, read_model_config
from model.family_config import ParamGroup
from model.lora import language_lora_config, with_adapter
from model.param_groups import unwrapped
from model.processors.question_processor import QuestionPrompts
from model.processors.sample_processor import PROCESSOR_SETTINGS_FILE
from model.quantization import Quantization
from model.step_flops import PartNames, StepFlops, count_step_flops
from model.stock.stock_family import StockFamily

PART_NAMES = PartNames(("vision_model.",), ("qformer.", "language_projection"))

T5_NAMES = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}
"""What T5 calls the layers of OPT."""


class Blip2Family(StockFamily):
    """Implements model.family.Family."""

    name: ClassVar[str] = "blip2"
    config_class: ClassVar[type[Blip2Config]] = Blip2Config
    whole_model_types: ClassVar[frozenset[str]] = frozenset((MODEL_TYPE,))

    def processor(self, config: Blip2Config, prompts: Prompts | None = None) -> Blip2Processor:
        question_prompts = QuestionPrompts(config.question_prompt, config.conversation_prompt, config.caption_prompt)
        return Blip2Processor.from_pretrained("model.path", config.path, question_prompts, max_length=config.max_length, prompts=prompts)

    def load_processor(self, folder: Path) -> Blip2Processor:
        """The processor of a checkpoint, of a whole model that we exported, or of a published one. Raises UsageError."""
        if read_model_config(folder).get("model_type") != MODEL_TYPE or (folder / PROCESSOR_SETTINGS_FILE).is_file():
            return Blip2Processor.load(folder)
        published = QuestionPrompts(QUESTION_PROMPT, CONVERSATION_PROMPT, CAPTION_PROMPT)
        return Blip2Processor.from_pretrained("checkpoint", str(folder), published, max_length=None)

    def load_base(self, config: Blip2Config, processor: Blip2Processor, options: LoadOptions) -> Any:
        return build("model.path", config.path, config.quantization, options, processor.image_token_id)

    def load_whole(self, folder: Path, quantization: Quantization, options: LoadOptions) -> Any:
        return build("checkpoint", str(folder), quantization, options, self.load_processor(folder).image_token_id)

    def load_pretrained(self, where: str, settings: Mapping[str, Any], options: LoadOptions) -> tuple[Any, Blip2Processor]:
        """Implements model.family.PretrainedFamily: zero-shot, quantised or with a LoRA adapter."""
        key, path = f"{where}path", settings["path"]
        question_prompts = QuestionPrompts(settings["question_prompt"], settings["conversation_prompt"], settings["caption_prompt"])
        processor = Blip2Processor.from_pretrained(key, path, question_prompts, max_length=None)
        model = build(key, path, settings["quantization"], options, processor.image_token_id)
        if settings["adapter"] is not None:
            model = with_adapter(model, settings["adapter"], f"{where}adapter")
        return model.eval(), processor

    def shape(self, config: Blip2Config, processor: Blip2Processor) -> Any:
        return build_without_weights("model.path", config.path, processor.image_token_id)

    def lora_config(self, model: Any, config: Blip2Config, run_groups: Collection[ParamGroup]) -> peft.LoraConfig:
        """Adapters go on the language model. A Q-Former that the run trains is saved beside them: its queries are no module."""
        del run_groups
        assert config.lora is not None
        return language_lora_config(model.language_model, "language_model", config.lora, other_names=T5_NAMES)

    def collator(self, processor: Blip2Processor, collate: Collate) -> Collate:
        if processor.decoder_start_id is None:
            return collate
        assert processor.decoder_start_id is not None
        return EncoderDecoderCollator(collate, int(processor.tokenizer.pad_token_id), processor.decoder_start_id)

    def logits(self, model: Any, inputs: dict[str, Any], supervised: torch.Tensor) -> torch.Tensor:
        names = ("input_ids", "attention_mask", "pixel_values")
        kept = {name: inputs[name] for name in names}
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
