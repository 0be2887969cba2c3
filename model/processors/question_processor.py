"""Prompts of models without a chat template: a sentence around each question, such as `Question: {} Short answer:`.

Prompt and answers are one text, as in BLIP-2's paper (arXiv:2301.12597): what was said before comes first. Each answer ends with the
end-of-turn token, in training and when it stands in a prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from dataset.loading.encoded_sample import EncodingError
from dataset.loading.image_transform import PixelReader
from dataset.sample import IMAGE_PLACEHOLDER, Message, Task, question_text
from errors import loading
from model.processors.chat_processor import load_fast_tokenizer
from model.processors.sample_processor import ImageSize, SampleProcessor, Segment, read_processor_settings
from visual.image_processor import load_image_processor


@dataclass(frozen=True)
class QuestionPrompts:
    """The sentences of a prompt, in which {} is the question.

    Args:
        question_prompt: of a question with a short answer.
        conversation_prompt: of any other question.
        caption_prompt: beginning of a caption, in the place of an instruction; may be empty.
    """

    question_prompt: str
    conversation_prompt: str
    caption_prompt: str


class QuestionProcessor(SampleProcessor):
    """A processor for exactly one image a sample; its image tokens, if it has any, come first.

    Args:
        tokenizer: of the language model.
        image_processor: of the vision encoder.
        question_prompts: the sentences around questions.
        num_image_tokens: placeholders of the image in the input of the language model.
        opening: token ids at the beginning of every text, such as OPT's `</s>`.
        max_positions: as in `SampleProcessor`.
        settings: end_of_turn_id, max_length, prompts, as in `SampleProcessor`. There is no system prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_processor: Any,
        question_prompts: QuestionPrompts,
        *,
        num_image_tokens: int,
        opening: Sequence[int] = (),
        max_positions: int | None = None,
        **settings: Any,
    ):
        # Behind the vocabulary, so that no text can have it; the model replaces its embedding.
        image_token_id = len(tokenizer)
        super().__init__(tokenizer, image_token_id=image_token_id, **settings)
        self.image_processor, self.question_prompts = image_processor, question_prompts
        self.num_image_tokens, self.opening, self.max_positions = num_image_tokens, list(opening), max_positions
        self.pixel_reader = PixelReader(image_processor)

    def image_tokens(self, num_images: int, sizes: Sequence[ImageSize]) -> list[int]:
        """Number of image tokens. Raises EncodingError unless there is one image."""
        del sizes
        if num_images != 1:
            raise EncodingError(f"the model takes one image per question, this one has {num_images}")
        return [self.num_image_tokens]

    def turns(self, messages: Sequence[Message], image_tokens: Sequence[int], task: Task) -> Iterator[list[Segment]]:
        """As `SampleProcessor.turns`. A system message stands before the first question."""
        beginning = [*([self.image_token_id] * sum(image_tokens)), *self.opening]
        system = ""
        for turn in messages:
            if turn.role == "system":
                system = f"{turn.content.strip()} "
            elif turn.role == "user":
                yield [([*beginning, *self.text_ids(system + self.question(turn, task))], False)]
                beginning, system = [], ""
            else:
                yield [(self.answer_ids(turn.content), True)]

    def question(self, turn: Message, task: Task) -> str:
        """The text of a user turn, in which the answer follows."""
        prompts = self.question_prompts
        if task == "caption":
            return prompts.caption_prompt
        text = question_text(turn.content)
        return (prompts.question_prompt if task == "vqa" else prompts.conversation_prompt).replace("{}", text)

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer, a word of the text that goes on, with its end-of-turn token."""
        return [*self.text_ids(f" {text.strip()}"), self.end_of_turn_id]

    def follow_up_length(self, text: str) -> int:
        """Length in tokens of a further question with a short answer."""
        return len(self.text_ids(self.question(Message("user", text), "vqa")))

    def read(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Raw pixels of images, for a data loader's worker; `normalize` makes pixel values of them."""
        return {"pixel_values": self.pixel_reader.read(images)}

    def normalize(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a batch with pixel values in place of raw pixels, on their device."""
        return {**inputs, "pixel_values": self.pixel_reader.normalize(inputs["pixel_values"])} if "pixel_values" in inputs else inputs

    def blank_images(self, num_images: int, sizes: Sequence[ImageSize]) -> list[Image.Image]:
        """Black images."""
        del sizes
        return [Image.new("RGB", (64, 64)) for _ in range(num_images)]

    def readable(self, ids: Sequence[int]) -> str:
        """Text of token ids with special tokens; the image is one `<image>`."""
        text = str(self.tokenizer.decode([token for token in ids if token != self.image_token_id]))
        return f"{IMAGE_PLACEHOLDER}{text}"

    def save(self, folder: Path) -> None:
        """Write tokenizer, image processor and settings to a checkpoint folder."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        self.save_settings(folder, question_prompts=asdict(self.question_prompts), **self.layout())

    def layout(self) -> dict[str, Any]:
        """Settings of the constructor, for a checkpoint."""
        names = ("end_of_turn_id", "num_image_tokens", "opening", "max_positions")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a processor written by `save`. Raises UsageError when the folder contains none, or is damaged."""
        settings = read_processor_settings(folder)
        del settings["system_prompt"]
        question_prompts = QuestionPrompts(**settings.pop("question_prompts"))
        tokenizer = load_fast_tokenizer("checkpoint", str(folder))
        with loading("checkpoint", str(folder)):
            image_processor = load_image_processor(str(folder))
        return cls(tokenizer, image_processor, question_prompts, **settings)
