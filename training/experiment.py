"""What a training reads of an experiment: its sections and its folders."""

from pathlib import Path
from typing import Protocol

from dataset.config import DataConfig
from model.siglip_qwen.config import ModelConfig
from training.config import TrainConfig


class Experiment(Protocol):
    """The root `Config` is one; the training knows nothing of its other sections."""

    @property
    def data(self) -> DataConfig: ...

    @property
    def model(self) -> ModelConfig: ...

    @property
    def train(self) -> TrainConfig: ...

    @property
    def data_folder(self) -> Path:
        """Where the merged data stands."""
        ...

    @property
    def checkpoint_folder(self) -> Path:
        """Where checkpoints are written."""
        ...

    @property
    def result_folder(self) -> Path:
        """Where curves, panels and the table of answers are written."""
        ...
