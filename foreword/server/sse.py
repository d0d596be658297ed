"""Server-sent events: the pieces of a call's answers as the chunks or events of an OpenAI stream.

In: answers that fill, and their formatter. Out: events, and the response that sends them. Knows no
request's body.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.responses import StreamingResponse

from foreword.errors import ForewordError, ModelError
from foreword.server.middleware import failure
from foreword.server.output_items import ResponseFormatter
from foreword.server.responses import ChatFormatter, CompletionFormatter
from foreword.server.streaming import Answers, Piece

log = logging.getLogger("foreword.server")
Formatter = ChatFormatter | CompletionFormatter | ResponseFormatter
MANY_TOKENS = 32  # of one chunk: with their likeliest ids, more take milliseconds to write


async def events(
    answers: Answers,
    formatter: Formatter,
    has_logprobs: bool,
    has_usage: bool,
    on_error: Callable[[ForewordError], None],
) -> AsyncIterator[str]:
    """Yield server-sent events; an error after the first of them is an event too, and told."""
    try:
        for answer in answers.answers:
            for opening in formatter.opening(answer.index):
                yield _event(opening)
        async with contextlib.aclosing(answers.pieces()) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                if told := await _chunks(formatter, piece, has_logprobs):
                    yield told
        for last in formatter.closing(answers.answers, has_usage):
            yield _event(last)
    except ForewordError as error:
        on_error(error)
        yield _event(formatter.failure(str(error), error.http_status))
    except Exception as error:  # the client is told, as where nothing is streamed
        log.exception("a stream failed")
        on_error(ModelError(failure(error)))
        yield _event(formatter.failure(failure(error), 500))
    if formatter.end:
        yield formatter.end


async def _chunks(formatter: Formatter, piece: Piece, has_logprobs: bool) -> str:
    def write() -> str:
        return "".join(map(_event, formatter.chunks(piece, has_logprobs)))

    # The first one may hold the logprobs of a whole prompt, and one that ends a run of tokens whose
    # text was not certain holds theirs: others must not wait for them.
    if has_logprobs and (piece.answer.num_tokens <= 1 or len(piece.choices) > MANY_TOKENS):
        return await asyncio.to_thread(write)
    return write()


def _event(content: dict[str, Any]) -> str:
    """Return an event, by the name that the chunk gives itself as `type`, if any."""
    name = f"event: {content['type']}\n" if "type" in content else ""
    return f"{name}data: {json.dumps(content, ensure_ascii=False)}\n\n"


class EventStream(StreamingResponse):
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
