"""The demo page (gradio), in English and Chinese: its components, and which action of PageActions each button starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from serving.demo.decoding_controls import decoding_components
from serving.demo.localization import LANGUAGES, page_texts, table_update
from serving.demo.page_actions import DemoBackends, PageActions
from serving.demo.session import Conversation
from serving.demo.upload_folder import UploadedImage, private_upload_folder
from serving.http.cross_site import CrossSiteMiddleware, CrossSiteRules

FONTS = ("system-ui", "Noto Sans CJK SC", "sans-serif")
"""Fonts of the theme; no web fonts, so that nothing is fetched."""
STYLE = resources.files("serving.demo").joinpath("page.css").read_text(encoding="utf-8")
"""CSS in addition to the theme."""
BROWSER_LANGUAGE = "() => (navigator.language.toLowerCase().startsWith('zh') ? '中文' : 'English')"
"""JavaScript: the page's language that fits the browser's."""


@dataclass(frozen=True)
class BoxesPanel:
    """The components of the panel for boxes."""

    panel: gr.Accordion
    preview: gr.Image
    text: gr.Textbox
    insert: gr.Button


class Page:
    """The components of the page, each with its texts in both languages."""

    def __init__(self, actions: PageActions):
        self.actions = actions
        self.translated: list[tuple[Any, dict[str, str]]] = []

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
                    if self.actions.backends.examples:
                        gr.Examples(
                            [[str(path)] for path in self.actions.backends.examples], image, label="Examples / 示例", cache_examples=False
                        )
                    conversation = gr.State(Conversation())
                    boxes = self._boxes_panel()
                    controls = decoding_components(self._add_component, self.actions.configured_decoding())
                with gr.Column(scale=5):
                    self._ask_tab(image, language, status, controls, conversation, boxes)
                    self._compare_tab(image, language, status, controls)
                    self._search_tab(image, language, status)
                    self._labels_tab(image, language, status)
            language.change(self._translate, language, [component for component, _ in self.translated])
            blocks.load(None, None, language, js=BROWSER_LANGUAGE)
        return blocks

    def _add_component(self, component: Any, **keys: str) -> Any:
        """Register a component whose properties are texts of the page. keys: of translations.yaml, by property."""
        for name, key in keys.items():
            setattr(component, name, page_texts("English")[key])
        self.translated.append((component, keys))
        return component

    def _translate(self, language: str) -> list[Any]:
        texts = page_texts(language)
        return [gr.update(**{name: texts[key] for name, key in keys.items()}) for _, keys in self.translated]

    def _boxes_panel(self) -> BoxesPanel:
        with self._add_component(gr.Accordion(open=False, elem_id="boxes_panel"), label="boxes") as panel:
            self._add_component(gr.Markdown(), value="boxes_help")
            preview = self._add_component(gr.Image(interactive=False, buttons=[], show_label=False, elem_id="boxes"), label="boxes")
            text = self._add_component(gr.Textbox(elem_id="box", placeholder="[100, 200, 400, 500]"), label="box")
            insert = self._add_component(gr.Button(elem_id="insert_box"), value="insert_box")
        return BoxesPanel(panel, preview, text, insert)

    def _ask_tab(
        self, image: gr.Image, language: gr.Radio, status: gr.Markdown, controls: list[Any], conversation: gr.State, boxes: BoxesPanel
    ) -> None:
        with self._add_component(gr.Tab(), label="ask_tab"):
            chat = self._add_component(
                gr.Chatbot(height=300, buttons=[], elem_id="chat", show_label=False), label="conversation", placeholder="chat_placeholder"
            )
            question = self._add_component(gr.Textbox(elem_id="question"), label="question", placeholder="question_placeholder")
            with gr.Row():
                ask = self._add_component(gr.Button(variant="primary", elem_id="ask"), value="ask")
                locate = self._add_component(gr.Button(elem_id="locate"), value="locate")
                caption = self._add_component(gr.Button(elem_id="caption"), value="caption")
                clear = self._add_component(gr.Button(elem_id="clear"), value="clear")
            table = self._add_component(_empty_table("candidates"), label="candidates")
        outputs = [chat, table, question, status]
        answering = [
            event(self.actions.ask, [image, question, conversation, language, *controls], outputs) for event in (ask.click, question.submit)
        ]
        answering.append(locate.click(self.actions.locate, [image, question, conversation, language, *controls], outputs))
        answering.append(caption.click(self.actions.caption, [image, conversation, language, *controls], outputs))
        about_image = [image, conversation, language]
        following = [*answering]
        following += [
            event(self.actions.new_conversation, about_image, [chat, table, status], cancels=answering)
            for event in (clear.click, chat.clear)
        ]
        # It cancels nothing: a question may be asked before the page notices that the uploaded image is another one.
        following.append(image.change(self.actions.change_image, about_image, [chat, table, status]))
        language.change(self.actions.show, [conversation, language], [chat, table])
        for event in following:
            event.then(self.actions.boxes.show, [image, conversation], [boxes.preview, boxes.panel])
        boxes.preview.select(self.actions.boxes.click, about_image, [boxes.preview, boxes.text, status])
        inserted = [image, boxes.text, question, conversation, language]
        for start in (boxes.insert.click, boxes.text.submit):
            start(self.actions.boxes.insert, inserted, [boxes.preview, boxes.text, question, status])

    def _compare_tab(self, image: gr.Image, language: gr.Radio, status: gr.Markdown, controls: list[Any]) -> None:
        with self._add_component(gr.Tab(), label="compare_tab"):
            question = self._add_component(gr.Textbox(elem_id="compared_question"), label="question", placeholder="question_placeholder")
            button = self._add_component(gr.Button(variant="primary", elem_id="compare"), value="compare")
            with gr.Row():
                answers, notes = [], []
                for i, name in enumerate(self.actions.names()):
                    with gr.Column():
                        answers.append(gr.Textbox(label=name, interactive=False, elem_id=f"answer_{i}"))
                        notes.append(gr.Markdown(elem_id=f"note_{i}", elem_classes="note"))
            with gr.Row():
                tables = [self._add_component(_empty_table(f"compared_{i}"), label="candidates") for i in range(len(answers))]
        outputs = [*answers, *notes, *tables, status]
        for event in (button.click, question.submit):
            event(self.actions.compare, [image, question, language, *controls], outputs)
        image.change(self.actions.no_comparison, language, outputs[:-1])
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
            event(self.actions.search_by_text, [text, language], [results, status])
        by_image.click(self.actions.search_by_image, [image, language], [results, status])

    def _labels_tab(self, image: gr.Image, language: gr.Radio, status: gr.Markdown) -> None:
        with self._add_component(gr.Tab(), label="labels_tab"):
            labels = self._add_component(gr.Textbox(elem_id="labels"), label="labels", placeholder="labels_placeholder")
            button = self._add_component(gr.Button(variant="primary", elem_id="classify"), value="classify")
            probabilities = self._add_component(gr.Label(elem_id="label_probabilities"), label="label_probabilities")
        for event in (button.click, labels.submit):
            event(self.actions.classify, [image, labels, language], [probabilities, status])
        image.change(lambda: None, None, probabilities)


@contextmanager
def running_page(backends: DemoBackends, host: str, port: int, rules: CrossSiteRules) -> Iterator[gr.Blocks]:
    """Serve the page while the context is open. port 0: a free port; rules: host names of the page, and sites that may use it."""
    with private_upload_folder() as uploads:
        blocks = Page(PageActions(backends, uploads)).build()
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
    widths = ["12%", "27%", "24%", "18%", "19%"]
    return gr.Dataframe(
        table_update([], "English"), type="array", interactive=False, elem_id=elem_id, elem_classes="candidates", column_widths=widths,
        wrap=True, buttons=[],
    )  # fmt: skip
