"""Scenes: one to six objects on a 3 x 3 grid. A scene depends on (seed, split, index) alone, in any process."""

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "sign")

WORDS = ("bus", "zoo", "tea", "gym", "spa", "inn", "atm", "pub", "ski", "map")
"""Words on the signs of larger scenes."""

HELD_OUT = frozenset(
    {("red", "star"), ("green", "ring"), ("blue", "triangle"), ("yellow", "cross"), ("purple", "circle"), ("orange", "square")}
)
"""Combinations of color and shape that occur only in the split `unseen`; no other image shows and no other text names them."""

SceneSplit = Literal["train", "validation", "test", "unseen"]
"""`unseen` is a second test split; each of its scenes holds a held-out combination of color and shape."""

GRID = 3
"""Rows and columns of the grid."""

Cell = tuple[int, int]
"""Row and column of the grid."""

_COUNTS = (1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 6)
_SHAPE_WEIGHTS = (2, 2, 2, 2, 2, 2, 3)
_REPEAT_SHAPE_RATE, _REPEAT_COLOR_RATE = 0.25, 0.15
_TEST_SHARE, _VALIDATION_SHARE = 0.10, 0.05


@dataclass(frozen=True, slots=True, order=True)
class Thing:
    """An object of a scene: a coloured shape in one grid cell. `digit` is the number on a sign, None for other shapes and for a sign with
    a `word`, which only larger scenes have."""

    row: int
    column: int
    color: str
    shape: str
    digit: int | None = None
    word: str | None = None

    @property
    def cell(self) -> Cell:
        """The grid cell in which the object is."""
        return self.row, self.column

    @property
    def held_out(self) -> bool:
        """Whether this combination of color and shape never occurs in training."""
        return (self.color, self.shape) in HELD_OUT


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects in different cells, in reading order: one to six of them on a grid of 3 x 3. `seed`, `split`, `index` and `grid` identify the
    scene; `grid` is the number of rows and columns, which larger scenes have more of."""

    things: tuple[Thing, ...]
    seed: int
    split: SceneSplit
    index: int
    grid: int = GRID

    @property
    def name(self) -> str:
        """A name unique across seeds, splits, indices and grids."""
        name = f"{self.seed}/{self.split}/{self.index}"
        return name if self.grid == GRID else f"{name}/{self.grid}x{self.grid}"

    def rng(self, purpose: str) -> random.Random:
        """A random generator of this scene for one purpose, independent of those for other purposes."""
        return random.Random(f"{self.name}/{purpose}")

    @property
    def layout(self) -> str:
        """Objects and their cells as text, without anything that only changes the pixels."""
        return ";".join(f"{t.row}{t.column}{t.color} {t.shape} {t.word or t.digit}" for t in self.things)


def generate_scene(seed: int, split: SceneSplit, index: int) -> Scene:
    """Generate scene `index` of a split by rejection sampling.

    Splits share no layout, whatever the seed: a hash of the layout assigns it to train, validation or test. So no test layout
    occurs in training or pre-training, although there are few layouts with one or two objects.
    """
    rng = random.Random(f"{seed}/{split}/{index}")
    while True:
        scene = Scene(_things(rng, unseen=split == "unseen"), seed, split, index)
        if split == "unseen" or split_of(scene.layout) == split:
            return scene


def split_of(layout: str) -> SceneSplit:
    """The split of a layout without held-out combinations: train, validation or test."""
    digest = hashlib.blake2b(layout.encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    if share < _TEST_SHARE:
        return "test"
    return "validation" if share < _TEST_SHARE + _VALIDATION_SHARE else "train"


def _things(rng: random.Random, unseen: bool) -> tuple[Thing, ...]:
    cells = rng.sample([(row, column) for row in range(GRID) for column in range(GRID)], rng.choice(_COUNTS))
    things: list[Thing] = []
    for row, column in cells:
        color, shape = rng.choice(sorted(HELD_OUT)) if unseen and not things else sample_combination(rng, things)
        things.append(Thing(row, column, color, shape, rng.randrange(10) if shape == "sign" else None))
    return tuple(sorted(things))


def sample_combination(rng: random.Random, earlier: list[Thing]) -> tuple[str, str]:
    """A color and a shape that are not held out; it often repeats those of an earlier object, so that there is something to count."""
    while True:
        shape, color = rng.choices(SHAPES, _SHAPE_WEIGHTS)[0], rng.choice(COLORS)
        if earlier and rng.random() < _REPEAT_SHAPE_RATE:
            shape = rng.choice(earlier).shape
        if earlier and rng.random() < _REPEAT_COLOR_RATE:
            color = rng.choice(earlier).color
        if (color, shape) not in HELD_OUT:
            return color, shape
