"""Prompts of models without a chat template: a sentence around each question, such as `Question: {} Short answer:`.

Prompt and answers are one text, as in BLIP-2's paper (arXiv:2301.12597): what was said before comes first. Each answer ends with the
end-of-turn token, in training and when it stands in a prompt.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypedDict

from transformers import PreTrainedTokenizerFast

from dataset.loading.encoded_sample import EncodingError
from dataset.sample import IMAGE_PLACEHOLDER, Message, Task, question_text
from model.processors.sample_processor import ImageSize, SampleProcessor, Segment


class QuestionPrompts(TypedDict):
    """The sentences of a prompt, in which {} is the question."""

    question_prompt: str
    """Of a question with a short answer."""
    conversation_prompt: str
    """Of any other question."""
    caption_prompt: str
    """Beginning of a caption, in the place of an instruction; may be empty."""


def question_prompts(settings: Mapping[str, Any]) -> QuestionPrompts:
    """The sentences among the settings of a model or a system."""
    return QuestionPrompts(
        question_prompt=settings["question_prompt"],
        conversation_prompt=settings["conversation_prompt"],
        caption_prompt=settings["caption_prompt"],
    )


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

    saved_settings: ClassVar[tuple[str, ...]] = ("question_prompts", "end_of_turn_id", "num_image_tokens", "opening", "max_positions")

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
        super().__init__(tokenizer, image_processor, image_token_id=len(tokenizer), **settings)
        self.question_prompts = question_prompts
        self.num_image_tokens, self.opening, self.max_positions = num_image_tokens, list(opening), max_positions

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
            return prompts["caption_prompt"]
        return prompts["question_prompt" if task == "vqa" else "conversation_prompt"].replace("{}", question_text(turn.content))

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer, a word of the text that goes on, with its end-of-turn token."""
        return [*self.text_ids(f" {text.strip()}"), self.end_of_turn_id]

    def follow_up_length(self, text: str) -> int:
        """Length in tokens of a further question with a short answer."""
        return len(self.text_ids(self.question(Message("user", text), "vqa")))

    def readable(self, ids: Sequence[int]) -> str:
        """Text of token ids with special tokens; the image is one `<image>`."""
        text = str(self.tokenizer.decode([token for token in ids if token != self.image_token_id]))
        return f"{IMAGE_PLACEHOLDER}{text}"
