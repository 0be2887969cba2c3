"""Settings of the training."""

from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import Field

from config_schema import section
from dataset.config import DataConfig
from model.siglip_qwen.config import ModelConfig

ParamGroup = Literal["connector", "lora", "language"]
PositiveFloat = Annotated[float, Field(gt=0.0)]
PositiveInt = Annotated[int, Field(ge=1)]


@section
class LearningRates:
    """A learning rate for each trained group."""

    connector: PositiveFloat = 1e-4
    """Of the projector."""
    lora: PositiveFloat = 2e-4
    """Of the adapters."""
    language: PositiveFloat = 2e-5
    """Of the whole language model, when a stage trains it."""


@section
class StageConfig:
    """One stage of the training: what is trained, how long, how fast."""

    name: str
    """Name of the stage in logs and checkpoints."""
    train: tuple[ParamGroup, ...]
    """What is trained: projector, lora, language (the whole language model)."""
    epochs: PositiveFloat = 1.0
    """Passes over the training samples."""
    max_steps: PositiveInt | None = None
    """Stop the stage after this many optimizer steps."""
    learning_rate: PositiveFloat | LearningRates | None = None
    """Overrides train.learning_rate for this stage."""


@section
class TrainConfig:
    """The training."""

    stages: tuple[StageConfig, ...] = (
        StageConfig(name="align", train=("connector",), learning_rate=1e-3),
        StageConfig(name="tune", train=("connector", "lora")),
    )
    """Stages, run one after the other."""
    learning_rate: PositiveFloat | LearningRates = LearningRates()
    """One rate for all groups or one for each."""
    batching: Literal["auto", "packed", "padded"] = "auto"
    """Packed rows or length-grouped padding; auto = packed on CUDA, padded on a CPU."""
    per_device_train_batch_size: PositiveInt = 16
    """Samples a micro-batch and process, when padded."""
    packing_length: PositiveInt = 16_384
    """Tokens a micro-batch and process, when packed."""
    max_questions_per_conversation: PositiveInt = 1
    """At most so many short questions about one picture are asked in one conversation, whose picture is paid for once."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches an optimizer step."""
    warmup_steps: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.03
    """Share of the steps over which the learning rate rises; a cosine takes it to zero afterwards."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """AdamW weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 autocast, or fp32; auto = bf16 on CUDA devices that have it, fp32 elsewhere."""
    torch_compile: bool | Literal["auto"] = "auto"
    """Compile the layers one by one; auto = on CUDA, where a stage has 500 micro-batches or more and so repays it."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: a third slower, far less memory. auto = on CUDA, a trial step says for how
    many layers (none, some or all) that is needed; not on a CPU."""
    optim: Literal["adamw", "paged_adamw8bit"] = "adamw"
    """AdamW in fp32, or with 8-bit moments that are paged out to the host when the device is full (CUDA only)."""
    logits_memory_gib: PositiveFloat = 2.0
    """Most memory for scores over the vocabulary; where the supervised tokens of a micro-batch need more, they take turns."""
    seed: int = 0
    """Seed of everything random in the training."""
    dataloader_num_workers: Annotated[int, Field(ge=0)] | None = None
    """Data-loading processes a training process; by default its share of the cores, at most 8."""
    cache_vision_features: bool = False
    """Keep the vision trunk's features of all pictures in data/<name>/cache, so that training need not run it. For small models
    and projector stages; how much space it takes is said first. Not together with data.augmentation."""
    num_processes: PositiveInt | None = None
    """Training stops at once when it runs in another number of processes than this."""
    logging_steps: PositiveInt = 10
    """A status line every so many optimizer steps."""
    eval_steps: PositiveInt = 200
    """Validation loss and panels every so many optimizer steps."""
    eval_samples: PositiveInt = 512
    """Validation samples used for the loss."""
    save_steps: PositiveInt = 200
    """A checkpoint every so many optimizer steps, and one at the end of each stage."""
    save_total_limit: PositiveInt = 2
    """Older checkpoints of a stage are removed."""
    early_stopping_patience: PositiveInt | None = None
    """Stop a stage when the validation loss has not improved for this many evaluations; it ends with its best weights."""
    num_logged_predictions: Annotated[int, Field(ge=0)] = 8
    """Validation pictures shown in TensorBoard with question, reference and answer."""


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
