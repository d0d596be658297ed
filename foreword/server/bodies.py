"""Body reading: from a request's bytes to its validated body, large ones off the event loop.

In: an HTTP request, and the model of its route's body. Out: the body, or its first few errors. What
is nested more than 200 deep, holds NaN, half a character or a key twice is no JSON here. Knows no
field by name.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar, get_type_hints

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from foreword.server.body_errors import errors_of, param_of, place_of, problem_of
from foreword.server.state import state_of

LARGE_BYTES = 16_384  # of a body that is not read on the event loop
B = TypeVar("B", bound=BaseModel)


class BodyRoute(APIRoute):
    """A route whose argument `body` is read here: FastAPI itself would do so on the event loop."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of the route, behind the reading of its body."""
        handle = super().get_route_handler()
        kind = get_type_hints(self.endpoint).get("body")
        if kind is None:
            return handle

        async def read(http: Request) -> Response:
            try:
                content = await http.body()
            except ClientDisconnect:
                raise HTTPException(499, "the client has gone") from None
            if len(content) < LARGE_BYTES:
                body = validated(kind, content)
            else:
                loop = asyncio.get_running_loop()
                body = await loop.run_in_executor(state_of(http).reader, validated, kind, content)
            return await handle(_ReadRequest(http, body))

        return read


class _ReadRequest(Request):
    """A request whose body has been read and validated."""

    def __init__(self, http: Request, body: BaseModel) -> None:
        super().__init__(http.scope, http.receive)
        self._validated = body

    async def body(self) -> bytes:
        """Return any bytes: FastAPI asks whether there is a body."""
        return b"{}"

    async def json(self) -> Any:
        """Return the validated body, which FastAPI takes as it is."""
        return self._validated


def validated(kind: type[B], content: bytes) -> B:
    """Return the body that JSON stands for.

    Raises:
        RequestValidationError: no JSON, or not such a body; holds a few errors, not all.
    """
    try:
        data = from_json(content, allow_inf_nan=False)
        json.loads(content, object_pairs_hook=_once)
    except ValueError as error:
        wrong = {"msg": f"the body is no JSON: {error}", "param": None}
        raise RequestValidationError([wrong]) from None
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = errors_of(error)
    raise RequestValidationError([_told(one, kind) for one in found])


def _told(error: Mapping[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """Return an error's line and field, without the value that it is of."""
    line, place = problem_of(error, kind), place_of(error["loc"])
    return {"msg": line, "param": param_of(line, kind) if place == "body" else place}


def kind_of_body(http: Request) -> type[BaseModel] | None:
    """Return the model of the body that a request's route takes; None where it takes none."""
    endpoint = getattr(http.scope.get("route"), "endpoint", None)
    return get_type_hints(endpoint).get("body") if endpoint is not None else None


def _once(pairs: list[tuple[str, Any]]) -> None:
    """Refuse an object that says a key twice: which of both values counts differs among readers."""
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueError(f"an object has the key {name[:80]!r} twice; leave one out")
        seen.add(name)
