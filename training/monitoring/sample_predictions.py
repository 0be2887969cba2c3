"""The model's greedy answers to a few validation samples, for visual inspection."""

import numpy as np
from PIL import Image
from torch import nn

from answering.decoding.candidates import candidate_key
from answering.protocol import Decoding, Request
from answering.systems.family_answerer import FamilyAnswerer
from dataset.loading.image_io import ImageError
from dataset.loading.sample_store import SampleStore
from dataset.sample import Sample, question_text
from model.kernels.autocast import Precision, autocast
from model.processors.sample_processor import SampleProcessor
from training.data_loading import TrainingData
from training.monitoring.prediction_panels import Panel

ANSWER_TOKENS = 64
"""Most new tokens of an answer."""


def select_samples(data: TrainingData, count: int) -> list[Sample]:
    """`count` samples evenly spaced over the data, so that every source is represented."""
    indices = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int))
    return [data.sample(int(index)) for index in indices] if count else []


def generate_panels(
    model: nn.Module, processor: SampleProcessor, store: SampleStore, samples: list[Sample], precision: Precision
) -> list[Panel]:
    """A panel for each sample: its first target next to the model's greedy answer.

    Args:
        model: Answers with its current weights.
        processor: Tokenizer and image processor of the model.
        store: Holds the samples' images.
        samples: What `select_samples` returned.
        precision: Generate under its autocast, as in training.
    """
    requests = [
        Request(sample.sample_id, tuple(store.image(i).path for i in sample.image_ids), sample.messages, sample.task, sample.language)
        for sample in samples
    ]
    answerer = FamilyAnswerer(model, processor)
    with autocast(answerer.device, precision):
        answers = answerer.answer(requests, Decoding(num_candidates=1, strategy="greedy", max_new_tokens=ANSWER_TOKENS))
    return [
        Panel(
            images=_images(store, sample),
            question=_question(sample),
            reference=sample.targets[0],
            answer=(answer.first.text or "(empty)") if answer.error is None else f"(error: {answer.error})",
            is_right=_is_right(sample, "" if answer.error else answer.first.text),
        )
        for sample, answer in zip(samples, answers, strict=True)
    ]


def _is_right(sample: Sample, text: str) -> bool | None:
    """Whether an answer is one of the targets of a short-answer question; None for other samples."""
    return candidate_key(text) in set(map(candidate_key, sample.targets)) if sample.task == "vqa" else None


def _images(store: SampleStore, sample: Sample) -> list[Image.Image]:
    """The images of a sample; none when one cannot be read, which its answer then says."""
    try:
        return [store.load_image(i) for i in sample.image_ids]
    except ImageError:
        return []


def _question(sample: Sample) -> str:
    """The last turn; "..." stands for earlier turns."""
    earlier = "... " if len(sample.messages) > 1 else ""
    return earlier + question_text(sample.messages[-1].content)
