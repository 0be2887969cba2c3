"""Loss curves and learning rates of a run as a PNG."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from atomic_io import atomic_write
from training.monitoring.metrics_history import History

FIRST_SHARE = 0.1
"""Share of the steps, at the beginning, whose training losses may lie above the axis: they are many times those that matter."""


def _top(history: History) -> float | None:
    """The upper end of the loss axis, a little above all losses but the first; None where that is above the first, too."""
    steps, losses = history.series("loss")
    start = steps[0] + FIRST_SHARE * (steps[-1] - steps[0]) if steps else 0
    shown = [loss for step, loss in zip(steps, losses, strict=True) if step >= start] + history.series("eval_loss")[1]
    return 1.1 * max(shown) if losses and max(losses) > 1.1 * max(shown) else None


def plot_loss_curves(history: History, path: Path) -> None:
    """Plot training and validation loss (top) and learning rates (bottom) over the optimizer steps of all stages."""
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    losses.plot(*history.series("loss"), color="tab:blue", linewidth=1.2, label="training")
    steps, values = history.series("eval_loss")
    if steps:
        losses.plot(steps, values, color="tab:orange", marker="o", markersize=4, label="validation")
    losses.set(ylabel="loss per supervised token (nats)", ylim=(0, None))
    groups = sorted({key for row in history.rows for key in row if key.startswith("learning_rate/")})
    for key in groups:
        rates.plot(*history.series(key), linewidth=1.2, label=key.removeprefix("learning_rate/"))
    rates.set(xlabel="optimizer step", ylabel="learning rate", ylim=(0, None))
    for axes in (losses, rates):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    starts: dict[str, int] = {}
    for row in history.rows:
        starts.setdefault(row["stage"], int(row["step"]))
    for stage, start in starts.items():
        losses.axvline(start, color="0.75", linestyle=":", linewidth=1)
        losses.annotate(f" {stage}", (start, 1), xycoords=("data", "axes fraction"), va="top", color="0.4")
    if (top := _top(history)) is not None:
        note = f"first steps: up to {max(history.series('loss')[1]):.1f}"
        losses.annotate(note, (0.5, 0.97), xycoords="axes fraction", va="top", ha="center", color="0.4", fontsize=9)
        losses.set_ylim(0, top)
    with atomic_write(path) as temp_path:
        figure.savefig(temp_path, dpi=120)
