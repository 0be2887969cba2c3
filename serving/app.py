"""The service as an ASGI application: the routes, wrapped in the request middleware."""

from typing import Any

from fastapi import Depends, FastAPI, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client import generate_latest
from pydantic import BaseModel, ConfigDict
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from serving.http import error_responses
from serving.http.middleware import RequestMiddleware
from serving.routes import chat, image_search, vqa
from serving.service import Service

DESCRIPTION = "Ask a vision-language model about images, and search images. Errors are JSON with an `error` and the `request_id`."


class Health(BaseModel):
    """State of the service. image_library_size: images in the search index; null if the index cannot be read."""

    model_config = ConfigDict(json_schema_extra={"examples": [{
        "status": "ok", "vqa_model_loaded": True, "clip_model_loaded": True, "image_library_size": 1200, "device": "cuda:0",
        "gpu_memory_allocated_gb": 4.1, "gpu_memory_reserved_gb": 4.8,
    }]})  # fmt: skip

    status: str
    vqa_model_loaded: bool
    clip_model_loaded: bool
    image_library_size: int | None
    device: str | None
    gpu_memory_allocated_gb: float
    gpu_memory_reserved_gb: float


def create_app(service: Service) -> ASGIApp:
    """The ASGI application of a service. The models are loaded when it starts."""
    auth_dependencies = [] if service.token is None else [Depends(HTTPBearer(auto_error=False))]
    example = error_responses.error_body(422, "question: expected 1 to 4000 characters, found 0", "text_length", "5f0c6f1e2f0a4f5c9d1b")
    failure = {"description": "The request failed", "content": {"application/json": {"example": example}}}
    responses: dict[int | str, dict[str, Any]] = {"4XX": failure, "5XX": failure}
    app = FastAPI(title="Tessera", description=DESCRIPTION, lifespan=lambda _: service.running(), responses=responses)
    error_responses.install_error_handlers(app)

    @app.get("/health", summary="State of the service", response_model=Health, responses={503: {"model": Health}}, tags=["state"])
    async def health() -> Any:
        return JSONResponse(await service.health(), 200 if service.engine is not None else 503)

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response, tags=["state"], dependencies=auth_dependencies)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    for routes in (vqa.router(service), chat.router(service), image_search.router(service)):
        app.include_router(routes, dependencies=auth_dependencies)
    checked, origins = RequestMiddleware(app, service), service.settings.allowed_origins
    if not origins:
        return checked
    # Outermost, so that scripts of other sites can read all answers, errors included.
    exposed = ["X-Request-ID", "X-Cache", "Retry-After"]
    return CORSMiddleware(checked, origins, allow_methods=["GET", "POST", "DELETE"], allow_headers=["*"], expose_headers=exposed)
