"""Turn a question and an answer into one text for an image-text scorer: joined, or a sentence by the templates in statements.yaml."""

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from dataset.sample import Language, question_text

StatementForm = Literal["joined", "sentence"]
"""joined = the question followed by the answer; sentence = a sentence if a template matches, else joined."""

_LOCATION_PREPOSITIONS = (
    r"(?:in|on|at|under|over|above|below|beneath|behind|beside|near|next|between|inside|outside|against|to|outdoors|indoors)\b"
)
_SIDE, _PART = r"(?:the )?(?:left|right)", r"(?:the )?(?:top|bottom|upper|lower|center|centre|middle)\b.*"


@dataclass(frozen=True, slots=True)
class _Rule:
    """A pattern of questions, and the template of their statements: `statement`, or `if_yes` and `if_no`."""

    kind: str
    question: re.Pattern[str]
    statement: str | None = None
    if_yes: str | None = None
    if_no: str | None = None


@dataclass(frozen=True, slots=True)
class _Templates:
    """The rules of a language. yes, no: answers with that meaning; lead_in: what is removed from the start of a question."""

    separator: str
    end: str
    yes: frozenset[str]
    no: frozenset[str]
    lead_in: re.Pattern[str]
    rules: tuple[_Rule, ...]


def statement(question: str, answer: str, language: Language, statement_form: StatementForm = "joined") -> str:
    """The question and the answer as one text on one line, without image placeholders.

    sentence: by the first matching template of `statements.yaml`; joined if none matches.
    """
    text = sentence(question, answer, language) if statement_form == "sentence" else None
    return text or _templates()[language].separator.join((question_text(question), question_text(answer))).strip()


def sentence(question: str, answer: str, language: Language) -> str | None:
    """A declarative sentence made of question and answer; None if no template matches or the answer is empty."""
    templates, bare_answer = _templates()[language], question_text(answer).rstrip(".。!！")
    matching = _matching_rule(question, language)
    if matching is None or not bare_answer:
        return None
    rule, match = matching
    word = bare_answer.casefold()
    template = rule.statement or (rule.if_yes if word in templates.yes else rule.if_no if word in templates.no else None)
    if not template:
        return None
    text = " ".join(template.format_map(_fields(match.groupdict(), bare_answer)).split())
    return text[0].upper() + text[1:] + templates.end


def strip_lead_in(question: str, language: Language) -> str:
    """A question without its question mark and without introductory phrases ("In this picture, ...")."""
    text = question_text(question).rstrip("?？.。!！ ")
    while (shorter := _templates()[language].lead_in.sub("", text, count=1)) != text:
        text = shorter
    return text


def _matching_rule(question: str, language: Language) -> tuple[_Rule, re.Match[str]] | None:
    text = strip_lead_in(question, language)
    # Lower-case the first word, unless it is an abbreviation.
    text = text if text[1:2].isupper() else text[:1].lower() + text[1:]
    return next(((rule, match) for rule in _templates()[language].rules if (match := rule.question.fullmatch(text))), None)


def _fields(groups: dict[str, str | None], answer: str) -> dict[str, str]:
    """The fields of a template: the groups of the question, the answer, and inflected forms of both."""
    fields = {name: text or "" for name, text in groups.items()}
    fields["answer"] = answer + "的" * (fields.get("of") == "的" and not answer.endswith("的"))
    fields["of"] = ""
    measure = fields.get("measure", "")
    fields["number"] = answer.removesuffix(measure) if measure else answer
    fields["place"] = _location_phrase(answer)
    fields |= {name: fields[name].lower() for name in ("be", "aux") if name in fields}
    if "verb" in fields:
        fields["finite"] = _finite_verb(fields.get("aux", ""), fields["verb"])
    return fields


def _location_phrase(answer: str) -> str:
    """An answer as an English phrase of location: "left" -> "on the left", "kitchen" -> "in the kitchen"."""
    if re.match(_LOCATION_PREPOSITIONS, answer, re.IGNORECASE):
        return answer
    preposition = "on" if re.fullmatch(_SIDE, answer, re.IGNORECASE) else "at" if re.fullmatch(_PART, answer, re.IGNORECASE) else "in"
    named = answer[:1].isupper() or re.match(r"(?:the|an?|his|her|its|their|my) ", answer, re.IGNORECASE)
    return f"{preposition} {answer}" if named else f"{preposition} the {answer}"


def _finite_verb(auxiliary: str, verb: str) -> str:
    """The finite verb of a statement whose question has the auxiliary do, does or did."""
    if auxiliary == "does":
        if verb.lower() == "have":
            return "has"
        if re.search(r"[^aeiou]y$", verb):
            return verb[:-1] + "ies"
        return verb + ("es" if re.search(r"(?:s|sh|ch|x|o)$", verb) else "s")
    return f"did {verb}" if auxiliary == "did" else verb


@cache
def _templates() -> dict[Language, _Templates]:
    data = yaml.safe_load(resources.files("answering.rerank").joinpath("statements.yaml").read_text(encoding="utf-8"))
    return {"en": _parse_templates(data["en"]), "zh": _parse_templates(data["zh"])}


def _parse_templates(data: dict[str, Any]) -> _Templates:
    words: dict[str, str] = {}
    for name, expression in data["words"].items():
        words[name] = _expand_words(expression, words)
    rules = [_Rule(**{**rule, "question": re.compile(_expand_words(rule["question"], words), re.IGNORECASE)}) for rule in data["rules"]]
    lead_in = re.compile("^(?:" + "|".join(f"(?:{expression})" for expression in data["before"]) + ")", re.IGNORECASE)
    return _Templates(data["joint"], data["end"], frozenset(data["yes_words"]), frozenset(data["no_words"]), lead_in, tuple(rules))


def _expand_words(expression: str, words: dict[str, str]) -> str:
    """An expression with <WORDS> replaced by their patterns; named groups (?P<NAME>...) are left unchanged."""
    return re.sub(r"(?<!\?P)<([A-Z]+)>", lambda match: f"(?:{words[match[1]]})", expression)
