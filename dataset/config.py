"""Configuration of the data: splits, image limits, augmentation; that of the sources is in `source_config`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from config_schema import section
from dataset.source_config import Source

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


@section
class SplitConfig:
    """Fractions of the images that go to validation and test (the rest is for training), and what near duplicates do."""

    validation: Fraction = 0.05
    """Fraction of the images for validation."""
    test: Fraction = 0.10
    """Fraction of the images for the test split."""
    near_duplicates: Literal["count", "together"] = "count"
    """What to do about images that look alike (a smaller copy, another compression): count those in different splits in the report, or
    also keep each group of them in one split."""

    @model_validator(mode="after")
    def _check_training_fraction(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave nothing for training")
        return self


@section
class AugmentationConfig:
    """Random augmentation of training images."""

    brightness: Fraction = 0.0
    """Brightness factor, uniform in [1 - value, 1 + value]."""
    contrast: Fraction = 0.0
    """Contrast factor, uniform in [1 - value, 1 + value]."""
    saturation: Fraction = 0.0
    """Saturation factor, uniform in [1 - value, 1 + value]."""
    rotation: Annotated[float, Field(ge=0.0, le=15.0)] = 0.0
    """Rotation angle in degrees, uniform in [-value, value]."""
    horizontal_flip: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Probability that an image is mirrored. In a mirrored image left is right and text cannot be read, while question and answer stay as
    they were: only for data that speak of neither."""


@section
class DataConfig:
    """The data: raw sources, and how they are merged and split."""

    sources: tuple[Source, ...] = ()
    """Raw annotation files, merged in this order."""
    folder: Path | None = None
    """Folder of the merged data; data/<name> by default."""
    split: SplitConfig = SplitConfig()
    """Fractions of the images by split, for sources without a split of their own."""
    seed: int = 0
    """Seed of the split and of the choice of question templates."""
    max_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    """Images with more pixels are dropped before they are decoded."""
    vqa_target: Literal["majority", "sample"] = "majority"
    """Target of a question with several answers: the most frequent one, or one sampled in each epoch."""
    balance: Literal["none", "category"] = "none"
    """category = training samples of smaller categories are repeated within an epoch, until each category has as many as the largest; those
    without a category stay as they are. A source's records name their category in a field `category`. none = every sample once."""
    mix_temperature: Annotated[float, Field(ge=1)] | None = None
    """Share of each source in the training samples of an epoch: its number of samples to the power of 1 / temperature; 1 = as they are,
    larger values bring the sources closer to equal shares. By default every sample is used once."""
    augmentation: AugmentationConfig | None = None
    """Random augmentation of training images; none by default."""
    pack: bool = False
    """Pack image files, too, into a few large files in the folder of the merged data, for file systems that are slow with many small
    ones. Images that came inside a file are always packed."""
    pack_max_side: Annotated[int, Field(ge=16)] | None = None
    """With pack: images of which a side is longer, in pixels, are reduced to it and stored as JPEG; by default all stay as they are. Not
    below what the model reads, which is 384 for google/siglip-so400m-patch14-384."""
    streaming: bool = False
    """Read the sources while training, without a merge and without a copy: samples are checked and tokenised as they come, and the stages
    need max_steps. tools/preprocess.py then only sets validation and test samples aside, for evaluation, and finds images that stand in
    several splits."""
    shuffle_buffer_size: Annotated[int, Field(ge=1)] = 1000
    """With streaming: samples that each loading worker holds and takes its batches from, in random order; larger mixes better and needs
    more memory."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Number of processes that check images during the merge; by default one per core that it may use (affinity, container limit)."""

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The weights of all sources; None if they have none."""
        weights = tuple(source.weight for source in self.sources if source.weight is not None)
        return weights or None

    def mix_settings(self) -> dict[str, object] | None:
        """What decides how much of each source an epoch has, for comparison with an earlier run; None where every sample is used once."""
        epochs = [source.epochs for source in self.sources]
        given = {"weight": self.weights, "temperature": self.mix_temperature, "epochs": epochs if any(epochs) else None}
        return {name: value for name, value in given.items() if value is not None} or None

    @model_validator(mode="after")
    def _check_streaming(self) -> Self:
        """What needs all samples at once cannot be had while they are streamed."""
        asked = {
            "pack: true": self.pack,
            "mix_temperature": self.mix_temperature is not None,
            "balance: category": self.balance == "category",
            "split.near_duplicates: together": self.split.near_duplicates == "together",
            "epochs of a source": any(source.epochs is not None for source in self.sources),
        }
        if self.streaming and (found := [name for name, is_asked in asked.items() if is_asked]):
            raise ValueError(f"streaming: true does not know all samples beforehand, so {found[0]} cannot be had; weights of sources can")
        return self

    @model_validator(mode="after")
    def _check_mix(self) -> Self:
        """One way to mix at a time."""
        if self.weights is not None and len(self.weights) < len(self.sources):
            raise ValueError("either all sources have a weight or none has")
        own_epochs = any(source.epochs is not None for source in self.sources)
        ways = {"weight": self.weights is not None, "epochs": own_epochs, "mix_temperature": self.mix_temperature is not None}
        if sum(ways.values()) > 1:
            raise ValueError(f"{' and '.join(name for name, used in ways.items() if used)} are given; one of them decides")
        if any(ways.values()) and self.balance != "none":
            raise ValueError(f"balance: {self.balance} cannot be combined with weight, epochs or mix_temperature")
        return self
