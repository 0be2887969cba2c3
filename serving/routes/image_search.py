"""The picture search over HTTP: POST /text2image_search, POST /images, DELETE /images/{id}."""

import base64
import io
from typing import Annotated, Any

from fastapi import APIRouter, File, Path, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from errors import TesseraError
from serving.http.error_responses import ServiceError
from serving.inputs.text_limits import clean_text
from serving.search.image_index import ImageIndex
from serving.search.lancedb_table import SearchHit
from serving.service import Service

EXAMPLE_IMAGE_ID = "3f786850e387550fdab836ed7e6dc881de23001b9a2d4f5b8c3e6f7a8b9c0d1e"


class SearchRequest(BaseModel):
    """What is searched for; as JSON or as a form."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text_query": "a red circle", "top_k": 5}]})

    text_query: str
    top_k: Annotated[int, Field(ge=1)] = 5


class SearchResult(BaseModel):
    """A picture that was found. image: the name of its file, or its id where it came without one; score: the cosine of text and
    picture; image_base64: a small JPEG, null where its file is gone by now."""

    id: str
    image: str
    score: float
    image_base64: str | None


class SearchResponse(BaseModel):
    """Pictures that fit a text, best first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "status": "success",
                    "query": "a red circle",
                    "results": [{"id": EXAMPLE_IMAGE_ID, "image": "000400000001.jpg", "score": 0.31, "image_base64": "/9j/4AAQSkZJRg..."}],
                }
            ]
        }
    )

    status: str
    query: str
    results: list[SearchResult]


class ImageResponse(BaseModel):
    """A picture of the library. id: SHA-256 of its bytes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "success", "id": EXAMPLE_IMAGE_ID}]})

    status: str
    id: str


ImageId = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="Id of a picture: SHA-256 of its bytes", examples=[EXAMPLE_IMAGE_ID])]


def router(service: Service) -> APIRouter:
    """The routes of the picture search."""
    routes = APIRouter(tags=["search"])
    schema = {"schema": SearchRequest.model_json_schema()}
    request_body_schema = {
        "requestBody": {"required": True, "content": {"application/json": schema, "application/x-www-form-urlencoded": schema}}
    }

    @routes.post("/text2image_search", summary="Find pictures by a text", response_model=SearchResponse, openapi_extra=request_body_schema)
    async def search(http_request: Request) -> Any:
        image_index, search_request = _require_index(service), await _read_search_request(http_request)
        text = clean_text(search_request.text_query, "text_query", service.settings.max_question_chars)
        if search_request.top_k > service.settings.max_results:
            raise ServiceError(422, f"top_k: at most {service.settings.max_results}, found {search_request.top_k}", "top_k")
        found = await service.run_in_search_thread(_results, image_index, text, search_request.top_k)
        return {"status": "success", "query": text, "results": found}

    @routes.post("/images", summary="Add a picture to the library", response_model=ImageResponse, status_code=201)
    async def add(image: Annotated[UploadFile, File(description="The image: JPEG, PNG, WebP, GIF or BMP")]) -> Any:
        image_index, data = _require_index(service), await image.read()
        async with service.decoder.decoded([data]):
            # Decoded for its checks alone: what is kept are the bytes.
            return {"status": "success", "id": await service.run_in_search_thread(image_index.add, data)}

    @routes.delete("/images/{image_id}", summary="Remove a picture from the library", response_model=ImageResponse)
    async def remove(image_id: ImageId) -> Any:
        if not await service.run_in_search_thread(_require_index(service).remove, image_id):
            raise ServiceError(404, f"there is no picture {image_id} in the library", "image_not_found")
        return {"status": "success", "id": image_id}

    return routes


def _require_index(service: Service) -> ImageIndex:
    service.ready()
    if service.image_index is None:
        raise ServiceError(404, "this service has no picture search (serve.search)", "no_library")
    return service.image_index


async def _read_search_request(http_request: Request) -> SearchRequest:
    """JSON, or the fields of a form. Raises RequestValidationError."""
    form = http_request.headers.get("content-type", "").startswith(("application/x-www-form-urlencoded", "multipart/form-data"))
    fields: Any = dict(await http_request.form()) if form else None
    try:
        return SearchRequest.model_validate(fields) if form else SearchRequest.model_validate_json(await http_request.body())
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]) from error


def _results(image_index: ImageIndex, text: str, k: int) -> list[dict[str, Any]]:
    return [
        {"id": one.id, "image": one.path.name if one.path else one.id, "score": one.score, "image_base64": _thumbnail(image_index, one)}
        for one in image_index.search_by_text(text, k)
    ]


def _thumbnail(image_index: ImageIndex, found: SearchHit) -> str | None:
    """None where the file was removed or damaged since it was indexed."""
    jpeg = io.BytesIO()
    try:
        image_index.thumbnail(found).save(jpeg, "JPEG", quality=90)
    except TesseraError:
        return None
    return base64.b64encode(jpeg.getvalue()).decode("ascii")
