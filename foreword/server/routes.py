"""Route handlers: each validates, encodes, submits and formats one kind of request.

In: validated bodies. Out: HTTP responses. Text, images and sounds are encoded to ids as the named
prompt's training encoded them. Does not know how the engine runs.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

import foreword
from foreword import chat
from foreword.engine import request
from foreword.prompt import history
from foreword.server import message_media
from foreword.server.catalog import ServedModel
from foreword.server.protocol import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    NameRequest,
    TokenizeRequest,
)
from foreword.server.responses import ChatFormatter, CompletionFormatter
from foreword.server.serving import Encoded, reply, requests_of
from foreword.server.state import AppState, note, state_of

PAGE = Path(__file__).parent / "page"
OUTLINE_POINTS = 60  # of a curve in a list: many prompts are listed at once
PAGE_KINDS = {"index.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}


async def chat_completions(body: ChatRequest, http: Request) -> Response:
    """Answer a conversation."""
    state = state_of(http)
    served = await state.encode(lambda: state.catalog.find(body.model))

    def encode() -> list[request.Request]:
        messages = _loaded(state, body.messages)
        ids, media = chat.encode(state.backbone, messages, served.encoding)
        stop_ids = chat.end_tokens(state.backbone, messages, served.encoding)
        limit = body.max_completion_tokens
        limit = limit if limit is not None else body.max_tokens
        if limit is None:
            room = state.worker.engine.max_length - len(ids) - num_virtual(served)
            limit = max(1, min(room, state.config.default_max_tokens))
        return requests_of(state, body, served, [(ids, media)], stop_ids, limit)

    requests = await state.encode(encode)
    formatter = ChatFormatter(served.name, state.backbone.tokenizer, body.n)
    return await reply(http, body, served, requests, formatter)


async def completions(body: CompletionRequest, http: Request) -> Response:
    """Continue texts or ids."""
    state = state_of(http)
    served = await state.encode(lambda: state.catalog.find(body.model))
    tokenizer = state.backbone.tokenizer

    def encode() -> tuple[list[request.Request], list[str]]:
        encoded: list[Encoded] = [
            chat.encode(state.backbone, one, served.encoding)
            if isinstance(one, str)
            else (one, None)
            for one in body.prompts
        ]
        texts = [
            one if isinstance(one, str) else str(tokenizer.decode(one)) for one in body.prompts
        ]
        stop_ids = chat.end_tokens(state.backbone, "", served.encoding)
        limit = body.max_tokens if body.max_tokens is not None else 16
        requests = requests_of(state, body, served, encoded, stop_ids, limit)
        return requests, [text for text in texts for _ in range(body.n)]

    requests, texts = await state.encode(encode)
    formatter = CompletionFormatter(served.name, tokenizer, body.n, texts if body.echo else None)
    return await reply(http, body, served, requests, formatter)


async def tokenize(body: TokenizeRequest, http: Request) -> dict[str, Any]:
    """Return the ids of a text or a conversation, as the model's prompt encodes them."""
    state = state_of(http)
    served = await state.encode(lambda: state.catalog.find(body.model))

    def encode() -> Sequence[int]:
        if body.messages is None:
            return chat.encode(state.backbone, body.prompt or "", served.encoding)[0]
        messages = _loaded(state, body.messages)
        return chat.encode(state.backbone, messages, served.encoding)[0]

    ids = await state.encode(encode)
    return {
        "tokens": ids,
        "count": len(ids),
        "virtual_tokens": num_virtual(served),
        "max_model_len": state.worker.engine.max_length,
    }


async def list_models(http: Request) -> dict[str, Any]:
    """List the bare model and every prompt, each with an outline of how it was trained."""
    state = state_of(http)
    cards = [_card(state, served) for served in state.catalog.all()]
    for card in cards:
        if known := card.get("soft_prompt", {}).get("history"):
            card["soft_prompt"]["history"] = history.thinned(known, OUTLINE_POINTS)
    return {"object": "list", "data": cards}


async def show_model(model: str, http: Request) -> dict[str, Any]:
    """Describe one model."""
    state = state_of(http)
    return _card(state, await state.encode(lambda: state.catalog.find(model)))


async def load_soft_prompt(body: NameRequest, http: Request) -> dict[str, Any]:
    """Serve a name of the store, at its current version."""
    state = state_of(http)
    served = await asyncio.to_thread(state.catalog.load, body.name)
    note(http, {"loaded": served.name, "version": served.facts["version"]})
    return _card(state, served)


async def unload_soft_prompt(body: NameRequest, http: Request) -> dict[str, Any]:
    """Serve a name no longer."""
    state_of(http).catalog.unload(body.name)
    note(http, {"unloaded": body.name})
    return {"name": body.name, "unloaded": True}


async def health(http: Request) -> dict[str, str]:
    """Say whether the engine lives."""
    if state_of(http).worker.error is not None:
        raise HTTPException(503, "the engine has failed; the server ends and must be restarted")
    return {"status": "ok"}


async def ready(http: Request) -> dict[str, str]:
    """Say whether requests are taken."""
    if not state_of(http).worker.is_alive:
        raise HTTPException(503, "no requests are taken now")
    return {"status": "ready"}


async def version() -> dict[str, str]:
    """Say which release this is."""
    return {"version": foreword.__version__}


async def metrics(http: Request) -> Response:
    """Return metrics in Prometheus' text format."""
    text = state_of(http).metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def page_of(file: str) -> Callable[[], Awaitable[Response]]:
    """Return the handler of one file of the page."""
    content = (PAGE / file).read_bytes()
    policy = {"content-security-policy": "default-src 'self'; frame-ancestors 'none'"}

    async def page() -> Response:
        return Response(content, media_type=PAGE_KINDS[file], headers=policy)

    return page


def num_virtual(served: ServedModel) -> int:
    """Return the virtual tokens of a model: 0 for the bare one."""
    return served.source.num_virtual_tokens if served.source is not None else 0


def _loaded(state: AppState, messages: Sequence[ChatMessage]) -> list[message_media.Message]:
    """Return messages whose images and sounds are in memory."""
    plain = [message.turn() for message in messages]
    return message_media.load(plain, state.backbone, state.config)


def _card(state: AppState, served: ServedModel) -> dict[str, Any]:
    """Describe a model as OpenAI's API does, with what a prompt says of itself."""
    card: dict[str, Any] = {
        "id": served.name,
        "object": "model",
        "created": 0,
        "owned_by": "foreword",
        "root": str(served.entry) if served.entry is not None else served.name,
        "parent": state.catalog.base.name if served.source is not None else None,
        "max_model_len": state.worker.engine.max_length - num_virtual(served),
    }
    if served.source is not None:
        card["soft_prompt"] = dict(served.facts)
    return card
