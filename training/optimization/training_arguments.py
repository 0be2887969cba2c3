"""The settings of a training stage as transformers' TrainingArguments."""

import torch
from transformers import TrainingArguments

from model.kernels.autocast import Precision
from training.config import Experiment
from training.stages import Stage


def training_arguments(
    config: Experiment, stage: Stage, micro_batches: int, precision: Precision, device: torch.device, validate: bool
) -> TrainingArguments:
    """The stage's settings as transformers' TrainingArguments.

    Args:
        config: The experiment.
        stage: The stage.
        micro_batches: Micro-batches of one rank in an optimizer step.
        precision: Of matrix products.
        device: Where the model is trained.
        validate: Evaluate every train.eval_steps.
    """
    train = config.train
    arguments = TrainingArguments(
        output_dir=str(config.checkpoint_folder),
        max_steps=stage.steps,
        per_device_train_batch_size=train.per_device_train_batch_size,
        gradient_accumulation_steps=micro_batches,
        average_tokens_across_devices=True,
        max_grad_norm=train.max_grad_norm,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=device.type == "cpu",
        seed=train.seed + stage.index,
        logging_steps=train.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validate else "no",
        eval_steps=train.eval_steps,
        save_strategy="steps",
        save_steps=train.save_steps,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        disable_tqdm=True,
        log_level="error",
    )
    # With several visible GPUs, Trainer would wrap the model in nn.DataParallel, which cuts packed rows apart.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
