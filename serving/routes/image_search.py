"""Image search over HTTP: POST /text2image_search, POST /images, DELETE /images/{id}."""

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
    """A search by text; as JSON or as a form."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text_query": "a red circle", "top_k": 5}]})

    text_query: str
    top_k: Annotated[int, Field(ge=1)] = 5


class SearchResult(BaseModel):
    """A search result. image: name of its file, or its id if it was uploaded; score: cosine similarity of text and image;
    image_base64: thumbnail as JPEG, null if the file is missing or damaged."""

    id: str
    image: str
    score: float
    image_base64: str | None


class SearchResponse(BaseModel):
    """The images that fit a text best, best first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{
        "status": "success", "query": "a red circle",
        "results": [{"id": EXAMPLE_IMAGE_ID, "image": "000400000001.jpg", "score": 0.31, "image_base64": "/9j/4AAQSkZJRg..."}],
    }]})  # fmt: skip

    status: str
    query: str
    results: list[SearchResult]


class ImageResponse(BaseModel):
    """An image of the index. id: SHA-256 of its bytes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "success", "id": EXAMPLE_IMAGE_ID}]})

    status: str
    id: str


ImageId = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="Id of an image: SHA-256 of its bytes", examples=[EXAMPLE_IMAGE_ID])]


def router(service: Service) -> APIRouter:
    """The routes of the image search."""
    routes = APIRouter(tags=["search"])
    schema = {"schema": SearchRequest.model_json_schema()}
    body = {"required": True, "content": {"application/json": schema, "application/x-www-form-urlencoded": schema}}
    openapi = {"requestBody": body}

    @routes.post("/text2image_search", summary="Search images by text", response_model=SearchResponse, openapi_extra=openapi)
    async def search(http_request: Request) -> Any:
        image_index, search_request = _require_index(service), await _read_search_request(http_request)
        text = clean_text(search_request.text_query, "text_query", service.settings.max_question_chars)
        if search_request.top_k > service.settings.max_results:
            raise ServiceError(422, f"top_k: at most {service.settings.max_results}, found {search_request.top_k}", "top_k")
        results = await service.run_in_search_thread(_results, image_index, text, search_request.top_k)
        return {"status": "success", "query": text, "results": results}

    @routes.post("/images", summary="Add an image to the index", response_model=ImageResponse, status_code=201)
    async def add(image: Annotated[UploadFile, File(description="The image: JPEG, PNG, WebP, GIF or BMP")]) -> Any:
        image_index, data = _require_index(service), await image.read()
        async with service.decoder.decoded([data]):
            # Decoded only to check it: the index stores the bytes.
            return {"status": "success", "id": await service.run_in_search_thread(image_index.add, data)}

    @routes.delete("/images/{image_id}", summary="Remove an image from the index", response_model=ImageResponse)
    async def remove(image_id: ImageId) -> Any:
        if not await service.run_in_search_thread(_require_index(service).remove, image_id):
            raise ServiceError(404, f"the index has no image {image_id}", "image_not_found")
        return {"status": "success", "id": image_id}

    return routes


def _require_index(service: Service) -> ImageIndex:
    service.ready()
    if service.image_index is None:
        raise ServiceError(404, "this service has no image search (serve.search)", "no_library")
    return service.image_index


async def _read_search_request(http_request: Request) -> SearchRequest:
    """Parse JSON or the fields of a form. Raises RequestValidationError."""
    form = http_request.headers.get("content-type", "").startswith(("application/x-www-form-urlencoded", "multipart/form-data"))
    fields: Any = dict(await http_request.form()) if form else None
    try:
        return SearchRequest.model_validate(fields) if form else SearchRequest.model_validate_json(await http_request.body())
    except ValidationError as error:
        raise RequestValidationError([{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors(include_url=False)]) from error


def _results(image_index: ImageIndex, text: str, k: int) -> list[dict[str, Any]]:
    return [
        {"id": hit.id, "image": hit.path.name if hit.path else hit.id, "score": hit.score, "image_base64": _thumbnail(image_index, hit)}
        for hit in image_index.search_by_text(text, k)
    ]


def _thumbnail(image_index: ImageIndex, hit: SearchHit) -> str | None:
    """The thumbnail as base64 JPEG; None if the file was removed or damaged since it was indexed."""
    jpeg = io.BytesIO()
    try:
        image_index.thumbnail(hit).save(jpeg, "JPEG", quality=90)
    except TesseraError:
        return None
    return base64.b64encode(jpeg.getvalue()).decode("ascii")
