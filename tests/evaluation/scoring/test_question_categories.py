"""Categories of questions in both languages."""

import itertools
import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean

import pytest
import yaml

from dataset.sample import Language
from dataset.synthetic.question_phrasing import ask
from dataset.synthetic.scene import generate_scene
from evaluation.scoring.question_categories import category, category_names

REAL_DATA = os.environ.get("TESSERA_REAL_DATA", "")
PAGES = ("evaluation.md", "zh/evaluation.md")
ENGLISH = {
    "Is there a blue star left of the green ring?": "yes/no",
    "Are there many people?": "yes/no",
    "Does the sign say stop?": "yes/no",
    "Are there any cups or plates?": "yes/no",
    "Is the shop open or not?": "yes/no",
    "If it rained, would the man get wet?": "yes/no",
    "The lamp is on?": "yes/no",
    "In this picture, is the dog asleep?": "yes/no",
    "How many squares are there?": "counting",
    "What is the number of dogs in the picture?": "counting",
    "How many people are left of the bus?": "counting",
    "Is there one curtain or two?": "counting",
    "How much sugar is used?": "counting",
    "What color is the circle?": "attribute",
    "What colour is the sign that says stop?": "attribute",
    "Is the car red or blue?": "attribute",
    "What shape is the largest sign?": "attribute",
    "What is the table made of?": "attribute",
    "How tall is the man?": "attribute",
    "How many inches long is the fish?": "attribute",
    "How does the sky look?": "attribute",
    "How is the weather outside?": "attribute",
    "What time of day is it?": "attribute",
    "Is he left or right handed?": "attribute",
    "What does the sign say?": "reading",
    "what is the brand of this camera?": "reading",
    "What number is on the player's jersey?": "reading",
    "What is the number of the player?": "reading",
    "What time is it?": "reading",
    "what's the time above the door?": "reading",
    "What is the bill worth?": "reading",
    "How much is the ticket?": "reading",
    "How many percent does the label show?": "reading",
    "Who wrote this poem?": "reading",
    "What language is this sign in?": "reading",
    "What is the total?": "reading",
    "What does the sign advise?": "reading",
    "Who is a sponsor of the race?": "reading",
    "What is being advertised?": "reading",
    "What make is the truck?": "reading",
    "When was this coin minted?": "reading",
    "Where is the cat?": "spatial",
    "Where is the dog named Rex?": "spatial",
    "What is left of the red circle?": "spatial",
    "Which side of the picture is the dog on?": "spatial",
    "What is sitting beside the bed?": "spatial",
    "Is the cat in the foreground or background?": "spatial",
    "What is this?": "identification",
    "What can be seen on the left of the picture?": "identification",
    "Who is holding the umbrella?": "identification",
    "Which animal is shown?": "identification",
    "What can you see outside?": "identification",
    "Name the fruit.": "identification",
    "What position is he playing?": "identification",
    "Who is the man behind the counter?": "identification",
    "What king is this ship named after?": "identification",
    "What is the name of this yellow fruit?": "identification",
    "Why is he laughing?": "other",
    "Why is the cat under the table?": "other",
    "When does the circus come?": "other",
    "How long will the ice last?": "other",
    "How do you get there?": "other",
}
CHINESE = {
    "图中有红色的圆形吗？": "yes/no",
    "这是不是一只狗？": "yes/no",
    "左边有没有人？": "yes/no",
    "他在睡觉么": "yes/no",
    "她带没带伞？": "yes/no",
    "他喜欢不喜欢喝茶？": "yes/no",
    "灯关了没有": "yes/no",
    "图中有几个正方形？": "counting",
    "一共有多少人？": "counting",
    "桌上是三个碗还是四个碗？": "counting",
    "圆形是什么颜色的？": "attribute",
    "左边的物体是什么形状？": "attribute",
    "这张桌子是什么材质的？": "attribute",
    "这个苹果是青的还是红的？": "attribute",
    "这是早上还是晚上？": "attribute",
    "她几岁了？": "attribute",
    "他身高多少？": "attribute",
    "牌子上写着什么？": "reading",
    "标志上的数字是多少？": "reading",
    "现在几点了？": "reading",
    "门牌是多少？": "reading",
    "图上的字是什么？": "reading",
    "商店什么时候开门？": "reading",
    "猫在哪里？": "spatial",
    "他在哪": "spatial",
    "红色圆形的左边是什么？": "spatial",
    "鸟在树的左边还是右边？": "spatial",
    "这是什么动物？": "identification",
    "右边是什么？": "identification",
    "图中左边有什么？": "identification",
    "谁拿着雨伞？": "identification",
    "你知道这是什么吗？": "identification",
    "这个牌子是什么意思？": "identification",
    "离我们最近的人穿什么鞋？": "identification",
    "桌子旁边的男孩在吃什么？": "identification",
    "他为何在笑": "other",
    "地上为什么有水？": "other",
    "他是什么时候来的？": "other",
}


def confusion(labelled: Iterable[tuple[str, str, Language]]) -> dict[str, dict[str, int]]:
    """Confusion matrix [label][category] of questions, given as (label, question, language)."""
    table: dict[str, dict[str, int]] = {}
    for label, question, language in labelled:
        row = table.setdefault(label, dict.fromkeys(category_names(), 0))
        row[category(question, language)] += 1
    return table


@pytest.mark.parametrize(("question", "expected"), ENGLISH.items())
def test_english_questions(question: str, expected: str) -> None:
    assert category(question, "en") == expected


@pytest.mark.parametrize(("question", "expected"), CHINESE.items())
def test_chinese_questions(question: str, expected: str) -> None:
    assert category(question, "zh") == expected


def labelled() -> Iterator[tuple[str, str, Language]]:
    """Questions about rendered scenes: category, text, language."""
    languages: tuple[Language, ...] = ("en", "zh")
    for i in range(1500):
        scene, rng = generate_scene(0, "validation", i), random.Random(i)
        for language in languages:
            question = ask(scene, language, rng)
            yield question.fact.category, question.text, language


def known(*names: str) -> dict[str, str]:
    """Labels of tests/evaluation/scoring/<name>.yaml: question, or id of a question of the excerpts, -> category."""
    folder = Path(__file__).parent
    return {key: label for name in names for key, label in yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")).items()}


def share_right(labels: dict[str, str], language: Language, texts: Mapping[str, str]) -> float:
    """Share of labelled questions in their category; `texts` holds the questions that are named by an id."""
    return fmean(category(texts.get(key, key), language) == label for key, label in labels.items())


def real_questions() -> dict[str, str]:
    """<data set>/<id> -> question, of the excerpts."""
    asked = json.loads(Path(REAL_DATA, "vqav2", "v2_OpenEnded_mscoco_train2014_questions.json").read_text(encoding="utf-8"))["questions"]
    read = json.loads(Path(REAL_DATA, "textvqa", "metadata.json").read_text(encoding="utf-8"))
    return {f"vqav2/{row['question_id']}": row["question"] for row in asked} | {f"textvqa/{row['id']}": row["question"] for row in read}


def documented(page: str, mark: str) -> dict[str, dict[str, int]]:
    """The confusion table after a mark on a documentation page: [label][category]."""
    lines = Path("docs", page).read_text(encoding="utf-8").partition(f"<!-- confusion: {mark} -->")[2].splitlines()[1:]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in itertools.takewhile(str.strip, lines)]
    assert header[1:] == category_names()
    return {label: dict(zip(category_names(), map(int, counts), strict=True)) for label, *counts in rows}


def test_the_documented_confusion_table_is_up_to_date() -> None:
    measured = confusion(labelled())
    for page in PAGES:
        assert documented(page, "rendered scenes") == measured, page
    right = sum(row[label] for label, row in measured.items())
    assert right > 0.99 * sum(sum(row.values()) for row in measured.values())


@pytest.mark.skipif(not REAL_DATA, reason="TESSERA_REAL_DATA names no folder of excerpts")
def test_the_documented_confusion_table_of_real_questions_is_up_to_date() -> None:
    folder = Path(REAL_DATA) / "vqav2"
    asked = json.loads((folder / "v2_OpenEnded_mscoco_train2014_questions.json").read_text(encoding="utf-8"))["questions"]
    answered = json.loads((folder / "v2_mscoco_train2014_annotations.json").read_text(encoding="utf-8"))["annotations"]
    labels = {row["question_id"]: row["answer_type"] for row in answered}
    questions: list[tuple[str, str, Language]] = [(labels[row["question_id"]], row["question"], "en") for row in asked]
    measured = confusion(questions)
    for page in PAGES:
        assert documented(page, "VQA v2") == measured, page
    # The labels distinguish only yes/no, numbers and the rest.
    assert measured["yes/no"]["yes/no"] > 0.95 * sum(measured["yes/no"].values())
    assert measured["number"]["counting"] > 0.8 * sum(measured["number"].values())


@pytest.mark.skipif(not REAL_DATA, reason="TESSERA_REAL_DATA names no folder of excerpts")
@pytest.mark.parametrize("name", ["categories_en", "unseen_categories_en"])
def test_real_english_questions_are_in_their_labelled_categories(name: str) -> None:
    assert share_right(known(name), "en", real_questions()) >= 0.95


@pytest.mark.parametrize("name", ["categories_zh", "unseen_categories_zh"])
def test_chinese_questions_are_in_their_labelled_categories(name: str) -> None:
    assert share_right(known(name), "zh", {}) >= 0.95


def test_a_long_text_of_many_clauses_is_categorised_at_once() -> None:
    # A pattern whose parts can split the same spaces in several ways would need years for this one.
    assert category("a, " * 2_000 + "is it red?", "en") == "yes/no"


def test_the_examples_cover_every_category() -> None:
    assert sorted(category_names()) == sorted({*ENGLISH.values(), *CHINESE.values()})
