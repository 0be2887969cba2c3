"""The synthetic dataset: deterministic, with disjoint splits, true and balanced answers, and varied wording."""

import hashlib
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from dataset.sample import Language
from dataset.synthetic.annotation_records import ten_answers
from dataset.synthetic.question_phrasing import Question, sample_questions
from dataset.synthetic.question_templates import QUESTION_TEMPLATES, SHARED_TEMPLATES
from dataset.synthetic.reasoning_conversations import conversation
from dataset.synthetic.scene import COLORS, HELD_OUT, SHAPES, Scene, SceneSplit, Thing, generate_scene, split_of
from dataset.synthetic.scene_descriptions import as_text, caption, description, short_caption
from dataset.synthetic.scene_facts import CATEGORY_WEIGHTS, Fact, Noun, Side
from dataset.synthetic.scene_renderer import SIZE, render
from dataset.synthetic.vocabulary import EN, ZH, noun_phrase

LANGUAGES: tuple[Language, Language] = (EN, ZH)
SCENE_SPLITS: tuple[SceneSplit, ...] = ("train", "validation", "test", "unseen")


def scenes(split: SceneSplit, count: int, seed: int = 0) -> list[Scene]:
    return [generate_scene(seed, split, index) for index in range(count)]


def sampled_questions(split: SceneSplit, count: int, per_scene: int = 3) -> list[tuple[Scene, Question]]:
    return [
        (scene, question)
        for scene in scenes(split, count)
        for language in LANGUAGES
        for question in sample_questions(scene, language, scene.rng(f"test {language}"), per_scene)
    ]


@pytest.fixture(scope="module")
def train_questions() -> list[tuple[Scene, Question]]:
    """About 7,000 questions."""
    return sampled_questions("train", 1200)


@pytest.fixture(scope="module")
def unseen_questions() -> list[tuple[Scene, Question]]:
    return sampled_questions("unseen", 500)


def all_texts(scene: Scene) -> str:
    """All texts about a scene, one per line."""
    texts: list[str] = []
    for language in LANGUAGES:
        rng = scene.rng(f"all {language}")
        texts += [describe(scene, language, rng) for describe in (caption, short_caption, description, as_text)]
        texts += [text for turn in conversation(scene, language, rng) for text in turn]
        for question in sample_questions(scene, language, rng, 5):
            texts += [question.text, *ten_answers(question, rng)]
    return "\n".join(texts)


def test_a_scene_has_one_to_six_objects_in_different_cells() -> None:
    counts = Counter(len(scene.things) for scene in scenes("train", 1000))
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    assert counts[5] + counts[6] < 0.25 * 1000
    assert all(len({(t.row, t.column) for t in scene.things}) == len(scene.things) for scene in scenes("train", 1000))


def test_only_signs_show_digits_and_all_ten_occur() -> None:
    things = [thing for scene in scenes("train", 800) for thing in scene.things]
    assert all((thing.digit is not None) == (thing.shape == "sign") for thing in things)
    assert {thing.digit for thing in things if thing.shape == "sign"} == set(range(10))


def test_another_process_generates_the_same_pixels_and_texts() -> None:
    script = (
        "import hashlib, sys\n"
        "from tests.dataset.synthetic.test_synthetic_data import fingerprint\n"
        "sys.stdout.write(fingerprint())\n"
    )  # fmt: skip
    environment = {**os.environ, "PYTHONHASHSEED": "4321"}
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert other.stdout == fingerprint()


def fingerprint() -> str:
    """A hash of the pixels and texts of a few scenes of every split."""
    digest = hashlib.sha256()
    for split in SCENE_SPLITS:
        for scene in scenes(split, 6, seed=3):
            digest.update(render(scene).tobytes())
            digest.update(all_texts(scene).encode())
    return digest.hexdigest()


def test_a_scene_does_not_depend_on_those_before_it() -> None:
    late = generate_scene(0, "test", 40)
    assert [generate_scene(0, "test", index) for index in range(41)][40] == late


def test_seed_and_index_change_the_scene() -> None:
    assert generate_scene(0, "train", 0).things != generate_scene(1, "train", 0).things
    assert len({scene.layout for scene in scenes("train", 200)}) > 180


def test_no_layout_is_in_two_splits_even_with_other_seeds() -> None:
    layouts = {split: {scene.layout for seed in (0, 1) for scene in scenes(split, 600, seed)} for split in SCENE_SPLITS}
    for i, first in enumerate(SCENE_SPLITS):
        for second in SCENE_SPLITS[i + 1 :]:
            assert not layouts[first] & layouts[second], (first, second)


def test_ten_percent_of_layouts_are_test_and_five_percent_validation() -> None:
    splits = Counter(split_of(f"layout {number}") for number in range(4000))
    assert splits["test"] / 4000 == pytest.approx(0.10, abs=0.02)
    assert splits["validation"] / 4000 == pytest.approx(0.05, abs=0.015)


def test_held_out_combinations_use_six_colors_and_six_shapes_once_each() -> None:
    assert len(HELD_OUT) == len({color for color, _ in HELD_OUT}) == len({shape for _, shape in HELD_OUT}) == 6


def test_only_unseen_scenes_contain_held_out_combinations() -> None:
    for split in ("train", "validation", "test"):
        assert not any(thing.held_out for scene in scenes(split, 800) for thing in scene.things)
    unseen = scenes("unseen", 200)
    assert all(any(thing.held_out for thing in scene.things) for scene in unseen)
    assert {(thing.color, thing.shape) for scene in unseen for thing in scene.things if thing.held_out} == HELD_OUT


def test_no_training_text_names_a_held_out_combination() -> None:
    names = [noun_phrase(Noun(color, shape), language) for color, shape in HELD_OUT for language in LANGUAGES]
    # Some Chinese synonyms omit 色的.
    names += [noun_phrase(Noun(color, shape), ZH).replace("色的", "") for color, shape in HELD_OUT]
    for scene in [*scenes("train", 300), *scenes("test", 100)]:
        texts = all_texts(scene)
        assert not [name for name in names if name in texts], scene.layout


def test_every_unseen_question_is_about_a_held_out_combination(unseen_questions: list[tuple[Scene, Question]]) -> None:
    assert all(any(n.held_out for n in q.fact.nouns) or any(t.held_out for t in q.fact.about) for _, q in unseen_questions)


def test_naming_a_held_out_combination_does_not_reveal_whether_it_is_present(unseen_questions: list[tuple[Scene, Question]]) -> None:
    answers = Counter(q.fact.answer for _, q in unseen_questions if q.fact.kind == "exists" and q.fact.nouns[0].held_out)
    assert answers[True] / answers.total() == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("language", LANGUAGES)
def test_yes_and_no_are_equally_frequent(train_questions: list[tuple[Scene, Question]], language: Language) -> None:
    answers = Counter(q.fact.answer for _, q in train_questions if q.fact.category == "yes/no" and q.language == language)
    assert answers.total() > 600
    assert answers[True] / answers.total() == pytest.approx(0.5, abs=0.05)


def test_all_categories_are_asked_in_both_languages(train_questions: list[tuple[Scene, Question]]) -> None:
    counts = Counter((q.language, q.fact.category) for _, q in train_questions)
    for language in LANGUAGES:
        for category in CATEGORY_WEIGHTS:
            assert counts[language, category] > 0.04 * len(train_questions) / 2, (language, category)


@pytest.mark.parametrize("language", LANGUAGES)
def test_templates_name_the_object_at_different_positions_of_the_sentence(language: Language) -> None:
    for kind, templates in QUESTION_TEMPLATES[language].items():
        positions = {min(position for field in ("{a}", "{A}", "{at}", "{one}", "{kinds}", "{color}", "{thing}", "{things}", "{further}")
                      if (position := template.find(field)) >= 0) for template in templates}  # fmt: skip
        assert len(positions) >= 3, kind


def test_every_kind_is_asked_and_every_template_field_filled(train_questions: list[tuple[Scene, Question]]) -> None:
    for language in LANGUAGES:
        kinds = {*QUESTION_TEMPLATES[language], *SHARED_TEMPLATES} - {"read_word"}  # words are on signs of larger scenes alone
        assert {q.fact.kind for _, q in train_questions if q.language == language} == kinds
    assert all("{" not in question.text and "None" not in question.text for _, question in train_questions)


def test_questions_about_a_scene_ask_for_different_facts(train_questions: list[tuple[Scene, Question]]) -> None:
    facts = Counter((scene.name, question.language, question.fact) for scene, question in train_questions)
    assert max(facts.values()) == 1


def test_answers_are_true(train_questions: list[tuple[Scene, Question]], unseen_questions: list[tuple[Scene, Question]]) -> None:
    for scene, question in [*train_questions, *unseen_questions]:
        assert question.fact.answer == truth(scene, question.fact), (scene.layout, question.text)


def is_on_side(side: Side | None, thing: Thing, other: Thing) -> bool:
    """Whether `thing` is left of, right of, above or below `other`, computed independently of scene_facts."""
    right, down = thing.column - other.column, thing.row - other.row
    return {"left": right < 0, "right": right > 0, "above": down < 0, "below": down > 0}[str(side)]


def truth(scene: Scene, fact: Fact) -> object:
    """The answer computed from the scene alone, independently of the code that sampled the fact."""
    things = scene.things

    def only(candidates: list[Thing]) -> Thing:
        assert len(candidates) == 1, "the question does not refer to exactly one object"
        return candidates[0]

    def named(index: int) -> Thing:
        return only([thing for thing in things if fact.nouns[index].fits(thing)])

    def in_cell() -> Thing:
        return only([thing for thing in things if (thing.row, thing.column) == fact.cell])

    match fact.kind:
        case "count_all":
            return len(things)
        case "count_shape":
            return sum(thing.shape == fact.nouns[0].shape for thing in things)
        case "count_color":
            return sum(thing.color == fact.nouns[0].color for thing in things)
        case "color_of" | "color_of_digit":
            return named(0).color
        case "color_at":
            return in_cell().color
        case "shape_of":
            return named(0).shape
        case "shape_at":
            return in_cell().shape
        case "name_at":
            return Noun(in_cell().color, in_cell().shape)
        case "which_is":
            return only([thing for thing in things if thing.color == fact.color]).shape
        case "place_of":
            return named(0).row, named(0).column
        case "which_further":
            first, second = named(0), named(1)
            assert is_on_side(fact.side, first, second) != is_on_side(fact.side, second, first)
            chosen = first if is_on_side(fact.side, first, second) else second
            return Noun(chosen.color, chosen.shape)
        case "what_beside":
            neighbour = only([thing for thing in things if is_on_side(fact.side, thing, named(0))])
            return Noun(neighbour.color, neighbour.shape)
        case "read":
            return named(0).digit
        case "read_at":
            return in_cell().digit
        case "exists":
            return any(fact.nouns[0].fits(thing) for thing in things)
        case "relation":
            return is_on_side(fact.side, named(0), named(1))
        case "is_color":
            return named(0).color == fact.color
        case "shows":
            return named(0).digit == fact.digit
        case "more":
            return sum(map(fact.nouns[0].fits, things)) > sum(map(fact.nouns[1].fits, things))
    raise AssertionError(fact.kind)


def test_wrong_answers_are_wrong_and_of_the_same_type(train_questions: list[tuple[Scene, Question]]) -> None:
    for _, question in train_questions:
        assert question.wrong
        assert not set(question.wrong) & set(question.answer.all), question
        assert len(set(question.wrong)) == len(question.wrong)


def test_the_usual_answer_is_the_majority_of_ten(train_questions: list[tuple[Scene, Question]]) -> None:
    for scene, question in train_questions[:1500]:
        answers = ten_answers(question, scene.rng("annotators"))
        assert len(answers) == 10
        assert answers.count(question.answer.usual) >= 6


def test_annotators_use_synonyms_digits_and_words_and_are_sometimes_wrong(train_questions: list[tuple[Scene, Question]]) -> None:
    given = [(question, answer) for scene, question in train_questions[:1500] for answer in ten_answers(question, scene.rng("annotators"))]
    shares = Counter(
        "usual" if answer == question.answer.usual else "synonym" if answer in question.answer.synonyms else "wrong"
        for question, answer in given
    )
    assert shares["usual"] / len(given) > 0.8
    assert 0.04 < shares["synonym"] / len(given) < 0.15
    assert 0.02 < shares["wrong"] / len(given) < 0.06
    counting = {answer for question, answer in given if question.fact.category == "counting"}
    assert {"2", "two", "两个"} <= counting


def test_an_image_is_rgb_of_96_pixels_and_noisy() -> None:
    image = render(generate_scene(0, "train", 1))
    assert (image.mode, image.size) == ("RGB", (SIZE, SIZE))
    assert len({tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3)}) > 500


@pytest.mark.parametrize("color", COLORS)
def test_a_shape_is_rendered_in_its_color_and_cell(color: str) -> None:
    rgb = {"red": (215, 40, 40), "green": (40, 160, 60), "blue": (45, 80, 215), "yellow": (235, 212, 45)} | {
        "purple": (145, 60, 185), "orange": (238, 135, 30), "black": (22, 22, 24), "white": (246, 246, 244)
    }  # fmt: skip
    for index in range(5):
        scene = Scene((Thing(2, 0, color, "circle"),), 9, "train", index)
        middle = np.asarray(render(scene), dtype=int)[78:82, 14:18].mean((0, 1))
        assert np.abs(middle - rgb[color]).max() < 25


def test_all_shapes_and_digits_look_different() -> None:
    kinds = [(shape, None) for shape in SHAPES if shape != "sign"] + [("sign", digit) for digit in range(10)]
    images = [np.asarray(render(Scene((Thing(1, 1, "blue", shape, digit),), 9, "train", 0)), dtype=int) for shape, digit in kinds]
    for i, first in enumerate(images):
        for second in images[i + 1 :]:
            assert (np.abs(first - second).sum(-1) > 100).sum() > 12


def test_captions_and_descriptions_name_every_object() -> None:
    for scene in scenes("train", 100):
        for language in LANGUAGES:
            for describe in (caption, as_text):
                text = describe(scene, language, scene.rng("caption"))
                assert all(text.count(noun_phrase(Noun(t.color, t.shape), language)) >= 1 for t in scene.things)
            assert str(scene.things[0].digit or "") in description(scene, language, scene.rng("description"))


def test_reasoning_has_several_turns_and_correct_sums() -> None:
    conversations = [conversation(scene, "en", scene.rng("talk")) for scene in scenes("train", 300)]
    assert sum(len(turns) >= 2 for turns in conversations) > 200
    sums = [answer for turns in conversations for _, answer in turns if " = " in answer]
    assert len(sums) > 50
    for answer in sums:
        left, _, right = answer.rstrip(".").partition(" = ")
        terms = left.split()[-3:]
        value = int(terms[0]) - int(terms[2]) if terms[1] == "-" else sum(int(term) for term in left.split() if term.isdigit())
        assert value == int(right), answer
