"""What CLIP reads of a scene: a caption, statements about questions, right and wrong, and short phrases that fit many pictures or none."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from answering.rerank.statements import StatementForm, statement
from dataset.sample import Language
from dataset.synthetic import vocabulary
from dataset.synthetic.question_phrasing import Question, indefinite, kinds, sample_questions
from dataset.synthetic.question_templates import THINGS
from dataset.synthetic.scene import Scene, SceneSplit, Thing
from dataset.synthetic.scene_descriptions import caption, short_caption
from dataset.synthetic.scene_facts import Noun
from dataset.synthetic.vocabulary import EN
from training.tiny_models.data.pretraining_batches import Batch, CaptionBatches, pad_rows, render_images
from training.tiny_models.data.tokenizer_corpus import LANGUAGES

QUESTIONS = 2
"""Questions a scene."""

CHOICES = 4
"""Statements a question: the right one first, then wrong ones."""

PHRASES = 64
"""Phrases a batch; each is told of every picture of it."""

_WORDINGS: tuple[StatementForm, ...] = ("joined", "sentence")
_UNRELATED_PROBABILITY = 0.5
"""Share of questions of which one wrong answer answers something else, at least: a VLM's candidates do that, too."""
_TRUNCATED_CAPTION_PROBABILITY = 0.3
_POSITION_PROBABILITY = 0.25


@dataclass(frozen=True)
class ClipBatches(CaptionBatches):
    """Pictures with texts, as CLIP reads them: pictures [n, 3, side, side]; input_ids and attention_mask of the captions [n, t];
    statement_ids and statement_mask [n * QUESTIONS * CHOICES, t]; phrase_ids and phrase_mask [PHRASES, t], and `holds`
    [PHRASES, n], whether a phrase is true of a picture."""

    end_token: int

    def __call__(self, batch_index: int, split: SceneSplit = "train") -> Batch:
        scenes = self.scenes(batch_index, split)
        captions, statements = [], []
        for scene in scenes:
            rng = scene.rng("statements")
            captions.append(rng.choice((caption, caption, short_caption))(scene, rng.choice(LANGUAGES), rng))
            statements += _statements(scene, rng)
        phrases = [_phrase(scenes, random.Random(f"{self.seed}/{split}/{batch_index}/{position}")) for position in range(PHRASES)]
        batch = {
            "images": render_images(scenes),
            "holds": torch.tensor([[phrase.holds(scene) for scene in scenes] for phrase in phrases]),
        }
        batch["input_ids"], batch["attention_mask"] = self._texts(captions)
        batch["statement_ids"], batch["statement_mask"] = self._texts(statements)
        batch["phrase_ids"], batch["phrase_mask"] = self._texts([phrase.text for phrase in phrases])
        return batch

    def _texts(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Every text ends with the token at which CLIP takes its feature."""
        rows = self.tokenizer(texts, truncation=True, max_length=self.text_length - 1)["input_ids"]
        rows = [[*row, self.end_token] for row in rows]
        return pad_rows(rows, self.tokenizer.pad_token_id), pad_rows([[1] * len(row) for row in rows], 0)


def _statements(scene: Scene, rng: random.Random) -> list[str]:
    """Of each question the right statement, then wrong ones."""
    language, wording = rng.choice(LANGUAGES), rng.choice(_WORDINGS)
    questions = sample_questions(scene, language, rng, QUESTIONS)
    questions += [questions[0]] * (QUESTIONS - len(questions))
    statements = []
    for question in questions:
        right, *wrong = (statement(question.text, answer, language, wording) for answer in (question.answer.usual, *question.wrong))
        wrong = rng.sample(wrong, min(CHOICES - 1 - (rng.random() < _UNRELATED_PROBABILITY), len(wrong)))
        while len(wrong) < CHOICES - 1:
            unrelated = statement(question.text, _unrelated_answer(scene, question, rng), language, wording)
            # As a sentence, another word for yes says the same.
            wrong += [unrelated] * (unrelated != right)
        statements += [right, *wrong]
    return statements


def _unrelated_answer(scene: Scene, question: Question, rng: random.Random) -> str:
    """What is no answer to a question: one to another question, in either language, or the head of a caption."""
    if rng.random() < _TRUNCATED_CAPTION_PROBABILITY:
        return short_caption(scene, question.language, rng)[: rng.randint(6, 20)]
    while True:
        (other,) = sample_questions(scene, rng.choice(LANGUAGES), rng, 1)
        if other.answer.usual not in question.answer.all:
            return other.answer.usual


@dataclass(frozen=True)
class _Phrase:
    text: str
    noun: Noun
    cell: vocabulary.Cell | None

    def holds(self, scene: Scene) -> bool:
        """Whether a scene has such a thing, there."""
        return any(self.noun.fits(thing) and self.cell in (None, (thing.row, thing.column)) for thing in scene.things)


def _phrase(scenes: Sequence[Scene], rng: random.Random) -> _Phrase:
    """A phrase that is true of one of the scenes at least: a red circle, circles, a red thing at the top left, a sign with the number 7."""
    language = rng.choice(LANGUAGES)
    thing = rng.choice(rng.choice(scenes).things)
    noun = rng.choice(_nouns(thing))
    text = _noun_phrase(noun, language, rng)
    if rng.random() >= _POSITION_PROBABILITY:
        return _Phrase(text, noun, None)
    position = vocabulary.at((thing.row, thing.column), language)
    return _Phrase(f"{text} {position}" if language == EN else f"{position}的{text}", noun, (thing.row, thing.column))


def _nouns(thing: Thing) -> list[Noun]:
    """By color and shape, most often; by one of them, or by the digit."""
    digit = [] if thing.digit is None else [Noun(shape=thing.shape, digit=thing.digit)] * 4
    return [*[Noun.of(thing)] * 4, Noun(shape=thing.shape), Noun(shape=thing.shape), Noun(color=thing.color), *digit]


def _noun_phrase(noun: Noun, language: Language, rng: random.Random) -> str:
    form = kinds if noun.digit is None and rng.random() < 0.3 else indefinite
    return form(noun, language, rng.choice(THINGS[language]))
