"""Converts questions and images to inputs of BLIP-2. Not transformers' Blip2Processor, which adds a token to the tokenizer it is given."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

from transformers import PreTrainedTokenizerFast

from dataset.sample import Message, Prompts, Task
from errors import UsageError
from model.blip2.config import CAPTION_PROMPT, CONVERSATION_PROMPT, QUESTION_PROMPT
from model.blip2.modeling import BLIP2, is_encoder_decoder
from model.processors.question_processor import QuestionProcessor, QuestionPrompts
from model.processors.sample_processor import Segment, load_fast_tokenizer
from visual.pretrained_model import load_image_processor

PUBLISHED_PROMPTS = QuestionPrompts(question_prompt=QUESTION_PROMPT, conversation_prompt=CONVERSATION_PROMPT, caption_prompt=CAPTION_PROMPT)


class Blip2Processor(QuestionProcessor):
    """Tokenizer, image processor and prompts of BLIP-2.

    Args:
        decoder_start_id: first token of Flan-T5's decoder; None for OPT. Flan-T5's encoder reads the whole conversation as one text, and
            only the last answer is supervised.
        closing: token ids at the end of a text of its encoder.
        others: as in `QuestionProcessor`.
    """

    saved_settings: ClassVar[tuple[str, ...]] = (*QuestionProcessor.saved_settings, "decoder_start_id", "closing")

    def __init__(self, *arguments: Any, decoder_start_id: int | None = None, closing: Sequence[int] = (), **others: Any):
        super().__init__(*arguments, **others)
        self.decoder_start_id, self.closing = decoder_start_id, list(closing)
        self.joins_questions = decoder_start_id is None

    @classmethod
    def from_pretrained(
        cls, key: str, path: str, question_prompts: QuestionPrompts, *, max_length: int | None = None, prompts: Prompts | None = None
    ) -> Self:
        """Load the tokenizer and the image processor of a model.

        Args:
            key: setting that names the model, for messages.
            path: folder or hub name.
            question_prompts: the sentences around questions.
            max_length: maximum length of a sample in tokens; None for the most that the model can take.
            prompts: the sentences that said in training how an answer is wanted.

        Raises UsageError when one of them cannot be loaded, or the language model has fewer positions.
        """
        config = BLIP2.read_config(key, path)
        tokenizer = load_fast_tokenizer(key, path)
        encoder_decoder = is_encoder_decoder(config)
        # T5 uses relative positions and takes any length.
        positions = int(tokenizer.model_max_length if encoder_decoder else config.text_config.max_position_embeddings)
        if max_length is not None and not encoder_decoder and max_length > positions:
            raise UsageError(f"model.max_length: {max_length} is more than the {positions} positions of the language model of {path}")
        around = list(tokenizer("").input_ids)
        return cls(
            tokenizer,
            load_image_processor(key, path),
            question_prompts,
            end_of_turn_id=_end_id(tokenizer, config.text_config.eos_token_id),
            num_image_tokens=int(config.num_query_tokens),
            max_length=min(positions, 1_000_000) if max_length is None else max_length,
            opening=[] if encoder_decoder else around,
            max_positions=None if encoder_decoder else positions,
            closing=around if encoder_decoder else [],
            decoder_start_id=config.text_config.decoder_start_token_id if encoder_decoder else None,
            prompts=prompts,
        )

    def turns(self, messages: Sequence[Message], image_tokens: Sequence[int], task: Task) -> Iterator[list[Segment]]:
        """As `QuestionProcessor.turns`; for an encoder-decoder two turns, the whole prompt and the last answer."""
        if self.decoder_start_id is None:
            yield from super().turns(messages, image_tokens, task)
            return
        *earlier, last = messages
        asked = messages if last.role == "user" else earlier
        text = " ".join(self.question(turn, task) if turn.role == "user" else turn.content.strip() for turn in asked)
        yield [([*([self.image_token_id] * sum(image_tokens)), *self.text_ids(text), *self.closing], False)]
        if last.role == "assistant":
            yield [(self.answer_ids(last.content), True)]

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer with its end token; T5's decoder begins a text of its own."""
        if self.decoder_start_id is None:
            return super().answer_ids(text)
        return [*self.text_ids(text.strip()), self.end_of_turn_id]

    def end_ids(self, model: Any) -> list[int]:
        """The end of an answer, and what the folder's settings name."""
        return [self.end_of_turn_id, *model.generation_end_ids, int(self.tokenizer.eos_token_id)]


def _end_id(tokenizer: PreTrainedTokenizerFast, eos: int | list[int] | None) -> int:
    """The token that ends an answer: OPT's config names a line break."""
    first = eos[0] if isinstance(eos, list) else eos
    return int(tokenizer.eos_token_id if first is None else first)
