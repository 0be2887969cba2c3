"""What a run reports: its trackers, sample predictions of the model, and the images in results/<name>."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from atomic_io import atomic_write
from errors import TesseraError
from model.family import LoadOptions
from training.checkpointing.resume import RunState
from training.config import Experiment
from training.data_loading import evenly_spaced
from training.distributed.launch import weights_are_sharded
from training.monitoring.loss_curves import plot_loss_curves
from training.monitoring.metrics_history import History
from training.monitoring.sample_predictions import Panel, generate_panels, render_table
from training.monitoring.tensorboard_logger import TensorBoardLogger
from training.monitoring.trackers import Tracker, start_tracker
from training.run_setup import Machine, RunSetup


def start_trackers(config: Experiment, machine: Machine, state: RunState | None, settings: dict[str, Any]) -> list[Tracker]:
    """Open what train.report_to names, on rank 0; empty on the other ranks. Where it can, a resumed run goes on in the same place.

    state: the run state to resume from. Raises TesseraError when a tracker cannot be opened; those opened before are closed.
    """
    if not machine.partial_state.is_main_process:
        return []
    trackers: list[Tracker] = []
    folder, run_ids = config.result_folder, state.trackers if state else {}
    try:
        for name in config.train.report_to:
            folder.mkdir(parents=True, exist_ok=True)
            if name == "tensorboard":
                machine.print_once(f"curves and sample predictions: tensorboard --logdir {folder / name}")
                trackers.append(TensorBoardLogger(folder / name, state.step if state else 0))
            else:
                trackers.append(start_tracker(name, config.checkpoint_folder.name, folder, settings, run_ids.get(name)))
    except TesseraError:
        for tracker in trackers:
            tracker.close("failed")
        raise
    if trackers and weights_are_sharded():
        machine.print_once("no sample predictions while training: with FSDP or ZeRO-3 no process holds the full model")
    return trackers


def panel_generator(run_setup: RunSetup) -> Callable[[nn.Module], list[Panel]] | None:
    """A function from a model to its sample predictions; None without validation samples."""
    if run_setup.validation is None:
        return None
    data, count = run_setup.validation, run_setup.config.train.num_logged_predictions
    samples = [data.sample(index) for index in evenly_spaced(len(data), count).tolist()]
    return partial(generate_panels, processor=run_setup.processor, store=run_setup.store, samples=samples, precision=run_setup.precision)


def write_results(run_setup: RunSetup, checkpoint: Path, history: History) -> None:
    """Write the loss curves and the last checkpoint's sample predictions as PNG."""
    results = run_setup.config.result_folder
    plot_loss_curves(history, results / "loss_curves.png")
    run_setup.print_once(f"loss curves: {results / 'loss_curves.png'}")
    generate = panel_generator(run_setup)
    if generate is None or not run_setup.config.train.num_logged_predictions:
        return
    if weights_are_sharded():
        run_setup.print_once("no sample predictions: the model may not fit on one device; use python tools/answer.py")
        return
    panels = generate(run_setup.family.load(checkpoint, LoadOptions(device=run_setup.device)))
    with atomic_write(results / "answers.png") as temp_path:
        render_table(panels).save(temp_path)
    run_setup.print_once(f"sample predictions: {results / 'answers.png'}")
