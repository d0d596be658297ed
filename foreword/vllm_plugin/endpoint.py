"""Endpoint plugin: vLLM's own routes, with the prompts of a store as models.

In: requests for `/v1/chat/completions`, `/v1/completions` and `/v1/models`. Out: vLLM's answers.
A request that names a prompt is bound to it and passed to vLLM's own handler under the base's name;
where that handler would render the request, it gets the bound rows instead. All other requests
are vLLM's. Tensors from clients are refused everywhere. Does not know how rows are encoded.
"""

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from transformers import PreTrainedTokenizerBase
from vllm.entrypoints.generate.base.protocol import StreamOptions
from vllm.entrypoints.openai.chat_completion import api_router as chat_router
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion import api_router as completion_router
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.exceptions import GenerationError
from vllm.inputs.engine import embeds_input, tokens_input
from vllm.logger import init_logger
from vllm.sampling_params import StructuredOutputsParams

from foreword.data.tokenizer_facts import tokenizer_facts
from foreword.errors import ForewordError, InputError, UnsupportedError
from foreword.model.base_model import Base, fingerprint_of, shapes_of_config
from foreword.server.catalog import Catalog, ServedModel
from foreword.server.middleware import error_body
from foreword.server.tool_answers import CallsOfAnswers
from foreword.vllm_plugin import CONNECTOR, NAME, compatibility, connector, settings
from foreword.vllm_plugin.frontend import Bound, Frontend, Limits
from foreword.vllm_plugin.metrics import PluginMetrics
from foreword.vllm_plugin.responses import ResponseRewriter
from foreword.vllm_plugin.store_watcher import Watch

log = init_logger("vllm.foreword")
access = init_logger("vllm.foreword.access")

CLIENT_GONE = 499  # as nginx calls it; nobody is there to read it
Handler = Callable[[Any, Request], Awaitable[Any]]
_bound: ContextVar[Bound | None] = ContextVar("foreword_bound", default=None)


class Plugin:
    """What vLLM finds at the entry point `foreword` of `vllm.endpoint_plugins`."""

    name = NAME
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes that know prompts, before vLLM's own."""
        checked = [Depends(validate_json_request)]

        @app.post("/v1/chat/completions", dependencies=checked, response_model=None)
        async def create_chat_completion(
            request: ChatCompletionRequest, raw_request: Request
        ) -> Any:
            stock: Handler = chat_router.create_chat_completion
            return await self._answer(request, raw_request, stock, is_chat=True)

        @app.post("/v1/completions", dependencies=checked, response_model=None)
        async def create_completion(request: CompletionRequest, raw_request: Request) -> Any:
            stock: Handler = completion_router.create_completion
            return await self._answer(request, raw_request, stock, is_chat=False)

        @app.get("/v1/models")
        async def show_available_models(raw_request: Request) -> JSONResponse:
            models = await raw_request.app.state.openai_serving_models.show_available_models()
            content = models.model_dump()
            content["data"] += [self._card(served) for served in self._frontend.catalog.all()[1:]]
            return JSONResponse(content)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Load the prompts of the store, once the engine has started.

        Raises:
            ForewordError: an engine that could not serve prompts exactly.
        """
        config = engine_client.vllm_config
        setup = settings.setup_of(config)
        compatibility.check_engine(setup)
        model = config.model_config
        names = [path.name for path in state.openai_serving_models.base_model_paths]
        tokenizer = engine_client.renderer.tokenizer
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise UnsupportedError(
                f"{type(tokenizer).__name__} is no tokenizer of transformers; leave out "
                "--tokenizer-mode"
            )
        base = Base(
            names[0],
            model.get_hidden_size(),
            shapes_of_config(model.hf_text_config),
            await asyncio.to_thread(_fingerprint, model),
            compatibility.forms_of(setup, CONNECTOR),
            tokenizer_facts(tokenizer),
        )
        store = settings.store_of(config)
        catalog = Catalog(base, store, names[0])
        self._metrics = PluginMetrics(names[0])
        self._frontend = Frontend(
            catalog, Watch(catalog, store, names), copy.deepcopy(tokenizer), _limits(config)
        )
        await self._frontend.run(self._frontend.watch.look)
        self._tasks.append(asyncio.create_task(self._frontend.follow_forever()))
        _bind_renderer(state.online_renderer)
        # From here on only this plugin brings embeddings: what clients send is refused by vLLM.
        model.enable_prompt_embeds = False
        served = ", ".join(one.name for one in catalog.all())
        log.info("serving %s from %s", served, store.directory)

    def _card(self, served: ServedModel) -> dict[str, Any]:
        assert served.source is not None
        frontend = self._frontend
        return {
            "id": served.name,
            "object": "model",
            "created": served.created,
            "owned_by": "foreword",
            "root": str(served.entry),
            "parent": frontend.catalog.base.name,
            "max_model_len": frontend.limits.max_length - served.source.num_virtual_tokens,
            "soft_prompt": dict(served.facts),
        }

    async def _answer(self, body: Any, http: Request, stock: Handler, *, is_chat: bool) -> Any:
        """Answer behind a prompt, or let vLLM answer."""
        started, frontend = time.perf_counter(), self._frontend
        if not frontend.is_prompt(body.model):
            refused = connector.ORDER in (body.kv_transfer_params or {})
            text = f"kv_transfer_params: {connector.ORDER!r} is what the server itself says there"
            return _error(InputError(text)) if refused else await stock(body, http)
        try:
            bound: Bound = await frontend.run(lambda: frontend.bind(body, is_chat=is_chat))
        except ForewordError as error:
            self._metrics.count_rejected()
            return _error(error)
        calls = CallsOfAnswers(bound.use) if bound.use is not None else None
        rewriter = ResponseRewriter(
            bound.served.name, bound.num_virtual, len(bound.rows), calls=calls
        )
        _prepare(body, bound, rewriter, frontend.catalog.base.name)
        token = _bound.set(bound)
        try:
            response = await stock(body, http)
        except asyncio.CancelledError:  # the client has gone
            self._note(rewriter, bound.served, started, None)
            raise
        except GenerationError:
            text = f"{rewriter.name} could not be read by the engine; its log says why"
            return JSONResponse(error_body(text, 500), 500)
        finally:
            _bound.reset(token)
        if isinstance(response, StreamingResponse):
            response.body_iterator = self._streamed(
                rewriter.stream(response.body_iterator), rewriter, bound.served, started
            )
        elif response is None or not response.body:  # the client has gone, and vLLM says nothing
            self._note(rewriter, bound.served, started, None)
            return Response(status_code=CLIENT_GONE)
        elif response.status_code == 200:
            response.body = json.dumps(
                rewriter.whole(json.loads(response.body)), ensure_ascii=False
            ).encode()
            response.headers["content-length"] = str(len(response.body))
            self._note(rewriter, bound.served, started, None)
        return response

    async def _streamed(
        self,
        chunks: AsyncIterator[str],
        rewriter: ResponseRewriter,
        served: ServedModel,
        started: float,
    ) -> AsyncIterator[str]:
        first: float | None = None
        try:
            async for chunk in chunks:
                if first is None:
                    first = time.perf_counter() - started
                yield chunk
        finally:
            self._note(rewriter, served, started, first)

    def _note(
        self, rewriter: ResponseRewriter, served: ServedModel, started: float, first: float | None
    ) -> None:
        """Count an answer, and write its line of log: names and numbers, no text."""
        seconds = time.perf_counter() - started
        reasons = rewriter.finish_reasons or ["abort"]
        self._metrics.count_finished(served.label, rewriter.usage, reasons, seconds, first)
        line = {
            "event": "request",
            "model": rewriter.name,
            "soft_prompt": served.label,
            "root": str(served.entry),
            **rewriter.usage,
            "finish_reasons": reasons,
            "seconds": round(seconds, 6),
        }
        access.info("%s", json.dumps(line))


def _error(error: ForewordError) -> JSONResponse:
    return JSONResponse(error_body(str(error), error.http_status), error.http_status)


def _prepare(body: Any, bound: Bound, rewriter: ResponseRewriter, base: str) -> None:
    """Change a body to what vLLM's own handler is given."""
    body.model = base
    body.kv_transfer_params = {connector.ORDER: bound.order} if bound.order else None
    if bound.use is not None:  # shown, held and read by foreword: vLLM is asked for text
        body.tools, body.tool_choice = None, "none"
        body.skip_special_tokens = not bound.use.kept
        if bound.use.grammar is not None:
            body.structured_outputs = StructuredOutputsParams(grammar=bound.use.grammar)
    if not body.ignore_eos:
        body.stop_token_ids = [*(body.stop_token_ids or ()), *bound.stop_ids]
    if body.stream:
        options = body.stream_options
        rewriter.tells_usage = options is not None and bool(options.include_usage)
        body.stream_options = options or StreamOptions()
        body.stream_options.include_usage = True  # what is counted is counted there


def _bind_renderer(renderer: Any) -> None:
    """Make a renderer return the bound rows of a request that has some."""
    completion, chat = renderer.render_completion, renderer.render_chat

    async def render_completion(request: Any, **options: Any) -> Any:
        bound = _bound.get()
        return await completion(request, **options) if bound is None else _inputs(bound)

    async def render_chat(request: Any, **options: Any) -> Any:
        bound = _bound.get()
        return await chat(request, **options) if bound is None else ([], _inputs(bound))

    renderer.render_completion, renderer.render_chat = render_completion, render_chat


def _inputs(bound: Bound) -> list[Any]:
    """Return the engine's inputs."""
    return [
        tokens_input(row.ids, cache_salt=row.salt)
        if row.mixed is None
        else embeds_input(
            prompt_embeds=row.mixed.embeddings,
            prompt_token_ids=row.ids,
            is_token_ids=row.mixed.is_real,
            cache_salt=row.salt,
        )
        for row in bound.rows
    ]


def _limits(config: Any) -> Limits:
    """Return the limits of an engine, by vLLM's configuration."""
    model = config.model_config
    eos = (model.try_get_generation_config() or {}).get("eos_token_id")
    return Limits(
        max_length=model.max_model_len,
        vocab_size=model.get_vocab_size(),
        dtype=model.dtype,
        repetition_penalty=model.get_diff_sampling_param().get("repetition_penalty", 1.0),
        end_ids=tuple(eos) if isinstance(eos, list) else (() if eos is None else (eos,)),
        has_grammars=config.structured_outputs_config.backend == "guidance",
    )


def _fingerprint(model: Any) -> dict[str, Any]:
    """Return the checkpoint's fingerprint; nothing, and a warning, where it cannot be read."""
    try:
        found = fingerprint_of(model.model, model.revision)
    except Exception as error:  # whatever a checkpoint of another layout makes transformers raise
        found = {}
        log.warning("the checkpoint cannot be read here: %s: %s", type(error).__name__, error)
    if not found:
        log.warning("prompts of another base with the same sizes cannot be told from this one's")
    elif "tensors" not in found:
        log.warning(
            "prompts of another base with the same embeddings cannot be told from this one's"
        )
    return found
