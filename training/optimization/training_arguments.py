"""The settings of a training stage as transformers' TrainingArguments."""

from transformers import TrainingArguments

from training.run_setup import RunSetup
from training.stages import Stage


def training_arguments(run: RunSetup, stage: Stage, validate: bool) -> TrainingArguments:
    """The stage's settings as transformers' TrainingArguments. validate: evaluate every train.eval_steps."""
    train = run.config.train
    arguments = TrainingArguments(
        output_dir=str(run.config.checkpoint_folder),
        max_steps=stage.steps,
        per_device_train_batch_size=train.per_device_train_batch_size,
        gradient_accumulation_steps=run.batching.step.micro_batches,
        average_tokens_across_devices=True,
        max_grad_norm=train.max_grad_norm,
        bf16=run.precision == "bf16",
        fp16=run.precision == "fp16",
        use_cpu=run.device.type == "cpu",
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
