"""Server-sent events: a stream that cannot go on says so, whatever went wrong."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from foreword.errors import ForewordError, InputError
from foreword.server import sse


class Formatter:
    """Tells each piece, and fails at the second as it is told to."""

    end = "data: [DONE]\n\n"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def opening(self, index: int) -> list[Any]:
        return []

    def chunks(self, piece: Any, logprobs: bool) -> list[Any]:
        if piece.number == 2:
            raise self.error
        return [{"piece": piece.number}]

    def closing(self, answers: Any, has_usage: bool) -> list[Any]:
        return [{"closed": True}]

    def failure(self, message: str, status: int) -> Any:
        return {"error": message, "status": status}


class Piece:
    """One of several."""

    choices = ()

    def __init__(self, number: int) -> None:
        self.number = number


class Answers:
    """Three pieces of one answer."""

    answers = ()

    async def pieces(self) -> AsyncIterator[Piece]:
        for number in (1, 2, 3):
            yield Piece(number)


@pytest.mark.parametrize(
    ("error", "message", "status"),
    [
        (InputError("no such thing"), "no such thing", 400),
        (AttributeError("secret"), "the server failed at this request (AttributeError)", 500),
        (RecursionError("deep"), "the server failed at this request (RecursionError)", 500),
    ],
)
def test_what_ends_a_stream_is_its_last_event_and_counted(
    error: Exception, message: str, status: int
) -> None:
    counted: list[ForewordError] = []

    async def told() -> list[str]:
        made: Any = sse.events(Answers(), Formatter(error), False, False, counted.append)  # type: ignore[arg-type]
        return [event async for event in made]

    first, last, end = asyncio.run(told())
    assert json.loads(first.removeprefix("data: ")) == {"piece": 1}
    assert json.loads(last.removeprefix("data: ")) == {"error": message, "status": status}
    assert end == Formatter.end and [one.http_status for one in counted] == [status]
    assert "secret" not in last
