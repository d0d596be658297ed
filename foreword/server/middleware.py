"""ASGI middleware: checks host, key and body size before a handler runs, and logs every request.

In: ASGI messages. Out: the same, or an error in OpenAI's format. Keys are compared in constant
time, by their hashes. The log holds no text and no name that a client made up. Knows no model.
"""

import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

log = logging.getLogger("foreword.access")

AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]

# The page is static, and probes carry no key.
OPEN = ("/", "/page.js", "/page.css", "/health", "/ready")
ADMIN = ("/v1/load_soft_prompt", "/v1/unload_soft_prompt")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


def error_body(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    """Return an error in OpenAI's format."""
    kinds = {401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError"}
    kind = kinds.get(status, "BadRequestError" if status < 500 else "InternalServerError")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


class AccessMiddleware:
    """The outermost layer of the application.

    Args:
        app: the application.
        api_key: what every route but the open ones needs; None lets everybody in.
        admin_key: what loading and unloading needs, whatever else is set; None forbids it.
        max_body_bytes: a longer body is not read.
        hosts: names by which the server may be called; None takes any.
    """

    def __init__(
        self,
        app: Any,
        *,
        api_key: str | None,
        admin_key: str | None,
        max_body_bytes: int,
        hosts: tuple[str, ...] | None,
    ) -> None:
        self.app, self.max_body_bytes, self.hosts = app, max_body_bytes, hosts
        self._keys = _digest(api_key), _digest(admin_key)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, call = time.perf_counter(), _Call(send)
        scope.setdefault("state", {})["call"] = call
        headers = dict(scope["headers"])
        refusal = self._refusal(scope["method"], scope["path"], headers)
        try:
            if refusal is not None:
                await call.answer(*refusal)
            else:
                await self.app(scope, _bounded(receive, self.max_body_bytes), call.send)
        except Exception as error:
            log.error("a handler failed: %s at %s", type(error).__name__, _where(error))
            await call.answer(500, f"the server failed at this request ({type(error).__name__})")
        finally:
            call.fields |= {
                "route": getattr(scope.get("route"), "path", "none"),
                "method": scope["method"] if scope["method"].isalpha() else "other",
                "status": call.status,
                "seconds": round(time.perf_counter() - started, 6),
            }
            log.info("%s", json.dumps({"event": "request", "id": call.id, **call.fields}))

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
        if length > self.max_body_bytes:
            return 413, f"the body is larger than {self.max_body_bytes} bytes"
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
        if self.status:
            return
        body = json.dumps(error_body(message, status)).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _bounded(receive: Receive, limit: int) -> Receive:
    """Limit a body whose length is not declared."""
    seen = 0

    async def bounded() -> AsgiMessage:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            # An exception that the framework hands on from where it reads the body.
            raise HTTPException(413, f"the body is larger than {limit} bytes")
        return message

    return bounded


def _digest(key: str | None) -> bytes | None:
    return hashlib.sha256(key.encode()).digest() if key else None


def _where(error: Exception) -> str:
    """Return file and line of an error: the message may hold a client's text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown"
