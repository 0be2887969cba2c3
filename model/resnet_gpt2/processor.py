"""Converts questions and images to inputs of ResNet and GPT-2."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

from PIL import Image

from dataset.sample import Message, Prompts, Task
from errors import UsageError
from model.processors.question_processor import QuestionProcessor, question_prompts
from model.processors.sample_processor import Prompt, Segment, load_fast_tokenizer
from model.resnet_gpt2.config import ResnetGpt2Config
from model.resnet_gpt2.modeling import read_configs
from visual.pretrained_model import load_image_processor


class ResnetGpt2Processor(QuestionProcessor):
    """Tokenizer, image processor and prompts of ResNet and GPT-2. The image takes no position in the text.

    Args:
        supervise_prompt: also train on the prompt, as the early system did.
        attended_positions: positions of the image that the text attends to.
        others: as in `QuestionProcessor`.
    """

    saved_settings: ClassVar[tuple[str, ...]] = (*QuestionProcessor.saved_settings, "supervise_prompt", "attended_positions")

    def __init__(self, *arguments: Any, supervise_prompt: bool, attended_positions: int, **others: Any):
        super().__init__(*arguments, **others)
        self.supervise_prompt, self.attended_positions = supervise_prompt, attended_positions

    @classmethod
    def from_pretrained(cls, config: ResnetGpt2Config, prompts: Prompts | None = None) -> Self:
        """Load the image processor of ResNet and the tokenizer of GPT-2.

        Raises UsageError when one cannot be loaded, or GPT-2 has fewer positions than model.max_length.
        """
        vision, language = read_configs(config)
        tokenizer = load_fast_tokenizer("model.language", config.language)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        image_processor = load_image_processor("model.vision", config.vision)
        if config.max_length > language.n_positions:
            raise UsageError(
                f"model.max_length: {config.max_length} is more than the {language.n_positions} positions of {config.language}"
            )
        pixels = image_processor(images=[Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]
        # The first two stages halve the image, and so does each later one.
        stride = 4 * 2 ** (len(vision.hidden_sizes) - 1) * (2 if vision.downsample_in_first_stage else 1)
        side = -(-pixels.shape[-1] // stride)
        return cls(
            tokenizer,
            image_processor,
            question_prompts(vars(config)),
            end_of_turn_id=int(tokenizer.eos_token_id),
            num_image_tokens=0,
            max_positions=int(language.n_positions),
            max_length=config.max_length,
            supervise_prompt=config.generation == "original",
            attended_positions=side**2 if config.features == "grid" else 1,
            prompts=prompts,
        )

    def turns(self, messages: Sequence[Message], image_tokens: Sequence[int], task: Task) -> Iterator[list[Segment]]:
        """As `QuestionProcessor.turns`."""
        for segments in super().turns(messages, image_tokens, task):
            yield [(ids, supervised or self.supervise_prompt) for ids, supervised in segments]

    def prompt_with_images(self, messages: Sequence[Message], images: Sequence[Image.Image], task: Task = "conversation") -> Prompt:
        """As `SampleProcessor.prompt_with_images`."""
        return replace(super().prompt_with_images(messages, images, task), visual_tokens=self.attended_positions)
