"""Questions for boxes in the report: image, reference boxes, and each system's boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from dataset.bounding_box import Box, parse_boxes
from evaluation.questions import Question
from evaluation.scoring.answer_scores import References
from evaluation.scoring.summary import SystemResult


@dataclass(frozen=True, slots=True)
class BoxAnswer:
    """A system's first answer to a question for a box. right: its acc_50 is 1. error: why the question failed."""

    system: str
    text: str
    boxes: tuple[Box, ...]
    iou: float
    right: bool
    error: str | None


@dataclass(frozen=True, slots=True)
class BoxExample:
    """A question for a box, the boxes of its reference, and the answer of each system."""

    question: Question
    reference: tuple[Box, ...]
    answers: tuple[BoxAnswer, ...]


def select_box_examples(results: Mapping[str, SystemResult], references: References, limit: int) -> list[BoxExample]:
    """At most `limit` questions for boxes about one image, alternately those that some system answers wrong and those that all answer
    right."""
    questions = next((result.boxes.questions for result in results.values() if result.boxes is not None), [])
    examples = [
        BoxExample(
            question,
            tuple(parse_boxes(references[question.sample_id][0])),
            tuple(_answer(name, result, i) for name, result in results.items()),
        )
        for i, question in enumerate(questions)
        if len(question.image_ids) == 1
    ]
    wrong = [example for example in examples if not all(answer.right for answer in example.answers)]
    right = [example for example in examples if all(answer.right for answer in example.answers)]
    return [example for example in chain.from_iterable(zip_longest(wrong, right)) if example is not None][:limit]


def _answer(name: str, result: SystemResult, i: int) -> BoxAnswer:
    assert result.boxes is not None
    scores, text = result.boxes.scores["first"], result.boxes.texts["first"][i]
    error = result.boxes.predictions[i].error
    return BoxAnswer(name, text, tuple(parse_boxes(text)), float(scores["iou"][i]), bool(scores["acc_50"][i] == 1), error)


def question_boxes(question: Question) -> Sequence[Box]:
    """The boxes that a question about one image names."""
    return parse_boxes(question.text) if len(question.image_ids) == 1 else ()
