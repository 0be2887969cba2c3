"""Fields of OpenAI's chat completions that ask for nothing, and why what others ask for cannot be had here.

null means the same as leaving a field out, and so does the value that changes nothing. In: objects of a request. Out: the same objects
without such fields. Source: OpenAI's API reference, "Create chat completion".
"""

from collections.abc import Mapping
from typing import Any

from serving.http.validation_messages import FieldError, describe_value

NO_TOOLS = "the model calls no tools; leave it out"
NO_CACHE = "there is no cache of prompts to set up; leave it out"

Unsupported = Mapping[str, tuple[tuple[Any, ...], str]]
"""By field: its neutral values, and why it can have no other."""

REQUEST_FIELDS: Unsupported = {
    "audio": ((), "answers are text; leave it out"),
    "function_call": (("none", "auto"), NO_TOOLS),
    "functions": (([],), NO_TOOLS),
    "logit_bias": (({},), "single tokens cannot be made more or less probable; leave it out"),
    "modalities": (([], ["text"]), "answers are text; leave it out or send ['text']"),
    "moderation": ((), "answers are not moderated; leave it out"),
    "parallel_tool_calls": ((True, False), NO_TOOLS),
    "prediction": ((), "a predicted answer is not used; leave it out"),
    "prompt_cache_options": (({},), NO_CACHE),
    "prompt_cache_retention": (("in_memory",), NO_CACHE),
    "reasoning_effort": (("none",), "the model answers without reasoning first; leave it out or send 'none'"),
    "response_format": (({}, {"type": "text"}), "answers are free text; leave it out, or ask for the form in the question"),
    "service_tier": (("auto", "default"), "all requests are served alike; leave it out or send 'auto'"),
    "store": ((False,), "answers are not stored; leave it out or send false"),
    "tool_choice": (("none", "auto"), NO_TOOLS),
    "tools": (([],), NO_TOOLS),
    "top_logprobs": ((0,), "only the log-probabilities of the answer's own tokens are known; leave it out"),
    "verbosity": (("medium",), "the length of an answer is limited by max_tokens alone; leave it out"),
    "web_search_options": ((), "the model does not search the web; leave it out"),
}
MESSAGE_FIELDS: Unsupported = {
    "annotations": (([],), "annotations of an answer are not read; leave them out"),
    "audio": ((), "audio is not read; leave it out"),
    "function_call": ((), NO_TOOLS),
    "name": ((), "the model is not told names; leave it out, or write it into the content"),
    "tool_call_id": ((), NO_TOOLS),
    "tool_calls": (([],), NO_TOOLS),
}
PART_FIELDS: Unsupported = {"prompt_cache_breakpoint": ((), NO_CACHE)}
STREAM_FIELDS: Unsupported = {"include_obfuscation": ((False,), "chunks are not padded; leave it out or send false")}


def without_neutral(value: object, unsupported: Unsupported) -> object:
    """An object of a request without null and neutral fields; any other value unchanged.

    Raises FieldError for a field that asks for what cannot be had.
    """
    if not isinstance(value, Mapping):
        return value
    given = {name: item for name, item in value.items() if item is not None}
    for name in given.keys() & unsupported.keys():
        neutral, reason = unsupported[name]
        # A number is not taken for the truth value that Python holds equal to it.
        if not any(given[name] == item and isinstance(given[name], bool) == isinstance(item, bool) for item in neutral):
            raise FieldError(name, f"{reason} (found {describe_value(given[name])})")
        del given[name]
    return given
