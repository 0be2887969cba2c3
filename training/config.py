"""Training settings. Keys that transformers, PEFT or TRL also have bear the same name and unit there."""

from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, Field

from config_schema import section
from dataset.config import DataConfig
from model.config import ModelConfig
from model.family_config import ParamGroup

TrackerName = Literal["tensorboard", "wandb", "swanlab", "mlflow", "trackio"]
PositiveFloat = Annotated[float, Field(gt=0.0)]
PositiveInt = Annotated[int, Field(ge=1)]


def _as_list(value: Any) -> Any:
    """One name as a list of one, "none" as an empty list; of a name that stands twice, the first."""
    if isinstance(value, str):
        return () if value == "none" else (value,)
    return tuple(dict.fromkeys(value)) if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value) else value


@section
class LearningRates:
    """Peak learning rate of each parameter group."""

    vision: PositiveFloat = 1e-5
    """Peak learning rate of the vision encoder, in stages that train it."""
    connector: PositiveFloat = 1e-4
    """Peak learning rate of the connector."""
    lora: PositiveFloat = 2e-4
    """Peak learning rate of the LoRA adapters."""
    language: PositiveFloat = 2e-5
    """Peak learning rate of the language model, in stages that train all its weights."""


@section
class StageConfig:
    """One training stage: the trained parameter groups, the length and the learning rate."""

    name: str
    """Unique name of the stage in logs and checkpoints."""
    train: tuple[ParamGroup, ...]
    """Trained parameter groups: connector, lora, language (all weights of the language model), vision (the vision encoder, or LoRA on it);
    the rest is frozen."""
    epochs: PositiveFloat = 1.0
    """Passes over the training samples (num_train_epochs); may be a fraction."""
    max_steps: PositiveInt | None = None
    """Upper limit of optimizer steps, also for the learning-rate schedule; null = as many as `epochs` takes."""
    learning_rate: PositiveFloat | LearningRates | None = None
    """Replaces train.learning_rate in this stage; null = train.learning_rate."""


@section
class TrainConfig:
    """Training: stages, batches, optimizer, precision, logging, checkpoints."""

    stages: tuple[StageConfig, ...] = (
        StageConfig(name="align", train=("connector",), learning_rate=1e-3),
        StageConfig(name="tune", train=("connector", "lora")),
    )
    """Training stages, in order. Each has its own optimizer and learning-rate schedule and starts from the weights of the one before."""
    init_from: Path | None = None
    """Start from the weights in this folder, with a new optimizer, other data and other settings: a checkpoint, a run's folder (its
    latest checkpoint), a merged model or a LLaVA folder (tools/export.py, or a published one of SigLIP and Qwen). model.vision,
    model.language and model.connector must fit it, and model.vision_feature_layer unless a stage trains the connector; null = the
    base models and a new connector."""
    learning_rate: PositiveFloat | LearningRates = LearningRates()
    """Peak learning rate: one number, or one for each of connector, lora, language, vision."""
    vision_layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Layer-wise decay: each layer of a trained vision encoder learns at this times the rate of the layer after it; the last one, or what
    comes after it, at the rate itself (BEiT, arXiv:2106.08254)."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1.0)] = 1.0
    """The B matrices of LoRA on the language model learn at this times the rate of the A matrices (LoRA+, arXiv:2402.12354, where 16 is
    proposed)."""
    batching: Literal["auto", "packed", "padded"] = "auto"
    """packed = samples concatenated into rows of packing_length tokens without attention between them; padded = samples of
    similar length, padded to the longest; auto = packed where torch has variable-length attention (CUDA
    from Ampere on, in bf16 or fp16), else padded."""
    per_device_train_batch_size: PositiveInt = 16
    """Samples in a micro-batch of one process (rank); used when padded. The effective batch size is this x
    gradient_accumulation_steps x processes."""
    packing_length: PositiveInt = 16_384
    """Tokens in a micro-batch of one process, which is one packed row; used when packed. At least the longest sample."""
    max_questions_per_conversation: PositiveInt = 1
    """At most this many short questions about one image are joined into a multi-turn conversation, which encodes the image once;
    1 = none are joined."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches per optimizer step. The loss is the mean over the supervised tokens of all of them, on all processes."""
    warmup_steps: Annotated[float, Field(ge=0.0)] = 0.03
    """Linear warm-up of each stage, then decay to zero. Below 1: a share of the stage's optimizer steps (0.03 = 3 %); from 1 on: a
    number of steps."""
    lr_scheduler_type: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls to zero after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay of AdamW, on matrices; biases and norm weights have none."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this L2 norm over all trained parameters."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """bf16, fp16 = autocast with trained weights in fp32, fp16 with a gradient scaler (no FSDP or DeepSpeed); fp32 = no autocast;
    auto = bf16 on CUDA devices with native bf16, fp16 on other CUDA devices (T4, V100), fp32 elsewhere."""
    torch_compile: bool | Literal["auto"] = "auto"
    """Compile each transformer layer with torch.compile; auto = on CUDA, in stages of at least 500 micro-batches, without FSDP
    and ZeRO-3."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute the activations of the language model's layers in the backward pass (activation checkpointing): a third slower,
    far less memory. true = all layers; auto = on CUDA, trial steps find the fewest layers that fit into memory (all with FSDP or
    ZeRO-3); none on a CPU."""
    optim: Literal["adamw", "paged_adamw8bit", "sgd"] = "adamw"
    """adamw = torch's AdamW with fp32 moments, fused on CUDA; paged_adamw8bit = bitsandbytes' AdamW with 8-bit moments in paged
    memory, which moves to the host when the device is full (CUDA only, no FSDP or ZeRO-3); sgd = plain gradient descent."""
    logits_memory_gib: PositiveFloat = 2.0
    """Memory limit in GiB for the logits and their gradients; when a micro-batch needs more, the loss is computed in chunks of
    supervised positions."""
    seed: int = 0
    """Seed of weight initialisation, data order, choice of targets, augmentation and dropout."""
    dataloader_num_workers: Annotated[int, Field(ge=0)] | None = None
    """DataLoader workers of each process; 0 = load in the process itself; null = its share of the cores that it may use (affinity,
    container limit), at most 8."""
    cache_vision_features: bool = False
    """Compute the vision encoder's features of all images once, store them in bf16 in data/<name>/cache and train from there
    without running the encoder. For small models and connector stages; the disk space is printed before it is used. Not together
    with data.augmentation."""
    max_unreadable_images: Annotated[float, Field(ge=0.0, le=1.0)] = 0.001
    """Training goes on while at most this share of the images of all samples (0.001 = 0.1 %, but at least one) cannot be read any
    more: another sample takes the place, a validation sample is left out. 0 = none may be unreadable."""
    num_processes: PositiveInt | None = None
    """Expected world size; training stops with an error when another number of processes runs. null = any."""
    logging_steps: PositiveInt = 10
    """Optimizer steps between two status lines; the first and last step of a stage are always logged."""
    eval_steps: PositiveInt = 200
    """Optimizer steps between two evaluations: validation loss, and sample predictions wherever train.report_to says."""
    eval_samples: PositiveInt = 512
    """At most this many validation samples are used for the validation loss, evenly spaced over the split."""
    save_steps: PositiveInt = 200
    """Optimizer steps between two checkpoints; the end of a stage always has one."""
    save_total_limit: PositiveInt = 2
    """Latest checkpoints kept of each stage; older ones are deleted. With early stopping, the best one is kept as well."""
    early_stopping_patience: PositiveInt | None = None
    """Evaluations without a lower validation loss after which a stage stops; it ends with its best weights. null = no early
    stopping, last weights."""
    num_logged_predictions: Annotated[int, Field(ge=0)] = 8
    """Validation samples shown as image, question, reference answer and prediction, at each evaluation wherever train.report_to
    says, and as a PNG at the end; 0 = none."""
    report_to: Annotated[tuple[TrackerName, ...], BeforeValidator(_as_list)] = ("tensorboard",)
    """Where metrics and sample predictions go: one name or a list; none = nowhere. tensorboard = event files in results/<name>; the
    others are services whose packages are extras (tessera-vlm[wandb] ...) and whose keys come from their own environment variables."""


class Experiment(Protocol):
    """The sections of the root `Config` that training reads."""

    @property
    def data(self) -> DataConfig: ...

    @property
    def model(self) -> ModelConfig: ...

    @property
    def train(self) -> TrainConfig: ...

    @property
    def data_folder(self) -> Path:
        """Folder of the preprocessed data: samples.parquet, images.parquet."""

    @property
    def checkpoint_folder(self) -> Path:
        """Folder that checkpoints are written to."""

    @property
    def result_folder(self) -> Path:
        """Folder that loss curves, TensorBoard events and sample predictions are written to."""
