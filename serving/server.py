"""The server process: listens, loads the models, answers until it is stopped, and finishes accepted requests."""

import logging
import math
import os
from collections.abc import Callable
from types import FrameType

import uvicorn

from errors import TesseraError, UsageError
from serving.app import create_app
from serving.config import ServeConfig
from serving.engine import Engine, LoadPlan
from serving.http.http_protocol import ServiceProtocol, listening_socket
from serving.http.middleware import STREAM_GRACE_SECONDS
from serving.search.image_index import ImageIndex
from serving.service import Service

log = logging.getLogger("tessera.serve")


class Server(uvicorn.Server):
    """Stops on the first signal after accepted requests are answered, with exit status 0; a second signal stops it at once."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Signal handler of uvicorn."""
        del sig, frame
        self.force_exit = self.should_exit
        self.should_exit = True


def bearer_token(settings: ServeConfig) -> str | None:
    """The bearer token that clients must send; None if none is required. Raises UsageError if the environment variable is not set."""
    if settings.token_env is None:
        return None
    token = os.environ.get(settings.token_env, "")
    if not token:
        raise UsageError(f"serve.token_env: the environment variable {settings.token_env} is not set")
    return token


def server_config(service: Service) -> uvicorn.Config:
    """uvicorn's settings for a service. Shutdown waits at most as long as a request may take: a client that does not read its
    answer would block it forever."""
    shutdown_timeout = math.ceil(service.settings.deadline_seconds + STREAM_GRACE_SECONDS)
    return uvicorn.Config(
        create_app(service), lifespan="on", log_config=None, access_log=False, server_header=False, ws="none",
        timeout_graceful_shutdown=shutdown_timeout, http=ServiceProtocol,
    )  # fmt: skip


def serve(
    settings: ServeConfig,
    plan: LoadPlan,
    open_image_index: Callable[[], ImageIndex] | None = None,
    load: Callable[[LoadPlan], Engine] = Engine.load,
) -> None:
    """Answer until SIGINT or SIGTERM.

    Args:
        settings: the section `serve`.
        plan: the models to load.
        open_image_index: opens the index of the image search; None: no search.
        load: loads the engine.

    Raises:
        UsageError: a setting is wrong or a model is missing.
        TesseraError: loading or answering failed.
    """
    token = bearer_token(settings)
    server_socket = listening_socket(settings.host, settings.port, "serve.host, serve.port")
    host, port = server_socket.getsockname()[:2]
    service = Service(settings, plan, load, open_image_index, token)
    server = Server(server_config(service))
    service.on_failure = lambda: setattr(server, "should_exit", True)
    print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port} (loading the models)", flush=True)
    if token is None and settings.host not in ("127.0.0.1", "::1", "localhost"):
        log.warning("no bearer token is required (serve.token_env): every client that reaches %s can send requests", settings.host)
    server.run(sockets=[server_socket])
    if isinstance(service.failure, TesseraError):
        raise service.failure
    if service.failure is not None:
        phase = "loading" if service.engine is None else "serving"
        raise TesseraError(f"{phase} {plan.name} failed: {type(service.failure).__name__}: {service.failure}") from service.failure
    print("stopped; all accepted requests were answered", flush=True)
