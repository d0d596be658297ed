"""ASGI middleware: checks host, key and body size before a handler runs, and logs every request.

In: ASGI messages. Out: the same, or an error in OpenAI's format. Keys are compared in constant
time, by their hashes. Of what a client made up the log holds its own id of a request, of plain
letters, and no text. Knows no model.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from foreword.config import checked_key
from foreword.server.known_routes import path_of
from foreword.server.tracing import Tracing

log = logging.getLogger("foreword.access")

AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]

# The pages hold nothing of users or prompts, and probes carry no key.
OPEN = ("/", "/page.js", "/page.css", "/favicon.ico", "/docs", "/health", "/ready")
# Whatever the load, these are answered.
PROBES = ("/health", "/ready", "/metrics")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE")
CLIENT_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
MAX_MESSAGE = 1000  # characters of an error; it may repeat what a client sent
ADMIN = ("/v1/load_soft_prompt", "/v1/unload_soft_prompt")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


def error_body(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    """Return an error in OpenAI's format."""
    kinds = {401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError"}
    kind = kinds.get(status, "BadRequestError" if status < 500 else "InternalServerError")
    message, param = message[:MAX_MESSAGE], param[:200] if param is not None else None
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass(frozen=True)
class RequestBounds:
    """What the middleware lets through.

    Attributes:
        body_bytes: a longer body is not read.
        body_seconds: a body that takes longer to come is not waited for.
        num_requests: at once, probes aside.
    """

    body_bytes: int
    body_seconds: float
    num_requests: int


class AccessMiddleware:
    """The outermost layer of the application.

    Args:
        app: the application.
        api_key: what every route but the open ones needs; None lets everybody in.
        admin_key: what loading and unloading needs, whatever else is set; None forbids it.
        bounds: of requests.
        hosts: names by which the server may be called; None takes any.
        origins: of web pages that a browser lets use the server; none by default.
        on_refused: told the status of each request that is refused here.
        tracing: exports a span for each call.
    """

    def __init__(
        self,
        app: Any,
        *,
        api_key: str | None,
        admin_key: str | None,
        bounds: RequestBounds,
        hosts: tuple[str, ...] | None,
        origins: tuple[str, ...] = (),
        on_refused: Callable[[int], None] = lambda _: None,
        tracing: Tracing | None = None,
    ) -> None:
        self.app, self.bounds, self.hosts, self.on_refused = app, bounds, hosts, on_refused
        self.tracing = tracing
        self._keys = _digest("the API key", api_key), _digest("the admin key", admin_key)
        self._num_requests = 0
        self._handle_any = AllowedOrigins(self._handle, origins) if origins else self._handle

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, call = time.perf_counter(), _Call(send)
        scope.setdefault("state", {})["call"] = call
        try:
            await self._handle_any(scope, receive, call.send)
        except asyncio.CancelledError:
            # The server's time to end is up; raised again, it would be logged as a failure.
            await call.answer(503, "the server is being stopped")
        except Exception as error:
            log.error("a handler failed: %s at %s", type(error).__name__, _where(error))
            await call.answer(500, failure(error))
        finally:
            headers = dict(scope["headers"])
            call.fields |= {
                "route": self._route(scope),
                "method": scope["method"] if scope["method"] in METHODS else "other",
                "status": call.status,
                "seconds": round(time.perf_counter() - started, 6),
            }
            if client_id := _client_id(headers):
                call.fields["client_request_id"] = client_id
            fields = {"event": "request", "id": call.id, **call.fields}
            # Probes ask every few seconds; what they are told matters when it is no.
            level = logging.DEBUG if scope["path"] in PROBES and call.status < 400 else logging.INFO
            log.log(level, "%s", _Lazy(fields), extra={"fields": fields})
            if self.tracing is not None and scope["path"] not in PROBES:
                self.tracing.record(headers, fields)

    def _route(self, scope: Any) -> str:
        """Return the path of a request's route, also where it was refused before it got there."""
        known = getattr(scope.get("route"), "path", None)
        return known or path_of(getattr(self.app, "routes", ()), scope) or "none"

    async def _handle(self, scope: Any, receive: Receive, send: Send) -> None:
        """Refuse a request, or let it through where it is not one too many."""
        refusal = self._refusal(scope["method"], scope["path"], dict(scope["headers"]))
        is_probe = scope["path"] in PROBES
        if refusal is None and not is_probe and self._num_requests >= self.bounds.num_requests:
            refusal = 503, "as many requests are under way as may be; come back later"
        if refusal is not None:
            self.on_refused(refusal[0])
            await _answer(send, *refusal)
            return
        # What GET answers, HEAD does without a body, which the HTTP server leaves out.
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        self._num_requests += not is_probe
        try:
            await self.app(asked, _bounded(receive, self.bounds), send)
        finally:
            self._num_requests -= not is_probe
            if "route" in asked:
                scope["route"] = asked["route"]

    def _refusal(
        self, method: str, path: str, headers: dict[bytes, bytes]
    ) -> tuple[int, str] | None:
        host = headers.get(b"host", b"").decode("latin-1")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self.hosts is not None and name.lower() not in self.hosts:
            return 403, "this server answers to its own address only"
        try:
            length = int(headers.get(b"content-length", b"0"))
        except ValueError:
            return 400, "Content-Length is not a number"
        if length > self.bounds.body_bytes:
            return 413, f"the body is larger than {self.bounds.body_bytes} bytes"
        # A web page elsewhere can make a browser send any other kind without asking first.
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if method == "POST" and kind != b"application/json":
            return 415, "expected Content-Type: application/json"
        return self._wrong_key(path, headers)

    def _wrong_key(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        given = hashlib.sha256(key.strip() if scheme.lower() == b"bearer" else b"").digest()
        api, admin = self._keys
        if path in ADMIN:
            if admin is None:
                return 403, "loading at run time is off; start with --runtime-loading and a key"
            is_right = hmac.compare_digest(given, admin)
        else:
            is_right = api is None or hmac.compare_digest(given, api) or path in OPEN
            is_right = is_right or (admin is not None and hmac.compare_digest(given, admin))
        return None if is_right else (401, "a valid key is needed: Authorization: Bearer KEY")


class _Lazy:
    """Fields as JSON, written where a line is."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def __str__(self) -> str:
        return json.dumps(self.fields)


def _client_id(headers: dict[bytes, bytes]) -> str | None:
    """Return how the client, or a proxy before it, calls a request: in short, plain letters."""
    for name in (b"x-client-request-id", b"x-request-id"):
        if found := CLIENT_ID.fullmatch(headers.get(name, b"")):
            return found[0].decode()
    return None


class _Call:
    """One request's answer: its status, and what its handler notes for the log."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.id = uuid.uuid4().hex
        self.status = 0
        self.fields: dict[str, Any] = {}

    async def send(self, message: AsgiMessage) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", []),
                (b"x-request-id", self.id.encode()),
                (b"x-content-type-options", b"nosniff"),
            ]
        await self._send(message)

    async def answer(self, status: int, message: str) -> None:
        """Answer with an error, where nothing has been sent yet."""
        if not self.status:
            await _answer(self.send, status, message)


class AllowedOrigins(CORSMiddleware):
    """Lets web pages of some origins use the server (CORS), without cookies.

    Args:
        app: what answers all but the question of a browser, which comes without a key.
        origins: as browsers write them.
    """

    def __init__(self, app: Any, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),  # clients send headers of their own
            expose_headers=("x-request-id", "retry-after"),
        )

    def preflight_response(self, request_headers: Any) -> Response:
        """Answer the question of a browser whether a page may send a request."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        message = "this server does not take such requests from that origin: see --allow-origin"
        return JSONResponse(error_body(message, 403), 403, {"vary": response.headers["vary"]})


async def _answer(send: Send, status: int, message: str) -> None:
    body = json.dumps(error_body(message, status)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _bounded(receive: Receive, bounds: RequestBounds) -> Receive:
    """Limit a body whose length is not declared, and the time that it takes to come."""
    seen, is_whole = 0, False
    deadline = asyncio.get_running_loop().time() + bounds.body_seconds

    async def bounded() -> AsgiMessage:
        nonlocal seen, is_whole
        try:
            async with asyncio.timeout_at(None if is_whole else deadline):
                message = await receive()
        except TimeoutError:
            raise _closing(408, "the body did not come in time") from None
        is_whole = is_whole or not message.get("more_body", False)
        seen += len(message.get("body", b""))
        if seen > bounds.body_bytes:
            raise _closing(413, f"the body is larger than {bounds.body_bytes} bytes")
        return message

    return bounded


def _closing(status: int, message: str) -> HTTPException:
    """Return an exception that the framework hands on from where it reads the body."""
    return HTTPException(status, message, {"connection": "close"})


def failure(error: Exception) -> str:
    """Return what a client is told of an error that nobody expected."""
    return f"the server failed at this request ({type(error).__name__})"


def _digest(name: str, key: str | None) -> bytes | None:
    key = checked_key(name, key)
    return hashlib.sha256(key.encode()).digest() if key is not None else None


def _where(error: Exception) -> str:
    """Return file and line of an error: the message may hold a client's text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown"
