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
from dataset.loading.image_io import PictureError, open_picture
from errors import TesseraError
from serving.demo.session import Talker, Turn, rows
from serving.search.image_index import PictureIndex
from serving.search.lancedb_table import Found
from visual.clip_scorer import ClipScorer

LANGUAGES = {"English": "en", "中文": "zh"}
FOUND = 12
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
class Parts:
    """What the page talks to. Where something is missing, the text says why, and the page says it to whoever asks."""

    talker: Talker | str
    other: Talker | None
    scorer: ClipScorer | None
    index: PictureIndex | str
    examples: Sequence[Path]


class PageError(TesseraError):
    """Something that the page says instead of a result: a key of words.yaml, with what is filled in."""

    def __init__(self, key: str, **values: object):
        super().__init__(key)
        self.key, self.values = key, values


@functools.cache
def words(language: str) -> dict[str, Any]:
    """The page's words in a language, en or zh."""
    every: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "translations.yaml").read_text(encoding="utf-8"))
    return every[language]


class Page:
    """The page's parts, each with the words that it changes with the language."""

    def __init__(self, parts: Parts):
        self.parts = parts
        self.translated: list[tuple[Any, Callable[[dict[str, Any]], dict[str, Any]]]] = []

    def build(self) -> gr.Blocks:
        """The whole page."""
        with gr.Blocks(title="Tessera") as blocks:
            with gr.Row():
                with gr.Column(scale=5):
                    self._add(gr.Markdown(), value="title")
                    self._add(gr.Markdown(), value="intro")
                with gr.Column(scale=1, min_width=240):
                    choice = gr.Radio(list(LANGUAGES), value="English", elem_id="language", container=False)
                    language = self._add(choice, label="language")
            status = gr.Markdown(elem_id="status", visible=True)
            with gr.Row():
                with gr.Column(scale=2, min_width=280):
                    picture = self._add(_picture_box(), label="picture")
                    if self.parts.examples:
                        gr.Examples([[str(path)] for path in self.parts.examples], picture, label="Examples / 示例", cache_examples=False)
                with gr.Column(scale=5):
                    self._ask_tab(picture, language, status)
                    self._compare_tab(picture, language, status)
                    self._search_tab(picture, language, status)
                    self._labels_tab(picture, language, status)
            language.change(self._translate, language, [component for component, _ in self.translated])
        return blocks

    def _add(self, component: Any, **keys: str) -> Any:
        """A component whose properties are words of the page."""

        def properties(of: dict[str, Any]) -> dict[str, Any]:
            return {name: of[key] for name, key in keys.items()}

        for name, value in properties(words("en")).items():
            setattr(component, name, value)
        self.translated.append((component, properties))
        return component

    def _translate(self, language: str) -> list[Any]:
        return [gr.update(**properties(words(LANGUAGES[language]))) for _, properties in self.translated]

    def _ask_tab(self, picture: gr.Image, language: gr.Radio, status: gr.Markdown) -> None:
        with self._add(gr.Tab(), label="ask_tab"):
            turns = gr.State([])
            chat = self._add(gr.Chatbot(height=300, buttons=[], elem_id="chat", show_label=False), label="conversation")
            question = self._add(gr.Textbox(elem_id="question"), label="question", placeholder="question_hint")
            with gr.Row():
                ask = self._add(gr.Button(variant="primary", elem_id="ask"), value="ask")
                caption = self._add(gr.Button(elem_id="caption"), value="caption")
                clear = self._add(gr.Button(elem_id="clear"), value="clear")
            table = self._add(_empty_table("candidates"), label="candidates")
        shown = [chat, turns, table, question, status]
        for event in (ask.click, question.submit):
            event(self.ask, [picture, question, turns, language], shown)
        caption.click(self.caption, [picture, turns, language], shown)
        for event in (clear.click, chat.clear, picture.change):
            event(lambda language: ([], [], _framed([], language), ""), language, [chat, turns, table, status])
        language.change(_framed, [table, language], table)

    def _compare_tab(self, picture: gr.Image, language: gr.Radio, status: gr.Markdown) -> None:
        with self._add(gr.Tab(), label="compare_tab"):
            question = self._add(gr.Textbox(elem_id="compared_question"), label="question", placeholder="question_hint")
            button = self._add(gr.Button(variant="primary", elem_id="compare"), value="compare")
            with gr.Row():
                answers = [gr.Textbox(label=name, interactive=False, elem_id=f"answer_{i}") for i, name in enumerate(self._names())]
            with gr.Row():
                tables = [self._add(_empty_table(f"compared_{i}"), label="candidates") for i in range(len(answers))]
        button.click(self.compare, [picture, question, language], [*answers, *tables, status])
        for table in tables:
            language.change(_framed, [table, language], table)

    def _search_tab(self, picture: gr.Image, language: gr.Radio, status: gr.Markdown) -> None:
        with self._add(gr.Tab(), label="search_tab"):
            text = self._add(gr.Textbox(elem_id="search_text"), label="search_text", placeholder="search_hint")
            with gr.Row():
                by_text = self._add(gr.Button(variant="primary", elem_id="search"), value="search")
                by_picture = self._add(gr.Button(elem_id="alike"), value="alike")
            pictures = gr.Gallery(columns=4, height="auto", object_fit="contain", elem_id="results", show_label=False)
            gallery = self._add(pictures, label="results")
        for event in (by_text.click, text.submit):
            event(self.search_text, [text, language], [gallery, status])
        by_picture.click(self.search_picture, [picture, language], [gallery, status])

    def _labels_tab(self, picture: gr.Image, language: gr.Radio, status: gr.Markdown) -> None:
        with self._add(gr.Tab(), label="labels_tab"):
            labels = self._add(gr.Textbox(elem_id="labels"), label="labels", placeholder="labels_hint")
            button = self._add(gr.Button(variant="primary", elem_id="classify"), value="label")
            shares = self._add(gr.Label(elem_id="shares"), label="shares")
        for event in (button.click, labels.submit):
            event(self.classify, [picture, labels, language], [shares, status])

    def ask(self, picture: str | None, question: str, turns: list[Turn], language: str) -> Iterator[tuple[Any, ...]]:
        """Chat, turns, table, question and status: while the answer comes, and once more with its candidates."""
        try:
            talker, path = self._talker(), _picture(picture)
            if not question.strip():
                raise PageError("no_question")
            for text in talker.stream(path, turns, question):
                yield _chat([*turns, (question, text)]), turns, gr.skip(), question, ""
            answered = talker.ask(path, turns, question)
        except TesseraError as error:
            yield _chat(turns), turns, gr.skip(), question, _sentence(error, language)
            return
        done = [*turns, (question, answered.chosen)]
        yield _chat(done), done, _framed(_table(rows(answered)), language), "", _trust(answered, language)

    def caption(self, picture: str | None, turns: list[Turn], language: str) -> Iterator[tuple[Any, ...]]:
        """The same for a description, which has no candidates."""
        question = words(LANGUAGES[language])["caption_question"]
        text = ""
        try:
            for text in self._talker().stream(_picture(picture), [], question, "caption"):
                yield _chat([*turns, (question, text)]), turns, _framed([], language), gr.skip(), ""
        except TesseraError as error:
            yield _chat(turns), turns, gr.skip(), gr.skip(), _sentence(error, language)
            return
        done = [*turns, (question, text)]
        yield _chat(done), done, _framed([], language), gr.skip(), ""

    def compare(self, picture: str | None, question: str, language: str) -> tuple[Any, ...]:
        """Both answers, both tables, status."""
        try:
            talkers, path = (self._talker(), self.parts.other), _picture(picture)
            if talkers[1] is None:
                raise PageError("no_other")
            if not question.strip():
                raise PageError("no_question")
            answered = [talker.ask(path, [], question) for talker in talkers if talker is not None]
        except TesseraError as error:
            return "", "", gr.skip(), gr.skip(), _sentence(error, language)
        tables = [_framed(_table(rows(one)), language) for one in answered]
        trusted = [f"{name}: {said}" for name, one in zip(self._names(), answered, strict=True) if (said := _trust(one, language))]
        return *(one.chosen for one in answered), *tables, "  \n".join(trusted)

    def search_text(self, text: str, language: str) -> tuple[Any, str]:
        """Gallery and status."""
        try:
            index = self._index()
            if not text.strip():
                raise PageError("no_text")
            return _gallery(index, index.search_text(text, FOUND), language)
        except TesseraError as error:
            return [], _sentence(error, language)

    def search_picture(self, picture: str | None, language: str) -> tuple[Any, str]:
        """Gallery and status."""
        try:
            index = self._index()
            return _gallery(index, index.search_picture(_picture(picture), FOUND), language)
        except TesseraError as error:
            return [], _sentence(error, language)

    def classify(self, picture: str | None, labels: str, language: str) -> tuple[Any, str]:
        """Share of each label, and status."""
        try:
            path = _picture(picture)
            if self.parts.scorer is None:
                raise PageError("no_clip")
            named = [label for label in map(str.strip, re.split("[,，]", labels)) if label]
            if not named:
                raise PageError("no_labels")
            return dict(zip(named, self.parts.scorer.probabilities(path, named), strict=True)), ""
        except TesseraError as error:
            return None, _sentence(error, language)

    def _names(self) -> list[str]:
        """What the two systems are called."""
        return [one.name if isinstance(one, Talker) else "–" for one in (self.parts.talker, self.parts.other)]

    def _talker(self) -> Talker:
        if isinstance(self.parts.talker, str):
            raise PageError("no_model", reason=self.parts.talker)
        return self.parts.talker

    def _index(self) -> PictureIndex:
        if isinstance(self.parts.index, str):
            raise PageError("no_search", reason=self.parts.index)
        return self.parts.index


def launch(parts: Parts, host: str, port: int, *, wait: bool = True) -> gr.Blocks:
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


def _picture(name: str | None) -> Path:
    """The picture that was chosen, known to be one."""
    if not name:
        raise PageError("no_picture")
    try:
        open_picture(Path(name))
    except PictureError as error:
        raise PageError("not_picture", reason=str(error).removeprefix(f"{name}: ")) from error
    return Path(name)


def _sentence(error: TesseraError, language: str) -> str:
    of = words(LANGUAGES[language])
    if isinstance(error, PageError):
        return f"⚠️ {of[error.key].format(**error.values)}"
    return f"⚠️ {of['not_answered'].format(reason=error)}"


def _chat(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]


def _table(shown: Sequence[Any]) -> list[list[str]]:
    return [["✓" if row.chosen else "", row.text, _percent(row.likelihood), _number(row.clip, 2), _number(row.fused)] for row in shown]


def _framed(cells: list[list[str]], language: str) -> dict[str, Any]:
    """A table of candidates under the headings of a language: its cells alone would lose them."""
    return {"headers": words(LANGUAGES[language])["columns"], "data": cells}


def _empty_table(elem_id: str) -> gr.Dataframe:
    """A table of candidates, whose columns keep their widths on a phone too."""
    widths = ["19%", "25%", "25%", "15%", "16%"]
    return gr.Dataframe(
        _framed([], "English"), type="array", interactive=False, elem_id=elem_id, elem_classes="candidates", column_widths=widths,
        wrap=True, buttons=[],
    )  # fmt: skip


def _percent(value: float | None) -> str:
    """A probability for people."""
    if value is None:
        return "–"
    return "< 0.1 %" if 0 <= value < 0.0005 else f"{value:.1%}".replace("%", " %")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _trust(answered: Reply, language: str) -> str:
    """How far an answer can be trusted, where that is known."""
    if answered.credibility is None:
        return ""
    return str(words(LANGUAGES[language])["credibility"]).format(share=f"{answered.credibility:.0%}")


def _picture_box() -> gr.Image:
    """Where a picture is put. Files come as they are: the component itself would meet one that is no picture with an error of its own."""
    box = gr.Image(type="filepath", height=320, sources=["upload", "clipboard"], elem_id="picture")
    box.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return box


def _gallery(index: PictureIndex, found: Sequence[Found], language: str) -> tuple[list[tuple[Any, str]], str]:
    """Pictures with their scores, and a sentence where some are no longer there."""
    shown, gone = [], 0
    for one in found:
        try:
            shown.append((index.thumbnail(one, 360), f"{one.score:.3f}  {_short(one.path.name if one.path else one.id[:12])}"))
        except TesseraError:
            gone += 1
    return shown, f"⚠️ {words(LANGUAGES[language])['gone'].format(number=gone)}" if gone else ""


def _short(name: str) -> str:
    """A name that fits below a small picture: endings tell files apart."""
    return name if len(name) <= 12 else f"…{name[-10:]}"
