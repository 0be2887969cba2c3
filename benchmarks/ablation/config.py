"""Settings of an ablation: a base configuration, variants of it, seeds, and the synthetic data that all of them share.

Loads no heavy library.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, JsonValue

import config as configuration
from config_schema import section
from errors import UsageError

BASE = "base"
"""Name of the base among the variants."""

PositiveInt = Annotated[int, Field(ge=1)]
VariantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
Overrides = dict[str, JsonValue]
"""Dotted key of a training configuration -> its value."""


@section
class AblationData:
    """Numbers of synthetic scenes. Each has three or four questions; larger scenes have small objects, digits and words on signs."""

    seed: int = 100
    """Seed of the scenes; the demo has 0, and its pre-trained models have seen others."""
    train: PositiveInt = 6000
    """Training scenes of the demo's kind."""
    large_train: PositiveInt = 3000
    """Larger training scenes."""
    test: PositiveInt = 400
    """Test scenes of the demo's kind, with combinations of color and shape that the training has."""
    unseen: PositiveInt = 250
    """Test scenes with combinations of color and shape that no training has."""
    large_test: PositiveInt = 400
    """Larger test scenes."""


@section
class Variant:
    """What differs from the base."""

    description: str
    """What it is, in a sentence for the report."""
    overrides: Annotated[Overrides, Field(min_length=1)]
    """Keys of the training configuration and their values, as on the command line: `model.connector.pool: 2`."""


@section
class AblationConfig:
    """An ablation: variants of one training configuration, trained and judged alike."""

    base: Path
    """The training configuration that every variant starts from; its data are replaced by those of the ablation."""
    overrides: Overrides = Field(default_factory=dict)
    """Changes of the base that all variants share, such as fewer steps."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds of the training runs of each variant (train.seed)."""
    data: AblationData = AblationData()
    """The synthetic scenes."""
    variants: dict[VariantName, Variant]
    """Name -> what differs from the base."""


@dataclass(frozen=True, slots=True)
class NamedVariant:
    """The base or a variant.

    Args:
        name: of the variant.
        description: a sentence for the report.
        own: its overrides.
        base: file of the training configuration.
        overrides: those of the base and its own, as arguments `key=value`.
    """

    name: str
    description: str
    own: Mapping[str, Any]
    base: Path
    overrides: tuple[str, ...]

    def training(self, seed: int) -> configuration.Config:
        """The training configuration of a run. Raises UsageError naming the key that is wrong."""
        return configuration.load(self.base, [*self.overrides, f"train.seed={seed}"])


def load(path: Path) -> AblationConfig:
    """Read an ablation. Raises UsageError for what is wrong in it, before anything is trained."""
    ablation = configuration.validate(AblationConfig, configuration.read(path), path)
    if BASE in ablation.variants:
        raise UsageError(f"{path}: variants.{BASE}: this is the name of the base itself; choose another")
    if len(set(ablation.seeds)) < len(ablation.seeds):
        raise UsageError(f"{path}: seeds: {', '.join(map(str, ablation.seeds))}; expected different ones")
    return ablation


def all_variants(ablation: AblationConfig) -> dict[str, NamedVariant]:
    """The base and the variants, by name, in the order of the file."""
    named: dict[str, tuple[str, Overrides]] = {BASE: ("the configuration that the others are compared with", {})}
    named |= {name: (variant.description, dict(variant.overrides)) for name, variant in ablation.variants.items()}
    return {
        name: NamedVariant(name, description, own, ablation.base, tuple(_arguments({**ablation.overrides, **own})))
        for name, (description, own) in named.items()
    }


def _arguments(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as on the command line; JSON is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in overrides.items()]


def check_variants(path: Path, variants: Mapping[str, NamedVariant]) -> None:
    """Raise UsageError for the first variant that cannot be trained as far as its settings tell, naming it and the key."""
    # Imported here: --help needs none of it.
    from training.preflight import check_settings

    for name, variant in variants.items():
        where = f"{path}: overrides" if name == BASE else f"{path}: variants.{name}.overrides"
        try:
            training = variant.training(0)
            configuration.check_model_paths(training, *(f"model.{key}" for key in training.model.base_models))
            check_settings(training)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        if training.data.streaming:
            raise UsageError(f"{where}: data.streaming: the scenes are merged; set it to false")
