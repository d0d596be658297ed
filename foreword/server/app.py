"""FastAPI application: its routes, its error handlers and its lifespan.

In: a backbone, a catalog of names, the engine's thread, limits and keys. Out: an ASGI application
that starts and stops the engine's thread. Does not know what a route does.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import foreword
from foreword import chat
from foreword.backbone import Backbone
from foreword.config import ServeConfig, checked_origin
from foreword.errors import ForewordError, ModelError, NotFoundError
from foreword.os_calls import max_open_files
from foreword.server import classification, routes
from foreword.server.bodies import BodyRoute, kind_of_body
from foreword.server.body_errors import names_of, param_of
from foreword.server.catalog import Catalog
from foreword.server.encoding_threads import EncodingThread, apart
from foreword.server.engine_thread import Worker
from foreword.server.known_routes import no_method, no_route
from foreword.server.metrics import ServerMetrics
from foreword.server.middleware import (
    LOOPBACK,
    AccessMiddleware,
    RequestBounds,
    error_body,
    failure,
)
from foreword.server.state import AppState
from foreword.server.structured_output import Grammars
from foreword.server.tracing import Tracing

GONE = 499  # the client has not waited for its answer
SPARE_FILES = 128  # for all that is no connection
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {}}}
    for status, text in (
        (400, "the request is wrong"),
        (401, "a key is needed"),
        (403, "not allowed here"),
        (404, "no such model"),
        (408, "the request did not come in time"),
        (413, "the body is too large"),
        (415, "the body is not JSON"),
        (500, "the model failed at this request"),
        (503, "busy, or the engine is dead"),
        (504, "the answer took too long"),
    )
}

PAGE_FILES = {
    "/": "index.html",
    "/page.js": "page.js",
    "/page.css": "page.css",
    "/favicon.ico": "favicon.svg",
}


def create_app(
    backbone: Backbone,
    catalog: Catalog,
    worker: Worker,
    config: ServeConfig,
    *,
    api_key: str | None = None,
    admin_key: str | None = None,
    origins: Sequence[str] = (),
    on_death: Callable[[], None] = lambda: None,
    tracing: Tracing | None = None,
) -> AccessMiddleware:
    """Return the application.

    Args:
        backbone: the model, with a tokenizer.
        catalog: the names that are served.
        worker: runs the engine; started and stopped with the application.
        config: limits.
        api_key: what clients must send; None lets everybody in.
        admin_key: what loading at run time needs.
        origins: of web pages that may use the server from a browser.
        on_death: called once the engine has failed as a whole.
        tracing: exports a span for each call; closed with the application.
    """
    end_id = chat.end_tokens(backbone, "", catalog.base.encoding)[0]
    state = AppState(
        backbone,
        catalog,
        worker,
        config,
        ServerMetrics(catalog.base.name, worker.engine),
        Grammars(backbone.tokenizer, end_id),
        EncodingThread("encoder", config.max_queue + config.max_batch),
        EncodingThread("slow-encoder", config.max_queue + config.max_batch),
        apart(backbone),
        ThreadPoolExecutor(1, "reader"),
        on_death,
        tracing,
    )
    app = FastAPI(
        title="foreword",
        version=foreword.__version__,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = BodyRoute
    app.state.shared = state
    _add_routes(app)
    _add_error_handlers(app, state)
    return AccessMiddleware(
        app,
        api_key=api_key,
        admin_key=admin_key if config.runtime_loading else None,
        bounds=RequestBounds(config.max_body_bytes, config.client_seconds, max_requests(config)),
        hosts=LOOPBACK if config.host in LOOPBACK else None,
        origins=tuple(map(checked_origin, origins)),
        on_refused=state.metrics.count_refused,
        tracing=tracing,
    )


def max_requests(config: ServeConfig) -> int:
    """Return how many requests may be open: streams that wait keep their connections, each of
    which takes one of the files that the process may open.
    """
    wanted = 4 * (config.max_queue + config.max_batch)
    num_files = max_open_files()
    return wanted if num_files is None else max(1, min(wanted, num_files - SPARE_FILES))


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: AppState = app.state.shared
    state.worker.start()
    watch = asyncio.create_task(_watch(state))
    try:
        yield
    finally:
        watch.cancel()
        await asyncio.to_thread(state.worker.stop)
        for threads in (state.encoder, state.slow_encoder, state.reader):
            threads.shutdown(wait=False, cancel_futures=True)
        if state.tracing is not None:
            await asyncio.to_thread(state.tracing.close)


async def _watch(state: AppState) -> None:
    """Wait until the engine has failed, let probes see it for a moment, then call `on_death`."""
    while state.worker.error is None:
        await asyncio.sleep(0.2)
    await asyncio.sleep(1.0)
    state.on_death()


# Routes -----------------------------------------------------------------------------------------


def _add_routes(app: FastAPI) -> None:
    app.post("/v1/chat/completions", responses=ERRORS, response_model=None)(routes.chat_completions)
    app.post("/v1/completions", responses=ERRORS, response_model=None)(routes.completions)
    app.post("/v1/responses", responses=ERRORS, response_model=None)(routes.responses)
    app.post("/v1/classify", responses=ERRORS)(classification.classify)
    app.post("/tokenize", responses=ERRORS)(routes.tokenize)
    app.post("/detokenize", responses=ERRORS)(routes.detokenize)
    app.get("/v1/models", responses=ERRORS, response_model=None)(routes.list_models)
    app.get("/v1/models/{model:path}", responses=ERRORS)(routes.show_model)
    app.post("/v1/load_soft_prompt", responses=ERRORS)(routes.load_soft_prompt)
    app.post("/v1/unload_soft_prompt", responses=ERRORS)(routes.unload_soft_prompt)
    app.get("/health", responses=ERRORS)(routes.health)
    app.get("/ready", responses=ERRORS)(routes.ready)
    app.get("/version", responses=ERRORS)(routes.version)
    app.get("/metrics", response_class=Response, responses=ERRORS)(routes.metrics)
    app.get("/docs", include_in_schema=False)(routes.show_reference)
    for path, file in PAGE_FILES.items():
        app.get(path, include_in_schema=False)(routes.page_of(file))


def _add_error_handlers(app: FastAPI, state: AppState) -> None:
    async def on_foreword(http: Request, error: Exception) -> Response:
        assert isinstance(error, ForewordError)
        headers = {"retry-after": "1"} if error.http_status == 503 else {}
        state.metrics.count_error(error)
        kind = kind_of_body(http)
        param = param_of(str(error), kind)
        if kind is not None and isinstance(error, NotFoundError):  # no such model
            param = next((name for name in ("model", "name") if name in names_of(kind)), None)
        body = error_body(str(error), error.http_status, param)
        return JSONResponse(body, error.http_status, headers)

    async def on_invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = error.errors()
        text = "; ".join(one["msg"] for one in found[:4])
        state.metrics.count_rejected("invalid")
        return JSONResponse(error_body(text, 400, found[0].get("param")), 400)

    async def on_http(http: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code < GONE:
            state.metrics.count_refused(error.status_code)
        headers, message = dict(error.headers or {}), str(error.detail)
        if error.status_code == 404:
            message = no_route(app.routes, http.method, http.scope["path"])
        elif error.status_code == 405:
            allowed = headers.get("Allow", "others")
            message = no_method(http.method, http.scope["path"], allowed)
        return JSONResponse(error_body(message, error.status_code), error.status_code, headers)

    async def on_failure(_: Request, error: Exception) -> Response:
        state.metrics.count_error(ModelError(failure(error)))
        return JSONResponse(error_body(failure(error), 500), 500)

    app.exception_handler(Exception)(on_failure)
    app.exception_handler(ForewordError)(on_foreword)
    app.exception_handler(RequestValidationError)(on_invalid)
    app.exception_handler(HTTPException)(on_http)
