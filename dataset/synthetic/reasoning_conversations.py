"""Conversations whose answers take a step of reasoning: subtraction, addition, comparison, directions, most common value."""

import random
from collections import Counter
from collections.abc import Callable

from dataset.sample import Language
from dataset.synthetic import vocabulary
from dataset.synthetic.scene import Scene, Thing
from dataset.synthetic.scene_facts import SIDES, Noun, is_on_side, matching
from dataset.synthetic.vocabulary import EN

Turn = tuple[str, str]
"""A question and its answer."""

TurnSampler = Callable[[Scene, Language, random.Random], list[Turn]]


def conversation(scene: Scene, language: Language, rng: random.Random) -> list[Turn]:
    """Two or three topics where the scene has that many. A topic has one turn, or two of which the second refers to the first."""
    samplers = rng.sample(_SAMPLERS, len(_SAMPLERS))
    topics = [turns for sampler in samplers if (turns := sampler(scene, language, rng))]
    return [turn for turns in topics[: rng.randint(2, 3)] for turn in turns]


def _subtraction(scene: Scene, language: Language, rng: random.Random) -> list[Turn]:
    """How many objects remain without one color; sometimes a second turn removes one more."""
    color = rng.choice(scene.things).color
    removed, total = len(matching(scene, Noun(color=color))), len(scene.things)
    rest = [thing for thing in scene.things if thing.color != color]
    word, left = vocabulary.color_word(color, language).usual, total - removed
    if language == EN:
        question = rng.choice(
            ("If every {} thing were taken away, how many would be left?", "How many things stay when all {} ones are removed?")
        )
        turns = [
            (
                question.format(word),
                f"{left}. There {_are(total)}, and {removed} of them {_be(removed)} {word}, so {total} - {removed} = {left}.",
            )
        ]
    else:
        question = rng.choice(("如果拿走所有{}的物体，还剩几个？", "去掉全部{}的东西以后，剩下多少个？"))
        turns = [(question.format(word), f"{left}个。一共有{total}个物体，其中{removed}个是{word}的，所以{total} - {removed} = {left}。")]
    if rest and rng.random() < 0.6:
        thing = rng.choice(rest)
        name = vocabulary.name(thing, language)
        if language == EN:
            turns.append(
                (f"And if the {name} were taken away as well?", f"{left - 1}. One thing less than before: {left} - 1 = {left - 1}.")
            )
        else:
            turns.append((f"如果再拿走{name}呢？", f"{left - 1}个。比刚才少一个：{left} - 1 = {left - 1}。"))
    return turns


def _direction(scene: Scene, language: Language, rng: random.Random) -> list[Turn]:
    named = [thing for thing in scene.things if len(matching(scene, Noun.of(thing))) == 1]
    if len(named) < 2:
        return []
    start, end = rng.sample(named, 2)
    forward, backward = _directions(start, end, language), _directions(end, start, language)
    start_name, end_name = vocabulary.name(start, language), vocabulary.name(end, language)
    start_position, end_position = (vocabulary.position_phrase((thing.row, thing.column), language) for thing in (start, end))
    if language == EN:
        question = rng.choice(("Which way is it from the {} to the {}?", "In which direction does one go from the {} to the {}?"))
        turns = [
            (
                question.format(start_name, end_name),
                f"{vocabulary.capitalize_first(forward)}. The {start_name} is {start_position} and the {end_name} is {end_position}.",
            )
        ]
        return [*turns, ("And back again?", f"{vocabulary.capitalize_first(backward)}, the opposite way.")] if rng.random() < 0.4 else turns
    question = rng.choice(("从{}到{}要往哪个方向走？", "怎样从{}走到{}？"))
    turns = [(question.format(start_name, end_name), f"往{forward}。{start_name}在{start_position}，{end_name}在{end_position}。")]
    return [*turns, ("那么走回来呢？", f"往{backward}，方向正好相反。")] if rng.random() < 0.4 else turns


def _directions(start: Thing, end: Thing, language: Language) -> str:
    names = {"en": ("left", "right", "up", "down"), "zh": ("左", "右", "上", "下")}[language]
    separator = " and " if language == EN else ""
    return separator.join(name for name, side in zip(names, SIDES, strict=True) if is_on_side(end, start, side))


def _count_kinds(scene: Scene, language: Language, rng: random.Random) -> list[Turn]:
    by_color = rng.random() < 0.5
    values = list(dict.fromkeys(thing.color if by_color else thing.shape for thing in scene.things))
    names = [(vocabulary.color_word if by_color else vocabulary.shape_word)(value, language).usual for value in values]
    if language == EN:
        question = f"How many different {'colors' if by_color else 'shapes'} are there?"
        return [(question, f"{len(values)}: {vocabulary.join_words(names, language)}.")]
    question = f"图中有几种不同的{'颜色' if by_color else '形状'}？"
    return [(question, f"{len(values)}种：{vocabulary.join_words(names, language)}。")]


def _most_frequent(scene: Scene, language: Language, rng: random.Random) -> list[Turn]:
    by_color = rng.random() < 0.5
    ranked = Counter(thing.color if by_color else thing.shape for thing in scene.things).most_common(2)
    if len(ranked) < 2 or ranked[0][1] == ranked[1][1]:
        return []
    value, count = ranked[0]
    name = (vocabulary.color_word if by_color else vocabulary.shape_word)(value, language).usual
    if language == EN:
        question = f"Which {'color' if by_color else 'shape'} is the most common?"
        return [(question, f"{vocabulary.capitalize_first(name)}: there are {count} of {len(scene.things)}.")]
    return [(f"哪种{'颜色' if by_color else '形状'}最多？", f"{name}，{len(scene.things)}个当中有{count}个。")]


def _sum_of_digits(scene: Scene, language: Language, rng: random.Random) -> list[Turn]:
    digits = [thing.digit for thing in scene.things if thing.digit is not None]
    if len(digits) < 2:
        return []
    total = f"{' + '.join(map(str, digits))} = {sum(digits)}"
    high = max(digits)
    if language == EN:
        turns = [("What do the numbers on the signs add up to?", f"{sum(digits)}, since {total}.")]
        return [*turns, ("Which of them is the largest?", f"{high}.")] if rng.random() < 0.5 else turns
    turns = [("标牌上的数字加起来是多少？", f"{sum(digits)}，因为{total}。")]
    return [*turns, ("其中最大的是几？", f"{high}。")] if rng.random() < 0.5 else turns


def _same_color(scene: Scene, language: Language, rng: random.Random) -> list[Turn]:
    named = [thing for thing in scene.things if len(matching(scene, Noun(shape=thing.shape))) == 1]
    if len(named) < 2:
        return []
    first, second = rng.sample(named, 2)
    shapes = [vocabulary.shape_word(thing.shape, language).usual for thing in (first, second)]
    colors = [vocabulary.color_word(thing.color, language).usual for thing in (first, second)]
    same = first.color == second.color
    if language == EN:
        reason = f"Both are {colors[0]}." if same else f"The {shapes[0]} is {colors[0]} and the {shapes[1]} is {colors[1]}."
        return [(f"Do the {shapes[0]} and the {shapes[1]} have the same color?", f"{'Yes' if same else 'No'}. {reason}")]
    reason = f"它们都是{colors[0]}。" if same else f"{shapes[0]}是{colors[0]}，{shapes[1]}是{colors[1]}。"
    return [(f"{shapes[0]}和{shapes[1]}的颜色一样吗？", f"{'一样' if same else '不一样'}。{reason}")]


def _are(count: int) -> str:
    return f"{_be(count)} {count} {'thing' if count == 1 else 'things'}"


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


_SAMPLERS: tuple[TurnSampler, ...] = (_subtraction, _direction, _count_kinds, _most_frequent, _sum_of_digits, _same_color)
