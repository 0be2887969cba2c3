"""Single questions as images: grids of right and wrong answers, and each image whose answers reranking changed."""

import random
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from answering.rendering import side_by_side
from atomic_io import atomic_write_folder
from dataset.loading.image_io import ImageError
from dataset.loading.sample_store import SampleStore
from evaluation.report.chart_style import RIGHT, WRONG, save
from evaluation.report.examples import RIGHT as RIGHT_THRESHOLD
from evaluation.report.examples import Example, ShownAnswer, thumbnail

_MAX_EXAMPLES = 12
_COLUMNS = 4
_WRAP_UNIT = re.compile("[{0}]|[^ {0}]{{0,29}} |[^ {0}]{{1,30}}".format("\u2e80-\U0010ffff"))
"""A word with its space, cut after 30 characters, or a wide character."""


def write_grids(examples: Sequence[Example], store: SampleStore, out: Path, seed: int) -> list[Path]:
    """Write right_cases.png and wrong_cases.png: randomly sampled answers of the first system. Returns their paths.

    Args:
        examples: all short questions with their answers
        store: merged data with the images
        out: output folder
        seed: seed of the sampling
    """
    answered = [example for example in examples if example.question.image_ids]
    written = []
    for name, is_right in (("right", True), ("wrong", False)):
        matching = [example for example in answered if example.answers[0].right is is_right]
        if matching:
            sampled = random.Random(f"{seed} {name}").sample(matching, min(_MAX_EXAMPLES, len(matching)))
            criterion = f"VQA accuracy {'of at least' if is_right else 'below'} {100 * RIGHT_THRESHOLD:.0f} %"
            title = f"{len(sampled)} sampled from {len(matching):,} {name} answers of {sampled[0].answers[0].system} ({name}: {criterion})"
            written.append(save(_draw_grid(sampled, title, store), out / f"{name}_cases.png"))
    return written


def write_changed_answers(examples: Sequence[Example], store: SampleStore, folder: Path, limit: int) -> int:
    """Write <folder>/<system>/<image id>.png for each image whose answers reranking changed. Returns the number of files.

    Each file shows the image and every changed question with the answer before and after. The folder is replaced as a whole.

    Args:
        examples: all short questions with their answers
        store: merged data with the images
        folder: output folder
        limit: largest number of files per system
    """
    written = 0
    with atomic_write_folder(folder) as new:
        for system_index, system in enumerate(answer.system for answer in (examples[0].answers if examples else ())):
            by_image: dict[int, list[Example]] = {}
            for example in examples:
                if "changed" in example.answers[system_index].statuses and example.question.image_ids:
                    by_image.setdefault(example.question.image_ids[0], []).append(example)
            for image, changed in list(by_image.items())[:limit]:
                (new / system).mkdir(exist_ok=True)
                _before_and_after(changed, system_index, store).save(new / system / f"{image}.png", compress_level=1)
                written += 1
    return written


def _before_and_after(changed: Sequence[Example], system_index: int, store: SampleStore) -> Image.Image:
    """The image (omitted if unreadable) next to its changed questions."""
    texts: list[tuple[str, str]] = []
    for example in changed:
        answer = example.answers[system_index]
        references = " / ".join(text for text, _ in example.references[:4])
        texts += [
            ("question", example.question.text),
            (f"before, first candidate: {'right' if answer.first_right else 'wrong'}", answer.first),
            (f"after, reranked: {'right' if answer.right else 'wrong'}", answer.answer),
            ("references", references),
        ]
    try:
        images = [store.load_image(changed[0].question.image_ids[0])]
    except ImageError:
        images = []
    return side_by_side(images, texts)


def _draw_grid(examples: Sequence[Example], title: str, store: SampleStore) -> Figure:
    """A grid of images with question, references and answer."""
    rows = -(-len(examples) // _COLUMNS)
    figure = Figure(figsize=(3.1 * _COLUMNS, 0.5 + 3.3 * rows), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    grid = figure.subplots(rows, _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for example, axes in zip(examples, grid.flat, strict=False):
        _draw_example(axes, example, example.answers[0], thumbnail(example.question.image_ids[0], store))
    return figure


def _draw_example(axes: Axes, example: Example, answer: ShownAnswer, image: Image.Image | None) -> None:
    """Draw one cell of the grid, framed green if right, red if wrong."""
    color = RIGHT if answer.right else WRONG
    axes.axis("on")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=color, linewidth=2)
    axes.set_box_aspect(0.75)
    if image is not None:
        axes.imshow(image)
        axes.set_adjustable("datalim")
    axes.set_title(wrap_text(example.question.text, 34, 2), fontsize=9, loc="left")
    references = " / ".join(text for text, _ in example.references[:3])
    label = f"{'✓' if answer.right else '✗'} {answer.answer}"
    axes.set_xlabel(f"{wrap_text(label, 34, 1)}\n{wrap_text(f'references: {references}', 36, 1)}", fontsize=9, loc="left", color=color)


def wrap_text(text: str, width: int, lines: int) -> str:
    """Wrap a text to at most `lines` lines of `width` columns; a Chinese character takes two columns and may end a line."""
    wrapped_lines, line_width = [""], 0
    for piece in _WRAP_UNIT.findall(text):
        columns = sum(2 if ord(character) > 0x2E7F else 1 for character in piece)
        if line_width + columns > width and line_width:
            wrapped_lines.append("")
            line_width = 0
        wrapped_lines[-1] += piece
        line_width += columns
    stripped = [line.strip() for line in wrapped_lines]
    return "\n".join(stripped) if len(stripped) <= lines else "\n".join(stripped[:lines]) + " ..."
