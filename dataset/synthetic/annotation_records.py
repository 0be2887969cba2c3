"""Annotations of one scene as records of the raw formats: VQA v2, LLaVA conversations, AI Challenger captions, RefCOCO expressions."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from dataset.sample import IMAGE_PLACEHOLDER, Language
from dataset.synthetic import vocabulary
from dataset.synthetic.large_scenes import sample_large_questions
from dataset.synthetic.question_phrasing import Question, sample_questions
from dataset.synthetic.question_templates import THINGS
from dataset.synthetic.reasoning_conversations import conversation
from dataset.synthetic.scene import GRID, Scene, SceneSplit
from dataset.synthetic.scene_descriptions import caption, description, short_caption
from dataset.synthetic.scene_facts import unique_noun
from dataset.synthetic.scene_renderer import PixelBox

QUESTION_TYPES = (
    "how many",
    *("what color is the", "what is the color of the", "what is the", "what color", "what number is", "what kind of"),
    *("what does the", "what is", "what"),
    *("which", "where is the", "where"),
    *("is there a", "is there", "is the", "is it", "is"),
    *("do you", "does the", "does", "are there", "can you"),
    *("in this image", "in the picture"),
    *("图中", "图里", "请问", "有多少", "有没有", "你能看到", "这张图片里", "哪个", "什么颜色", "在哪里"),
)
"""First words of questions, the `question_type` of VQA v2. A prefix of another entry comes after it, since the first match counts."""

ANNOTATORS = 10
_SYNONYM_RATE, _WRONG_RATE = 0.12, 0.04
_MIN_AGREEING = 6
_ZH_CONVERSATIONS = 0.4
_REGIONS = 2
_REFCOCO_SPLITS: dict[SceneSplit, str] = {"train": "train", "validation": "val", "test": "testA", "unseen": "testB"}
_FIRST_QUESTION: dict[Language, int] = {"en": 0, "zh": 500}
"""Question ids count up from a thousand times the image's id and this."""
DETAIL_QUESTIONS: dict[Language, tuple[str, ...]] = {
    "en": (
        "Describe the following image in detail.",
        "Please give a detailed description of the picture.",
        "What do you see in this picture? Name everything.",
        "Explain what the image shows and where things stand.",
        "Can you describe the main features of this image for me?",
    ),
    "zh": ("请详细描述这张图片。", "仔细说说图中有哪些东西，分别在什么位置。", "请描述图片的内容。", "你在图里看到了什么？请全部说出来。"),
}


def vqa_records(scene: Scene, image_id: int, language: Language, count: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Sample questions about a scene, each with ten annotator answers; yields rows of the question file and of the annotation file.

    Args:
        scene: the scene.
        image_id: its image's id.
        language: language of questions and answers.
        count: maximum number of questions; fewer when the scene does not yield enough different facts.
    """
    rng = scene.rng(f"vqa {language}")
    sampled = sample_questions(scene, language, rng, count) if scene.grid == GRID else sample_large_questions(scene, language, rng)[:count]
    for number, question in enumerate(sampled, image_id * 1000 + _FIRST_QUESTION[language]):
        asked = {"image_id": image_id, "question": question.text, "question_id": number, "category": main_shape(scene)}
        yield asked, _annotation(question, ten_answers(question, rng), image_id, number)


def main_shape(scene: Scene) -> str:
    """The most frequent shape of a scene, of several the first in reading order: the category of its samples."""
    return Counter(thing.shape for thing in scene.things).most_common(1)[0][0]


def _annotation(question: Question, answers: list[str], image_id: int, question_id: int) -> dict[str, Any]:
    usual = question.answer.usual
    return {
        "question_type": next((start for start in QUESTION_TYPES if question.text.lower().startswith(start)), "none of the above"),
        "multiple_choice_answer": Counter(answers).most_common(1)[0][0],
        "answers": [
            {"answer": answer, "answer_confidence": "yes" if answer == usual else "maybe", "answer_id": index}
            for index, answer in enumerate(answers, 1)
        ],
        "image_id": image_id,
        "answer_type": {bool: "yes/no", int: "number"}.get(type(question.fact.answer), "other"),
        "question_id": question_id,
    }


def ten_answers(question: Question, rng: random.Random) -> list[str]:
    """Answers of ten simulated annotators: mostly the usual one, at least six times, some synonyms (digits as words too), a few wrong."""
    usual = question.answer.usual
    answers = [_sample_answer(question, rng) for _ in range(ANNOTATORS)]
    for index in range(ANNOTATORS):
        if answers.count(usual) < _MIN_AGREEING:
            answers[index] = usual
    return answers


def _sample_answer(question: Question, rng: random.Random) -> str:
    uniform = rng.random()
    if uniform < _WRONG_RATE and question.wrong:
        return rng.choice(question.wrong)
    if uniform > 1 - _SYNONYM_RATE and question.answer.synonyms:
        return rng.choice(question.answer.synonyms)
    return question.answer.usual


def reasoning_record(scene: Scene, file_name: str) -> dict[str, Any]:
    """A LLaVA record with a reasoning conversation, usually of several turns."""
    rng = scene.rng("reasoning")
    return _llava(scene, conversation(scene, _language(rng.random()), rng), file_name, image_first=True)


def detail_record(scene: Scene, file_name: str) -> dict[str, Any]:
    """A LLaVA record with a detailed description; the image placeholder comes before or after the question, equally often."""
    rng = scene.rng("detail")
    language = _language(rng.random())
    turn = rng.choice(DETAIL_QUESTIONS[language]), description(scene, language, rng)
    return _llava(scene, [turn], file_name, image_first=rng.random() < 0.5)


def _language(uniform: float) -> Language:
    return "zh" if uniform < _ZH_CONVERSATIONS else "en"


def _llava(scene: Scene, turns: list[tuple[str, str]], file_name: str, image_first: bool) -> dict[str, Any]:
    (question, answer), *later = turns
    question = f"{IMAGE_PLACEHOLDER}\n{question}" if image_first else f"{question}\n{IMAGE_PLACEHOLDER}"
    texts = [text for turn in [(question, answer), *later] for text in turn]
    return {
        "id": file_name.partition(".")[0],
        "image": file_name,
        "category": main_shape(scene),
        "conversations": [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)],
    }


def region_records(scene: Scene, boxes: Sequence[PixelBox], image_id: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Expressions for objects of a scene in the layout of RefCOCO, English and Chinese; yields entries of its refs file and of COCO's
    instances file.

    Args:
        scene: the scene.
        boxes: the box around each of its objects, in pixels.
        image_id: its image's id.
    """
    rng = scene.rng("regions")
    # In the split `unseen`, combinations that no other one has.
    things = [(thing, box) for thing, box in zip(scene.things, boxes, strict=True) if scene.split != "unseen" or thing.held_out]
    named = [(noun, box) for thing, box in rng.sample(things, len(things)) if (noun := unique_noun(scene, thing, rng)) is not None]
    for number, (noun, (x1, y1, x2, y2)) in enumerate(named[:_REGIONS]):
        annotation_id = image_id * 10 + number
        # Chinese ids follow the English one.
        for offset, language in enumerate(_FIRST_QUESTION):
            text = vocabulary.noun_phrase(noun, language, rng.choice(THINGS[language]))
            ref = {
                "ref_id": annotation_id * 10 + offset,
                "ann_id": annotation_id,
                "image_id": image_id,
                "split": _REFCOCO_SPLITS[scene.split],
                "sentences": [{"sent_id": annotation_id * 10 + offset, "sent": f"the {text}" if language == "en" else text}],
            }
            box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
            yield ref, {"id": annotation_id, "image_id": image_id, "bbox": box}


def caption_record(scene: Scene, file_name: str) -> dict[str, Any]:
    """An AI Challenger record: five Chinese captions without a final full stop; two of them state the position of every object."""
    rng = scene.rng("captions")
    captions = [(caption if index % 2 else short_caption)(scene, "zh", rng).removesuffix("。") for index in range(5)]
    rng.shuffle(captions)
    return {"url": f"drawn://{scene.name}", "image_id": file_name, "category": main_shape(scene), "caption": captions}
