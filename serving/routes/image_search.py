"""The picture search over HTTP: POST /text2image_search, POST /images, DELETE /images/{id}."""

import base64
import io
from typing import Annotated, Any

from fastapi import APIRouter, File, Path, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from errors import TesseraError
from serving.http.error_responses import ServiceError
from serving.inputs.text_limits import checked
from serving.search.image_index import PictureIndex
from serving.search.lancedb_table import Found
from serving.service import Service

PICTURE_ID = "3f786850e387550fdab836ed7e6dc881de23001b9a2d4f5b8c3e6f7a8b9c0d1e"


class SearchBody(BaseModel):
    """What is searched for; as JSON or as a form."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text_query": "a red circle", "top_k": 5}]})

    text_query: str
    top_k: Annotated[int, Field(ge=1)] = 5


class FoundBody(BaseModel):
    """A picture that was found. image: the name of its file, or its id where it came without one; score: the cosine of text and
    picture; image_base64: a small JPEG, null where its file is gone by now."""

    id: str
    image: str
    score: float
    image_base64: str | None


class ResultsBody(BaseModel):
    """Pictures that fit a text, best first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "status": "success",
                    "query": "a red circle",
                    "results": [{"id": PICTURE_ID, "image": "000400000001.jpg", "score": 0.31, "image_base64": "/9j/4AAQSkZJRg..."}],
                }
            ]
        }
    )

    status: str
    query: str
    results: list[FoundBody]


class PictureBody(BaseModel):
    """A picture of the library. id: SHA-256 of its bytes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "success", "id": PICTURE_ID}]})

    status: str
    id: str


PictureId = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="Id of a picture: SHA-256 of its bytes", examples=[PICTURE_ID])]


def router(service: Service) -> APIRouter:
    """The routes of the picture search."""
    routes = APIRouter(tags=["search"])
    schema = {"schema": SearchBody.model_json_schema()}
    either = {"requestBody": {"required": True, "content": {"application/json": schema, "application/x-www-form-urlencoded": schema}}}

    @routes.post("/text2image_search", summary="Find pictures by a text", response_model=ResultsBody, openapi_extra=either)
    async def search(http: Request) -> Any:
        library, asked = _library(service), await _read(http)
        text = checked(asked.text_query, "text_query", service.settings.max_question)
        if asked.top_k > service.settings.max_results:
            raise ServiceError(422, f"top_k: at most {service.settings.max_results}, found {asked.top_k}", "top_k")
        found = await service.in_library(_results, library, text, asked.top_k)
        return {"status": "success", "query": text, "results": found}

    @routes.post("/images", summary="Add a picture to the library", response_model=PictureBody, status_code=201)
    async def add(image: Annotated[UploadFile, File(description="The picture: JPEG, PNG, WebP, GIF or BMP")]) -> Any:
        library, data = _library(service), await image.read()
        async with service.decoder.decoded([data]):
            # Decoded for its checks alone: what is kept are the bytes.
            return {"status": "success", "id": await service.in_library(library.add, data)}

    @routes.delete("/images/{picture_id}", summary="Remove a picture from the library", response_model=PictureBody)
    async def remove(picture_id: PictureId) -> Any:
        if not await service.in_library(_library(service).remove, picture_id):
            raise ServiceError(404, f"there is no picture {picture_id} in the library", "picture_not_found")
        return {"status": "success", "id": picture_id}

    return routes


def _library(service: Service) -> PictureIndex:
    service.ready()
    if service.library is None:
        raise ServiceError(404, "this service has no picture search (serve.search)", "no_library")
    return service.library


async def _read(http: Request) -> SearchBody:
    """JSON, or the fields of a form. Raises RequestValidationError."""
    form = http.headers.get("content-type", "").startswith(("application/x-www-form-urlencoded", "multipart/form-data"))
    fields: Any = dict(await http.form()) if form else None
    try:
        return SearchBody.model_validate(fields) if form else SearchBody.model_validate_json(await http.body())
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]) from error


def _results(library: PictureIndex, text: str, k: int) -> list[dict[str, Any]]:
    return [
        {"id": one.id, "image": one.path.name if one.path else one.id, "score": one.score, "image_base64": _thumbnail(library, one)}
        for one in library.search_text(text, k)
    ]


def _thumbnail(library: PictureIndex, found: Found) -> str | None:
    """None where the file was removed or damaged since it was indexed."""
    jpeg = io.BytesIO()
    try:
        library.thumbnail(found).save(jpeg, "JPEG", quality=90)
    except TesseraError:
        return None
    return base64.b64encode(jpeg.getvalue()).decode("ascii")
