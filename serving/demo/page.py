"""The demo page: what is on it, in two languages, and what its buttons do."""

import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# Read when the library is loaded: nothing is sent anywhere.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from answering.reply import Reply
from dataset.loading.image_io import ImageError, open_image
from errors import TesseraError
from serving.demo.session import Session, Turn, candidate_rows
from serving.search.image_index import ImageIndex
from serving.search.lancedb_table import SearchHit
from visual.clip_scorer import ClipScorer

LANGUAGES = {"English": "en", "中文": "zh"}
NUM_SEARCH_RESULTS = 12
"""Pictures that a search shows."""
FONTS = ("system-ui", "Noto Sans CJK SC", "sans-serif")
STYLE = """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }
#language, #language fieldset { border: 0 !important; padding: 0 !important; background: none; box-shadow: none; }
#language .wrap { justify-content: flex-end; }
#picture img { width: 100%; height: 100%; object-fit: contain; }
#status p { margin: 0 0 8px; padding: 10px 14px; border-radius: 10px; border: 1px solid #99f6e4; background: #f0fdfa; color: #134e4a; }
.candidates, #shares { --font-mono: var(--font); }
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
"""What the theme does not say: width of the page, small pictures shown large, messages that stay in view, two columns on a phone."""


@dataclass(frozen=True)
class DemoBackends:
    """What the page talks to. Where something is missing, the text says why, and the page says it to whoever asks."""

    session: Session | str
    other: Session | None
    scorer: ClipScorer | None
    index: ImageIndex | str
    examples: Sequence[Path]


class PageError(TesseraError):
    """Something that the page says instead of a result: a key of words.yaml, with what is filled in."""

    def __init__(self, key: str, **values: object):
        super().__init__(key)
        self.key, self.values = key, values


@functools.cache
def translations(language: str) -> dict[str, Any]:
    """The page's words in a language, en or zh."""
    all_languages: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "translations.yaml").read_text(encoding="utf-8"))
    return all_languages[language]


class Page:
    """The page's parts, each with the words that it changes with the language."""

    def __init__(self, parts: DemoBackends):
        self.parts = parts
        self.translated: list[tuple[Any, Callable[[dict[str, Any]], dict[str, Any]]]] = []

    def build(self) -> gr.Blocks:
        """The whole page."""
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
                    image = self._add_component(_image_component(), label="picture")
                    if self.parts.examples:
                        gr.Examples([[str(path)] for path in self.parts.examples], image, label="Examples / 示例", cache_examples=False)
                with gr.Column(scale=5):
                    self._ask_tab(image, language, status)
                    self._compare_tab(image, language, status)
                    self._search_tab(image, language, status)
                    self._labels_tab(image, language, status)
            language.change(self._translate, language, [component for component, _ in self.translated])
        return blocks

    def _add_component(self, component: Any, **keys: str) -> Any:
        """A component whose properties are words of the page."""

        def properties(page_text: dict[str, Any]) -> dict[str, Any]:
            return {name: page_text[key] for name, key in keys.items()}

        for name, value in properties(translations("en")).items():
            setattr(component, name, value)
        self.translated.append((component, properties))
        return component

    def _translate(self, language: str) -> list[Any]:
        return [gr.update(**properties(translations(LANGUAGES[language]))) for _, properties in self.translated]

    def _ask_tab(self, image: gr.Image, language: gr.Radio, status: gr.Markdown) -> None:
        with self._add_component(gr.Tab(), label="ask_tab"):
            turns = gr.State([])
            chat = self._add_component(gr.Chatbot(height=300, buttons=[], elem_id="chat", show_label=False), label="conversation")
            question = self._add_component(gr.Textbox(elem_id="question"), label="question", placeholder="question_hint")
            with gr.Row():
                ask = self._add_component(gr.Button(variant="primary", elem_id="ask"), value="ask")
                caption = self._add_component(gr.Button(elem_id="caption"), value="caption")
                clear = self._add_component(gr.Button(elem_id="clear"), value="clear")
            table = self._add_component(_empty_table("candidates"), label="candidates")
        shown = [chat, turns, table, question, status]
        for event in (ask.click, question.submit):
            event(self.ask, [image, question, turns, language], shown)
        caption.click(self.caption, [image, turns, language], shown)
        for event in (clear.click, chat.clear, image.change):
            event(lambda language: ([], [], _table_update([], language), ""), language, [chat, turns, table, status])
        language.change(_table_update, [table, language], table)

    def _compare_tab(self, image: gr.Image, language: gr.Radio, status: gr.Markdown) -> None:
        with self._add_component(gr.Tab(), label="compare_tab"):
            question = self._add_component(gr.Textbox(elem_id="compared_question"), label="question", placeholder="question_hint")
            button = self._add_component(gr.Button(variant="primary", elem_id="compare"), value="compare")
            with gr.Row():
                answers = [gr.Textbox(label=name, interactive=False, elem_id=f"answer_{i}") for i, name in enumerate(self._names())]
            with gr.Row():
                tables = [self._add_component(_empty_table(f"compared_{i}"), label="candidates") for i in range(len(answers))]
        button.click(self.compare, [image, question, language], [*answers, *tables, status])
        for table in tables:
            language.change(_table_update, [table, language], table)

    def _search_tab(self, image: gr.Image, language: gr.Radio, status: gr.Markdown) -> None:
        with self._add_component(gr.Tab(), label="search_tab"):
            text = self._add_component(gr.Textbox(elem_id="search_text"), label="search_text", placeholder="search_hint")
            with gr.Row():
                by_text = self._add_component(gr.Button(variant="primary", elem_id="search"), value="search")
                by_image = self._add_component(gr.Button(elem_id="alike"), value="alike")
            images = gr.Gallery(columns=4, height="auto", object_fit="contain", elem_id="results", show_label=False)
            gallery = self._add_component(images, label="results")
        for event in (by_text.click, text.submit):
            event(self.search_by_text, [text, language], [gallery, status])
        by_image.click(self.search_by_image, [image, language], [gallery, status])

    def _labels_tab(self, image: gr.Image, language: gr.Radio, status: gr.Markdown) -> None:
        with self._add_component(gr.Tab(), label="labels_tab"):
            labels = self._add_component(gr.Textbox(elem_id="labels"), label="labels", placeholder="labels_hint")
            button = self._add_component(gr.Button(variant="primary", elem_id="classify"), value="label")
            probabilities = self._add_component(gr.Label(elem_id="shares"), label="shares")
        for event in (button.click, labels.submit):
            event(self.classify, [image, labels, language], [probabilities, status])

    def ask(self, image: str | None, question: str, turns: list[Turn], language: str) -> Iterator[tuple[Any, ...]]:
        """Chat, turns, table, question and status: while the answer comes, and once more with its candidates."""
        try:
            session, path = self._session(), _checked_image(image)
            if not question.strip():
                raise PageError("no_question")
            for text in session.stream(path, turns, question):
                yield _chat_messages([*turns, (question, text)]), turns, gr.skip(), question, ""
            answered = session.ask(path, turns, question)
        except TesseraError as error:
            yield _chat_messages(turns), turns, gr.skip(), question, _error_text(error, language)
            return
        done = [*turns, (question, answered.chosen)]
        yield (
            _chat_messages(done),
            done,
            _table_update(_candidate_rows(candidate_rows(answered)), language),
            "",
            _confidence_text(answered, language),
        )

    def caption(self, image: str | None, turns: list[Turn], language: str) -> Iterator[tuple[Any, ...]]:
        """The same for a description, which has no candidates."""
        question = translations(LANGUAGES[language])["caption_question"]
        text = ""
        try:
            for text in self._session().stream(_checked_image(image), [], question, "caption"):
                yield _chat_messages([*turns, (question, text)]), turns, _table_update([], language), gr.skip(), ""
        except TesseraError as error:
            yield _chat_messages(turns), turns, gr.skip(), gr.skip(), _error_text(error, language)
            return
        done = [*turns, (question, text)]
        yield _chat_messages(done), done, _table_update([], language), gr.skip(), ""

    def compare(self, image: str | None, question: str, language: str) -> tuple[Any, ...]:
        """Both answers, both tables, status."""
        try:
            sessions, path = (self._session(), self.parts.other), _checked_image(image)
            if sessions[1] is None:
                raise PageError("no_other")
            if not question.strip():
                raise PageError("no_question")
            answered = [session.ask(path, [], question) for session in sessions if session is not None]
        except TesseraError as error:
            return "", "", gr.skip(), gr.skip(), _error_text(error, language)
        tables = [_table_update(_candidate_rows(candidate_rows(one)), language) for one in answered]
        confidence_lines = [
            f"{name}: {sentence}"
            for name, one in zip(self._names(), answered, strict=True)
            if (sentence := _confidence_text(one, language))
        ]
        return *(one.chosen for one in answered), *tables, "  \n".join(confidence_lines)

    def search_by_text(self, text: str, language: str) -> tuple[Any, str]:
        """Gallery and status."""
        try:
            index = self._index()
            if not text.strip():
                raise PageError("no_text")
            return _gallery(index, index.search_by_text(text, NUM_SEARCH_RESULTS), language)
        except TesseraError as error:
            return [], _error_text(error, language)

    def search_by_image(self, image: str | None, language: str) -> tuple[Any, str]:
        """Gallery and status."""
        try:
            index = self._index()
            return _gallery(index, index.search_by_image(_checked_image(image), NUM_SEARCH_RESULTS), language)
        except TesseraError as error:
            return [], _error_text(error, language)

    def classify(self, image: str | None, labels: str, language: str) -> tuple[Any, str]:
        """Share of each label, and status."""
        try:
            path = _checked_image(image)
            if self.parts.scorer is None:
                raise PageError("no_clip")
            label_names = [label for label in map(str.strip, re.split("[,，]", labels)) if label]
            if not label_names:
                raise PageError("no_labels")
            return dict(zip(label_names, self.parts.scorer.probabilities(path, label_names), strict=True)), ""
        except TesseraError as error:
            return None, _error_text(error, language)

    def _names(self) -> list[str]:
        """What the two systems are called."""
        return [one.name if isinstance(one, Session) else "–" for one in (self.parts.session, self.parts.other)]

    def _session(self) -> Session:
        if isinstance(self.parts.session, str):
            raise PageError("no_model", reason=self.parts.session)
        return self.parts.session

    def _index(self) -> ImageIndex:
        if isinstance(self.parts.index, str):
            raise PageError("no_search", reason=self.parts.index)
        return self.parts.index


def launch(parts: DemoBackends, host: str, port: int, *, wait: bool = True) -> gr.Blocks:
    """Serve the page; port 0: any free one. Returns at once when it is not to wait for the end."""
    blocks = Page(parts).build()
    theme = gr.themes.Soft(primary_hue="teal", font=FONTS, font_mono=("monospace",))
    blocks.launch(
        server_name=host, server_port=port or None, ssr_mode=False, share=False, theme=theme, css=STYLE, footer_links=[],
        quiet=True, max_file_size="32mb", prevent_thread_lock=True,
    )  # fmt: skip
    print(f"the demo is at {blocks.local_url}", flush=True)
    if wait:
        blocks.block_thread()
    return blocks


def _checked_image(name: str | None) -> Path:
    """The picture that was chosen, known to be one."""
    if not name:
        raise PageError("no_picture")
    try:
        open_image(Path(name))
    except ImageError as error:
        raise PageError("not_picture", reason=str(error).removeprefix(f"{name}: ")) from error
    return Path(name)


def _error_text(error: TesseraError, language: str) -> str:
    page_text = translations(LANGUAGES[language])
    if isinstance(error, PageError):
        return f"⚠️ {page_text[error.key].format(**error.values)}"
    return f"⚠️ {page_text['not_answered'].format(reason=error)}"


def _chat_messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]


def _candidate_rows(shown: Sequence[Any]) -> list[list[str]]:
    return [["✓" if row.chosen else "", row.text, _percent(row.likelihood), _number(row.clip, 2), _number(row.fused)] for row in shown]


def _table_update(cells: list[list[str]], language: str) -> dict[str, Any]:
    """A table of candidates under the headings of a language: its cells alone would lose them."""
    return {"headers": translations(LANGUAGES[language])["columns"], "data": cells}


def _empty_table(elem_id: str) -> gr.Dataframe:
    """A table of candidates, whose columns keep their widths on a phone too."""
    widths = ["19%", "25%", "25%", "15%", "16%"]
    return gr.Dataframe(
        _table_update([], "English"), type="array", interactive=False, elem_id=elem_id, elem_classes="candidates", column_widths=widths,
        wrap=True, buttons=[],
    )  # fmt: skip


def _percent(value: float | None) -> str:
    """A probability for people."""
    if value is None:
        return "–"
    return "< 0.1 %" if 0 <= value < 0.0005 else f"{value:.1%}".replace("%", " %")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _confidence_text(answered: Reply, language: str) -> str:
    """How far an answer can be trusted, where that is known."""
    if answered.confidence is None:
        return ""
    return str(translations(LANGUAGES[language])["confidence"]).format(share=f"{answered.confidence:.0%}")


def _image_component() -> gr.Image:
    """Where a picture is put. Files come as they are: the component itself would meet one that is no picture with an error of its own."""
    image_component = gr.Image(type="filepath", height=320, sources=["upload", "clipboard"], elem_id="picture")
    image_component.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return image_component


def _gallery(index: ImageIndex, found: Sequence[SearchHit], language: str) -> tuple[list[tuple[Any, str]], str]:
    """Pictures with their scores, and a sentence where some are no longer there."""
    shown, num_missing = [], 0
    for one in found:
        try:
            shown.append((index.thumbnail(one, 360), f"{one.score:.3f}  {_shorten(one.path.name if one.path else one.id[:12])}"))
        except TesseraError:
            num_missing += 1
    return shown, f"⚠️ {translations(LANGUAGES[language])['gone'].format(number=num_missing)}" if num_missing else ""


def _shorten(name: str) -> str:
    """A name that fits below a small picture: endings tell files apart."""
    return name if len(name) <= 12 else f"…{name[-10:]}"
