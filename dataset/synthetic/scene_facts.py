"""Sample facts about a scene: a question and its true answer, without any language. Yes and no are equally frequent by construction."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dataset.synthetic.scene import COLORS, HELD_OUT, SHAPES, Scene, Thing
from dataset.synthetic.vocabulary import Cell

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
        return all(
            wanted is None or wanted == value
            for wanted, value in ((self.color, thing.color), (self.shape, thing.shape), (self.digit, thing.digit))
        )

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
        about: see below.
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
    """The objects whose color, shape, digit or position decides the answer."""


FactSampler = Callable[[Scene, random.Random], Fact | None]


def sample_fact(scene: Scene, category: Category, rng: random.Random) -> Fact | None:
    """Sample a fact of a category, or None when none is found (without a sign there is no digit to read).

    In the split `unseen`, the question names a held-out combination or its answer depends on one.
    """
    needs_held_out = scene.split == "unseen"
    for _ in range(12):
        fact = rng.choice(_SAMPLERS[category])(scene, rng)
        if fact is not None and (not needs_held_out or _is_about_held_out(fact)):
            return fact
    return None


def _is_about_held_out(fact: Fact) -> bool:
    return any(noun.held_out for noun in fact.nouns) or any(thing.held_out for thing in fact.about)


def matching(scene: Scene, noun: Noun) -> tuple[Thing, ...]:
    """The objects of the scene that a noun refers to."""
    return tuple(thing for thing in scene.things if noun.fits(thing))


def unique_noun(scene: Scene, thing: Thing, rng: random.Random) -> Noun | None:
    """A noun that refers to this object alone, or None; half the time a shorter one (color or shape only) where that is unique."""
    full, short = Noun.of(thing), [Noun(color=thing.color), Noun(shape=thing.shape)]
    rng.shuffle(short)
    order = [*short, full] if rng.random() < 0.5 else [full]
    return next((noun for noun in order if len(matching(scene, noun)) == 1), None)


def _random_thing(scene: Scene, rng: random.Random) -> Thing:
    """A random object; in the split `unseen` one with a held-out combination."""
    return rng.choice([thing for thing in scene.things if thing.held_out] or scene.things)


def _count_all(scene: Scene, rng: random.Random) -> Fact:
    del rng
    return Fact("count_all", "counting", len(scene.things), about=scene.things)


def _count_shape(scene: Scene, rng: random.Random) -> Fact:
    noun = Noun(shape=_present_or_any([thing.shape for thing in scene.things], SHAPES, rng))
    objects = matching(scene, noun)
    return Fact("count_shape", "counting", len(objects), (noun,), about=objects)


def _count_color(scene: Scene, rng: random.Random) -> Fact:
    noun = Noun(color=_present_or_any([thing.color for thing in scene.things], COLORS, rng))
    objects = matching(scene, noun)
    return Fact("count_color", "counting", len(objects), (noun,), about=objects)


def _present_or_any(present: Sequence[str], all_values: Sequence[str], rng: random.Random) -> str:
    """With probability 0.75 a value that occurs in the scene, in proportion to how often it occurs; else any value."""
    return rng.choice(present) if rng.random() < 0.75 else rng.choice(all_values)


def _color_of(scene: Scene, rng: random.Random) -> Fact | None:
    thing = _random_thing(scene, rng)
    noun = Noun(shape=thing.shape)
    return Fact("color_of", "attribute", thing.color, (noun,), about=(thing,)) if len(matching(scene, noun)) == 1 else None


def _color_at(scene: Scene, rng: random.Random) -> Fact:
    thing = _random_thing(scene, rng)
    return Fact("color_at", "attribute", thing.color, cell=(thing.row, thing.column), about=(thing,))


def _color_of_digit(scene: Scene, rng: random.Random) -> Fact | None:
    thing = _random_thing(scene, rng)
    noun = Noun(shape=thing.shape, digit=thing.digit)
    if thing.digit is None or len(matching(scene, noun)) != 1:
        return None
    return Fact("color_of_digit", "attribute", thing.color, (noun,), digit=thing.digit, about=(thing,))


def _shape_of(scene: Scene, rng: random.Random) -> Fact | None:
    thing = _random_thing(scene, rng)
    noun = Noun(color=thing.color)
    return Fact("shape_of", "attribute", thing.shape, (noun,), about=(thing,)) if len(matching(scene, noun)) == 1 else None


def _shape_at(scene: Scene, rng: random.Random) -> Fact:
    thing = _random_thing(scene, rng)
    return Fact("shape_at", "attribute", thing.shape, cell=(thing.row, thing.column), about=(thing,))


def _name_at(scene: Scene, rng: random.Random) -> Fact:
    thing = _random_thing(scene, rng)
    return Fact("name_at", "identification", Noun.of(thing), cell=(thing.row, thing.column), about=(thing,))


def _which_is(scene: Scene, rng: random.Random) -> Fact | None:
    thing = _random_thing(scene, rng)
    if len(matching(scene, Noun(color=thing.color))) != 1:
        return None
    return Fact("which_is", "identification", thing.shape, color=thing.color, about=(thing,))


def _place_of(scene: Scene, rng: random.Random) -> Fact | None:
    thing = _random_thing(scene, rng)
    noun = unique_noun(scene, thing, rng)
    return Fact("place_of", "spatial", (thing.row, thing.column), (noun,), about=(thing,)) if noun else None


def _which_further(scene: Scene, rng: random.Random) -> Fact | None:
    pair = _pair(scene, rng)
    if pair is None:
        return None
    first, second, side = pair
    chosen = first if is_on_side(first, second, side) else second
    return Fact("which_further", "spatial", Noun.of(chosen), (Noun.of(first), Noun.of(second)), side=side, about=(first, second))


def _what_beside(scene: Scene, rng: random.Random) -> Fact | None:
    pair = _pair(scene, rng)
    if pair is None:
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
        return Fact("read_at", "reading", sign.digit, cell=(sign.row, sign.column), about=(sign,))
    noun = unique_noun(scene, sign, rng)
    if noun is None or noun.shape is None:
        return None
    return Fact("read", "reading", sign.digit, (noun,), about=(sign,))


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
    all_values = {(color, shape) for color in COLORS for shape in SHAPES}
    pool = sorted((HELD_OUT if scene.split == "unseen" else all_values - HELD_OUT) - present)
    similar = [pair for pair in pool if pair[0] == thing.color or pair[1] == thing.shape]
    choices = similar or pool
    return Noun(*rng.choice(choices)) if choices else None


def _absent_kind(scene: Scene, rng: random.Random) -> Noun | None:
    colors = [color for color in COLORS if not matching(scene, Noun(color=color))]
    shapes = [shape for shape in SHAPES if not matching(scene, Noun(shape=shape))]
    if rng.random() < 0.5:
        return Noun(color=rng.choice(colors)) if colors else None
    return Noun(shape=rng.choice(shapes)) if shapes else None


def _relation(scene: Scene, rng: random.Random) -> Fact | None:
    pair = _pair(scene, rng)
    if pair is None:
        return None
    first, second, side = pair
    wanted = rng.random() < 0.5
    if is_on_side(first, second, side) != wanted:
        first, second = second, first
    return Fact("relation", "yes/no", wanted, (Noun.of(first), Noun.of(second)), side=side, about=(first, second))


def _is_color(scene: Scene, rng: random.Random) -> Fact | None:
    thing = _random_thing(scene, rng)
    noun = Noun(shape=thing.shape)
    if len(matching(scene, noun)) != 1:
        return None
    wanted = rng.random() < 0.5
    colors = [color for color in COLORS if color != thing.color and (color, thing.shape) not in HELD_OUT]
    return Fact("is_color", "yes/no", wanted, (noun,), color=thing.color if wanted else rng.choice(colors), about=(thing,))


def _shows(scene: Scene, rng: random.Random) -> Fact | None:
    signs = matching(scene, Noun(shape="sign"))
    if len(signs) != 1 or signs[0].digit is None:
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
    match side:
        case "left":
            return thing.column < other.column
        case "right":
            return thing.column > other.column
        case "above":
            return thing.row < other.row
        case "below":
            return thing.row > other.row


def _pair(scene: Scene, rng: random.Random) -> tuple[Thing, Thing, Side] | None:
    """Two objects, each unique by color and shape, and a direction in which their positions differ."""
    named = [thing for thing in scene.things if len(matching(scene, Noun.of(thing))) == 1]
    if len(named) < 2:
        return None
    first, second = rng.sample(named, 2)
    sides: list[Side] = []
    if first.column != second.column:
        sides += ["left", "right"]
    if first.row != second.row:
        sides += ["above", "below"]
    return first, second, rng.choice(sides)


_SAMPLERS: dict[Category, tuple[FactSampler, ...]] = {
    "counting": (_count_all, _count_shape, _count_shape, _count_color, _count_color),
    "attribute": (_color_of, _color_of, _color_at, _color_of_digit, _shape_of, _shape_at),
    "identification": (_name_at, _which_is),
    "spatial": (_place_of, _place_of, _which_further, _what_beside),
    "reading": (_read,),
    "yes/no": (_exists, _exists, _relation, _relation, _is_color, _shows, _more),
}
