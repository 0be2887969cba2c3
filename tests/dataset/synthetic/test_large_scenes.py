"""Larger scenes: small objects, signs to read, answers that are true, and nothing of the other scenes moved."""

import json
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from dataset.sample import Language
from dataset.synthetic.dataset_writer import SceneCounts, write_scenes
from dataset.synthetic.large_scenes import LARGE_GRID, generate_large_scene, sample_large_questions
from dataset.synthetic.question_phrasing import Question
from dataset.synthetic.scene import WORDS, Scene, Thing, generate_scene, split_of
from dataset.synthetic.scene_renderer import SIZE, render
from dataset.synthetic.vocabulary import EN, ZH
from evaluation.scoring.question_categories import category

LANGUAGES: tuple[Language, Language] = (EN, ZH)


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Question]]:
    scenes = [generate_large_scene(0, "train", index) for index in range(400)]
    in_both = [(scene, language) for scene in scenes for language in LANGUAGES]
    return [(scene, question) for scene, language in in_both for question in sample_large_questions(scene, language, scene.rng("test"))]


def test_objects_are_as_large_as_in_other_scenes_on_a_larger_image() -> None:
    scene = generate_large_scene(0, "test", 3)
    assert render(scene).size == (2 * SIZE, 2 * SIZE) == (32 * LARGE_GRID, 32 * LARGE_GRID)
    assert render(generate_scene(0, "test", 3)).size == (SIZE, SIZE)


def test_every_scene_has_a_sign_and_no_held_out_combination() -> None:
    scenes = [generate_large_scene(0, split, index) for split in ("train", "test") for index in range(300)]
    assert all(any(thing.shape == "sign" for thing in scene.things) for scene in scenes)
    assert not any(thing.held_out for scene in scenes for thing in scene.things)
    assert all(3 <= len(scene.things) == len({thing.cell for thing in scene.things}) <= 7 for scene in scenes)


def test_the_layout_decides_the_split_so_that_training_and_test_share_none() -> None:
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    for split in splits:
        scenes = [generate_large_scene(seed, split, index) for seed in (0, 1) for index in range(60)]
        assert {split_of(scene.layout) for scene in scenes} == {split}


def test_signs_bear_all_digits_or_words(asked: list[tuple[Scene, Question]]) -> None:
    signs = {thing for scene, _ in asked for thing in scene.things if thing.shape == "sign"}
    assert {sign.digit for sign in signs if sign.word is None} == set(range(10))
    assert {sign.word for sign in signs if sign.word is not None} == set(WORDS)
    assert all((sign.digit is None) != (sign.word is None) for sign in signs)


def test_each_word_looks_different() -> None:
    images = [
        np.asarray(render(Scene((Thing(0, 0, "red", "sign", None, word),), 0, "train", 0, LARGE_GRID)), dtype=float) for word in WORDS
    ]  # the same random numbers: nothing but the letters differs
    assert min(np.abs(a - b).max() for i, a in enumerate(images) for b in images[:i]) > 100


def test_what_is_read_is_on_the_only_sign_that_the_question_means(asked: list[tuple[Scene, Question]]) -> None:
    reading = [(scene, question) for scene, question in asked if question.fact.category == "reading"]
    assert len(reading) > 500
    for scene, question in reading:
        (noun,) = question.fact.nouns
        (sign,) = (thing for thing in scene.things if noun.fits(thing))
        assert question.fact.answer == (sign.word or sign.digit)
        assert question.answer.usual == str(question.fact.answer)
        assert question.answer.usual not in question.wrong


def test_no_question_names_a_place_of_the_small_grid(asked: list[tuple[Scene, Question]]) -> None:
    assert all(question.fact.cell is None and not isinstance(question.fact.answer, tuple) for _, question in asked)


def test_the_rules_put_every_question_into_its_category(asked: list[tuple[Scene, Question]]) -> None:
    found = Counter((question.fact.category, category(question.text, question.language)) for _, question in asked)
    assert {pair for pair in found if pair[0] != pair[1]} == set()
    assert {kind for kind, _ in found} == {"reading", "counting", "attribute", "yes/no"}


def test_larger_scenes_are_written_next_to_the_others_and_none_without_being_asked_for(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", SceneCounts(train=2, validation=0, test=1, unseen=1, large_train=3, large_test=2), processes=1)
    read = json.loads((tmp_path / "scenes/annotations/vqa_large_train_questions.json").read_text(encoding="utf-8"))["questions"]
    images = sorted(path.name for path in (tmp_path / "scenes/large/train").iterdir())
    assert images == [f"{question:012d}.jpg" for question in sorted({row["image_id"] for row in read})] and len(images) == 3
    assert (tmp_path / "scenes/annotations/vqa_large_test_annotations.json").is_file()
    assert not list((tmp_path / "scenes/annotations").glob("*validation*"))
    write_scenes(tmp_path / "plain", SceneCounts(train=2, validation=1, test=1, unseen=1), processes=1)
    assert not (tmp_path / "plain/large").exists()
