"""The demo page (gradio), in English and Chinese: its components and the actions of its buttons."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Set before the import, which reads it: no analytics are sent.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from starlette.middleware import Middleware

from answering.config import DecodingConfig
from dataset.loading.image_io import ImageError, open_image
from errors import TesseraError
from serving.demo.decoding_controls import changed_settings, decoding_components
from serving.demo.formatting import candidate_cells, chat_messages, gallery, table_update
from serving.demo.localization import LANGUAGES, PageError, confidence_text, error_text, translations
from serving.demo.session import Session, Turn, candidate_rows
from serving.demo.upload_folder import UploadFolder, private_upload_folder
from serving.demo.uploaded_image import UploadedImage
from serving.http.cross_site import CrossSiteMiddleware, CrossSiteRules
from serving.search.image_index import ImageIndex
from visual.clip_scorer import ClipScorer

NUM_SEARCH_RESULTS = 12
"""Number of images that a search shows."""
FONTS = ("system-ui", "Noto Sans CJK SC", "sans-serif")
"""Fonts of the theme; no web fonts, so that nothing is fetched."""
STYLE = """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }
#language, #language fieldset { border: 0 !important; padding: 0 !important; background: none; box-shadow: none; }
#language .wrap { justify-content: flex-end; }
#image img { width: 100%; height: 100%; object-fit: contain; }
#status p { margin: 0 0 8px; padding: 10px 14px; border-radius: 10px; border: 1px solid #99f6e4; background: #f0fdfa; color: #134e4a; }
.candidates, #label_probabilities { --font-mono: var(--font); }
.candidates th *, .candidates td * { font-size: 13px; font-variant-numeric: tabular-nums; }
#results .grid-wrap { height: auto !important; min-height: 0 !important; max-height: none !important; }
@media (max-width: 640px) {
  .gradio-container { padding: 0 0 72px !important; }
  .gradio-container main { padding: 8px 12px !important; }
  .candidates th *, .candidates td * { font-size: 11px; padding-left: 2px !important; padding-right: 2px !important; }
  #status { position: fixed !important; left: 8px; right: 8px; bottom: 8px; width: auto !important; z-index: 50; pointer-events: none; }
  #status p { margin: 0; box-shadow: 0 4px 16px #0003; }
  #results .grid-container { --grid-cols: 2 !important; }
}
"""
"""CSS in addition to the theme: width of the page, small images enlarged, messages that stay in view, two columns on a phone."""


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


class Page:
    """The components of the page, each with its texts in both languages. uploads: the only folder whose files are opened."""

    def __init__(self, backends: DemoBackends, uploads: UploadFolder):
        self.backends, self.uploads = backends, uploads
        self.translated: list[tuple[Any, Callable[[dict[str, Any]], dict[str, Any]]]] = []

    def build(self) -> gr.Blocks:
        """The complete page."""
        with gr.Blocks(title="Tessera") as blocks:
            with gr.Row():
                with gr.Column(scale=5):
                    self._add_component(gr.Markdown(), value="title")
                    self._add_component(gr.Markdown(), value="intro")
                with gr.Column(scale=1, min_width=240):
                    choice = gr.Radio(list(LANGUAGES), value="English", elem_id="language", container=False)
                    language = self._add_component(choice, label="language")
            status = gr.Markdown(elem_id="status", visible=True)
            with gr.Row():
                with gr.Column(scale=2, min_width=280):
                    image = self._add_component(
                        UploadedImage(type="filepath", height=320, sources=["upload", "clipboard"], elem_id="image"), label="image"
                    )
                    if self.backends.examples:
                        gr.Examples([[str(path)] for path in self.backends.examples], image, label="Examples / 示例", cache_examples=False)
                    controls = decoding_components(self._add_component, self._configured_decoding())
                with gr.Column(scale=5):
                    self._ask_tab(image, language, status, controls)
                    self._compare_tab(image, language, status, controls)
                    self._search_tab(image, language, status)
                    self._labels_tab(image, language, status)
            language.change(self._translate, language, [component for component, _ in self.translated])
        return blocks

    def _add_component(self, component: Any, **keys: str) -> Any:
        """Register a component whose properties are texts of the page. keys: of translations.yaml, by property."""

        def properties(page_text: dict[str, Any]) -> dict[str, Any]:
            return {name: page_text[key] for name, key in keys.items()}

        for name, value in properties(translations("en")).items():
            setattr(component, name, value)
        self.translated.append((component, properties))
        return component

    def _translate(self, language: str) -> list[Any]:
        return [gr.update(**properties(translations(LANGUAGES[language]))) for _, properties in self.translated]

    def _ask_tab(self, image: gr.Image, language: gr.Radio, status: gr.Markdown, controls: list[Any]) -> None:
        with self._add_component(gr.Tab(), label="ask_tab"):
            turns = gr.State([])
            chat = self._add_component(gr.Chatbot(height=300, buttons=[], elem_id="chat", show_label=False), label="conversation")
            question = self._add_component(gr.Textbox(elem_id="question"), label="question", placeholder="question_placeholder")
            with gr.Row():
                ask = self._add_component(gr.Button(variant="primary", elem_id="ask"), value="ask")
                caption = self._add_component(gr.Button(elem_id="caption"), value="caption")
                clear = self._add_component(gr.Button(elem_id="clear"), value="clear")
            table = self._add_component(_empty_table("candidates"), label="candidates")
        outputs = [chat, turns, table, question, status]
        for event in (ask.click, question.submit):
            event(self.ask, [image, question, turns, language, *controls], outputs)
        caption.click(self.caption, [image, turns, language, *controls], outputs)
        for event in (clear.click, chat.clear, image.change):
            event(lambda language: ([], [], table_update([], language), ""), language, [chat, turns, table, status])
        language.change(table_update, [table, language], table)

    def _compare_tab(self, image: gr.Image, language: gr.Radio, status: gr.Markdown, controls: list[Any]) -> None:
        with self._add_component(gr.Tab(), label="compare_tab"):
            question = self._add_component(gr.Textbox(elem_id="compared_question"), label="question", placeholder="question_placeholder")
            button = self._add_component(gr.Button(variant="primary", elem_id="compare"), value="compare")
            with gr.Row():
                answers = [gr.Textbox(label=name, interactive=False, elem_id=f"answer_{i}") for i, name in enumerate(self._names())]
            with gr.Row():
                tables = [self._add_component(_empty_table(f"compared_{i}"), label="candidates") for i in range(len(answers))]
        button.click(self.compare, [image, question, language, *controls], [*answers, *tables, status])
        for table in tables:
            language.change(table_update, [table, language], table)

    def _search_tab(self, image: gr.Image, language: gr.Radio, status: gr.Markdown) -> None:
        with self._add_component(gr.Tab(), label="search_tab"):
            text = self._add_component(gr.Textbox(elem_id="search_text"), label="search_text", placeholder="search_placeholder")
            with gr.Row():
                by_text = self._add_component(gr.Button(variant="primary", elem_id="search"), value="search_by_text")
                by_image = self._add_component(gr.Button(elem_id="search_by_image"), value="search_by_image")
            images = gr.Gallery(columns=4, height="auto", object_fit="contain", elem_id="results", show_label=False)
            results = self._add_component(images, label="results")
        for event in (by_text.click, text.submit):
            event(self.search_by_text, [text, language], [results, status])
        by_image.click(self.search_by_image, [image, language], [results, status])

    def _labels_tab(self, image: gr.Image, language: gr.Radio, status: gr.Markdown) -> None:
        with self._add_component(gr.Tab(), label="labels_tab"):
            labels = self._add_component(gr.Textbox(elem_id="labels"), label="labels", placeholder="labels_placeholder")
            button = self._add_component(gr.Button(variant="primary", elem_id="classify"), value="classify")
            probabilities = self._add_component(gr.Label(elem_id="label_probabilities"), label="label_probabilities")
        for event in (button.click, labels.submit):
            event(self.classify, [image, labels, language], [probabilities, status])

    def ask(self, image: str | None, question: str, turns: list[Turn], language: str, *settings: Any) -> Iterator[tuple[Any, ...]]:
        """Values of chat, turns, table, question and status: while the answer is streamed, and finally with its candidates.

        settings: values of the decoding controls; none: the configured ones.
        """
        try:
            session, path = self._session(), self._checked_image(image)
            if not question.strip():
                raise PageError("no_question")
            changes = changed_settings(settings, session.decoding)
            for text in session.stream(path, turns, question, changes=changes):
                yield chat_messages([*turns, Turn(question, text)]), turns, gr.skip(), question, ""
            answered = session.ask(path, turns, question, changes)
        except TesseraError as error:
            yield chat_messages(turns), turns, gr.skip(), question, error_text(error, language)
            return
        done = [*turns, Turn(question, answered.chosen)]
        yield (
            chat_messages(done),
            done,
            table_update(candidate_cells(candidate_rows(answered)), language),
            "",
            confidence_text(answered, language),
        )

    def caption(self, image: str | None, turns: list[Turn], language: str, *settings: Any) -> Iterator[tuple[Any, ...]]:
        """As `ask`, for a caption, which has no candidates."""
        question = translations(LANGUAGES[language])["caption_question"]
        text = ""
        try:
            session = self._session()
            changes = changed_settings(settings, session.decoding)
            for text in session.stream(self._checked_image(image), [], question, "caption", changes):
                yield chat_messages([*turns, Turn(question, text)]), turns, table_update([], language), gr.skip(), ""
        except TesseraError as error:
            yield chat_messages(turns), turns, gr.skip(), gr.skip(), error_text(error, language)
            return
        done = [*turns, Turn(question, text, "caption")]
        yield chat_messages(done), done, table_update([], language), gr.skip(), ""

    def compare(self, image: str | None, question: str, language: str, *settings: Any) -> tuple[Any, ...]:
        """Values of both answers, both tables and status."""
        try:
            sessions, path = (self._session(), self.backends.other), self._checked_image(image)
            if sessions[1] is None:
                raise PageError("no_second_system")
            if not question.strip():
                raise PageError("no_question")
            changes = changed_settings(settings, sessions[0].decoding)
            replies = [session.ask(path, [], question, changes) for session in sessions if session is not None]
        except TesseraError as error:
            return "", "", gr.skip(), gr.skip(), error_text(error, language)
        tables = [table_update(candidate_cells(candidate_rows(reply)), language) for reply in replies]
        confidence_lines = [
            f"{name}: {sentence}"
            for name, reply in zip(self._names(), replies, strict=True)
            if (sentence := confidence_text(reply, language))
        ]
        return *(reply.chosen for reply in replies), *tables, "  \n".join(confidence_lines)

    def search_by_text(self, text: str, language: str) -> tuple[Any, str]:
        """Gallery and status."""
        try:
            index = self._index()
            if not text.strip():
                raise PageError("no_search_text")
            return gallery(index, index.search_by_text(text, NUM_SEARCH_RESULTS), language)
        except TesseraError as error:
            return [], error_text(error, language)

    def search_by_image(self, image: str | None, language: str) -> tuple[Any, str]:
        """Gallery and status."""
        try:
            index = self._index()
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

    def _names(self) -> list[str]:
        """Names of the two systems; a dash for a missing one."""
        return [session.name if isinstance(session, Session) else "–" for session in (self.backends.session, self.backends.other)]

    def _session(self) -> Session:
        if isinstance(self.backends.session, str):
            raise PageError("no_model", reason=self.backends.session)
        return self.backends.session

    def _configured_decoding(self) -> DecodingConfig:
        return self.backends.session.decoding if isinstance(self.backends.session, Session) else DecodingConfig()

    def _index(self) -> ImageIndex:
        if isinstance(self.backends.index, str):
            raise PageError("search_unavailable", reason=self.backends.index)
        return self.backends.index


@contextmanager
def running_page(backends: DemoBackends, host: str, port: int, rules: CrossSiteRules) -> Iterator[gr.Blocks]:
    """Serve the page while the context is open. port 0: a free port; rules: host names of the page, and sites that may use it."""
    with private_upload_folder() as uploads:
        blocks = Page(backends, uploads).build()
        theme = gr.themes.Soft(primary_hue="teal", font=FONTS, font_mono=("monospace",))
        blocks.launch(
            server_name=host, server_port=port or None, ssr_mode=False, share=False, theme=theme, css=STYLE, footer_links=[],
            quiet=True, max_file_size="32mb", prevent_thread_lock=True,
            app_kwargs={"middleware": [Middleware(CrossSiteMiddleware, rules)]},
        )  # fmt: skip
        try:
            yield blocks
        finally:
            blocks.close(verbose=False)


def launch(backends: DemoBackends, host: str, port: int, rules: CrossSiteRules) -> None:
    """Serve the page until it is stopped."""
    with running_page(backends, host, port, rules) as blocks:
        print(f"the demo is at {blocks.local_url}", flush=True)
        blocks.block_thread()


def _empty_table(elem_id: str) -> gr.Dataframe:
    """An empty candidate table, with fixed column widths that also fit a phone."""
    widths = ["19%", "25%", "25%", "15%", "16%"]
    return gr.Dataframe(
        table_update([], "English"), type="array", interactive=False, elem_id=elem_id, elem_classes="candidates", column_widths=widths,
        wrap=True, buttons=[],
    )  # fmt: skip
