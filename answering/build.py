"""From a configuration to an answerer or a scorer, loaded."""

from pathlib import Path

import torch

from answering import blip2, qwen_vl
from answering.checkpoint import CheckpointAnswerer
from answering.config import Blip2System, CheckpointSystem, System
from answering.prompting import PromptPolicy
from answering.protocol import Answerer
from dataset.pictures import open_picture
from dataset.processor import Processor
from errors import UsageError
from model import checkpoint
from model.build import build, default_dtype
from visual import clip


def default_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_answerer(
    system: System, *, checkpoint_folder: Path, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Answerer:
    """Load a system. checkpoint_folder: where `path: newest` of a checkpoint looks.

    device: `default_device` unless given; dtype: bf16 on CUDA and fp32 elsewhere unless given.
    Raises UsageError, one line, when something it names is missing or of another family.
    """
    device = device or default_device()
    if isinstance(system, CheckpointSystem):
        return _checkpoint(system, checkpoint_folder, device, dtype)
    if isinstance(system, Blip2System):
        return blip2.load(system, device, dtype)
    return qwen_vl.load(system, device, dtype)


def load_scorer(
    name: str, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None, key: str = "rerank.clip"
) -> clip.ClipScorer:
    """Load the CLIP, Chinese-CLIP or SigLIP that the configuration's `key` names. Raises UsageError."""
    device = device or default_device()
    return clip.load(name, open_picture, device=device, dtype=dtype or default_dtype(device), key=key)


def build_untuned(
    system: CheckpointSystem, *, checkpoint_folder: Path, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> CheckpointAnswerer:
    """The same parts and settings as a checkpoint, before any training: a fresh projector, no adapter. A control.

    The projector is drawn from a fixed seed. Raises UsageError as `build_answerer` does.
    """
    path = _folder(system, checkpoint_folder)
    processor = Processor.load(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(checkpoint.settings(path), placeholder_id=processor.placeholder_id, dtype=dtype, device=device or default_device())
    return CheckpointAnswerer(model, processor, PromptPolicy.of(system), {"path": str(path), "untuned": True})


def _checkpoint(system: CheckpointSystem, folder: Path, device: torch.device | str, dtype: torch.dtype | None) -> CheckpointAnswerer:
    path = _folder(system, folder)
    processor = Processor.load(path)
    model = checkpoint.load(path, quantization=system.quantization, dtype=dtype, device=device)
    return CheckpointAnswerer(model, processor, PromptPolicy.of(system), {"path": str(path), "quantization": system.quantization})


def _folder(system: CheckpointSystem, folder: Path) -> Path:
    path = folder if system.path == "newest" else Path(system.path)
    if system.path != "newest" and not path.is_dir():
        raise UsageError(f"system {system.name}, path: {path} does not exist (expected `newest` or a checkpoint folder)")
    return path if (path / "config.json").is_file() else checkpoint.newest(path)
