"""Readers of annotation formats, one module per format."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dataset.config import (
    AiChallengerSource,
    CocoCaptionsSource,
    LlavaSource,
    MessagesSource,
    SourceBase,
    VqaMetadataSource,
    VqaV2Source,
)
from dataset.sources import ai_challenger, coco_captions, llava, messages, vqa_metadata, vqav2
from dataset.sources.record import ParsedRecord, ReadOptions


def read(source: SourceBase, options: ReadOptions) -> Iterator[ParsedRecord]:
    """The records of a source in file order, valid and rejected ones.

    Raises TesseraError when a file cannot be read or does not have the structure of its format. A bad record is yielded as
    rejected instead.
    """
    readers: dict[type, Callable[[Any, ReadOptions], Iterator[ParsedRecord]]] = {
        AiChallengerSource: ai_challenger.read,
        LlavaSource: llava.read,
        CocoCaptionsSource: coco_captions.read,
        VqaV2Source: vqav2.read,
        VqaMetadataSource: vqa_metadata.read,
        MessagesSource: messages.read,
    }
    return readers[type(source)](source, options)


def files(source: SourceBase) -> list[Path]:
    """The annotation files of a source."""
    return [path for key in ("questions", "annotations", "path") if isinstance(path := getattr(source, key, None), Path)]
