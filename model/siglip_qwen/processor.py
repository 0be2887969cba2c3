"""Converts messages and images to inputs of our own model: token ids with image tokens, labels on assistant turns, pixel values."""

from typing import Any, Self

from transformers import PreTrainedTokenizerFast, SiglipImageProcessorPil

from errors import UsageError, loading
from model.processors.chat_processor import FixedTokensProcessor, load_chat_tokenizer
from visual.hub_name import pretrained
from visual.pretrained_model import load_image_processor, read_config

IMAGE_TOKEN_CANDIDATES = ("<|image_pad|>", "<|extra_0|>")
"""Candidates for the image token, in order of preference."""

MAX_LENGTH = 2048
"""Maximum length of a sample in tokens, if none is given."""


class Processor(FixedTokensProcessor):
    """Tokenizer of a language model and image processor of a vision encoder, which were never one model."""

    @classmethod
    def from_pretrained(
        cls, *, language: str, vision: str, tokens_per_image: int, vocab_size: int, image_token: str = "auto", **chat: Any
    ) -> Self:
        """Load the tokenizer and the image processor of two pre-trained models.

        Args:
            language: language model, folder or hub name.
            vision: vision encoder, folder or hub name.
            tokens_per_image: image tokens per image.
            vocab_size: rows of the language model's embedding; an added image token must be below it.
            image_token: placeholder token for a patch, or auto for the first of IMAGE_TOKEN_CANDIDATES in the vocabulary.
            chat: max_length (2,048 if it is not given), system_prompt and prompts, as in `ChatProcessor`.

        Raises UsageError when a model cannot be loaded, is not supported, or its embedding has no row for the image token.
        """
        tokenizer = load_chat_tokenizer("model.language", language)
        image_processor = _load_image_processor(vision)
        return cls(
            tokenizer,
            image_processor,
            image_token=_choose_image_token(tokenizer, image_token, vocab_size),
            tokens_per_image=tokens_per_image,
            **{"max_length": MAX_LENGTH, **chat},
        )

    @property
    def reads_slowly(self) -> bool:
        """Whether the image processor itself is called for every image, since it does more than a plain resize."""
        return self.pixel_reader.lookup_table is None


def _load_image_processor(vision: str) -> Any:
    if read_config("model.vision", vision).model_type not in ("siglip", "siglip_vision_model"):
        return load_image_processor("model.vision", vision)
    with loading("model.vision", vision):
        # Explicitly the Pillow one: AutoImageProcessor resizes with torchvision where that is installed, which gives other pixels.
        image_processor = SiglipImageProcessorPil.from_pretrained(**pretrained(vision))
    if not {"height", "width"} <= set(dict(image_processor.size)):
        raise UsageError(
            f"model.vision: {vision} has no fixed resolution (found size {dict(image_processor.size)}); NaFlex models are not supported"
        )
    return image_processor


def _choose_image_token(tokenizer: PreTrainedTokenizerFast, requested: str, vocab_size: int) -> str:
    vocab = tokenizer.get_vocab()
    if requested == "auto":
        requested = next((token for token in IMAGE_TOKEN_CANDIDATES if token in vocab), IMAGE_TOKEN_CANDIDATES[0])
    if requested not in vocab:
        tokenizer.add_tokens([requested], special_tokens=True)
    token_id = int(tokenizer.convert_tokens_to_ids(requested))
    if token_id >= vocab_size:
        raise UsageError(
            f"model.image_token: {requested} would get token id {token_id}, but the language model has only {vocab_size} embeddings"
        )
    return requested
