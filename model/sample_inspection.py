"""Describes a sample as the model sees it: token ids and text, image tokens, and which tokens are supervised."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample
from dataset.loading.sample_store import SampleStore
from dataset.sample import IMAGE_PLACEHOLDER, Sample
from model.processors.sample_processor import ImageSize, SampleProcessor

_GREEN, _RESET = "\033[32m", "\033[0m"


@dataclass(frozen=True, slots=True)
class TokenRun:
    """A token, or the image tokens of one image.

    Args:
        position: index of the first token in the sample.
        token_id: the token.
        text: its decoded text.
        supervised: the loss is computed on it.
        count: number of equal tokens.
    """

    position: int
    token_id: int
    text: str
    supervised: bool
    count: int = 1


def token_runs(processor: SampleProcessor, encoded: EncodedSample) -> list[TokenRun]:
    """The tokens of an encoded sample; the image tokens of each image are one run."""
    runs: list[TokenRun] = []
    supervised = [label != IGNORE_INDEX for label in encoded.labels]
    position = 0
    for is_image_token, group in groupby(encoded.input_ids, lambda token: token == processor.image_token_id):
        ids = list(group)
        # Between images whose tokens differ in number stand other tokens.
        step = (len(ids) if processor.sizes_matter else processor.image_tokens(1, ())[0]) if is_image_token else 1
        for start in range(0, len(ids), step):
            token, index = ids[start], position + start
            runs.append(TokenRun(index, token, _text(processor, token), supervised[index], step))
        position += len(ids)
    return runs


def describe_sample(store: SampleStore, sample: Sample, processor: SampleProcessor, seed: int, epoch: int, color: bool) -> Iterator[str]:
    """Lines of text that describe a sample: images, sizes, boxes, tokens, targets and reference answers.

    Args:
        store: data set that contains the sample.
        sample: the sample.
        processor: encodes it.
        seed: seed of the training run; selects the target when there are several.
        epoch: epoch of the training run; selects the target too.
        color: print supervised tokens in green; otherwise they are marked with `+`.

    Raises EncodingError when the sample cannot be encoded, ImageError when an image cannot be read.
    """
    yield f"{sample.sample_id}: {sample.task}, {sample.language}, {sample.split}, from {sample.source}"
    sizes: list[ImageSize] = []
    for image_id in sample.image_ids:
        row, image = store.image(image_id), store.load_image(image_id)
        sizes.append(image.size)
        pixels = processor.normalize(processor.read([image]))["pixel_values"]
        shape = f"{pixels.shape[-1]} x {pixels.shape[-2]}" if pixels.ndim == 4 else f"{len(pixels)} patches"
        if pixels.ndim == 4 and len(pixels) > 1:
            shape = f"{len(pixels)} tiles of {shape}, the first of them the whole image"
        values = f"values {pixels.min():.2f} to {pixels.max():.2f}"
        yield f"image {image_id}: {row.path}, {row.width} x {row.height} -> {shape}, {values}"
    for region in sample.regions:
        where = "the messages" if region.turn < len(sample.messages) else "a target"
        yield f"box {region.box.text()} of image {sample.image_ids[region.image]}, in {where}"
    target = sample.target(seed, epoch)
    encoded = processor.encode(sample.prompted_messages, target, len(sample.image_ids), sizes=sizes, task=sample.task)
    if encoded is None:
        yield f"skipped in training: no supervised token is left within {processor.max_length} tokens"
        return
    supervised = sum(label != IGNORE_INDEX for label in encoded.labels)
    yield f"{len(encoded)} tokens of at most {processor.max_length}, {supervised} supervised"
    yield from (_line(run, color) for run in token_runs(processor, encoded))
    yield from _text_lines("target", sample.targets, current=target)
    yield from _text_lines("answer", sample.answers)


def _line(run: TokenRun, color: bool) -> str:
    repeat = f" x {run.count}" if run.count > 1 else ""
    mark = "+" if run.supervised and not color else " "
    line = f"{mark} {run.position:5} {run.token_id:7}  {run.text}{repeat}"
    return f"{_GREEN}{line}{_RESET}" if run.supervised and color else line


def _text_lines(what: str, texts: tuple[str, ...], current: str | None = None) -> Iterator[str]:
    for text in texts:
        yield f"{what}: {text!r}{' (of this epoch)' if text == current and len(texts) > 1 else ''}"


def _text(processor: SampleProcessor, token: int) -> str:
    if token == processor.image_token_id and token >= len(processor.tokenizer):
        return repr(IMAGE_PLACEHOLDER)
    text = str(processor.tokenizer.decode([token]))
    # A token may be part of a UTF-8 character; then show the vocabulary's spelling of its bytes.
    return f"bytes {processor.tokenizer.convert_ids_to_tokens(token)}" if "\ufffd" in text else repr(text)
