"""Serving: from a validated body to engine requests, and from their pieces to a response.

In: a body, the model that it names, encoded prompts. Out: one JSON answer, or a stream of
server-sent events. However an answer ends, its requests are cancelled, and its numbers are logged
and counted. Does not know how text becomes ids.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from foreword.data.processor import Media
from foreword.engine import request
from foreword.engine.scheduler import too_long
from foreword.errors import ForewordError, InputError
from foreword.server.catalog import ServedModel
from foreword.server.protocol import Common, CompletionRequest
from foreword.server.responses import usage
from foreword.server.sse import EventStream, Formatter, events
from foreword.server.state import AppState, note, state_of
from foreword.server.streaming import Answers, Piece

Encoded = tuple[Sequence[int], Media | None]  # a prompt, and the media between its ids


def check_choices(state: AppState, body: Common, num_prompts: int) -> None:
    """Refuse more answers than one call may have, before anything is encoded."""
    if num_prompts * body.n > state.config.max_choices:
        raise InputError(
            f"{num_prompts} prompts times n = {body.n}: at most {state.config.max_choices} "
            "answers to one request; send several"
        )


def requests_of(
    state: AppState,
    body: Common,
    served: ServedModel,
    encoded: Sequence[Encoded],
    stop_ids: Sequence[Sequence[int]],
    limit: int,
    grammar: str | None = None,
    limit_field: str = "max_tokens",
) -> list[request.Request]:
    """Return the engine's requests: each prompt `n` times, each with the ids that end it, and held
    to a grammar or else to the schema of `response_format`, which ends at the same ids.

    Args:
        state: the application's.
        body: the request.
        served: the model that it names.
        encoded: each prompt.
        stop_ids: of each prompt: the ids that end its answer.
        limit: new tokens of an answer.
        grammar: what an answer is held to.
        limit_field: of the body, where the limit stands.

    Raises:
        InputError: a request that the engine cannot take, or a grammar that cannot be followed.
    """
    schema = body.response_format.schema_to_follow if body.response_format else None
    has_echo = isinstance(body, CompletionRequest) and body.echo
    settings = [body.sampling(index) for index in range(len(encoded) * body.n)]
    own_stops = frozenset(body.stop_token_ids or ())
    requests = [
        request.Request(
            tuple(ids),
            served.source,
            settings[place * body.n + copy],
            limit,
            own_stops | frozenset(() if body.ignore_eos else stop_ids[place]),
            num_prompt_logprobs=body.num_logprobs if has_echo else None,
            media=media,
        )
        for place, (ids, media) in enumerate(encoded)
        for copy in range(body.n)
    ]
    for one in requests:
        _check_room(one, state, limit_field)
        state.worker.engine.check(one)
    if grammar is not None:
        constraint = state.grammars.of_tools(grammar)
    elif schema is not None:
        constraint = state.grammars.constraint(schema)
    else:
        return requests
    ends = [own_stops.union(ids) for ids in stop_ids for _ in range(body.n)]
    return [
        replace(one, constraint=constraint.copy(own))
        for one, own in zip(requests, ends, strict=True)
    ]


def _check_room(one: request.Request, state: AppState, limit_field: str) -> None:
    """Refuse a request that would fit with fewer new tokens; what never fits is the engine's.

    Raises:
        InputError: says how many there may be, and which option of the server bounds them.
    """
    engine, virtual = state.worker.engine, one.prompt.num_virtual_tokens if one.prompt else 0
    room = engine.max_length - virtual - len(one.ids)
    if not 1 <= room < one.max_new_tokens:
        return
    option = {
        engine.limits.max_slots: ", or serve with a larger --batch-tokens",
        state.config.max_length: ", or serve with a larger --max-length",
    }.get(engine.max_length, "")
    raise InputError(
        f"{limit_field}: {too_long(one, virtual, engine.max_length)}: give at most {room}{option}"
    )


async def reply(
    http: Request,
    body: Common,
    served: ServedModel,
    requests: list[request.Request],
    formatter: Formatter,
    deadline: float,
) -> Response:
    """Submit requests to the engine and return their answers, whole or as a stream."""
    state = state_of(http)
    answers = Answers(
        state.worker,
        state.backbone.tokenizer,
        body.stops,
        state.config.request_seconds,
        deadline=deadline,
        kept=formatter.kept,
    )
    started = time.perf_counter()
    answers.submit(requests)
    has_logprobs, errors = body.num_logprobs is not None, list[ForewordError]()

    def fail(error: ForewordError) -> None:
        errors.append(error)
        state.metrics.count_error(error)

    def end() -> None:
        fields = fields_of(answers, body.n, started)
        note(http, {"model": served.name, "soft_prompt": served.label, **fields})
        state.metrics.count_finished(served.label, fields, has_failed=bool(errors))

    if body.stream:
        has_usage = body.stream_options is not None and body.stream_options.include_usage
        told = events(answers, formatter, has_logprobs, has_usage, fail)
        return EventStream(answers, told, end)
    try:
        pieces = await collected(http, answers)
    except ForewordError as error:
        errors.append(error)  # counted where it is answered
        raise
    finally:
        answers.cancel()
        end()
    # Thousands of logprobs take a while to write: others must not wait for them.
    return await asyncio.to_thread(
        lambda: JSONResponse(formatter.body(answers.answers, pieces, has_logprobs))
    )


async def collected(http: Request, answers: Answers) -> list[Piece]:
    """Wait for answers, and stop when their client disconnects.

    Raises:
        HTTPException: the client has gone. ForewordError: an answer failed.
    """

    async def all_pieces() -> list[Piece]:
        return [piece async for piece in answers.pieces()]

    work = asyncio.ensure_future(all_pieces())
    disconnected = asyncio.ensure_future(_until_disconnected(http))
    try:
        await asyncio.wait({work, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise HTTPException(499, "the client has gone")
        result: list[Piece] = work.result()
        return result
    finally:
        for task in (work, disconnected):
            task.cancel()
        await asyncio.gather(work, disconnected, return_exceptions=True)


async def _until_disconnected(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def fields_of(answers: Answers, copies: int, started: float) -> dict[str, Any]:
    """Return the numbers of a call for the log and the metrics; no text."""
    counted = usage(answers.answers, copies)
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
