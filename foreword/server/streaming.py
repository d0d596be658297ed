"""Streaming: pieces of the answers of one call, as they come.

In: the engine's thread and requests. Out: pieces, each of one answer: its new text, its new ids,
and why it ended. A stop string cancels its own answer; the caller cancels the others. Runs on the
event loop and never blocks on the engine. Knows no JSON.
"""

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from foreword.data.detokenizer import Place, TextStream
from foreword.engine.request import Handle, Request
from foreword.engine.sampling import Choice
from foreword.errors import ForewordError, ModelError, TooSlowError
from foreword.server.engine_thread import Worker


@dataclass
class StreamedAnswer:
    """One answer under way.

    Attributes:
        index: its place among the answers of the call.
        num_tokens: generated so far.
        finish_reason: why it ended; None while it goes on.
        waiting: tokens whose place in the text is not certain yet.
    """

    index: int
    handle: Handle
    stream: TextStream
    num_tokens: int = 0
    finish_reason: str | None = None
    waiting: deque[Choice] = field(default_factory=deque)


@dataclass(frozen=True)
class Piece:
    """What is new in one answer.

    Attributes:
        text: what is certain now.
        choices: the tokens whose place in the whole text is certain now; at the end all others.
        places: of each of them.
    """

    answer: StreamedAnswer
    text: str = ""
    choices: tuple[Choice, ...] = ()
    places: tuple[Place, ...] = ()


@dataclass
class Answers:
    """All answers of one HTTP call.

    Args:
        worker: runs the engine.
        tokenizer: turns ids to text.
        stop: strings at which an answer ends.
        seconds: after these the call ends with an error.
        deadline: when they are over, by the event loop's clock; None counts from `pieces` on.
        kept: special tokens that are part of the text.
    """

    worker: Worker
    tokenizer: Any
    stop: Sequence[str]
    seconds: float
    answers: list[StreamedAnswer] = field(default_factory=list)
    first_token_at: float | None = None
    deadline: float | None = None
    kept: frozenset[int] = frozenset()
    _queue: "asyncio.Queue[tuple[int, Choice | None, str | None]]" = field(
        default_factory=asyncio.Queue
    )

    def submit(self, requests: Sequence[Request]) -> None:
        """Submit all requests to the engine, or none.

        Raises:
            ForewordError: as `Worker.submit_all`.
        """
        loop = asyncio.get_running_loop()
        listened = [
            dataclasses.replace(request, listener=_Listener(index, loop, self._queue))
            for index, request in enumerate(requests)
        ]
        for index, handle in enumerate(self.worker.submit_all(listened)):
            self.answers.append(
                StreamedAnswer(
                    index,
                    handle,
                    TextStream(self.tokenizer, self.stop, keeps_special=self.kept),
                )
            )

    def cancel(self) -> None:
        """Cancel every answer that has not ended."""
        for answer in self.answers:
            answer.handle.cancel()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield pieces as they come until every answer has ended; call `cancel` in any case.

        Raises:
            TooSlowError: the time is up. ForewordError: a request has failed.
        """
        try:
            now = asyncio.get_running_loop().time()
            end = now + self.seconds if self.deadline is None else self.deadline
            async with asyncio.timeout_at(end):
                while any(answer.finish_reason is None for answer in self.answers):
                    index, choice, reason = await self._queue.get()
                    if not self._queue.empty():
                        await asyncio.sleep(0)  # what waits in a queue is taken without a pause
                    piece = self._piece(self.answers[index], choice, reason)
                    if piece is not None:
                        yield piece
        except TimeoutError:
            raise TooSlowError(
                f"the answer took longer than {self.seconds:g} seconds; ask for fewer tokens"
            ) from None

    def _piece(
        self, answer: StreamedAnswer, choice: Choice | None, reason: str | None
    ) -> Piece | None:
        if answer.finish_reason is not None:
            return None  # came after a stop string
        if reason == "error":
            raise _as_foreword(answer.handle.error)
        text = ""
        if choice is not None:
            text = self._text(answer, choice, reason)
        if reason is not None:
            text += answer.stream.end()  # may end with a stop string
        if answer.stream.is_stopped:
            answer.handle.cancel()
            reason = "stop"
        answer.finish_reason = reason
        places = answer.stream.take_places()
        choices = tuple(answer.waiting.popleft() for _ in places)
        return Piece(answer, text, choices, tuple(places))

    def _text(self, answer: StreamedAnswer, choice: Choice, reason: str | None) -> str:
        """Return the text that is certain with one more token."""
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        answer.num_tokens += 1
        answer.waiting.append(choice)
        # The id that ends an answer is counted, but its text is not part of the answer.
        if reason == "stop" and choice.id in answer.handle.request.stop_ids:
            answer.stream.skip()
            return ""
        return answer.stream.put([choice.id])


class _Listener:
    """Carries the events of one handle from the engine's thread to the event loop."""

    def __init__(self, index: int, loop: asyncio.AbstractEventLoop, queue: Any) -> None:
        self._index, self._loop, self._queue = index, loop, queue
        self._num_sent = 0

    def __call__(self, handle: Handle) -> None:
        choice = None
        if len(handle.choices) > self._num_sent:
            choice = handle.choices[-1]
            self._num_sent = len(handle.choices)
        event = (self._index, choice, handle.finish_reason)
        self._loop.call_soon_threadsafe(self._queue.put_nowait, event)


def _as_foreword(error: Exception | None) -> ForewordError:
    if isinstance(error, ForewordError):
        return error
    return ModelError(f"the model failed at this request ({type(error).__name__})")
