"""Scorers and questions: which are scored, with which statements, and against which other pictures."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from answering.protocol import ImageInput
from answering.rerank.candidate_scores import Signal
from answering.rerank.image_text_scores import BackgroundImages, ImageTextScorer, QuestionCandidates
from answering.rerank.statements import StatementForm

RED, BLUE = Image.new("RGB", (2, 2), (255, 0, 0)), Image.new("RGB", (2, 2), (0, 0, 255))


class Bright:
    """Scores a text by its length times what a picture has of red; remembers what it read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def features(self, images: Sequence[ImageInput]) -> np.ndarray:
        return np.array([[one.getpixel((0, 0))[0] / 255] for one in images if isinstance(one, Image.Image)], dtype=np.float32)  # type: ignore[index]

    def score_batch(self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        self.read += [text for group in texts for text in group]
        return [[len(text) * float(red[0]) for text in group] for red, group in zip(self.features(images), texts, strict=True)]

    def score_with_priors(
        self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]], background_means: Sequence[np.ndarray]
    ) -> list[tuple[list[float], list[float]]]:
        scores = self.score_batch(images, texts)
        return [(own, [len(t) * float(b[0]) for t in group]) for own, group, b in zip(scores, texts, background_means, strict=True)]


def test_a_question_without_a_image_or_in_another_language_is_not_scored() -> None:
    scorer = ImageTextScorer("clip", Bright(), languages=("en",))
    asked = [
        QuestionCandidates("What?", "en", (), ("a",)),
        QuestionCandidates("什么？", "zh", (RED,), ("甲",)),
        QuestionCandidates("What?", "en", (RED, BLUE), ("ab", "c")),
    ]
    # "This ..." does not fit, so the two are joined: "What? ab" has 8 letters, and half of the two pictures is red.
    assert scorer.signals(asked) == [None, None, Signal((4.0, 3.5))]


def test_the_wording_is_what_the_scorer_reads() -> None:
    said: dict[StatementForm, str] = {"joined": "What color is it? red", "sentence": "It is red."}
    for statement_form, expected in said.items():
        bright = Bright()
        ImageTextScorer("clip", bright, statement_form=statement_form).signals(
            [QuestionCandidates("What color is it?", "en", (RED,), ("red",))]
        )
        assert bright.read == [expected]


def test_priors_are_means_over_the_bank_without_the_questions_own_images() -> None:
    bright = Bright()
    background_images = BackgroundImages(bright.features([RED, BLUE, BLUE, BLUE]), ("r", "b1", "b2", "b3"))
    scorer = ImageTextScorer("clip", bright, statement_form="joined", background_images=background_images)
    mine, other = scorer.signals(
        [QuestionCandidates("", "en", (RED,), ("abcd",), ("r",)), QuestionCandidates("", "en", (RED,), ("abcd",), ("elsewhere",))]
    )
    assert mine == Signal((4.0,), (0.0,))
    assert other == Signal((4.0,), (1.0,))
    assert other is not None
    assert other.corrected == (3.0,)
    assert BackgroundImages(bright.features([RED]), ("r",)).mean(("r",)).tolist() == [1.0]
