"""Scenes as text: captions, detailed descriptions, and the text form on which the language model is pre-trained."""

import random
import re
from collections import Counter

from dataset.sample import Language
from dataset.synthetic import vocabulary
from dataset.synthetic.scene import GRID, Scene, Thing
from dataset.synthetic.scene_facts import SIDES, Noun, is_on_side, is_unique
from dataset.synthetic.vocabulary import EN

_OPENINGS: dict[Language, tuple[str, ...]] = {
    "en": ("A picture with {}.", "The picture shows {}.", "There is {}.", "One can see {}.", "An image of {}.", "Here is {}."),
    "zh": ("图中有{}。", "画面里有{}。", "图片上是{}。", "可以看到{}。", "这张图里有{}。", "一张有{}的图片。"),
}
_COUNTED: dict[Language, tuple[str, ...]] = {
    "en": ("The picture shows {n} {things}.", "There {are} {n} {things} in the picture.", "{N} {things} can be seen."),
    "zh": ("图中一共有{n}物体。", "这张图片里有{n}图形。", "可以看到{n}东西。"),
}
_POSITION_SENTENCES: dict[Language, tuple[str, ...]] = {
    "en": ("{At} there is {one}.", "{One} is {at}.", "{At} one sees {one}."),
    "zh": ("{at}有{one}。", "{one}在{at}。", "{at}能看到{one}。"),
}
WITH_POSITION: dict[Language, str] = {"en": "{one} {at}", "zh": "{at}的{one}"}
"""An object and its position, as part of a sentence."""


def caption(scene: Scene, language: Language, rng: random.Random) -> str:
    """One sentence that names every object and its position, in random order."""
    things = rng.sample(scene.things, len(scene.things))
    parts = [WITH_POSITION[language].format(**_fields(thing, language)) for thing in things]
    return rng.choice(_OPENINGS[language]).format(vocabulary.join_words(parts, language))


def short_caption(scene: Scene, language: Language, rng: random.Random) -> str:
    """One sentence with counts and without positions: two red circles and a star."""
    only_shapes = rng.random() < 0.3
    groups = Counter(Noun(shape=thing.shape) if only_shapes else Noun.of(thing) for thing in scene.things)
    parts = [_group(noun, count, language) for noun, count in groups.items()]
    rng.shuffle(parts)
    return rng.choice(_OPENINGS[language]).format(vocabulary.join_words(parts, language))


def description(scene: Scene, language: Language, rng: random.Random) -> str:
    """Several sentences: the number of objects, each object with its position, often the relative position of two of them."""
    sentences = [_counted(len(scene.things), language, rng), *(_sentence(thing, language, rng) for thing in scene.things)]
    named = [thing for thing in scene.things if is_unique(scene, Noun.of(thing))]
    if len(named) > 1 and rng.random() < 0.7:
        first, second = rng.sample(named, 2)
        sentences.append(_relation(first, second, language, rng))
    return (" " if language == EN else "").join(sentences)


def as_text(scene: Scene, language: Language, rng: random.Random) -> str:
    """The scene as text with everything the image shows: a caption, sentences in random order, or a table of the nine cells."""
    uniform = rng.random()
    if uniform < 0.35:
        return caption(scene, language, rng)
    if uniform < 0.6:
        things = rng.sample(scene.things, len(scene.things))
        return (" " if language == EN else "").join(_sentence(thing, language, rng) for thing in things)
    return _table(scene, language)


def mention_spans(text: str, scene: Scene, language: Language) -> list[tuple[int, int]]:
    """Character spans [start, end) of a scene's objects in a text made by `as_text`, in the order of `scene.things`.

    In sentences a span includes the object's position. Raises ValueError when an object is not mentioned in the text.
    """
    if text.count("|") == GRID * (GRID - 1):
        edges = [-1, *(match.start() for match in re.finditer(r"[|\n]", text)), len(text)]
        cells = [(thing.row * GRID + thing.column) for thing in scene.things]
        return [(edges[cell] + 1, edges[cell + 1]) for cell in cells]
    return [_mention_span(text, thing, language) for thing in scene.things]


def _mention_span(text: str, thing: Thing, language: Language) -> tuple[int, int]:
    fields = _fields(thing, language)
    phrases = [form.format(**fields).rstrip(".。") for form in (WITH_POSITION[language], *_POSITION_SENTENCES[language])]
    # "at the bottom" must not match inside "at the bottom left".
    pattern = "|".join(map(re.escape, phrases))
    match = re.search(rf"(?:{pattern})(?! left\b| right\b)", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{fields['one']} {fields['at']} is not mentioned in: {text}")
    return match.span()


def _fields(thing: Thing, language: Language) -> dict[str, str]:
    """An object (a red sign with the number 7; 一个写着7的红色的标牌) and its position, for sentences; One and At begin them."""
    noun = vocabulary.indefinite(Noun(thing.color, thing.shape, thing.digit), language)
    one, at = noun if language == EN else f"一个{noun}", vocabulary.position_phrase(thing.cell, language)
    return {"one": one, "One": vocabulary.capitalize_first(one), "at": at, "At": vocabulary.capitalize_first(at)}


def _sentence(thing: Thing, language: Language, rng: random.Random) -> str:
    return rng.choice(_POSITION_SENTENCES[language]).format(**_fields(thing, language))


def _counted(count: int, language: Language, rng: random.Random) -> str:
    n = vocabulary.amount(count, language)
    things = rng.choice(("thing", "object", "item")) + ("" if count == 1 else "s")
    return rng.choice(_COUNTED[language]).format(n=n, N=vocabulary.capitalize_first(n), things=things, are="is" if count == 1 else "are")


def _group(noun: Noun, count: int, language: Language) -> str:
    if language == EN and count == 1:
        return vocabulary.indefinite(noun, language)
    return vocabulary.amount(count, language) + (" " if language == EN else "") + vocabulary.kinds(noun, language)


def _relation(first: Thing, second: Thing, language: Language, rng: random.Random) -> str:
    """A sentence with the relative position of two objects; in different cells, they always differ in row or column."""
    texts = {"en": ("to the left of", "to the right of", "above", "below"), "zh": ("左边", "右边", "上面", "下面")}[language]
    side = rng.choice([text for text, side in zip(texts, SIDES, strict=True) if is_on_side(first, second, side)])
    first_name, second_name = (vocabulary.noun_phrase(Noun.of(thing), language) for thing in (first, second))
    return f"The {first_name} is {side} the {second_name}." if language == EN else f"{first_name}在{second_name}的{side}。"


def _table(scene: Scene, language: Language) -> str:
    """The nine cells in reading order, one line per row of the grid."""
    texts = {}
    for thing in scene.things:
        digit = "" if thing.digit is None else f" {thing.digit}"
        texts[thing.cell] = vocabulary.noun_phrase(Noun.of(thing), language) + digit
    empty = "empty" if language == EN else "空"
    return "\n".join(" | ".join(texts.get((row, column), empty) for column in range(GRID)) for row in range(GRID))
