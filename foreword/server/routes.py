"""Route handlers: each validates, encodes, submits and formats one kind of request.

In: validated bodies. Out: HTTP responses. Text, images and sounds are encoded to ids as the named
prompt's training encoded them. Does not know how the engine runs.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

import foreword
from foreword import chat
from foreword.backbone import Backbone
from foreword.config import EncodingConfig, ServeConfig
from foreword.data.processor import Media
from foreword.data.response_reader import NUM_BEFORE
from foreword.engine import request
from foreword.errors import InputError
from foreword.prompt import history
from foreword.server import message_media, reference
from foreword.server.catalog import ServedModel
from foreword.server.fields import is_longer
from foreword.server.output_items import ResponseFormatter
from foreword.server.protocol import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    NameRequest,
    TemplateFields,
    TokenizeRequest,
)
from foreword.server.response_request import ResponseRequest
from foreword.server.responses import MARK, ChatFormatter, CompletionFormatter
from foreword.server.serving import Encoded, check_choices, reply, requests_of
from foreword.server.sse import Formatter
from foreword.server.state import AppState, note, state_of
from foreword.server.template_settings import with_effort
from foreword.server.tool_use import ToolUse, check_begun, check_unformed, tool_use

LONG_TEXT = 32_768  # characters or ids: longer ones take the tokenizer tens of milliseconds
PAGE = Path(__file__).parent / "page"
OUTLINE_POINTS = 60  # of a curve in a list: many prompts are listed at once
PAGE_KINDS = {
    "index.html": "text/html",
    "page.js": "text/javascript",
    "page.css": "text/css",
    "favicon.svg": "image/svg+xml",
}
POLICY = {"content-security-policy": "default-src 'self'; frame-ancestors 'none'"}


async def chat_completions(body: ChatRequest, http: Request) -> Response:
    """Answer a conversation."""

    def formatter(served: ServedModel, tokenizer: Any, use: ToolUse | None) -> Formatter:
        return ChatFormatter(served.name, tokenizer, body.n, use)

    limit_field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    return await _chat(body, http, formatter, limit_field)


async def responses(body: ResponseRequest, http: Request) -> Response:
    """Answer input items; nothing is kept of them."""

    def formatter(served: ServedModel, tokenizer: Any, use: ToolUse | None) -> Formatter:
        return ResponseFormatter(served.name, tokenizer, body, use)

    return await _chat(body.chat, http, formatter, "max_output_tokens", has_reasoning=False)


async def _chat(
    body: ChatRequest,
    http: Request,
    make_formatter: Callable[[ServedModel, Any, ToolUse | None], Formatter],
    limit_field: str,
    has_reasoning: bool = True,
) -> Response:
    state = state_of(http)
    deadline = state.deadline()
    served = await state.encode(lambda: state.catalog.find(body.model), deadline)
    check_choices(state, body, 1)

    def encode(backbone: Backbone) -> tuple[list[request.Request], ToolUse | None]:
        schema = body.response_format.schema_to_follow if body.response_format else None
        check_unformed(schema, body.continue_final_message)
        effort = body.reasoning_effort
        encoding = with_effort(backbone, served.encoding, effort, body.shows_tools)
        use = tool_use(backbone.tokenizer, encoding, body, schema, has_reasoning)
        check_begun(use, body.continue_final_message)
        messages = _loaded(backbone, state.config, body.messages)
        longest = room(state, served)
        ids, media, stop_ids = _encoded(backbone, messages, encoding, body, use, longest)
        if use is not None:
            use = replace(use, before=_text_of(backbone, ids[-NUM_BEFORE:]))
        limit = body.max_completion_tokens
        limit = limit if limit is not None else body.max_tokens
        if limit is None:
            left = room(state, served) - len(ids)
            limit = max(1, min(left, state.config.default_max_tokens))
        grammar = use.grammar if use is not None else None
        encoded: list[Encoded] = [(ids, media)]
        requests = requests_of(
            state, body, served, encoded, [stop_ids], limit, grammar, limit_field
        )
        return requests, use

    requests, use = await state.encode_with(encode, _is_slow(body), deadline)
    formatter = make_formatter(served, state.backbone.tokenizer, use)
    return await reply(http, body, served, requests, formatter, deadline)


async def completions(body: CompletionRequest, http: Request) -> Response:
    """Continue texts or ids."""
    state = state_of(http)
    deadline = state.deadline()
    served = await state.encode(lambda: state.catalog.find(body.model), deadline)
    prompts = body.prompts
    check_choices(state, body, len(prompts))

    def encode(backbone: Backbone) -> tuple[list[request.Request], list[str], Sequence[int]]:
        encoded: list[Encoded] = [
            chat.encode(backbone, one, served.encoding, room(state, served))
            if isinstance(one, str)
            else (one, None)
            for one in prompts
        ]
        stop_ids = [
            chat.end_tokens(backbone, one if isinstance(one, str) else "", served.encoding)
            for one in prompts
        ]
        limit = body.max_tokens if body.max_tokens is not None else 16
        requests = requests_of(state, body, served, encoded, stop_ids, limit)
        texts = [_text_of(backbone, one) for one in prompts] if body.echo else []
        is_told = body.echo and any(isinstance(one, str) for one in prompts)
        around = chat.encode(backbone, MARK, served.encoding)[0] if is_told else []
        return requests, [text for text in texts for _ in range(body.n)], around

    requests, texts, around = await state.encode_with(encode, _is_slow(body), deadline)
    echoed = texts if body.echo else None
    formatter = CompletionFormatter(served.name, state.backbone.tokenizer, body.n, echoed, around)
    return await reply(http, body, served, requests, formatter, deadline)


async def tokenize(body: TokenizeRequest, http: Request) -> dict[str, Any]:
    """Return the ids of a text or a conversation, as the model's prompt encodes them."""
    state = state_of(http)
    deadline = state.deadline()
    served = await state.encode(lambda: state.catalog.find(body.model), deadline)

    def encode(backbone: Backbone) -> Sequence[int]:
        if body.messages is None:
            return chat.encode(backbone, body.prompt or "", served.encoding)[0]
        effort = body.reasoning_effort
        encoding = with_effort(backbone, served.encoding, effort, body.shows_tools)
        use = tool_use(backbone.tokenizer, encoding, body)
        check_begun(use, body.continue_final_message)
        messages = _loaded(backbone, state.config, body.messages)
        return _encoded(backbone, messages, encoding, body, use)[0]

    ids = await state.encode_with(encode, _is_slow(body), deadline)
    return {
        "tokens": ids,
        "count": len(ids),
        "virtual_tokens": num_virtual(served),
        "max_model_len": state.worker.engine.max_length,
    }


async def detokenize(body: DetokenizeRequest, http: Request) -> dict[str, Any]:
    """Return the text of ids, special tokens included."""
    state = state_of(http)
    deadline = state.deadline()
    await state.encode(lambda: state.catalog.find(body.model), deadline)
    size = len(state.backbone.tokenizer)
    if unknown := next((one for one in body.tokens if one >= size), None):
        raise InputError(f"tokens: {unknown} is no id of the tokenizer; it has {size}")
    text = await state.encode_with(
        lambda backbone: _text_of(backbone, body.tokens), _is_slow(body), deadline
    )
    return {"prompt": text}


async def list_models(http: Request) -> Response:
    """List the bare model and every prompt, each with an outline of how it was trained."""
    state = state_of(http)

    def listed() -> Response:
        cards = [_card(state, served) for served in state.catalog.all()]
        for card in cards:
            if known := card.get("soft_prompt", {}).get("history"):
                card["soft_prompt"]["history"] = history.thinned(known, OUTLINE_POINTS)
        return JSONResponse({"object": "list", "data": cards})

    return await asyncio.to_thread(listed)  # seconds for thousands of prompts with their curves


async def show_model(model: str, http: Request) -> dict[str, Any]:
    """Describe one model."""
    state = state_of(http)
    found = await state.encode(lambda: state.catalog.find(model), state.deadline())
    return _card(state, found)


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
    text = await asyncio.to_thread(state_of(http).metrics.text)  # 0.1 s for 256 prompts
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def page_of(file: str) -> Callable[[], Awaitable[Response]]:
    """Return the handler of one file of the page."""
    content = (PAGE / file).read_bytes()

    async def page() -> Response:
        return Response(content, media_type=PAGE_KINDS[file], headers=POLICY)

    return page


async def show_reference(http: Request) -> Response:
    """Return the page of all routes and their fields."""
    text = reference.page_of(http.app.openapi())
    return Response(text, media_type="text/html", headers=POLICY)


def num_virtual(served: ServedModel) -> int:
    """Return the virtual tokens of a model: 0 for the bare one."""
    return served.source.num_virtual_tokens if served.source is not None else 0


def room(state: AppState, served: ServedModel) -> int:
    """Return the real tokens that one request can have."""
    return state.worker.engine.max_length - num_virtual(served)


def _encoded(
    backbone: Backbone,
    messages: Sequence[message_media.Message],
    encoding: EncodingConfig,
    body: TemplateFields,
    use: ToolUse | None,
    longest: int | None = None,
) -> tuple[list[int], Media | None, list[int]]:
    """Return a conversation's ids, its media, and the ids that end its answer."""
    if body.continue_final_message:
        ids = chat.encode_begun(backbone, messages, encoding, longest)
        return ids, None, chat.end_tokens(backbone, messages[:-1], encoding)
    tools = use.shown if use is not None else ()
    ids, media = chat.encode(backbone, messages, encoding, longest, tools)
    return ids, media, chat.end_tokens(backbone, messages, encoding, tools)


def _is_slow(body: BaseModel) -> bool:
    """Return whether a request takes a while to be encoded: it is long, or more than text."""
    messages: Sequence[ChatMessage] = getattr(body, "messages", None) or ()
    return is_longer(body, LONG_TEXT) or any(
        part.type != "text"
        for message in messages
        if isinstance(message.content, list)
        for part in message.content
    )


def _text_of(backbone: Backbone, prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    return str(backbone.tokenizer.decode(prompt, clean_up_tokenization_spaces=False))


def _loaded(
    backbone: Backbone, config: ServeConfig, messages: Sequence[ChatMessage]
) -> list[message_media.Message]:
    """Return messages whose images and sounds are in memory."""
    plain = [message.turn() for message in messages]
    return message_media.load(plain, backbone, config)


def _card(state: AppState, served: ServedModel) -> dict[str, Any]:
    """Describe a model as OpenAI's API does, with what a prompt says of itself."""
    card: dict[str, Any] = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "foreword",
        "root": str(served.entry) if served.entry is not None else served.name,
        "parent": state.catalog.base.name if served.source is not None else None,
        "max_model_len": state.worker.engine.max_length - num_virtual(served),
    }
    if served.source is not None:
        card["soft_prompt"] = dict(served.facts)
    return card
