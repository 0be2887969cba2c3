"""Layouts of tables: which columns hold the images, the question and the answers, and how a row becomes a sample.

Known without configuration, as data sets are published on the Hugging Face Hub: `messages` or `conversations` with `images` (LLaVA,
LLaVA-OneVision, ShareGPT), `texts` with `images` (the_cauldron, FineVision), `question` with `answers`, `answer` or
`multiple_choice_answer` and `image` (VQAv2, TextVQA, VizWiz, GQA, DocVQA), the same with `choices` (ScienceQA), `caption` or `captions`
with `image`. Others are described by `columns`.
"""

import dataclasses
import itertools
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataset.config import DataConfig
from dataset.record_validation import DropReason, InvalidRecordError
from dataset.sample import IMAGE_PLACEHOLDER, Message, join_parts
from dataset.source_config import Columns, TabularSource
from dataset.sources.conversations import ROLES, as_list, chat_sample, row_image
from dataset.sources.record import (
    ImageSource,
    Parser,
    RawSample,
    RecordLocation,
    Records,
    caption_sample,
    conversation_sample,
    number_as_text,
    parse_answers,
    parse_question,
    parse_split_name,
    parse_turn,
    require_list,
    require_object,
    vqa_sample,
)
from errors import TesseraError

KNOWN_COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations"),
    "texts": ("texts",),
    "image": ("images", "image"),
    "question": ("question",),
    "answer": ("answers", "answer", "multiple_choice_answer"),
    "choices": ("choices",),
    "caption": ("captions", "caption"),
    "id": ("id", "question_id", "questionId"),
    "category": ("category",),
    "split": ("split",),
    "objects": ("objects",),
}
"""Key of `Columns` -> names of its column in published data sets; the first that a table has is taken."""

LAYOUTS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "texts": ("texts", "image"),
    "choices": ("question", "choices", "answer", "image"),
    "question": ("question", "answer", "image"),
    "caption": ("caption", "image"),
}
"""Layout -> keys of `Columns` that it needs. The first whose columns a table has is taken."""


FIRST_RECORDS = 64
"""Records among which the layout of a table is looked for."""

LETTERS = string.ascii_uppercase
"""Letters of the choices of a question."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a table are read.

    Args:
        name: A key of LAYOUTS.
        columns: Key of `Columns` -> name of the column, or a text with names of columns in braces.
    """

    name: str
    columns: Mapping[str, str]

    def value(self, row: Mapping[str, Any], key: str) -> Any:
        """What a row has under a key of `Columns`; None where it has nothing."""
        column = self.columns.get(key)
        if column is None or "{" not in column:
            return None if column is None else row.get(column)
        values = {name: number_as_text(row.get(name)) for name in _names_in_braces(column)}
        if missing := [name for name, value in values.items() if not isinstance(value, str)]:
            raise InvalidRecordError(DropReason.MISSING_FIELD, f'"{missing[0]}" is {row.get(missing[0])!r:.100}; expected a text')
        return column.format(**values)


def find_layout(available: Sequence[str], columns: Columns, where: str) -> Layout:
    """The layout of a table.

    Args:
        available: Names of its columns.
        columns: Names that the configuration gives.
        where: Name of the table, for messages.

    Raises:
        TesseraError: The configuration names a column that the table does not have, or no layout fits.
    """
    named = {key: value for key in KNOWN_COLUMNS if (value := getattr(columns, key)) is not None}
    for key, column in named.items():
        for name in _names_in_braces(column) if "{" in column else [column]:
            if name not in available:
                raise TesseraError(f'{where}: columns.{key} names "{name}"; the columns are {", ".join(available) or "none"}')
    known = {key: name for key, names in KNOWN_COLUMNS.items() for name in reversed(names) if name in available}
    found = known | named
    fitting = [name for name, needed in LAYOUTS.items() if set(needed) <= found.keys()]
    # What the configuration names decides between layouts that fit.
    fitting.sort(key=lambda name: -len(named.keys() & set(LAYOUTS[name])))
    if not fitting:
        raise TesseraError(f"{where}: {_unknown_layout(available, found)}")
    return Layout(fitting[0], found)


def _unknown_layout(available: Sequence[str], found: Mapping[str, str]) -> str:
    with_any = [name for name in LAYOUTS if set(LAYOUTS[name]) & found.keys()]
    nearest = min(with_any or ["caption"], key=lambda name: len(set(LAYOUTS[name]) - found.keys()))
    missing = [key for key in LAYOUTS[nearest] if key not in found]
    unused = next((name for name in available if name not in found.values()), "NAME")
    return (
        f"no known layout has the columns {', '.join(available) or '(none)'}; the nearest is {nearest} ({', '.join(LAYOUTS[nearest])}), "
        f"which lacks {' and '.join(missing)}: name them with columns, for instance columns: {{{missing[0]}: {unused}}}"
    )


def _names_in_braces(text: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]


def tabular(records: Records, source: TabularSource, config: DataConfig, where: str) -> tuple[Records, Parser]:
    """The records of a table and their parser, in the layout of the first record that has one: others before it are damaged.

    Args:
        records: The rows.
        source: Where they come from.
        config: Settings of the samples.
        where: Name of the table, for messages.

    Raises:
        TesseraError: None of the first records has a known layout.
    """
    before: list[tuple[RecordLocation, Any]] = []
    first_error: TesseraError | None = None
    for location, record in itertools.islice(records, FIRST_RECORDS):
        before.append((location, record))
        if isinstance(record, dict):
            try:
                layout = find_layout(list(record), source.columns, where)
            except TesseraError as error:
                first_error = first_error or error
                continue
            return itertools.chain(before, records), _row_parser(layout, source, config)
    if first_error is not None:
        raise first_error
    return itertools.chain(before, records), _no_rows


def _no_rows(_location: RecordLocation, _row: dict[str, Any]) -> RawSample:
    raise InvalidRecordError(DropReason.MISSING_FIELD, f"none of the first {FIRST_RECORDS} records can be read, so that no layout is known")


def _row_parser(layout: Layout, source: TabularSource, config: DataConfig) -> Parser:
    """The function that makes a sample of a row of this layout."""

    def parse(location: RecordLocation, row: dict[str, Any]) -> RawSample:
        sample = _sample(location, row, layout, source, config)
        stated, category = layout.value(row, "id"), number_as_text(layout.value(row, "category"))
        return dataclasses.replace(
            sample,
            key=str(stated) if isinstance(stated, int | str) and str(stated).strip() else sample.key,
            split=parse_split_name(layout.value(row, "split")) or sample.split,
            category=category.strip() or None if isinstance(category, str) else None,
        )

    return parse


def _sample(location: RecordLocation, row: dict[str, Any], layout: Layout, source: TabularSource, config: DataConfig) -> RawSample:
    images = as_list(layout.value(row, "image"))
    if layout.name == "messages":
        return chat_sample(source, location, layout.value(row, "messages"), images, layout.value(row, "objects"))
    files = [row_image(source, image) for image in images if image is not None]
    if layout.name == "texts":
        return _texts_sample(location, require_list(layout.value(row, "texts"), layout.columns["texts"]), files)
    if not files:
        raise InvalidRecordError(DropReason.MISSING_FIELD, f'"{layout.columns["image"]}" has no image')
    if layout.name == "caption":
        return caption_sample(location, files, parse_answers(layout.value(row, "caption")), source.questions, config.seed)
    question, answer = parse_question(layout.value(row, "question")), layout.value(row, "answer")
    if layout.name == "choices":
        choices = parse_answers(layout.value(row, "choices"))
        lettered = [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False)]
        question, answer = join_parts((question, *lettered)), _choice(choices, answer)
    return vqa_sample(location, location.key, files, question, parse_answers(answer), config)


def _choice(choices: Sequence[str], answer: Any) -> str:
    """The choice that an answer means: its index from 0, its letter, or its text."""
    index = answer if isinstance(answer, int) and not isinstance(answer, bool) else None
    if isinstance(answer, str):
        text = answer.strip()
        index = choices.index(text) if text in choices else LETTERS.find(text.upper()) if len(text) == 1 else None
    if index is None or not 0 <= index < len(choices):
        raise InvalidRecordError(DropReason.ANSWER_TYPE, f"the answer {answer!r:.100} is none of the {len(choices)} choices")
    return choices[index]


def _texts_sample(location: RecordLocation, texts: Sequence[Any], images: Sequence[ImageSource]) -> RawSample:
    """A conversation of {user, assistant} pairs; without placeholders in them, the images come before the first question."""
    turns = [parse_turn(role, require_object(pair).get(role), ROLES) for pair in texts for role in ("user", "assistant")]
    if turns and not any(IMAGE_PLACEHOLDER in turn.content for turn in turns):
        turns[0] = Message("user", join_parts((*[IMAGE_PLACEHOLDER] * len(images), turns[0].content)))
    return conversation_sample(location, images, turns)
