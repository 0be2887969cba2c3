"""The state that the routes share: settings, engine, request queue, answer cache, image index and metrics."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from dataset.loading.image_io import ImageError
from errors import TesseraError
from serving.answer_cache import AnswerCache
from serving.config import ServeConfig
from serving.engine import Engine, LoadPlan, Task
from serving.http.body_limits import BodyLimits
from serving.http.error_responses import ServiceError
from serving.inputs.image_decoder import ImageDecoder
from serving.prometheus_metrics import Metrics
from serving.request_batcher import Batcher, Job
from serving.search.image_index import ImageIndex

T = TypeVar("T")

log = logging.getLogger("tessera.serve")

MAX_IMAGES_IN_MEMORY = 8
"""Number of images of the largest size that may be in memory at the same time."""


@dataclass
class Service:
    """One running service.

    Args:
        load: loads the engine; called in the model's thread.
        open_image_index: opens the index of the image search; None: no search.
        token: bearer token that clients must send; None: no token is required.
        on_failure: called when loading fails or the batcher stops with an error, which is then `failure`.
        engine: the loaded models; None while they are being loaded.
        in_progress: number of whole requests that wait or are being answered.
    """

    settings: ServeConfig
    plan: LoadPlan
    load: Callable[[LoadPlan], Engine] = Engine.load
    open_image_index: Callable[[], ImageIndex] | None = None
    token: str | None = None
    on_failure: Callable[[], None] = lambda: None
    engine: Engine | None = None
    image_index: ImageIndex | None = None
    failure: BaseException | None = None
    in_progress: int = 0

    def __post_init__(self) -> None:
        settings = self.settings
        self.cache: AnswerCache[Any] = AnswerCache(int(settings.cache_mib * 2**20))
        self._search_executor = ThreadPoolExecutor(1, "search")
        self.bodies = BodyLimits(settings.max_uploads, max(settings.max_upload_bytes, settings.max_bytes), settings.upload_silence_seconds)
        self.decoder = ImageDecoder(settings.max_pixels, MAX_IMAGES_IN_MEMORY * settings.max_pixels)
        gauges_by_name = {
            "tessera_queue_length": ("Waiting questions", lambda: self.batcher.waiting),
            "tessera_uploads_in_progress": ("Requests being read", lambda: len(self.bodies)),
            "tessera_requests_in_progress": ("Whole requests waiting or being answered", lambda: self.in_progress),
            "tessera_cache_hits_total": ("Questions answered from the cache", lambda: self.cache.hits),
            "tessera_cache_misses_total": ("Questions not found in the cache", lambda: self.cache.misses),
            "tessera_cache_bytes": ("Size of the answer cache", lambda: self.cache.bytes),
            "tessera_ready": ("1 when the models are loaded", lambda: self.engine is not None),
        }
        self.metrics = Metrics(gauges_by_name)
        self.batcher: Batcher[Task] = Batcher(
            lambda jobs: self.ready().work(jobs),
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_ms / 1000,
            max_queue=settings.max_queue,
            on_batch=self.metrics.observe_batch,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the models, and answer while the context is open. Until they are loaded, requests get 503."""
        worker_task = asyncio.create_task(self._load_and_answer())
        worker_task.add_done_callback(self._on_worker_exit)
        yield
        worker_task.cancel()
        await asyncio.gather(worker_task, return_exceptions=True)
        # It waits for the running batch.
        await asyncio.to_thread(self.batcher.thread.shutdown)

    def ready(self) -> Engine:
        """The engine. Raises ServiceError 503 while the models are being loaded."""
        if self.engine is None:
            raise ServiceError(503, "the models are being loaded", "loading", retry_after=5)
        return self.engine

    def submit(self, task: Task) -> Job[Task]:
        """Queue a task. Raises ServiceError: 503 while the models are being loaded, 429 if the queue is full."""
        return self.batcher.submit(self.ready().key(task), task)

    async def run_in_search_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run `work` on the image index, one call at a time, in a thread of its own.

        Raises ServiceError: 422 for a refused image, 503 if the index cannot be read or written.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._search_executor, work, *arguments)
        except ImageError as error:
            raise ServiceError(422, str(error), "image_damaged") from error
        except TesseraError as error:
            log.error("the image search failed: %s", error)
            raise ServiceError(503, "the image search is not available; the server's log has the reason", "search") from error

    async def health(self) -> dict[str, object]:
        """The response of GET /health."""
        engine, cuda = self.engine, torch.cuda.is_available()
        num_images = 0 if self.image_index is None else None
        if self.image_index is not None:
            # Questions can be answered even if the index cannot be read.
            with suppress(ServiceError):
                num_images = await self.run_in_search_thread(len, self.image_index)
        return {
            "status": "ok" if engine is not None else "loading",
            "vqa_model_loaded": engine is not None,
            "clip_model_loaded": engine is not None and engine.reranker is not None and bool(engine.reranker.scorers),
            "image_library_size": num_images,
            "device": engine.device if engine is not None else None,
            "gpu_memory_allocated_gb": torch.cuda.memory_allocated() / 2**30 if cuda else 0.0,
            "gpu_memory_reserved_gb": torch.cuda.memory_reserved() / 2**30 if cuda else 0.0,
        }

    async def _load_and_answer(self) -> None:
        """Open the index, load the models, then answer until cancelled."""
        loop = asyncio.get_running_loop()
        if self.open_image_index is not None:
            self.image_index = await loop.run_in_executor(self.batcher.thread, self.open_image_index)
        self.engine = await loop.run_in_executor(self.batcher.thread, self.load, self.plan)
        log.info("ready: %s answers", self.plan.name)
        await self.batcher.run()

    def _on_worker_exit(self, worker_task: asyncio.Task[None]) -> None:
        """Keep the error that stopped the worker, and tell the owner of the service."""
        if not worker_task.cancelled() and (error := worker_task.exception()) is not None:
            self.failure = error
            self.on_failure()
