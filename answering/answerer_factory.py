"""Load an answerer or a scorer from its configuration."""

import dataclasses
import logging
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import torch

from answering.config import (
    Blip2System,
    CheckpointSystem,
    DecodingConfig,
    OpenAiSystem,
    RerankConfig,
    ScorerConfig,
    System,
)
from answering.model_fingerprint import decoding_record, decoding_settings, identity, scorer_identity
from answering.prompts import PromptPolicy
from answering.protocol import Answerer, Description
from answering.reply import Reranker
from answering.rerank.candidate_scores import CORRECTED_SUFFIX
from answering.rerank.choose_answer import RESERVED_NAMES, RerankPlan
from answering.rerank.fitted_reranker import FitConditions, find_fitted, rerank_settings
from answering.rerank.image_text_scores import ImageTextScorer
from answering.systems.family_answerer import FamilyAnswerer
from answering.systems.openai_endpoint.api_key import api_key
from dataset.loading.image_io import open_image
from errors import UsageError, command
from model.checkpoint_manifest import latest_checkpoint
from model.family import LoadOptions, family, family_of, read_model_config
from model.kernels.device_capability import default_dtype
from visual import clip_scorer
from visual.config import is_missing_folder

log = logging.getLogger(__name__)


def default_device() -> torch.device:
    """The current CUDA device of this process if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def build_answerer(system: System, *, checkpoint_folder: Path, device: torch.device | str | None = None) -> Answerer:
    """Load a system, from `eval.systems`, in bf16 on CUDA (fp16 where bf16 is not native) and in fp32 elsewhere.

    checkpoint_folder: where `path: latest` of a checkpoint looks. device: `default_device()` if None. Raises UsageError if something that
    the system names is missing or is a model of another family; the message is one line.
    """
    options = LoadOptions(device=device or default_device())
    if isinstance(system, CheckpointSystem):
        return _build_checkpoint(system, checkpoint_folder, options)
    if isinstance(system, OpenAiSystem):
        check_system(system)
        # The client is an optional dependency and takes a second to import.
        from answering.systems.openai_endpoint.client import EndpointClient
        from answering.systems.openai_endpoint.openai_answerer import EndpointAnswerer

        return EndpointAnswerer(system, EndpointClient(system, api_key(system, f"system {system.name}, ")))
    settings = dataclasses.asdict(system)
    model, processor = family(system.family).load_pretrained(f"system {system.name}, ", settings, options)
    described = {name: settings[name] for name in system.described}
    max_image_side = settings.get("max_image_side")
    return FamilyAnswerer(model, processor, PromptPolicy.from_config(system), described, kind=system.kind, max_image_side=max_image_side)


def check_system(system: System, where: str | None = None) -> None:
    """Raise UsageError if a folder, API key or library of a system is missing. Loads nothing.

    where: prefix of the key in the message, such as `eval.systems.0.`.
    """
    where = where or f"system {system.name}, "
    if isinstance(system, OpenAiSystem):
        if find_spec("openai") is None:
            raise UsageError(f"{where}kind: openai needs the official client; pip install 'tessera-vlm[endpoint]'")
        api_key(system, where)
    elif isinstance(system, CheckpointSystem):
        if system.path != "latest" and not Path(system.path).is_dir():
            renamed = "; `newest` is called `latest` now" if system.path == "newest" else ""
            raise UsageError(f"{where}path: {system.path} does not exist (expected `latest` or a checkpoint folder{renamed})")
    elif is_missing_folder(system.path):
        raise UsageError(f"{where}path: {system.path} does not exist (neither a folder here nor a hub name)")
    elif isinstance(system, Blip2System) and system.adapter is not None and not system.adapter.is_dir():
        raise UsageError(f"{where}adapter: {system.adapter} does not exist")


NOT_IN_OPENAI_API = ("top_k", "repetition_penalty", "no_repeat_ngram_size", "length_penalty")
"""Decoding settings that OpenAI's API does not have."""


def check_decoding(decoding: DecodingConfig, systems: Iterable[System]) -> None:
    """Raise UsageError if `systems` cannot use these decoding settings on this machine. Loads nothing."""
    changed = decoding_settings(decoding)
    for system in systems:
        if isinstance(system, OpenAiSystem):
            if unknown := [name for name in NOT_IN_OPENAI_API if name in changed]:
                raise UsageError(
                    f"decoding.{unknown[0]}: {changed[unknown[0]]}, but system {system.name} is asked through OpenAI's API, which has no "
                    "such setting; leave it out, or set it in the system's extra_body if the endpoint knows it"
                )
        elif isinstance(system, CheckpointSystem) and decoding.cuda_graphs is True:
            if default_device().type != "cuda":
                raise UsageError("decoding.cuda_graphs: true, but there is no CUDA device; set it to auto or false")
            if system.quantization in ("int8", "nf4"):
                raise UsageError(
                    f"decoding.cuda_graphs: true, but system {system.name} is quantised to {system.quantization}; set it to auto or false"
                )


def load_scorer(
    name: str, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None, key: str = "rerank.clip"
) -> clip_scorer.ClipScorer:
    """Load a CLIP, Chinese-CLIP or SigLIP scorer. `key` is the configuration key to name in errors. Raises UsageError."""
    device = device or default_device()
    return clip_scorer.load(name, open_image, device=device, dtype=dtype or default_dtype(device), key=key)


class ScorerCache:
    """Scorers shared by several parts of one process: each is loaded on first use. Not thread-safe."""

    def __init__(self) -> None:
        self._scorers: dict[Path | str, clip_scorer.ClipScorer] = {}

    def load(self, name: str, *, key: str = "rerank.clip") -> clip_scorer.ClipScorer:
        """As `load_scorer`; the cached scorer if the same folder was already loaded."""
        cache_key = Path(name).resolve() if Path(name).is_dir() else name
        if cache_key not in self._scorers:
            self._scorers[cache_key] = load_scorer(name, key=key)
        return self._scorers[cache_key]


def build_scorers(rerank: RerankConfig, scorer_cache: ScorerCache | None = None) -> dict[str, tuple[ScorerConfig, clip_scorer.ClipScorer]]:
    """All scorers of the reranker with their configuration, by the name of their choice.

    scorer_cache: shares loaded scorers with other parts of the process. Raises UsageError if a name is taken twice or a scorer cannot
    be loaded.
    """
    scorer_configs = [] if rerank.clip is None else [("rerank.clip", ScorerConfig(name="clip", path=rerank.clip))]
    scorer_configs += [(f"rerank.scorers.{i}.path", config) for i, config in enumerate(rerank.scorers)]
    taken_names = {*RESERVED_NAMES}
    for key, config in scorer_configs:
        if config.name in taken_names or config.name.endswith(CORRECTED_SUFFIX):
            raise UsageError(f"{key.removesuffix('.path')}: the name {config.name} is taken; each scorer needs its own name")
        taken_names.add(config.name)
    load = load_scorer if scorer_cache is None else scorer_cache.load
    return {config.name: (config, load(config.path, key=key)) for key, config in scorer_configs}


def build_reranker(
    rerank: RerankConfig,
    description: Description,
    decoding: DecodingConfig,
    fitted_folder: Path,
    scorer_cache: ScorerCache | None = None,
) -> Reranker | None:
    """The reranker of a system; None if nothing scores candidates.

    It uses the values fitted on the validation split if `fitted_folder` has them for exactly this system.

    Args:
        rerank: scorers and configured weights.
        description: identifies the system.
        decoding: identifies how its candidates are generated.
        fitted_folder: folder with fitted rerankers, one file per system.
        scorer_cache: as of `build_scorers`.

    Raises UsageError if `abstain_below` or `clip_score_form: prior_corrected` is set, and the values they need have not been fitted.
    """
    scorers = build_scorers(rerank, scorer_cache)
    if not scorers and not rerank.self_evaluation:
        if rerank.abstain_below is not None:
            raise UsageError("rerank.abstain_below: candidates must be scored for that; set rerank.clip or rerank.self_evaluation")
        return None
    identities = {name: scorer_identity(config.path, rerank.statement_form) for name, (config, _) in scorers.items()}
    wanted = FitConditions(identity(description), decoding_record(decoding), identities, rerank_settings(rerank))
    fitted, mismatch = find_fitted(fitted_folder, wanted)
    because = f" ({mismatch})" if mismatch else ""
    if rerank.abstain_below is not None and (fitted is None or fitted.plan.confidence is None):
        raise UsageError(
            f"rerank.abstain_below: {fitted_folder} holds no fitted confidence for this system with the present decoding and "
            f"rerank settings{because}; run {command('tools/eval_rerank.py', 'rerank.tune=true')} first"
        )
    if fitted is None and rerank.clip_score_form == "prior_corrected":
        raise UsageError(
            f"rerank.clip_score_form: prior_corrected needs the background images of an evaluation, and {fitted_folder} has none for "
            f"this system{because}; run {command('tools/eval_rerank.py')} first"
        )
    if mismatch:
        log.warning("%s: its weights and its confidence are not used; %s fits them again", mismatch, command("tools/eval_rerank.py"))
    image_text_scorers = tuple(
        ImageTextScorer(name, scorer, config.languages, rerank.statement_form, fitted.background_images(name) if fitted else None)
        for name, (config, scorer) in scorers.items()
    )
    plan = RerankPlan(rerank.weights, rerank.clip_score_form, rerank.skipped_question_types) if fitted is None else fitted.plan
    return Reranker(image_text_scorers, plan, rerank.self_evaluation, rerank.abstain_below)


def build_untuned(system: CheckpointSystem, *, checkpoint_folder: Path, device: torch.device | str | None = None) -> FamilyAnswerer:
    """A control: the same pre-trained models and settings as a checkpoint, but untrained (a newly initialised connector, no adapter).

    The connector is initialised with a fixed seed. Raises UsageError as `build_answerer` does.
    """
    path = _checkpoint_folder(system, checkpoint_folder)
    kind = family(family_of(path))
    processor = kind.load_processor(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind.build(kind.settings(path), processor, LoadOptions(device=device or default_device()))
    return FamilyAnswerer(model, processor, PromptPolicy.of_checkpoint(processor.prompts, system), {"path": str(path), "untuned": True})


def _build_checkpoint(system: CheckpointSystem, folder: Path, options: LoadOptions) -> FamilyAnswerer:
    path = _checkpoint_folder(system, folder)
    is_llava = read_model_config(path).get("model_type") == "llava"
    form = "llava" if is_llava else "merged" if any(path.glob("model*.safetensors")) else "adapter"
    settings = {"path": str(path), "form": form, "quantization": system.quantization}
    kind = family(family_of(path))
    processor = kind.load_processor(path)
    model = kind.load(path, options, quantization=system.quantization)
    kind.fuse(model)
    return FamilyAnswerer(model, processor, PromptPolicy.of_checkpoint(processor.prompts, system), settings)


def _checkpoint_folder(system: CheckpointSystem, folder: Path) -> Path:
    check_system(system)
    path = folder if system.path == "latest" else Path(system.path)
    return path if (path / "config.json").is_file() else latest_checkpoint(path)
