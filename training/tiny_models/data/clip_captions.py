"""What CLIP reads of a scene: a caption, statements about questions, right and wrong, and short phrases that fit many pictures or none."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from answering.rerank.statements import Wording, statement
from dataset.sample import Language
from dataset.synthetic import vocabulary
from dataset.synthetic.question_phrasing import Question, ask_several, indefinite, kinds
from dataset.synthetic.question_templates import THINGS
from dataset.synthetic.scene import Part, Scene, Thing
from dataset.synthetic.scene_descriptions import caption, short_caption
from dataset.synthetic.scene_facts import Noun
from dataset.synthetic.vocabulary import EN
from training.tiny_models.data.pretraining_batches import Batch, CaptionedPictures, padded, pictures
from training.tiny_models.data.tokenizer_corpus import LANGUAGES

QUESTIONS = 2
"""Questions a scene."""

CHOICES = 4
"""Statements a question: the right one first, then wrong ones."""

PHRASES = 64
"""Phrases a batch; each is told of every picture of it."""

_WORDINGS: tuple[Wording, ...] = ("joined", "sentence")
_STRAY = 0.5
"""Share of questions of which one wrong answer answers something else, at least: a VLM's candidates do that, too."""
_CUT_OFF = 0.3
_PLACED = 0.25


@dataclass(frozen=True)
class StatedPictures(CaptionedPictures):
    """Pictures with texts, as CLIP reads them: pictures [n, 3, side, side]; input_ids and attention_mask of the captions [n, t];
    statement_ids and statement_mask [n * QUESTIONS * CHOICES, t]; phrase_ids and phrase_mask [PHRASES, t], and `holds`
    [PHRASES, n], whether a phrase is true of a picture."""

    end_token: int

    def __call__(self, number: int, part: Part = "train") -> Batch:
        scenes = self.scenes(number, part)
        captions, statements = [], []
        for scene in scenes:
            rng = scene.rng("statements")
            captions.append(rng.choice((caption, caption, short_caption))(scene, rng.choice(LANGUAGES), rng))
            statements += _statements(scene, rng)
        phrases = [_phrase(scenes, random.Random(f"{self.seed}/{part}/{number}/{place}")) for place in range(PHRASES)]
        batch = {"pictures": pictures(scenes), "holds": torch.tensor([[phrase.holds(scene) for scene in scenes] for phrase in phrases])}
        batch["input_ids"], batch["attention_mask"] = self._texts(captions)
        batch["statement_ids"], batch["statement_mask"] = self._texts(statements)
        batch["phrase_ids"], batch["phrase_mask"] = self._texts([phrase.text for phrase in phrases])
        return batch

    def _texts(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Every text ends with the token at which CLIP takes its feature."""
        rows = self.tokenizer(texts, truncation=True, max_length=self.text_length - 1)["input_ids"]
        rows = [[*row, self.end_token] for row in rows]
        return padded(rows, self.tokenizer.pad_token_id), padded([[1] * len(row) for row in rows], 0)


def _statements(scene: Scene, rng: random.Random) -> list[str]:
    """Of each question the right statement, then wrong ones."""
    language, wording = rng.choice(LANGUAGES), rng.choice(_WORDINGS)
    asked = ask_several(scene, language, rng, QUESTIONS)
    asked += [asked[0]] * (QUESTIONS - len(asked))
    told = []
    for question in asked:
        right, *wrong = (statement(question.text, answer, language, wording) for answer in (question.answer.usual, *question.wrong))
        wrong = rng.sample(wrong, min(CHOICES - 1 - (rng.random() < _STRAY), len(wrong)))
        while len(wrong) < CHOICES - 1:
            stray = statement(question.text, _stray(scene, question, rng), language, wording)
            # As a sentence, another word for yes says the same.
            wrong += [stray] * (stray != right)
        told += [right, *wrong]
    return told


def _stray(scene: Scene, question: Question, rng: random.Random) -> str:
    """What is no answer to a question: one to another question, in either language, or the head of a caption."""
    if rng.random() < _CUT_OFF:
        return short_caption(scene, question.language, rng)[: rng.randint(6, 20)]
    while True:
        (other,) = ask_several(scene, rng.choice(LANGUAGES), rng, 1)
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
    text = _named(noun, language, rng)
    if rng.random() >= _PLACED:
        return _Phrase(text, noun, None)
    place = vocabulary.at((thing.row, thing.column), language)
    return _Phrase(f"{text} {place}" if language == EN else f"{place}的{text}", noun, (thing.row, thing.column))


def _nouns(thing: Thing) -> list[Noun]:
    """By color and shape, most often; by one of them, or by the digit."""
    digit = [] if thing.digit is None else [Noun(shape=thing.shape, digit=thing.digit)] * 4
    return [*[Noun.of(thing)] * 4, Noun(shape=thing.shape), Noun(shape=thing.shape), Noun(color=thing.color), *digit]


def _named(noun: Noun, language: Language, rng: random.Random) -> str:
    form = kinds if noun.digit is None and rng.random() < 0.3 else indefinite
    return form(noun, language, rng.choice(THINGS[language]))
