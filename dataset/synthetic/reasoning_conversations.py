"""Conversations whose answers take a step of reasoning: subtraction, addition, comparison, directions, most common value."""

import random
from collections import Counter
from collections.abc import Callable

from dataset.sample import Language
from dataset.synthetic.scene import Scene, Thing
from dataset.synthetic.scene_facts import SIDES, Noun, is_on_side, is_unique, matching
from dataset.synthetic.vocabulary import EN, ZH, capitalize_first, join_words, noun_phrase, position_phrase, word

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
    name, left = word(color, language).usual, total - removed
    if language == EN:
        questions = "If every {} thing were taken away, how many would be left?", "How many things stay when all {} ones are removed?"
        things = f"is {total} thing" if total == 1 else f"are {total} things"
        answer = f"{left}. There {things}, and {removed} of them {'is' if removed == 1 else 'are'} {name}, so {total} - {removed} = {left}."
    else:
        questions = "如果拿走所有{}的物体，还剩几个？", "去掉全部{}的东西以后，剩下多少个？"
        answer = f"{left}个。一共有{total}个物体，其中{removed}个是{name}的，所以{total} - {removed} = {left}。"
    turns = [(rng.choice(questions).format(name), answer)]
    if left and rng.random() < 0.6:
        other = noun_phrase(Noun.of(rng.choice([thing for thing in scene.things if thing.color != color])), language)
        further = {
            EN: (f"And if the {other} were taken away as well?", f"{left - 1}. One thing less than before: {left} - 1 = {left - 1}."),
            ZH: (f"如果再拿走{other}呢？", f"{left - 1}个。比刚才少一个：{left} - 1 = {left - 1}。"),
        }
        turns.append(further[language])
    return turns


def _direction(scene: Scene, language: Language, rng: random.Random) -> list[Turn]:
    named = [thing for thing in scene.things if is_unique(scene, Noun.of(thing))]
    if len(named) < 2:
        return []
    start, end = rng.sample(named, 2)
    forward, backward = _directions(start, end, language), _directions(end, start, language)
    start_name, end_name = (noun_phrase(Noun.of(thing), language) for thing in (start, end))
    start_position, end_position = (position_phrase(thing.cell, language) for thing in (start, end))
    if language == EN:
        questions = "Which way is it from the {} to the {}?", "In which direction does one go from the {} to the {}?"
        answer = f"{capitalize_first(forward)}. The {start_name} is {start_position} and the {end_name} is {end_position}."
        back = "And back again?", f"{capitalize_first(backward)}, the opposite way."
    else:
        questions = "从{}到{}要往哪个方向走？", "怎样从{}走到{}？"
        answer = f"往{forward}。{start_name}在{start_position}，{end_name}在{end_position}。"
        back = "那么走回来呢？", f"往{backward}，方向正好相反。"
    turn = rng.choice(questions).format(start_name, end_name), answer
    return [turn, back] if rng.random() < 0.4 else [turn]


def _directions(start: Thing, end: Thing, language: Language) -> str:
    names = {EN: ("left", "right", "up", "down"), ZH: ("左", "右", "上", "下")}[language]
    separator = " and " if language == EN else ""
    return separator.join(name for name, side in zip(names, SIDES, strict=True) if is_on_side(end, start, side))


def _count_kinds(scene: Scene, language: Language, rng: random.Random) -> list[Turn]:
    kind, values = _colors_or_shapes(scene, language, rng)
    names = join_words(list(dict.fromkeys(values)), language)
    count = len(set(values))
    if language == EN:
        return [(f"How many different {kind}s are there?", f"{count}: {names}.")]
    return [(f"图中有几种不同的{kind}？", f"{count}种：{names}。")]


def _most_frequent(scene: Scene, language: Language, rng: random.Random) -> list[Turn]:
    kind, values = _colors_or_shapes(scene, language, rng)
    ranked = Counter(values).most_common(2)
    if len(ranked) < 2 or ranked[0][1] == ranked[1][1]:
        return []
    name, count = ranked[0]
    if language == EN:
        return [(f"Which {kind} is the most common?", f"{capitalize_first(name)}: there are {count} of {len(values)}.")]
    return [(f"哪种{kind}最多？", f"{name}，{len(values)}个当中有{count}个。")]


def _colors_or_shapes(scene: Scene, language: Language, rng: random.Random) -> tuple[str, list[str]]:
    """The word color or shape, and the name of the color or shape of every object."""
    if rng.random() < 0.5:
        return {EN: "color", ZH: "颜色"}[language], [word(thing.color, language).usual for thing in scene.things]
    return {EN: "shape", ZH: "形状"}[language], [word(thing.shape, language).usual for thing in scene.things]


def _sum_of_digits(scene: Scene, language: Language, rng: random.Random) -> list[Turn]:
    digits = [thing.digit for thing in scene.things if thing.digit is not None]
    if len(digits) < 2:
        return []
    total, terms, high = sum(digits), " + ".join(map(str, digits)), max(digits)
    turns = {
        EN: [
            ("What do the numbers on the signs add up to?", f"{total}, since {terms} = {total}."),
            ("Which of them is the largest?", f"{high}."),
        ],
        ZH: [("标牌上的数字加起来是多少？", f"{total}，因为{terms} = {total}。"), ("其中最大的是几？", f"{high}。")],
    }[language]
    return turns if rng.random() < 0.5 else turns[:1]


def _same_color(scene: Scene, language: Language, rng: random.Random) -> list[Turn]:
    named = [thing for thing in scene.things if is_unique(scene, Noun(shape=thing.shape))]
    if len(named) < 2:
        return []
    first, second = rng.sample(named, 2)
    color, shape = word(first.color, language).usual, word(first.shape, language).usual
    other_color, other_shape = word(second.color, language).usual, word(second.shape, language).usual
    same = color == other_color
    if language == EN:
        reason = f"Both are {color}." if same else f"The {shape} is {color} and the {other_shape} is {other_color}."
        return [(f"Do the {shape} and the {other_shape} have the same color?", f"{'Yes' if same else 'No'}. {reason}")]
    reason = f"它们都是{color}。" if same else f"{shape}是{color}，{other_shape}是{other_color}。"
    return [(f"{shape}和{other_shape}的颜色一样吗？", f"{'一样' if same else '不一样'}。{reason}")]


_SAMPLERS: tuple[TurnSampler, ...] = (_subtraction, _direction, _count_kinds, _most_frequent, _sum_of_digits, _same_color)
