"""Texts for CLIP: a caption per scene, right and wrong statements about questions, and short phrases that match many images or one.

Shapes: B batch, T tokens.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from answering.rerank.statements import StatementForm, statement
from dataset.synthetic.question_phrasing import Question, sample_questions
from dataset.synthetic.question_templates import THINGS
from dataset.synthetic.scene import Cell, Scene, SceneSplit
from dataset.synthetic.scene_descriptions import WITH_POSITION, caption, short_caption
from dataset.synthetic.scene_facts import Noun
from dataset.synthetic.vocabulary import indefinite, kinds, position_phrase
from training.tiny_models.data.pretraining_batches import Batch, CaptionBatches, pad_rows, render_images
from training.tiny_models.data.tokenizer_corpus import LANGUAGES

QUESTIONS = 2
"""Questions per scene."""

CHOICES = 4
"""Statements per question: the right one first, then wrong ones."""

PHRASES = 64
"""Phrases per batch; each is compared with every image of the batch."""

_WORDINGS: tuple[StatementForm, ...] = ("joined", "sentence")
_UNRELATED_PROBABILITY = 0.5
"""Probability that at least one wrong answer of a question is unrelated to it: candidates of a VLM can be, too."""
_TRUNCATED_CAPTION_PROBABILITY = 0.3
"""Probability that an unrelated answer is the beginning of a caption."""
_POSITION_PROBABILITY = 0.25
"""Probability that a phrase includes a position."""


@dataclass(frozen=True)
class ClipBatches(CaptionBatches):
    """Batches for CLIP.

    Keys: images [B, 3, SIZE, SIZE] uint8; input_ids and attention_mask [B, T] of the captions; statement_ids and statement_mask
    [B * QUESTIONS * CHOICES, T]; phrase_ids and phrase_mask [PHRASES, T]; holds, bool [PHRASES, B], whether a phrase is true of an
    image. The constructor takes the end token's id in addition to CaptionBatches' arguments.
    """

    end_token: int

    def __call__(self, batch_index: int, split: SceneSplit = "train") -> Batch:
        scenes = self.scenes(batch_index, split)
        captions, statements = [], []
        for scene in scenes:
            rng = scene.rng("statements")
            captions.append(rng.choice((caption, caption, short_caption))(scene, rng.choice(LANGUAGES), rng))
            statements += _statements(scene, rng)
        phrases = [_phrase(scenes, random.Random(f"{self.seed}/{split}/{batch_index}/{position}")) for position in range(PHRASES)]
        holds = torch.tensor([[phrase.holds(scene) for scene in scenes] for phrase in phrases])
        batch = {"images": render_images(scenes), "holds": holds}
        batch["input_ids"], batch["attention_mask"] = self._texts(captions)
        batch["statement_ids"], batch["statement_mask"] = self._texts(statements)
        batch["phrase_ids"], batch["phrase_mask"] = self._texts([phrase.text for phrase in phrases])
        return batch

    def _texts(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask, each [rows, T]; every text ends with the end token, at which CLIP pools."""
        rows = self.tokenizer(texts, truncation=True, max_length=self.text_length - 1)["input_ids"]
        rows = [[*row, self.end_token] for row in rows]
        return pad_rows(rows, self.tokenizer.pad_token_id), pad_rows([[1] * len(row) for row in rows], 0)


def _statements(scene: Scene, rng: random.Random) -> list[str]:
    """QUESTIONS * CHOICES statements: for each question the right one, then wrong ones."""
    language, wording = rng.choice(LANGUAGES), rng.choice(_WORDINGS)
    questions = sample_questions(scene, language, rng, QUESTIONS)
    questions += [questions[0]] * (QUESTIONS - len(questions))
    statements = []
    for question in questions:
        right, *wrong = (statement(question.text, answer, language, wording) for answer in (question.answer.usual, *question.wrong))
        wrong = rng.sample(wrong, min(CHOICES - 1 - (rng.random() < _UNRELATED_PROBABILITY), len(wrong)))
        while len(wrong) < CHOICES - 1:
            unrelated = statement(question.text, _unrelated_answer(scene, question, rng), language, wording)
            # In a sentence, another word for yes gives the same statement as yes.
            wrong += [unrelated] * (unrelated != right)
        statements += [right, *wrong]
    return statements


def _unrelated_answer(scene: Scene, question: Question, rng: random.Random) -> str:
    """A text that does not answer a question: the answer to another question in either language, or the beginning of a caption."""
    if rng.random() < _TRUNCATED_CAPTION_PROBABILITY:
        return short_caption(scene, question.language, rng)[: rng.randint(6, 20)]
    while True:
        (other_question,) = sample_questions(scene, rng.choice(LANGUAGES), rng, 1)
        if other_question.answer.usual not in question.answer.all:
            return other_question.answer.usual


@dataclass(frozen=True)
class _Phrase:
    text: str
    noun: Noun
    cell: Cell | None

    def holds(self, scene: Scene) -> bool:
        """Whether a scene has a matching object, in the phrase's cell if it names one."""
        return any(self.noun.fits(thing) and self.cell in (None, thing.cell) for thing in scene.things)


def _phrase(scenes: Sequence[Scene], rng: random.Random) -> _Phrase:
    """A phrase that is true of at least one scene: a red circle, circles, a red thing at the top left, a sign with the number 7."""
    language = rng.choice(LANGUAGES)
    thing = rng.choice(rng.choice(scenes).things)
    # Mostly color and shape, else one of them, or shape and digit.
    nouns = [*[Noun.of(thing)] * 4, *[Noun(shape=thing.shape)] * 2, Noun(color=thing.color)]
    if thing.digit is not None:
        nouns += [Noun(shape=thing.shape, digit=thing.digit)] * 4
    noun = rng.choice(nouns)
    form = kinds if noun.digit is None and rng.random() < 0.3 else indefinite
    text = form(noun, language, rng.choice(THINGS[language]))
    if rng.random() >= _POSITION_PROBABILITY:
        return _Phrase(text, noun, None)
    return _Phrase(WITH_POSITION[language].format(one=text, at=position_phrase(thing.cell, language)), noun, thing.cell)
