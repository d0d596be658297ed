"""The routes: JSON in, the engine asked, JSON or a stream of events out.

In: a backbone, a catalog of names, a worker, limits and keys. Out: an ASGI application. A handler
checks, encodes and submits; then it waits for pieces, and cancels when its client has gone.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

import foreword
from foreword import chat, request
from foreword.backbone import Backbone
from foreword.config import ServeConfig
from foreword.errors import BusyError, ForewordError, InputError
from foreword.server.answers import Answers, Piece
from foreword.server.bodies import ChatWords, CompletionWords, usage
from foreword.server.catalog import Catalog, Served
from foreword.server.gate import LOOPBACK, Gate, error_body
from foreword.server.grammar import Grammars
from foreword.server.metrics import Metrics
from foreword.server.schema import (
    ChatRequest,
    Common,
    CompletionRequest,
    NameRequest,
    TokenizeRequest,
)
from foreword.server.worker import Worker

PAGE = Path(__file__).parent / "page"
PAGE_KINDS = {"index.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {}}}
    for status, text in (
        (400, "the request is wrong"),
        (401, "a key is needed"),
        (403, "not allowed here"),
        (404, "no such model"),
        (413, "the body is too large"),
        (415, "the body is not JSON"),
        (503, "busy, or the engine is dead"),
    )
}
Words = ChatWords | CompletionWords
T = TypeVar("T")


@dataclass
class State:
    """What the handlers share."""

    backbone: Backbone
    catalog: Catalog
    worker: Worker
    config: ServeConfig
    metrics: Metrics
    grammars: Grammars
    encoder: ThreadPoolExecutor  # one thread: tokenizers are not safe under several
    on_death: Callable[[], None]

    async def encode(self, call: Callable[[], T]) -> T:
        """Run what tokenizes or reads files beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.encoder, call)


def create_app(
    backbone: Backbone,
    catalog: Catalog,
    worker: Worker,
    config: ServeConfig,
    *,
    api_key: str | None = None,
    admin_key: str | None = None,
    on_death: Callable[[], None] = lambda: None,
) -> Gate:
    """Return the application.

    Args:
        backbone: the model, with a tokenizer.
        catalog: the names that are served.
        worker: runs the engine; started and stopped with the application.
        config: limits.
        api_key: what clients must send; None lets everybody in.
        admin_key: what loading at run time needs.
        on_death: called once the engine has failed as a whole.
    """
    ends = chat.end_tokens(backbone, "", catalog.base.encoding)
    state = State(
        backbone,
        catalog,
        worker,
        config,
        Metrics(catalog.base.name, worker.engine),
        Grammars(backbone.tokenizer, ends),
        ThreadPoolExecutor(1, "encoder"),
        on_death,
    )
    app = FastAPI(
        title="foreword",
        version=foreword.__version__,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.shared = state
    _add_routes(app)
    _add_error_handlers(app, state)
    return Gate(
        app,
        api_key=api_key,
        admin_key=admin_key if config.runtime_loading else None,
        max_body_bytes=config.max_body_bytes,
        hosts=LOOPBACK if config.host in LOOPBACK else None,
    )


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: State = app.state.shared
    state.worker.start()
    watch = asyncio.create_task(_watch(state))
    try:
        yield
    finally:
        watch.cancel()
        await asyncio.to_thread(state.worker.stop)
        state.encoder.shutdown(wait=False, cancel_futures=True)


async def _watch(state: State) -> None:
    """Notice a dead engine; probes get a moment to see it before the process ends."""
    while state.worker.error is None:
        await asyncio.sleep(0.2)
    await asyncio.sleep(1.0)
    state.on_death()


# Routes -----------------------------------------------------------------------------------------


def _add_routes(app: FastAPI) -> None:
    app.post("/v1/chat/completions", responses=ERRORS, response_model=None)(chat_completions)
    app.post("/v1/completions", responses=ERRORS, response_model=None)(completions)
    app.post("/tokenize", responses=ERRORS)(tokenize)
    app.get("/v1/models", responses=ERRORS)(list_models)
    app.get("/v1/models/{model:path}", responses=ERRORS)(show_model)
    app.post("/v1/load_soft_prompt", responses=ERRORS)(load_soft_prompt)
    app.post("/v1/unload_soft_prompt", responses=ERRORS)(unload_soft_prompt)
    app.get("/health", responses=ERRORS)(health)
    app.get("/ready", responses=ERRORS)(ready)
    app.get("/version", responses=ERRORS)(version)
    app.get("/metrics", response_class=Response, responses=ERRORS)(metrics)
    for path, file in (("/", "index.html"), ("/page.js", "page.js"), ("/page.css", "page.css")):
        app.get(path, include_in_schema=False)(_page(file))


async def chat_completions(body: ChatRequest, http: Request) -> Response:
    """Answer a conversation."""
    state = _state(http)
    served = await state.encode(lambda: state.catalog.find(body.model))
    messages = [message.model_dump(exclude_none=True) for message in body.messages]

    def encode() -> list[request.Request]:
        ids = chat.encode(state.backbone, messages, served.encoding)
        ends = chat.end_tokens(state.backbone, messages, served.encoding)
        limit = body.max_completion_tokens
        limit = limit if limit is not None else body.max_tokens
        if limit is None:
            room = state.worker.engine.max_length - len(ids) - _num_virtual(served)
            limit = max(1, min(room, state.config.default_max_tokens))
        return _requests(state, body, served, [ids], ends, limit)

    requests = await state.encode(encode)
    words = ChatWords(served.name, state.backbone.tokenizer)
    return await _answer(http, body, served, requests, words)


async def completions(body: CompletionRequest, http: Request) -> Response:
    """Continue texts or ids."""
    state = _state(http)
    served = await state.encode(lambda: state.catalog.find(body.model))
    tokenizer = state.backbone.tokenizer

    def encode() -> tuple[list[request.Request], list[str]]:
        encoded = [
            chat.encode(state.backbone, one, served.encoding) if isinstance(one, str) else one
            for one in body.prompts
        ]
        texts = [
            one if isinstance(one, str) else str(tokenizer.decode(one)) for one in body.prompts
        ]
        ends = chat.end_tokens(state.backbone, "", served.encoding)
        limit = body.max_tokens if body.max_tokens is not None else 16
        requests = _requests(state, body, served, encoded, ends, limit)
        return requests, [text for text in texts for _ in range(body.n)]

    requests, texts = await state.encode(encode)
    words = CompletionWords(served.name, tokenizer, texts if body.echo else None)
    return await _answer(http, body, served, requests, words)


async def tokenize(body: TokenizeRequest, http: Request) -> dict[str, Any]:
    """Return the ids of a text or a conversation, as the model's prompt encodes them."""
    state = _state(http)
    served = await state.encode(lambda: state.catalog.find(body.model))
    text: Any = body.prompt
    if body.messages is not None:
        text = [message.model_dump(exclude_none=True) for message in body.messages]
    ids = await state.encode(lambda: chat.encode(state.backbone, text, served.encoding))
    return {
        "tokens": ids,
        "count": len(ids),
        "virtual_tokens": _num_virtual(served),
        "max_model_len": state.worker.engine.max_length,
    }


async def list_models(http: Request) -> dict[str, Any]:
    """List the bare model and every prompt."""
    state = _state(http)
    return {"object": "list", "data": [_card(state, served) for served in state.catalog.all()]}


async def show_model(model: str, http: Request) -> dict[str, Any]:
    """Describe one model."""
    state = _state(http)
    return _card(state, await state.encode(lambda: state.catalog.find(model)))


async def load_soft_prompt(body: NameRequest, http: Request) -> dict[str, Any]:
    """Serve a name of the store, at its current version."""
    state = _state(http)
    served = await asyncio.to_thread(state.catalog.load, body.name)
    _note(http, {"loaded": served.name, "version": served.facts["version"]})
    return _card(state, served)


async def unload_soft_prompt(body: NameRequest, http: Request) -> dict[str, Any]:
    """Serve a name no longer."""
    _state(http).catalog.unload(body.name)
    _note(http, {"unloaded": body.name})
    return {"name": body.name, "unloaded": True}


async def health(http: Request) -> dict[str, str]:
    """Say whether the engine lives."""
    if _state(http).worker.error is not None:
        raise HTTPException(503, "the engine has failed; the server ends and must be restarted")
    return {"status": "ok"}


async def ready(http: Request) -> dict[str, str]:
    """Say whether requests are taken."""
    if not _state(http).worker.is_alive:
        raise HTTPException(503, "no requests are taken now")
    return {"status": "ready"}


async def version() -> dict[str, str]:
    """Say which release this is."""
    return {"version": foreword.__version__}


async def metrics(http: Request) -> Response:
    """Return metrics in Prometheus' text format."""
    text = _state(http).metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _page(file: str) -> Callable[[], Awaitable[Response]]:
    content = (PAGE / file).read_bytes()
    policy = {"content-security-policy": "default-src 'self'; frame-ancestors 'none'"}

    async def page() -> Response:
        return Response(content, media_type=PAGE_KINDS[file], headers=policy)

    return page


# From a body to requests, from pieces to an answer ----------------------------------------------


def _requests(
    state: State,
    body: Common,
    served: Served,
    encoded: Sequence[Sequence[int]],
    ends: Sequence[int],
    limit: int,
) -> list[request.Request]:
    """Return the engine's requests: each prompt `n` times."""
    if len(encoded) * body.n > state.config.max_choices:
        raise InputError(
            f"{len(encoded)} prompts times n = {body.n}: at most {state.config.max_choices} "
            "answers to one request; send several"
        )
    schema = body.response_format.schema_to_follow if body.response_format else None
    has_echo = isinstance(body, CompletionRequest) and body.echo
    try:
        settings = [body.sampling(index) for index in range(len(encoded) * body.n)]
    except ValueError:
        raise InputError("logit_bias: expected token ids as keys") from None
    requests = [
        request.Request(
            tuple(ids),
            served.source,
            settings[place * body.n + copy],
            limit,
            frozenset() if body.ignore_eos else frozenset(ends),
            state.grammars.constraint(schema) if schema is not None else None,
            body.num_logprobs if has_echo else None,
        )
        for place, ids in enumerate(encoded)
        for copy in range(body.n)
    ]
    for one in requests:
        state.worker.engine.check(one)
    return requests


async def _answer(
    http: Request, body: Common, served: Served, requests: list[request.Request], words: Words
) -> Response:
    state = _state(http)
    answers = Answers(
        state.worker, state.backbone.tokenizer, body.stops, state.config.request_seconds
    )
    started = time.perf_counter()
    answers.submit(requests)
    has_logprobs = body.num_logprobs is not None

    def note() -> None:
        facts = _facts(answers, started)
        _note(http, {"model": served.name, "soft_prompt": served.label, **facts})
        state.metrics.ended(served.label, facts)

    if body.stream:
        has_usage = body.stream_options is not None and body.stream_options.include_usage
        return _Stream(answers, _events(answers, words, has_logprobs, has_usage), note)
    try:
        pieces = await _unless_gone(http, _all(answers))
    finally:
        answers.cancel()
        note()
    return JSONResponse(words.body(answers.answers, pieces, has_logprobs))


async def _all(answers: Answers) -> list[Piece]:
    return [piece async for piece in answers.pieces()]


async def _events(
    answers: Answers, words: Words, has_logprobs: bool, has_usage: bool
) -> AsyncIterator[str]:
    """Yield server-sent events, an error among them where one comes late."""
    try:
        for answer in answers.answers:
            if opening := words.opening(answer.index):
                yield _event(opening)
        async with contextlib.aclosing(answers.pieces()) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                if chunk := words.chunk(piece, has_logprobs):
                    yield _event(chunk)
        if has_usage:
            yield _event(words.usage_chunk(answers.answers))
    except ForewordError as error:
        yield _event(error_body(str(error), error.http_status))
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


class _Stream(StreamingResponse):
    """A stream whose requests are cancelled however it ends, also before its first event."""

    def __init__(
        self, answers: Answers, events: AsyncIterator[str], note: Callable[[], None]
    ) -> None:
        super().__init__(events, media_type="text/event-stream")
        self.headers["cache-control"] = "no-cache"
        self._answers, self._note = answers, note

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.cancel()
            self._note()


async def _unless_gone(http: Request, answer: Any) -> list[Piece]:
    """Wait for an answer, and stop when its client has gone."""
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_until_gone(http))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise HTTPException(499, "the client has gone")
        result: list[Piece] = work.result()
        return result
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _until_gone(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


# Small things -----------------------------------------------------------------------------------


def _state(http: Request) -> State:
    state: State = http.app.state.shared
    return state


def _note(http: Request, facts: dict[str, Any]) -> None:
    http.scope["state"]["call"].facts |= facts


def _num_virtual(served: Served) -> int:
    return served.source.num_virtual_tokens if served.source is not None else 0


def _facts(answers: Answers, started: float) -> dict[str, Any]:
    """Return what the log and the metrics keep of a call: numbers only."""
    counted = usage(answers.answers)
    first = answers.first_token_at
    return {
        "prompt_tokens": counted["prompt_tokens"],
        "cached_tokens": counted["prompt_tokens_details"]["cached_tokens"],
        "new_tokens": counted["completion_tokens"],
        "longest": max((answer.num_tokens for answer in answers.answers), default=0),
        "finish_reasons": [answer.finish_reason or "abort" for answer in answers.answers],
        "first_token_seconds": first - started if first is not None else None,
        "seconds": time.perf_counter() - started,
    }


def _card(state: State, served: Served) -> dict[str, Any]:
    """Describe a model as OpenAI's API does, with what a prompt says of itself."""
    card: dict[str, Any] = {
        "id": served.name,
        "object": "model",
        "created": 0,
        "owned_by": "foreword",
        "root": str(served.entry) if served.entry is not None else served.name,
        "parent": state.catalog.base.name if served.source is not None else None,
        "max_model_len": state.worker.engine.max_length - _num_virtual(served),
    }
    if served.source is not None:
        card["soft_prompt"] = dict(served.facts)
    return card


def _add_error_handlers(app: FastAPI, state: State) -> None:
    async def on_foreword(_: Request, error: Exception) -> Response:
        assert isinstance(error, ForewordError)
        headers = {"retry-after": "1"} if error.http_status == 503 else {}
        state.metrics.refused("queue_full" if isinstance(error, BusyError) else "invalid")
        return JSONResponse(error_body(str(error), error.http_status), error.http_status, headers)

    async def on_invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        state.metrics.refused("invalid")
        return JSONResponse(error_body(f"{where}: {first['msg']}", 400, where or None), 400)

    async def on_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        return JSONResponse(
            error_body(str(error.detail), error.status_code), error.status_code, headers
        )

    app.exception_handler(ForewordError)(on_foreword)
    app.exception_handler(RequestValidationError)(on_invalid)
    app.exception_handler(HTTPException)(on_http)
