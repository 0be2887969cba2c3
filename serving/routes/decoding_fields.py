"""Decoding settings that a request may change: their ranges, and the decoding that the configuration and a request give together."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Form
from pydantic import AfterValidator, Field

from answering.answerer_factory import check_decoding
from answering.config import DecodingConfig, OpenAiSystem
from answering.protocol import Decoding
from errors import UsageError
from serving.http.error_responses import ServiceError
from serving.inputs.text_limits import check_well_formed
from serving.service import Service

TopP = Annotated[float, Field(gt=0.0, le=1.0)]
TopK = Annotated[int, Field(ge=-1)]
"""-1 and 0: all tokens."""
RepetitionPenalty = Annotated[float, Field(gt=0.0, le=10.0)]
CountPenalty = Annotated[float, Field(ge=-2.0, le=2.0)]
NgramSize = Annotated[int, Field(ge=0)]
LengthPenalty = Annotated[float, Field(ge=-10.0, le=10.0)]
StopText = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(check_well_formed)]
Strategy = Literal["beam", "sample", "greedy"]
StopTexts = Annotated[list[StopText], Field(max_length=4)]

SAMPLING_FIELDS = ("temperature", "top_p", "top_k")
"""Fields that act on sampled tokens alone."""


@dataclass(frozen=True)
class DecodingForm:
    """The decoding fields of a form; None leaves the configured value."""

    strategy: Annotated[Strategy | None, Form(description="Default: decoding.strategy", examples=["sample"])] = None
    temperature: Annotated[float | None, Form(gt=0.0, le=2.0, description="Of strategy=sample", examples=[0.7])] = None
    top_p: Annotated[TopP | None, Form(description="Of strategy=sample: share of probability to sample from", examples=[0.9])] = None
    top_k: Annotated[TopK | None, Form(description="Of strategy=sample: number of tokens to sample from", examples=[50])] = None
    repetition_penalty: Annotated[RepetitionPenalty | None, Form(description="1: none", examples=[1.1])] = None
    no_repeat_ngram_size: Annotated[NgramSize | None, Form(description="0: any sequence may repeat", examples=[3])] = None
    length_penalty: Annotated[LengthPenalty | None, Form(description="Of strategy=beam", examples=[1.0])] = None
    presence_penalty: Annotated[CountPenalty | None, Form(description="0: none", examples=[0.5])] = None
    frequency_penalty: Annotated[CountPenalty | None, Form(description="0: none", examples=[0.5])] = None
    stop: Annotated[StopTexts | None, Form(description="Texts before which the answer ends", examples=[["."]])] = None
    seed: Annotated[int | None, Form(description="Of strategy=sample", examples=[1])] = None

    def given(self) -> dict[str, Any]:
        """The fields that the request has."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def with_fields(service: Service, decoding: Decoding, given: Mapping[str, Any]) -> Decoding:
    """The decoding with fields of a request. Raises ServiceError 422 for one that the system cannot use.

    given: the fields, under the names of the configuration.
    """
    changes = dict(given)
    if "stop" in changes:
        changes["stop"] = tuple(changes["stop"])
    if "top_k" in changes:
        changes["top_k"] = max(changes["top_k"], 0)
    try:
        check_decoding(dataclasses.replace(DecodingConfig(), **changes), [service.plan.system])
    except UsageError as error:
        raise ServiceError(422, str(error).removeprefix("decoding."), "decoding") from error
    changed = dataclasses.replace(decoding, **changes)
    _check_strategy(service, changed, given)
    return changed


def _check_strategy(service: Service, decoding: Decoding, given: Mapping[str, Any]) -> None:
    """Refuse fields that the strategy would ignore. Raises ServiceError 422."""
    for name in SAMPLING_FIELDS:
        # An endpoint samples all candidates but the first, whatever the strategy.
        if name in given and decoding.strategy == "beam" and not isinstance(service.plan.system, OpenAiSystem):
            message = f"{name}: acts on sampled tokens, and this request is answered by beam search; send strategy=sample"
            raise ServiceError(422, message, name)
    if "length_penalty" in given and decoding.strategy != "beam":
        message = f"length_penalty: acts on beam search, and this request is answered by strategy={decoding.strategy}"
        raise ServiceError(422, message, "length_penalty")


def without_sampling(decoding: Decoding) -> Decoding:
    """Greedy decoding with the same penalties: requests that differ in what it does not use are equal, and share batches and answers."""
    return dataclasses.replace(decoding, strategy="greedy", num_candidates=1, temperature=1.0, top_p=1.0, top_k=0, length_penalty=1.0)
