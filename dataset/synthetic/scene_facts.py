"""Sample facts about a scene: a question and its true answer, without any language. Yes and no are equally frequent by construction."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from operator import attrgetter
from typing import Literal

from dataset.synthetic.scene import COLORS, HELD_OUT, SHAPES, Cell, Scene, Thing

Category = Literal["counting", "attribute", "spatial", "reading", "yes/no", "identification"]
Side = Literal["left", "right", "above", "below"]

SIDES: tuple[Side, ...] = ("left", "right", "above", "below")
"""Order of the names in texts that list all four."""

CATEGORY_WEIGHTS: dict[Category, int] = {"counting": 15, "attribute": 21, "spatial": 17, "reading": 12, "yes/no": 25, "identification": 10}
"""Sampling weights of the question categories, in percent."""


@dataclass(frozen=True, slots=True)
class Noun:
    """A reference to objects by color, shape, digit or several of these; None leaves an attribute open."""

    color: str | None = None
    shape: str | None = None
    digit: int | None = None

    @classmethod
    def of(cls, thing: Thing) -> "Noun":
        """The object's color and shape."""
        return cls(thing.color, thing.shape)

    def fits(self, thing: Thing) -> bool:
        """Whether the reference matches `thing`."""
        pairs = (self.color, thing.color), (self.shape, thing.shape), (self.digit, thing.digit)
        return all(wanted in (None, value) for wanted, value in pairs)

    @property
    def held_out(self) -> bool:
        """Whether it names a combination of color and shape that never occurs in training."""
        return (self.color, self.shape) in HELD_OUT


Value = bool | int | str | Cell | Noun
"""An answer: yes or no, a number, a color or shape, a grid cell, an object."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A question and its true answer, without any language.

    Args:
        kind: selects the question templates.
        category: category of the question.
        answer: the true answer.
        nouns: objects named by the question, `{a}` and `{b}` of the templates.
        cell: grid cell named by the question.
        side: direction of a comparison of positions.
        color: color named by the question.
        digit: digit named by the question.
        about: the objects whose color, shape, digit or position decides the answer.
    """

    kind: str
    category: Category
    answer: Value
    nouns: tuple[Noun, ...] = ()
    cell: Cell | None = None
    side: Side | None = None
    color: str | None = None
    digit: int | None = None
    about: tuple[Thing, ...] = ()


FactSampler = Callable[[Scene, random.Random], Fact | None]


def sample_fact(scene: Scene, category: Category, rng: random.Random) -> Fact | None:
    """Sample a fact of a category, or None when none is found (without a sign there is no digit to read).

    In the split `unseen`, the question names a held-out combination or its answer depends on one.
    """
    for _ in range(12):
        fact = rng.choice(_SAMPLERS[category])(scene, rng)
        if fact and (scene.split != "unseen" or any(noun.held_out for noun in (*fact.nouns, *map(Noun.of, fact.about)))):
            return fact
    return None


def matching(scene: Scene, noun: Noun) -> tuple[Thing, ...]:
    """The objects of the scene that a noun refers to."""
    return tuple(thing for thing in scene.things if noun.fits(thing))


def is_unique(scene: Scene, noun: Noun) -> bool:
    """Whether a noun refers to exactly one object of the scene."""
    return len(matching(scene, noun)) == 1


def unique_noun(scene: Scene, thing: Thing, rng: random.Random) -> Noun | None:
    """A noun that refers to this object alone, or None; half the time a shorter one (color or shape only) where that is unique."""
    full, short = Noun.of(thing), [Noun(color=thing.color), Noun(shape=thing.shape)]
    rng.shuffle(short)
    order = [*short, full] if rng.random() < 0.5 else [full]
    return next((noun for noun in order if is_unique(scene, noun)), None)


def _random_thing(scene: Scene, rng: random.Random) -> Thing:
    """A random object; in the split `unseen` one with a held-out combination."""
    return rng.choice([thing for thing in scene.things if thing.held_out] or scene.things)


def _counting(attribute: str, all_values: Sequence[str]) -> FactSampler:
    """Samples how many objects have a color or shape: with probability 0.75 one of the scene's, as often as it occurs; else any."""

    def sample(scene: Scene, rng: random.Random) -> Fact:
        present = [getattr(thing, attribute) for thing in scene.things]
        value = rng.choice(present) if rng.random() < 0.75 else rng.choice(all_values)
        noun = Noun(color=value) if attribute == "color" else Noun(shape=value)
        objects = matching(scene, noun)
        return Fact(f"count_{attribute}", "counting", len(objects), (noun,), about=objects)

    return sample


def _asking(kind: str, category: Category, answer: Callable[[Thing], Value], *named: str) -> FactSampler:
    """Samples questions about one object, which these attributes identify, or its cell where there are none."""

    def sample(scene: Scene, rng: random.Random) -> Fact | None:
        thing = _random_thing(scene, rng)
        if not named:
            return Fact(kind, category, answer(thing), cell=thing.cell, about=(thing,))
        known = {name: getattr(thing, name) for name in named}
        if None in known.values() or not is_unique(scene, Noun(**known)):
            return None
        return Fact(kind, category, answer(thing), (Noun(**known),), color=known.get("color"), about=(thing,))

    return sample


def _place_of(scene: Scene, rng: random.Random) -> Fact | None:
    thing = _random_thing(scene, rng)
    noun = unique_noun(scene, thing, rng)
    return Fact("place_of", "spatial", thing.cell, (noun,), about=(thing,)) if noun else None


def _which_further(scene: Scene, rng: random.Random) -> Fact | None:
    if not (pair := _pair(scene, rng)):
        return None
    first, second, side = pair
    chosen = first if is_on_side(first, second, side) else second
    return Fact("which_further", "spatial", Noun.of(chosen), (Noun.of(first), Noun.of(second)), side=side, about=(first, second))


def _what_beside(scene: Scene, rng: random.Random) -> Fact | None:
    if not (pair := _pair(scene, rng)):
        return None
    anchor, _, side = pair
    neighbours = [thing for thing in scene.things if is_on_side(thing, anchor, side)]
    if len(neighbours) != 1:
        return None
    return Fact("what_beside", "spatial", Noun.of(neighbours[0]), (Noun.of(anchor),), side=side, about=(anchor, neighbours[0]))


def _read(scene: Scene, rng: random.Random) -> Fact | None:
    signs = matching(scene, Noun(shape="sign"))
    if not signs:
        return None
    sign = rng.choice(signs)
    assert sign.digit is not None
    if rng.random() < 0.3:
        return Fact("read_at", "reading", sign.digit, cell=sign.cell, about=(sign,))
    noun = unique_noun(scene, sign, rng)
    return Fact("read", "reading", sign.digit, (noun,), about=(sign,)) if noun and noun.shape else None


def _exists(scene: Scene, rng: random.Random) -> Fact | None:
    thing, full = _random_thing(scene, rng), scene.split == "unseen" or rng.random() < 0.6
    if rng.random() < 0.5:
        noun = Noun.of(thing) if full else rng.choice((Noun(color=thing.color), Noun(shape=thing.shape)))
        return Fact("exists", "yes/no", True, (noun,), about=(thing,))
    absent = _absent_combination(scene, thing, rng) if full else _absent_kind(scene, rng)
    return Fact("exists", "yes/no", False, (absent,)) if absent else None


def _absent_combination(scene: Scene, thing: Thing, rng: random.Random) -> Noun | None:
    """A combination that is absent from the scene, if possible with the color or the shape of `thing`.

    In the split `unseen` it is a held-out one, so that naming one does not reveal the answer; in other splits it never is.
    """
    present = {(other.color, other.shape) for other in scene.things}
    pool = sorted((HELD_OUT if scene.split == "unseen" else set(product(COLORS, SHAPES)) - HELD_OUT) - present)
    choices = [pair for pair in pool if pair[0] == thing.color or pair[1] == thing.shape] or pool
    return Noun(*rng.choice(choices)) if choices else None


def _absent_kind(scene: Scene, rng: random.Random) -> Noun | None:
    """A color or a shape that no object of the scene has."""
    kinds = [Noun(color=color) for color in COLORS] if rng.random() < 0.5 else [Noun(shape=shape) for shape in SHAPES]
    absent = [noun for noun in kinds if not matching(scene, noun)]
    return rng.choice(absent) if absent else None


def _relation(scene: Scene, rng: random.Random) -> Fact | None:
    if not (pair := _pair(scene, rng)):
        return None
    first, second, side = pair
    wanted = rng.random() < 0.5
    if is_on_side(first, second, side) != wanted:
        first, second = second, first
    return Fact("relation", "yes/no", wanted, (Noun.of(first), Noun.of(second)), side=side, about=(first, second))


def _is_color(scene: Scene, rng: random.Random) -> Fact | None:
    thing = _random_thing(scene, rng)
    noun = Noun(shape=thing.shape)
    if not is_unique(scene, noun):
        return None
    wanted = rng.random() < 0.5
    colors = [color for color in COLORS if color != thing.color and (color, thing.shape) not in HELD_OUT]
    return Fact("is_color", "yes/no", wanted, (noun,), color=thing.color if wanted else rng.choice(colors), about=(thing,))


def _shows(scene: Scene, rng: random.Random) -> Fact | None:
    signs = matching(scene, Noun(shape="sign"))
    if len(signs) != 1:
        return None
    wanted = rng.random() < 0.5
    digit = signs[0].digit if wanted else rng.choice([other for other in range(10) if other != signs[0].digit])
    return Fact("shows", "yes/no", wanted, (Noun(shape="sign"),), digit=digit, about=signs)


def _more(scene: Scene, rng: random.Random) -> Fact | None:
    """Are there more circles than squares? Equal counts are skipped, so that yes and no are equally frequent."""
    shapes = sorted({thing.shape for thing in scene.things} | {rng.choice(SHAPES)})
    if len(shapes) < 2:
        return None
    first, second = (Noun(shape=shape) for shape in rng.sample(shapes, 2))
    counts = len(matching(scene, first)), len(matching(scene, second))
    if counts[0] == counts[1]:
        return None
    wanted = rng.random() < 0.5
    if (counts[0] > counts[1]) != wanted:
        first, second = second, first
    return Fact("more", "yes/no", wanted, (first, second), about=(*matching(scene, first), *matching(scene, second)))


def is_on_side(thing: Thing, other: Thing, side: Side) -> bool:
    """Whether `thing` is on that side of `other`, comparing columns (left, right) or rows (above, below)."""
    if side in ("right", "below"):
        thing, other = other, thing
    return thing.column < other.column if side in ("left", "right") else thing.row < other.row


def _pair(scene: Scene, rng: random.Random) -> tuple[Thing, Thing, Side] | None:
    """Two objects, each unique by color and shape, and a direction in which their positions differ."""
    named = [thing for thing in scene.things if is_unique(scene, Noun.of(thing))]
    if len(named) < 2:
        return None
    first, second = rng.sample(named, 2)
    return first, second, rng.choice([side for side in SIDES if is_on_side(first, second, side) or is_on_side(second, first, side)])


_color, _shape = attrgetter("color"), attrgetter("shape")

_SAMPLERS: dict[Category, tuple[FactSampler, ...]] = {
    "counting": (
        lambda scene, _: Fact("count_all", "counting", len(scene.things), about=scene.things),
        *[_counting("shape", SHAPES)] * 2,
        *[_counting("color", COLORS)] * 2,
    ),
    "attribute": (
        *[_asking("color_of", "attribute", _color, "shape")] * 2,
        _asking("color_at", "attribute", _color),
        _asking("color_of_digit", "attribute", _color, "shape", "digit"),
        _asking("shape_of", "attribute", _shape, "color"),
        _asking("shape_at", "attribute", _shape),
    ),
    "identification": (_asking("name_at", "identification", Noun.of), _asking("which_is", "identification", _shape, "color")),
    "spatial": (_place_of, _place_of, _which_further, _what_beside),
    "reading": (_read,),
    "yes/no": (_exists, _exists, _relation, _relation, _is_color, _shows, _more),
}
