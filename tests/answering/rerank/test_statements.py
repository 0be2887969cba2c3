"""Questions and answers as sentences: by hand, and measured on pairs that a small grammar makes from what is so (as QA2D has them)."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from answering.question_types import skippable_question_type
from answering.rerank.statements import joined, kind, sentence, statement
from dataset.sample import Language
from dataset.synthetic.question_phrasing import ask
from dataset.synthetic.scene import generate_scene

Pair = tuple[str, str, str]
"""Question, answer, and the sentence that says the same."""

NOUNS = ["man", "dog", "woman", "bus", "child", "traffic light", "old building", "cup", "stop sign", "white horse"]
PLACES = ["on the table", "in the street", "behind the fence", "next to the tree", "under the bridge", "to the left of the car"]
DOING = ["riding a bike", "eating", "looking at the camera", "holding an umbrella", "wearing a hat"]
COLORS = ["red", "blue", "dark green"]
ADJECTIVES = ["happy", "open", "wet", "broken", "empty"]
VERBS = [("have", "has"), ("wear", "wears"), ("carry", "carries"), ("touch", "touches")]
THINGS = ["a hat", "two bags", "the ball"]
NOUNS_ZH = ["男人", "狗", "公交车", "杯子", "白色的马", "标志牌"]
PLACES_ZH = ["桌子上", "街上", "树的左边", "盒子里"]
COLORS_ZH = ["红色", "蓝色", "绿色"]


def english(rng: random.Random) -> Pair:
    """A fact, asked for and stated. A third of the subjects have a place of their own ("the man in the street")."""
    noun, other = rng.sample(NOUNS, 2)
    subject = f"the {noun}" + (f" {rng.choice(PLACES[:3])}" if rng.random() < 1 / 3 else "")
    place, doing, color, adjective = (rng.choice(group) for group in (PLACES, DOING, COLORS, ADJECTIVES))
    (base, finite), thing, n = rng.choice(VERBS), rng.choice(THINGS), rng.randrange(2, 9)
    yes = rng.random() < 0.5
    answer, negated, none = ("yes", "", "a") if yes else ("no", "not ", "no")
    verb = finite if yes else f"does not {base}"
    makers: list[Callable[[], Pair]] = [
        lambda: (f"What color is {subject}?", color, f"{subject} is {color}"),
        lambda: (f"What is the color of {subject}?", color, f"the color of {subject} is {color}"),
        lambda: (f"Is {subject} {adjective}?", answer, f"{subject} is {negated}{adjective}"),
        lambda: (f"Is the {noun} {doing}?", answer, f"the {noun} is {negated}{doing}"),
        lambda: (f"Is the {noun} {place}?", answer, f"the {noun} is {negated}{place}"),
        lambda: (f"Is there a {noun} {place}?", answer, f"there is {none} {noun} {place}"),
        lambda: (f"Can you see the {noun}?", answer, f"the {noun} {'can' if yes else 'cannot'} be seen"),
        lambda: (f"Does {subject} {base} {thing}?", answer, f"{subject} {verb} {thing}"),
        lambda: (f"How many {noun}s are there?", str(n), f"there are {n} {noun}s"),
        lambda: (f"How many {noun}s are {place}?", str(n), f"{n} {noun}s are {place}"),
        lambda: (f"In this picture, how many {noun}s can you see?", str(n), f"{n} {noun}s can be seen"),
        lambda: (f"Where is {subject}?", place, f"{subject} is {place}"),
        lambda: (f"What is {place}?", f"a {other}", f"a {other} is {place}"),
        lambda: (f"What is the {noun} doing?", doing, f"the {noun} is {doing}"),
        lambda: (f"What is the {noun} holding?", thing, f"the {noun} is holding {thing}"),
        lambda: ("What does the sign say?", "stop", "the sign says stop"),
        lambda: (f"What number is on the {noun}?", str(n), f"the number on the {noun} is {n}"),
        lambda: (f"Who is {doing}?", f"the {noun}", f"the {noun} is {doing}"),
        lambda: (f"Which is bigger, the {noun} or the {other}?", f"the {noun}", f"the {noun} is bigger"),
        lambda: (f"What kind of {noun.split()[-1]} is this?", "a big one", "this is a big one"),
    ]
    question, answer, said = rng.choice(makers)()
    return question, answer, said[0].upper() + said[1:] + "."


def chinese(rng: random.Random) -> Pair:
    """The same in Chinese."""
    noun, other = rng.sample(NOUNS_ZH, 2)
    place, color, n = rng.choice(PLACES_ZH), rng.choice(COLORS_ZH), rng.randrange(1, 9)
    yes = rng.random() < 0.5
    is_, in_, has = ("是", "在", "有") if yes else ("不是", "不在", "没有")
    answer, exists = ("是", "有") if yes else ("不是", "没有")
    makers: list[Callable[[], Pair]] = [
        lambda: (f"{noun}是什么颜色的？", color, f"{noun}是{color}的"),
        lambda: (f"请问{noun}是什么颜色？", color, f"{noun}是{color}"),
        lambda: (f"{noun}在哪里？", place, f"{noun}在{place}"),
        lambda: (f"{noun}在{place}吗？", answer, f"{noun}{in_}{place}"),
        lambda: (f"{noun}是不是{color}的？", answer, f"{noun}{is_}{color}的"),
        lambda: (f"{place}有{noun}吗？", exists, f"{place}{has}{noun}"),
        lambda: (f"图中有没有{noun}？", exists, f"图中{has}{noun}"),
        lambda: (f"图中有几只{noun}？", f"{n}只", f"图中有{n}只{noun}"),
        lambda: (f"{place}有多少个{noun}？", str(n), f"{place}有{n}个{noun}"),
        lambda: (f"{place}是什么？", other, f"{place}是{other}"),
        lambda: (f"谁在{place}？", noun, f"{noun}在{place}"),
        lambda: (f"{noun}和{other}，哪个更大？", noun, f"{noun}更大"),
        lambda: ("牌子上写着什么字？", "停", "牌子上写着停"),
    ]
    question, answer, said = rng.choice(makers)()
    return question, answer, said + "。"


@pytest.mark.parametrize(("language", "make", "bar"), [("en", english, 0.97), ("zh", chinese, 0.98)])
def test_generated_questions_become_the_sentences_that_they_were_made_from(
    language: Language, make: Callable[[random.Random], Pair], bar: float
) -> None:
    rng = random.Random(0)
    pairs = [make(rng) for _ in range(1000)]
    wrong = Counter(
        (question, said, made) for question, answer, said in pairs if (made := statement(question, answer, language, "sentence")) != said
    )
    share = 1 - wrong.total() / len(pairs)
    assert share >= bar, f"{share:.3f}; such as {wrong.most_common(5)}"
    # Joined, which is no sentence, none is.
    assert not any(joined(question, answer, language) == said for question, answer, said in pairs)


def test_another_answer_makes_another_sentence_about_drawn_scenes() -> None:
    fitting = []
    for i in range(300):
        for language in ("en", "zh"):
            question = ask(generate_scene(11, "validation", i), language, random.Random(i))
            texts = [sentence(question.text, answer, language) for answer in (question.answer.usual, *question.wrong)]
            fitting.append(texts[0] is not None)
            said = [text for text in texts if text is not None]
            assert len(set(said)) == len(said)
    assert sum(fitting) / len(fitting) > 0.99


@pytest.mark.parametrize(
    ("question", "answer", "language", "expected"),
    [
        ("<image>\nWhat color is it?", "red.", "en", "It is red."),
        ("Does the boy carry a kite?", "yes", "en", "The boy carries a kite."),
        ("Did the man have a hat?", "yes", "en", "The man did have a hat."),
        ("Is it sunny or cloudy?", "cloudy", "en", "It is cloudy."),
        ("Where is the cat?", "kitchen", "en", "The cat is in the kitchen."),
        ("Where is the cat?", "left", "en", "The cat is on the left."),
        ("Where is the cat?", "top left", "en", "The cat is at the top left."),
        ("What is the shape of the green thing?", "ring", "en", "The shape of the green thing is ring."),
        ("TV brand is what color?", "red", "en", "TV brand is what color? red"),
        ("Why is he sad?", "hungry", "en", "Why is he sad? hungry"),
        ("Is the dog asleep?", "maybe", "en", "Is the dog asleep? maybe"),
        ("What color is it?", " ", "en", "What color is it?"),
        ("这是什么？", "猫", "zh", "这是猫。"),
        ("为什么他在笑？", "开心", "zh", "为什么他在笑？开心"),
        ("图中红色的数字是几？", "7", "zh", "图中红色的数字是7。"),
    ],
)
def test_sentences_and_what_is_joined_instead(question: str, answer: str, language: Language, expected: str) -> None:
    assert statement(question, answer, language, "sentence") == expected


def test_statements_join_question_and_answer() -> None:
    assert statement("<image>\nWhat color is it?", "red", "en") == "What color is it? red"
    assert statement("<image>这是什么颜色？", "红色", "zh") == "这是什么颜色？红色"


@pytest.mark.parametrize(
    ("question", "language", "expected"),
    [
        ("In this image, is there a dog?", "en", "yes/no"),
        ("How many dogs are there?", "en", "counting"),
        ("Is it red or blue?", "en", None),
        ("What is the number on the bus?", "en", None),
        ("图里是否有狗？", "zh", "yes/no"),
        ("图中有几只狗？", "zh", "counting"),
        ("狗在哪里？", "zh", None),
    ],
)
def test_yes_no_and_counting_are_told_apart_for_the_guard(question: str, language: Language, expected: str | None) -> None:
    assert skippable_question_type(question, language) == expected
    assert expected is None or kind(question, language) == expected
