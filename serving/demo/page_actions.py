"""What the buttons of the demo page do: from the values of its components to those that it shows. Errors become messages."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from answering.config import DecodingConfig
from answering.protocol import StreamedText
from dataset.bounding_box import parse_boxes
from dataset.loading.image_io import ImageError, open_image
from dataset.sample import Task
from errors import TesseraError
from serving.demo.box_actions import BoxActions
from serving.demo.decoding_controls import changed_settings
from serving.demo.localization import PageError, candidate_cells, chat_messages, error_text, gallery, notes_text, page_texts, table_update
from serving.demo.session import Conversation, Session, Turn, answered_turn
from serving.demo.upload_folder import UploadFolder
from serving.search.image_index import ImageIndex
from visual.clip_scorer import ClipScorer

T = TypeVar("T")

SENTENCE_ENDS = (".", "?", "!", "。", "？", "！")
NUM_SEARCH_RESULTS = 12
"""Number of images that a search shows."""


@dataclass(frozen=True)
class DemoBackends:
    """The models that the page uses. A string in place of an object is the reason why it is missing; the page shows it.

    Args:
        session: the system that answers.
        other: the second system of the tab "Side by side".
        scorer: the CLIP of the tab "Labels".
        index: the index of the tab "Search".
        examples: example images.
    """

    session: Session | str
    other: Session | None
    scorer: ClipScorer | None
    index: ImageIndex | str
    examples: Sequence[Path]


class PageActions:
    """The actions of the page. uploads: the only folder whose files are opened."""

    def __init__(self, backends: DemoBackends, uploads: UploadFolder):
        self.backends, self.uploads = backends, uploads
        self.boxes = BoxActions(uploads)

    def ask(self, image: str | None, question: str, conversation: Conversation, language: str, *settings: Any) -> Iterator[tuple[Any, ...]]:
        """Values of chat, table, question and status: while the answer is streamed, and finally with its candidates.

        The answer becomes a turn of the conversation. Nothing more is shown once another conversation has begun.

        settings: values of the decoding controls; none: the configured ones.
        """
        conversation.turn_to(image)
        yield from _while_same(conversation, self._answer(image, question, "vqa", conversation, language, settings))

    def caption(self, image: str | None, conversation: Conversation, language: str, *settings: Any) -> Iterator[tuple[Any, ...]]:
        """As `ask`, for a caption, which has no candidates."""
        conversation.turn_to(image)
        question = page_texts(language)["caption_question"]
        yield from _while_same(conversation, self._answer(image, question, "caption", conversation, language, settings))

    def locate(
        self, image: str | None, question: str, conversation: Conversation, language: str, *settings: Any
    ) -> Iterator[tuple[Any, ...]]:
        """As `caption`, for the box of what is typed: a whole sentence is asked as it is, a name within one that asks for its box."""
        conversation.turn_to(image)
        asked = question.strip()
        if asked and not asked.endswith(SENTENCE_ENDS):
            asked = page_texts(language)["locate_question"].format(expression=asked)
        yield from _while_same(conversation, self._answer(image, asked, "grounding", conversation, language, settings))

    # gradio streams the values of generator functions, which `ask` and `caption` would not be if they returned this one's generator.
    def _answer(
        self, image: str | None, question: str, task: Task, conversation: Conversation, language: str, settings: Sequence[Any]
    ) -> Iterator[tuple[Any, ...]]:
        turns, text = conversation.turns, ""
        # A caption or a box leaves the question that is being typed, and empties the table at once.
        is_short = task == "vqa"
        table, typed = (gr.skip(), question) if is_short else (table_update([], language), gr.skip())
        try:
            session, path = self._session(), self._checked_image(image)
            if not question.strip():
                raise PageError("no_question")
            changes = changed_settings(settings, session.decoding)
            pieces = StreamedText(session.stream(path, turns if is_short else [], question, task, changes))
            for text in pieces:
                yield chat_messages([*turns, Turn(question, text)], language), table, typed, ""
            if is_short:
                answered = session.ask(path, turns, question, changes)
                turn, candidates = answered_turn(question, answered), candidate_cells(answered)
            else:
                turn, candidates = Turn(question, text, task, is_cut=pieces.finish_reason == "length"), []
        except TesseraError as error:
            yield chat_messages(turns, language), gr.skip(), typed, error_text(error, language)
            return
        turns.append(turn)
        conversation.candidates, conversation.regions.answered = candidates, parse_boxes(turn.answer)
        yield *self.show(conversation, language), "" if is_short else gr.skip(), ""

    def new_conversation(self, image: str | None, conversation: Conversation, language: str) -> tuple[Any, ...]:
        """Values of chat, table and status. An answer that is still being generated will not be shown."""
        conversation.begin_anew(image)
        return *self.show(conversation, language), ""

    def change_image(self, image: str | None, conversation: Conversation, language: str) -> tuple[Any, ...]:
        """As `new_conversation`, unless the image was asked about before this was called."""
        return (*self.show(conversation, language), "") if conversation.turn_to(image) else (gr.skip(),) * 3

    def show(self, conversation: Conversation, language: str) -> tuple[Any, Any]:
        """Values of chat and table, as the conversation is now."""
        return chat_messages(conversation.turns, language), table_update(conversation.candidates, language)

    def compare(self, image: str | None, question: str, language: str, *settings: Any) -> tuple[Any, ...]:
        """Values of both answers, what is to be said of each, both tables, and status."""
        try:
            sessions, path = (self._session(), self.backends.other), self._checked_image(image)
            if sessions[1] is None:
                raise PageError("no_second_system")
            if not question.strip():
                raise PageError("no_question")
            changes = changed_settings(settings, sessions[0].decoding)
            replies = [session.ask(path, [], question, changes) for session in sessions if session is not None]
        except TesseraError as error:
            return *self.no_comparison(language), error_text(error, language)
        notes = [notes_text(answered_turn(question, reply), language) for reply in replies]
        tables = [table_update(candidate_cells(reply), language) for reply in replies]
        return *(reply.chosen for reply in replies), *notes, *tables, ""

    def no_comparison(self, language: str) -> tuple[Any, ...]:
        """The values of `compare` before a question is asked, without the status."""
        return "", "", "", "", table_update([], language), table_update([], language)

    def search_by_text(self, text: str, language: str) -> tuple[Any, str]:
        """Gallery and status."""
        try:
            index = _available(self.backends.index, "search_unavailable")
            if not text.strip():
                raise PageError("no_search_text")
            return gallery(index, index.search_by_text(text, NUM_SEARCH_RESULTS), language)
        except TesseraError as error:
            return [], error_text(error, language)

    def search_by_image(self, image: str | None, language: str) -> tuple[Any, str]:
        """Gallery and status."""
        try:
            index = _available(self.backends.index, "search_unavailable")
            return gallery(index, index.search_by_image(self._checked_image(image), NUM_SEARCH_RESULTS), language)
        except TesseraError as error:
            return [], error_text(error, language)

    def classify(self, image: str | None, labels: str, language: str) -> tuple[Any, str]:
        """Probability of each label, and status."""
        try:
            path = self._checked_image(image)
            if self.backends.scorer is None:
                raise PageError("no_clip")
            label_names = [label for label in map(str.strip, re.split("[,，]", labels)) if label]
            if not label_names:
                raise PageError("no_labels")
            return dict(zip(label_names, self.backends.scorer.probabilities(path, label_names), strict=True)), ""
        except TesseraError as error:
            return None, error_text(error, language)

    def _checked_image(self, name: str | None) -> Path:
        """The path of the chosen image. Raises PageError if there is none, it was not uploaded here or cannot be decoded."""
        if not name:
            raise PageError("no_image")
        path = self.uploads.checked(name)
        try:
            open_image(path)
        except ImageError as error:
            raise PageError("invalid_image", reason=str(error).removeprefix(f"{path}: ")) from error
        return path

    def names(self) -> list[str]:
        """Names of the two systems; a dash for a missing one."""
        return [session.name if isinstance(session, Session) else "–" for session in (self.backends.session, self.backends.other)]

    def _session(self) -> Session:
        return _available(self.backends.session, "no_model")

    def configured_decoding(self) -> DecodingConfig:
        return self.backends.session.decoding if isinstance(self.backends.session, Session) else DecodingConfig()


def _available(backend: T | str, key: str) -> T:
    """A part of the backends. Raises PageError with the reason if it is missing. key: of the message."""
    if isinstance(backend, str):
        raise PageError(key, reason=backend)
    return backend


def _while_same(conversation: Conversation, updates: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """The updates until another conversation begins."""
    number = conversation.number
    for update in updates:
        if conversation.number != number:
            return
        yield update
