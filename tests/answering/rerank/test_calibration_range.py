"""A question that is unlike those of the calibration is noticed, and its confidence is limited."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from answering.protocol import Answer, Candidate
from answering.reply import Reply
from answering.rerank.calibration_range import (
    MIN_IMAGES,
    STATISTICS,
    UNLIKE_CONFIDENCE,
    CalibrationRange,
    ImageRange,
    fit_calibration_range,
    image_statistics,
    question_words,
)
from answering.rerank.confidence import Confidence, Estimate
from answering.rerank.logistic_regression import LogisticModel

QUESTIONS = ["What color is the circle?", "What color is the square?", "What shape is red?", "圆形是什么颜色的？", "方形是什么颜色的？"]
CANDIDATES = [Candidate("red", -0.1, -0.1, "red")]
SURE = LogisticModel(("agreement",), (0.0,), 4.0)


def drawing(seed: int) -> Image.Image:
    """A colored shape on a light background."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (96, 96), tuple(generator.integers(200, 250, 3).tolist()))
    corner, size = generator.integers(5, 40, 2), int(generator.integers(20, 50))
    box = (*corner.tolist(), *(corner + size).tolist())
    ImageDraw.Draw(image).ellipse(box, fill=tuple(generator.integers(0, 200, 3).tolist()))
    return image


def photograph(seed: int) -> Image.Image:
    """Texture everywhere, in dull colors."""
    noise = np.random.default_rng(seed).normal(100, 40, (64, 64, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noise).resize((640, 640), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def fitted() -> CalibrationRange:
    """The range of questions about drawings."""
    return fit_calibration_range(QUESTIONS * 20, [[drawing(seed)] for seed in range(100)])


def test_the_statistics_of_an_image_are_those_computed_by_hand() -> None:
    halves = Image.new("RGB", (64, 64), "black")
    halves.paste((255, 0, 0), (32, 0, 64, 64))
    values = dict(zip(STATISTICS, image_statistics(halves).tolist(), strict=True))
    assert values["mean brightness"] == pytest.approx(1 / 6)
    assert values["mean saturation"] == values["share of the commonest color"] == pytest.approx(0.5)
    assert values["log number of colors"] == values["entropy of the colors"] == pytest.approx(np.log(2))
    assert values["share of gradients below 0.05"] == pytest.approx(62 / 63)
    assert values["share of the Laplacian above 0.3"] == values["share of the Laplacian above 0.02"] == pytest.approx(2 / 62)
    assert (values["median red"], values["median green"]) == (0.5, 0.0)
    middle = Image.new("RGB", (64, 64), "black")
    middle.paste("white", (16, 16, 48, 48))
    assert image_statistics(middle)[STATISTICS.index("brightness of the middle quarter less the mean brightness")] == pytest.approx(0.75)


def test_a_range_that_was_saved_with_fewer_statistics_compares_these() -> None:
    statistics = image_statistics(drawing(1))
    earlier = ImageRange(tuple(statistics[:3] + 2), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), 1.0)
    assert earlier.distance(statistics) == pytest.approx(np.sqrt(12))


def test_the_statistics_of_a_file_are_those_of_its_image_at_any_resolution(tmp_path: Path) -> None:
    image, path = drawing(1).resize((64, 64)), tmp_path / "a.png"
    image.save(path)
    assert image_statistics(path).tolist() == image_statistics(image).tolist()
    image.resize((640, 640), Image.Resampling.NEAREST).save(path)
    assert image_statistics(path) == pytest.approx(image_statistics(image), abs=1e-6)


def test_words_are_compared_without_case_and_punctuation_and_chinese_by_character() -> None:
    assert question_words("What COLOR is it, is it red?") == ["what", "color", "is", "it", "red"]
    assert question_words("圆形是red吗？") == ["圆", "形", "是", "red", "吗"]


def test_questions_like_those_of_the_calibration_are_like_them(fitted: CalibrationRange) -> None:
    unlike = [bool(fitted.excess(QUESTIONS[seed % 5], [drawing(seed)])) for seed in range(100, 300)]
    assert sum(unlike) <= 10
    assert fitted.excess("What color is the red square?", []) == {}
    # One unknown word among many is no reason.
    assert fitted.excess("What color is the large circle?", []) == {}


def test_photographs_are_unlike_drawings(fitted: CalibrationRange) -> None:
    assert all(list(fitted.excess(QUESTIONS[0], [photograph(seed)])) == ["image"] for seed in range(20))
    # Of several images the farthest counts.
    assert fitted.excess(QUESTIONS[0], [drawing(0), photograph(0)]) == fitted.excess(QUESTIONS[0], [photograph(0)])


def test_an_image_of_another_shape_is_unlike_square_ones(fitted: CalibrationRange) -> None:
    assert fitted.excess(QUESTIONS[0], [drawing(0)]) == {}
    assert list(fitted.excess(QUESTIONS[0], [drawing(0).resize((160, 96))])) == ["image"]


def test_unknown_words_are_unlike_the_calibration(fitted: CalibrationRange) -> None:
    assert list(fitted.excess("Who founded this company?", [])) == ["words"]
    assert list(fitted.excess("这家公司由谁创办？", [photograph(0)])) == ["image", "words"]


def test_an_image_that_cannot_be_read_is_left_out(fitted: CalibrationRange, tmp_path: Path) -> None:
    assert fitted.excess(QUESTIONS[0], [tmp_path / "missing.png"]) == {}


def test_a_few_images_say_nothing_about_others() -> None:
    few = fit_calibration_range(QUESTIONS, [[drawing(seed)] for seed in range(MIN_IMAGES - 1)])
    assert few.images is None
    assert few.excess(QUESTIONS[0], [photograph(0)]) == {}


def test_the_confidence_of_an_unlike_question_is_limited_and_falls_with_the_distance(fitted: CalibrationRange) -> None:
    def estimate(model: LogisticModel, question: str, image: Image.Image) -> Estimate:
        return Confidence(model, None, fitted).estimate(question, [image], CANDIDATES, 0, {})

    close = estimate(SURE, QUESTIONS[0], drawing(0))
    assert close.value == pytest.approx(0.982, abs=1e-3)
    assert close.unlike == ()
    far = estimate(SURE, QUESTIONS[0], photograph(0))
    ratio = fitted.excess(QUESTIONS[0], [photograph(0)])["image"]
    assert far.value == pytest.approx(UNLIKE_CONFIDENCE / ratio)
    assert far.unlike == ("image",)
    assert ratio > 1
    # A confidence below the limit stays what it is.
    doubtful = LogisticModel(("agreement",), (0.0,), -9.0)
    assert estimate(doubtful, QUESTIONS[0], photograph(0)).value == pytest.approx(1.2e-4, rel=0.1)
    # Files of earlier versions have no range.
    assert Confidence(SURE).estimate("Who founded it?", [photograph(0)], CANDIDATES, 0, {}).unlike == ()


def test_a_reply_says_what_is_unlike() -> None:
    choices = {"first": "red", "reranked": "red"}
    reply = Reply("red", choices, confidence=0.25, unlike=("image", "words"), question="Who?", answer=Answer("1", tuple(CANDIDATES)))
    assert reply.lines()[0] == 'how likely "red" is right: 25% (image and words unlike those that the confidence was learnt from)'
    assert (reply.record()["confidence"], reply.record()["unlike"]) == (0.25, ["image", "words"])
    known = replace(reply, unlike=())
    assert known.lines()[0] == 'how likely "red" is right: 25%'
    assert "unlike" not in known.record()
