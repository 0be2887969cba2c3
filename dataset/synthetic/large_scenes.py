"""Larger scenes with small objects: three to seven on a grid of 6 x 6, among them a sign with a digit or a word.

Their cells are as large as those of the other scenes, so that an encoder that reads 96 x 96 pixels sees them at half the size, unless
it reads the image in parts. No object has a held-out combination of color and shape.
"""

import random
from typing import Literal

from dataset.sample import Language
from dataset.synthetic.question_phrasing import Question, phrase
from dataset.synthetic.scene import WORDS, Scene, Thing, sample_combination, split_of
from dataset.synthetic.scene_facts import Category, Fact, Noun, is_unique, matching, sample_fact

LARGE_GRID = 6
"""Rows and columns of the grid."""

_COUNTS = (3, 4, 4, 5, 5, 6, 7)
_WORD_RATE = 0.5
_OBJECT_FACTS = frozenset({"color_of", "shape_of", "exists", "is_color"})
"""Kinds of facts about single objects that name no place: those of a grid of 3 x 3 have words, those of larger grids have none."""
_OBJECT_CATEGORIES: tuple[Category, ...] = ("attribute", "attribute", "yes/no")
_TRIES = 30


def generate_large_scene(seed: int, split: Literal["train", "test"], index: int) -> Scene:
    """Generate larger scene `index` of a split, by rejection sampling as `generate_scene`: splits share no layout."""
    rng = random.Random(f"{seed}/{split}/{index}/{LARGE_GRID}x{LARGE_GRID}")
    while True:
        scene = Scene(_things(rng), seed, split, index, LARGE_GRID)
        if split_of(scene.layout) == split:
            return scene


def _things(rng: random.Random) -> tuple[Thing, ...]:
    cells = rng.sample([(row, column) for row in range(LARGE_GRID) for column in range(LARGE_GRID)], rng.choice(_COUNTS))
    things: list[Thing] = []
    for row, column in cells:
        color, shape = sample_combination(rng, things)
        if not things:
            shape = "sign"
        written = rng.choice(WORDS) if rng.random() < _WORD_RATE else rng.randrange(10)
        digit, word = (written, None) if isinstance(written, int) else (None, written)
        things.append(Thing(row, column, color, shape, *((digit, word) if shape == "sign" else ())))
    return tuple(sorted(things))


def sample_large_questions(scene: Scene, language: Language, rng: random.Random) -> list[Question]:
    """A question to read a sign, one about a single object, and one that counts; fewer where the scene has no such fact."""
    facts = (_reading(scene, rng), _about_an_object(scene, rng), sample_fact(scene, "counting", rng))
    return [phrase(fact, language, rng) for fact in facts if fact is not None]


def _reading(scene: Scene, rng: random.Random) -> Fact | None:
    """The digit or the word on a sign that is the only one, or the only one of its color."""
    signs = list(matching(scene, Noun(shape="sign")))
    rng.shuffle(signs)
    for sign in signs:
        noun = next((noun for noun in (Noun(shape="sign"), Noun.of(sign)) if is_unique(scene, noun)), None)
        if noun is not None:
            kind, answer = ("read", sign.digit) if sign.word is None else ("read_word", sign.word)
            assert answer is not None
            return Fact(kind, "reading", answer, (noun,), about=(sign,))
    return None


def _about_an_object(scene: Scene, rng: random.Random) -> Fact | None:
    """Color, shape or existence of an object."""
    for _ in range(_TRIES):
        fact = sample_fact(scene, rng.choice(_OBJECT_CATEGORIES), rng)
        if fact is not None and fact.kind in _OBJECT_FACTS:
            return fact
    return None
