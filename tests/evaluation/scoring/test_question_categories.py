"""Categories of questions in both languages."""

import itertools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataset.sample import Language
from dataset.synthetic.question_phrasing import ask
from dataset.synthetic.scene import generate_scene
from evaluation.scoring.question_categories import category, category_names, confusion

REAL_DATA = os.environ.get("TESSERA_REAL_DATA", "")
PAGES = ("evaluation.md", "zh/evaluation.md")
ENGLISH = {
    "Is there a blue star left of the green ring?": "yes/no",
    "Are there many people?": "yes/no",
    "Does the sign say stop?": "yes/no",
    "In this picture, is the dog asleep?": "yes/no",
    "How many squares are there?": "counting",
    "What is the number of dogs in the picture?": "counting",
    "How many people are left of the bus?": "counting",
    "What color is the circle?": "attribute",
    "What colour is the sign that says stop?": "attribute",
    "Is the car red or blue?": "attribute",
    "What shape is the largest sign?": "attribute",
    "What is the table made of?": "attribute",
    "How tall is the man?": "attribute",
    "What does the sign say?": "reading",
    "what is the brand of this camera?": "reading",
    "What number is on the player's jersey?": "reading",
    "What is the number of the player?": "reading",
    "What time is it?": "reading",
    "Where is the cat?": "spatial",
    "What is left of the red circle?": "spatial",
    "Which side of the picture is the dog on?": "spatial",
    "What is this?": "identification",
    "What can be seen on the left of the picture?": "identification",
    "Who is holding the umbrella?": "identification",
    "Which animal is shown?": "identification",
    "Why is he laughing?": "other",
    "How do you get there?": "other",
}
CHINESE = {
    "图中有红色的圆形吗？": "yes/no",
    "这是不是一只狗？": "yes/no",
    "左边有没有人？": "yes/no",
    "图中有几个正方形？": "counting",
    "一共有多少人？": "counting",
    "圆形是什么颜色的？": "attribute",
    "左边的物体是什么形状？": "attribute",
    "这张桌子是什么材质的？": "attribute",
    "牌子上写着什么？": "reading",
    "标志上的数字是多少？": "reading",
    "现在几点了？": "reading",
    "猫在哪里？": "spatial",
    "红色圆形的左边是什么？": "spatial",
    "这是什么动物？": "identification",
    "右边是什么？": "identification",
    "图中左边有什么？": "identification",
    "谁拿着雨伞？": "identification",
    "他为何在笑": "other",
}


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


def test_the_examples_cover_every_category() -> None:
    assert sorted(category_names()) == sorted({*ENGLISH.values(), *CHINESE.values()})
