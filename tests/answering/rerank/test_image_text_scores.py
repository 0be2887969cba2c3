"""Which questions an image-text scorer scores, with which statements, and against which background images."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from answering.protocol import ImageInput
from answering.rerank.candidate_scores import Signal
from answering.rerank.image_text_scores import BackgroundImages, ImageTextScorer, QuestionCandidates
from answering.rerank.statements import StatementForm

RED, BLUE = Image.new("RGB", (2, 2), (255, 0, 0)), Image.new("RGB", (2, 2), (0, 0, 255))


class RednessModel:
    """Scores a text by its length times the red value (0..1) of the image, and records the texts."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def features(self, images: Sequence[ImageInput]) -> np.ndarray:
        return np.array([[image.getpixel((0, 0))[0] / 255] for image in images if isinstance(image, Image.Image)], dtype=np.float32)  # type: ignore[index]

    def score_batch(self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        self.read += [text for group in texts for text in group]
        return [[len(text) * float(red[0]) for text in group] for red, group in zip(self.features(images), texts, strict=True)]

    def score_with_priors(
        self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]], background_means: Sequence[np.ndarray]
    ) -> list[tuple[list[float], list[float]]]:
        scores = self.score_batch(images, texts)
        return [(own, [len(t) * float(b[0]) for t in group]) for own, group, b in zip(scores, texts, background_means, strict=True)]


def test_a_question_without_an_image_or_in_another_language_is_not_scored() -> None:
    scorer = ImageTextScorer("clip", RednessModel(), languages=("en",))
    questions = [
        QuestionCandidates("What?", "en", (), ("a",)),
        QuestionCandidates("什么？", "zh", (RED,), ("甲",)),
        QuestionCandidates("What?", "en", (RED, BLUE), ("ab", "c")),
    ]
    # No template matches "What?", so the texts are joined: "What? ab" has 8 characters, and one of the two images is red.
    assert scorer.signals(questions) == [None, None, Signal((4.0, 3.5))]


def test_the_statement_form_decides_the_text_that_is_scored() -> None:
    statements: dict[StatementForm, str] = {"joined": "What color is it? red", "sentence": "It is red."}
    for statement_form, expected in statements.items():
        model = RednessModel()
        ImageTextScorer("clip", model, statement_form=statement_form).signals(
            [QuestionCandidates("What color is it?", "en", (RED,), ("red",))]
        )
        assert model.read == [expected]


def test_priors_are_means_over_the_background_images_except_the_questions_own() -> None:
    model = RednessModel()
    background_images = BackgroundImages(model.features([RED, BLUE, BLUE, BLUE]), ("r", "b1", "b2", "b3"))
    scorer = ImageTextScorer("clip", model, statement_form="joined", background_images=background_images)
    mine, other = scorer.signals(
        [QuestionCandidates("", "en", (RED,), ("abcd",), ("r",)), QuestionCandidates("", "en", (RED,), ("abcd",), ("elsewhere",))]
    )
    assert mine == Signal((4.0,), (0.0,))
    assert other == Signal((4.0,), (1.0,))
    assert other is not None
    assert other.corrected == (3.0,)
    assert BackgroundImages(model.features([RED]), ("r",)).mean(("r",)).tolist() == [1.0]
